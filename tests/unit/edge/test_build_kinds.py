"""The edge bundle of a user's model: a ZipMap and external weights are rewritten, other kinds are refused in one sentence."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from chosen_models import NUMBERS, pack_classifier, pack_mixed, pack_regressor, pack_scores
from edge_bundles import build_bundle
from http_clients import ROW
from packed_models import write_model
from project import MODEL, ROOT
from sealed_models import seal

from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import sha256
from iris_wsgi.model.session import load_model
from iris_wsgi.patterns.edge.bundle import open_bundle
from iris_wsgi.patterns.edge.device_store import DeviceStore
from iris_wsgi.patterns.edge.update import roll_back, update
from iris_wsgi.settings import BadSetting

sys.path.insert(0, str(ROOT / "bin/edge.d"))
import pyz

REWRITTEN = ["map of numbers", "map of strings", "weights in a second file"]
REPORT = {"key": "a-key-of-16-letters", "counts": [{"day": "2026-01-31", "label": "ten", "count": 3}]}


def manifest_of(bundle: Path) -> dict:
    return json.loads((bundle / "manifest.json").read_text())


@pytest.mark.parametrize("kind", REWRITTEN)
def test_a_zipmap_and_weights_in_other_files_become_one_graph_with_a_tensor(tmp_path, kind):
    folder = write_model(tmp_path / "model", kind)
    bundle = build_bundle(tmp_path / "edge", folder)
    graph = onnx.load(bundle / "model/model.onnx", load_external_data=False)
    assert not [node for node in graph.graph.node if node.op_type == "ZipMap"]
    assert all(output.type.HasField("tensor_type") for output in graph.graph.output)
    assert not [one for one in graph.graph.initializer if one.external_data]
    original, rewritten = load_model(folder)[0], open_bundle(bundle).load()[0]
    rows = np.random.default_rng(5).normal(0, 3, (200, original.width)).astype(np.float32)
    assert (original.predict(rows) == rewritten.predict(rows)).all() and original.labels == rewritten.labels
    model = manifest_of(bundle)["model"]
    assert (model["source"], model["digest"]) == (original.digest, rewritten.digest) and original.digest != rewritten.digest
    assert not (bundle / "model/model.onnx.data").exists()


def with_double_output(folder: Path) -> Path:
    """Packs a model whose graph gives its probabilities as float64."""
    write_model(folder, "string classes")
    graph = onnx.load(folder / "model.onnx")
    graph.graph.node.append(onnx.helper.make_node("Cast", ["probabilities"], ["doubles"], to=onnx.TensorProto.DOUBLE))
    (place,) = [i for i, one in enumerate(graph.graph.output) if one.name == "probabilities"]
    graph.graph.output[place].CopyFrom(onnx.helper.make_tensor_value_info("doubles", onnx.TensorProto.DOUBLE, [None, 3]))
    onnx.save(graph, folder / "model.onnx")
    document = json.loads((folder / "golden.json").read_text())
    document["files"]["model.onnx"] = sha256((folder / "model.onnx").read_bytes())
    (folder / "golden.json").write_text(json.dumps(document))
    return folder


def test_an_output_of_float64_becomes_one_of_float32(tmp_path):
    folder = with_double_output(tmp_path / "model")
    bundle = build_bundle(tmp_path / "edge", folder)
    (output,) = [one for one in onnx.load(bundle / "model/model.onnx").graph.output if "float32" in one.name]
    assert output.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    rows = np.random.default_rng(5).normal(0, 3, (50, 4)).astype(np.float32)
    assert (load_model(folder)[0].predict(rows) == open_bundle(bundle).load()[0].predict(rows)).all()


def test_a_zipmap_of_a_folder_that_names_no_classes_is_rewritten_too(tmp_path, model_copy):
    path = model_copy / "iris_svc.onnx"
    graph = onnx.load(path)
    (values,) = [one for one in graph.graph.output if one.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    zipmap = onnx.helper.make_node("ZipMap", [values.name], ["maps"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2])
    graph.graph.node.append(zipmap)
    others = [one for one in graph.graph.output if one.name != values.name]
    del graph.graph.output[:]
    graph.graph.output.extend([*others, onnx.ValueInfoProto(name="maps")])
    onnx.save(graph, path)
    seal(model_copy)
    model, _ = open_bundle(build_bundle(tmp_path / "edge", model_copy)).load()
    assert model.labels[model.outputs.best(model.predict(np.array([ROW], np.float32)))[0]] == "setosa" and not model.is_map


def test_a_zipmap_of_another_order_than_golden_json_is_refused(tmp_path):
    folder = write_model(tmp_path / "model", "map of numbers")
    graph = onnx.load(folder / "model.onnx")
    (node,) = [node for node in graph.graph.node if node.op_type == "ZipMap"]
    node.attribute[0].ints[:] = [10, 30, 20]
    onnx.save(graph, folder / "model.onnx")
    document = json.loads((folder / "golden.json").read_text())
    document["files"]["model.onnx"] = sha256((folder / "model.onnx").read_bytes())
    (folder / "golden.json").write_text(json.dumps(document))
    # The golden rows notice another order, unless they are of one class.
    with pytest.raises(BadModel, match=r"golden row 0 has the label|has a ZipMap of the classes 10, 30, 20"):
        build_bundle(tmp_path / "edge", folder)


def test_the_bundle_says_that_the_graph_decides_the_label(tmp_path):
    folder = write_model(tmp_path / "model", "the label of the graph")
    bundle = build_bundle(tmp_path / "edge", folder)
    golden = json.loads((bundle / "model/golden.json").read_text())
    assert (golden["label"], golden["classes"]) == ("graph", [0, 1]) and "source" not in manifest_of(bundle)["model"]


@pytest.mark.parametrize(
    ("pack", "words"),
    [
        (pack_regressor, "gives values; edge is for classifiers with probabilities"),
        (pack_scores, "gives scores; edge is for classifiers with probabilities"),
        (pack_mixed, r"takes age, in years \(float32\), rooms \(int64\), city \(string\), owner \(bool\); edge is for models"),
        (lambda folder: write_model(folder, "float64 input"), r"takes input \(float64\); edge is for models with one float32"),
        (lambda folder: write_model(folder, "columns of floats"), r"takes column_0 \(float32\), .*; edge is for models with one"),
        (lambda folder: write_model(folder, "one probability"), "gives the probability of one class alone"),
    ],
)  # fmt: skip
def test_a_model_that_browsers_cannot_run_is_refused_in_one_sentence(tmp_path, pack, words):
    with pytest.raises(BadModel, match=words) as refused:
        build_bundle(tmp_path / "edge", pack(tmp_path / "model"))
    assert "\n" not in str(refused.value) and not (tmp_path / "edge").exists()


@pytest.mark.parametrize("pack", [pack_regressor, pack_scores])
def test_the_single_file_is_for_classifiers_only(tmp_path, pack):
    with pytest.raises(BadModel, match="edge is for classifiers with probabilities"):
        pyz.write(tmp_path / "edge.pyz", pack(tmp_path / "model"), ROOT / "bin/edge.d/zipapp_main.py")
    assert not (tmp_path / "edge.pyz").exists()


def test_the_server_of_the_original_serves_the_rewritten_bundle_with_its_labels(make_app, tmp_path):
    folder = write_model(tmp_path / "model", "map of numbers")
    bundle = build_bundle(tmp_path / "edge", folder)
    app = make_app(model_dir=str(folder), edge_dir=str(bundle))
    assert app.get("/edge/manifest.json").json["model"]["labels"] == ["thirty", "ten", "twenty"]
    app.get("/edge/model/model.onnx")
    app.post_json("/edge/telemetry", REPORT, status=204)
    assert 'edge_predictions_total{label="ten"} 3' in app.get("/metrics").text
    app.post_json("/edge/telemetry", REPORT | {"counts": [{"day": "2026-01-31", "label": "setosa", "count": 1}]}, status=422)


@pytest.mark.parametrize("kind", ["map of numbers", "the label of the graph"])
def test_a_bundle_of_another_model_is_not_served_and_both_digests_are_named(make_app, log, tmp_path, kind):
    other = write_model(tmp_path / "other", kind)
    bundle = build_bundle(tmp_path / "edge", other)
    digests = [load_model(folder)[0].digest for folder in (other, MODEL)]
    with pytest.raises(BadSetting) as refused:
        make_app(edge_dir=str(bundle))
    assert all(digest in str(refused.value) for digest in digests)
    app = make_app(edge_dir=str(bundle), edge_required="no")
    app.get("/edge/", status=404)
    (warning,) = [line for line in log.events() if "/edge/ is not served" in line.get("message", "")]
    assert warning["level"] == "warning" and all(digest in warning["message"] for digest in digests)


def test_a_device_updates_to_a_rewritten_bundle_and_rolls_back(tmp_path):
    first = build_bundle(tmp_path / "first", write_model(tmp_path / "one", "map of strings"))
    second = build_bundle(tmp_path / "second", write_model(tmp_path / "two", "the label of the graph"))
    device = DeviceStore(tmp_path / "device")
    for source in (first, second):
        assert "golden rows answered" in update(device, str(source))
    assert device.current().manifest.digest == manifest_of(second)["model"]["digest"]
    roll_back(device)
    assert device.current().manifest.source == manifest_of(first)["model"]["source"]
    assert "golden rows answered" in device.current().test()


def test_missing_values_are_allowed_where_the_model_takes_them(tmp_path):
    bundle = build_bundle(tmp_path / "edge", write_model(tmp_path / "model", "missing values"))
    assert [feature["missing"] for feature in manifest_of(bundle)["model"]["features"]] == [True, False, True, False]


def test_without_onnx_the_message_names_the_command_and_other_models_need_none(tmp_path, monkeypatch):
    folder = write_model(tmp_path / "model", "map of numbers")
    other = pack_classifier(tmp_path / "other", features=NUMBERS)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BadModel, match="gives a ZipMap, and onnx is needed to rewrite it for browsers: run bin/setup pack"):
        build_bundle(tmp_path / "edge", folder)
    build_bundle(tmp_path / "edge2", other)
