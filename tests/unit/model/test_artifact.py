"""The model artifact: refused folders, and another classifier that replaces the files."""

import hashlib
import json
import random
import shutil
import threading
from pathlib import Path

import broken_models
import numpy as np
import onnx
import pytest
from http_clients import fetch, http_request, wait_until
from onnx import TensorProto, helper
from project import MODEL
from sealed_models import seal

from iris_wsgi.cli.main import main
from iris_wsgi.errors import BadModel
from iris_wsgi.model import golden
from iris_wsgi.model.session import load_model

SHA = "SHA-256"
SPECIES = ("setosa", "versicolor", "virginica")


def verify(folder: Path) -> str:
    model, pinned = load_model(folder)
    return golden.self_test(model, pinned.cases, pinned.tolerance)


def update_digests(folder: Path, **changes) -> None:
    """Updates the digests in golden.json for the current files, and applies the other changes."""
    path = folder / "golden.json"
    document = json.loads(path.read_text()) | changes
    document["files"] = {
        n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in document["files"] if (folder / n).exists()
    }
    path.write_text(json.dumps(document))


def assert_refused(folder: Path, *words: str) -> None:
    """Asserts that the library and the command refuse the folder in one line with these words."""
    with pytest.raises(BadModel) as caught:
        verify(folder)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_committed_model_passes_and_verify_describes_it(model_copy, capsys):
    assert "golden rows answered" in verify(model_copy)
    assert main(["verify", "--model-dir", str(model_copy)]) == 0
    result = capsys.readouterr().out
    digest = hashlib.sha256((model_copy / "iris_svc.onnx").read_bytes()).hexdigest()
    assert f"model iris_svc 1.0.0 sha256:{digest}\n" in result
    assert "labels: setosa, versicolor, virginica\n" in result
    assert "feature petal_width: float32, trained on 0.1 to 2.5 cm\n" in result
    assert "scikit-learn 1." in result
    assert "alone and in a batch a row gets the same bits\n" in result


def test_verify_tests_the_golden_rows_of_the_fast_model_if_there_is_one(model_copy, capsys):
    words = ["verify", "--model-dir", str(model_copy)]
    assert main(words) == 0
    digest = hashlib.sha256((model_copy / "fast/iris_lr.onnx").read_bytes()).hexdigest()
    assert f"fast model iris_lr 1.0.0 sha256:{digest}: 31 golden rows answered" in capsys.readouterr().out
    with (model_copy / "fast/label.json").open("a") as file:
        file.write(" ")
    assert main(words) == 1
    assert "fast/label.json has the SHA-256" in capsys.readouterr().err
    (model_copy / "fast").rename(model_copy / "elsewhere")
    assert main(words) == 0
    assert "fast" not in capsys.readouterr().out
    assert main([*words, "--fast-model-dir", str(model_copy / "elsewhere")]) == 2
    assert "put the fast model into the folder fast of IRIS_MODEL_DIR" in capsys.readouterr().err


def test_verify_tests_the_golden_rows_of_every_companion_model(model_copy, capsys):
    words = ["verify", "--model-dir", str(model_copy)]
    assert main(words) == 0
    result = capsys.readouterr().out.splitlines()
    names = [
        "fast model iris_lr",
        "pred iris_svc_pred",
        *(f"member {name} iris_{name}" for name in SPECIES),
        "prep and pred, pair",
    ]
    rows = [int(line.partition(": ")[2].split()[0]) for line in result[-6:]]
    assert [line.startswith(name) for line, name in zip(result[-6:], names, strict=True)] == [True] * 6
    assert rows == [31, 34, 33, 34, 33, 34]
    with (model_copy / "prep/iris_prep.onnx").open("ab") as file:
        file.write(b"\0")
    assert main(words) == 1
    assert "prep/iris_prep.onnx has the SHA-256" in capsys.readouterr().err
    for name in ("fast", "prep", "pred", "members"):
        (model_copy / name).rename(model_copy / f"no_{name}")
    assert main(words) == 0


def test_verify_reports_halves_of_two_models(model_copy, capsys):
    other = onnx.load(model_copy / "pred/iris_pred.onnx")
    next(prop for prop in other.metadata_props if prop.key == "pair").value = "sha256:0"
    onnx.save(other, model_copy / "pred/iris_pred.onnx")
    seal(model_copy / "pred")
    assert main(["verify", "--model-dir", str(model_copy)]) == 1
    assert "are not the halves of one model" in capsys.readouterr().err


def test_there_are_at_least_thirty_golden_rows_with_the_labeled_rows_and_edge_cases():
    document = json.loads((MODEL / "golden.json").read_text())
    rows = {case["why"]: case for case in document["rows"]}
    assert len(document["rows"]) >= 30
    assert [rows[f"fixed point: {label}"]["label"] for label in ("setosa", "versicolor", "virginica")] == [
        "setosa",
        "versicolor",
        "virginica",
    ]
    assert {"zeros", "negative zeros", "largest of float32", "smallest subnormal of float32"} <= set(rows)


@pytest.mark.parametrize("name", ["iris_svc.onnx", "label.json", "training.csv"])
def test_one_changed_bit_anywhere_in_a_file_stops_the_start(model_copy, name):
    path = model_copy / name
    content = path.read_bytes()
    for position in random.Random(0).sample(range(len(content) * 8), 40):
        broken = bytearray(content)
        broken[position // 8] ^= 1 << position % 8
        path.write_bytes(broken)
        assert_refused(model_copy, name, SHA)


@pytest.mark.parametrize("name", ["iris_svc.onnx", "label.json", "training.csv", "golden.json"])
def test_a_missing_file_is_named(model_copy, name):
    (model_copy / name).unlink()
    assert_refused(model_copy, name, "No such file")


def test_a_missing_folder_is_named(tmp_path):
    assert_refused(tmp_path / "nowhere", "nowhere", "No such file")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x08" * 1000])
def test_bytes_that_are_not_a_model_are_reported_in_one_line_without_a_banner(model_copy, content, capfd):
    (model_copy / "iris_svc.onnx").write_bytes(content)
    update_digests(model_copy)
    assert_refused(model_copy, "iris_svc.onnx", "onnxruntime")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", "null", '{"files": {}}', '{"model": 1, "files": [], "tolerance": "x", "rows": []}',
     '{"model": "m", "files": {}, "tolerance": 1, "rows": [1]}', '{"model": "m", "files": {}, "tolerance": 1, "rows": {}}',
     '{"model": "m", "files": {}, "tolerance": 1, "rows": [{"row": ["x"], "label": "a", "probabilities": []}]}', "[" * 100_000],
)  # fmt: skip
def test_a_golden_file_of_another_form_is_named(model_copy, content):
    (model_copy / "golden.json").write_text(content)
    assert_refused(model_copy, "golden.json")


def test_golden_rows_must_not_be_empty(model_copy):
    update_digests(model_copy, rows=[])
    assert_refused(model_copy, "no rows")


def test_a_file_without_a_digest_is_named(model_copy):
    path = model_copy / "golden.json"
    document = json.loads(path.read_text())
    for name in ("label.json", "iris_svc.onnx"):
        files = {n: d for n, d in document["files"].items() if n != name}
        path.write_text(json.dumps({**document, "files": files}))
        assert_refused(model_copy, "gives no SHA-256 for " + name)


@pytest.mark.parametrize("name", ["../model/label.json", "/etc/hostname", "a/b"])
def test_a_file_outside_the_folder_is_refused(model_copy, name):
    path = model_copy / "golden.json"
    document = json.loads(path.read_text())
    document["files"][name] = "0" * 64
    path.write_text(json.dumps(document))
    assert_refused(model_copy, "outside its own folder")


@pytest.mark.parametrize(
    "labels",
    ["", "{}", "[]", "{", '{"0": "a"}', '{"0": "a", "1": "a", "2": "b"}', '{"1": "a", "2": "b", "3": "c"}',
     '{"0": "a", "1": "b", "3": "c"}', '{"0": "a", "1": "b", "2": 3}', '{"0": "a", "1": "b", "2": ""}',
     '{"0": "a", "1": "b", "2": null}'],
)  # fmt: skip
def test_labels_that_are_not_numbered_names_are_refused(model_copy, labels):
    (model_copy / "label.json").write_text(labels)
    update_digests(model_copy)
    assert_refused(model_copy, "label.json")


@pytest.mark.parametrize("labels", ['{"0": "a", "1": "b"}', '{"0": "a", "1": "b", "2": "c", "3": "d"}'])
def test_a_number_of_labels_that_differs_from_the_probabilities_is_refused(model_copy, labels):
    (model_copy / "label.json").write_text(labels)
    update_digests(model_copy)
    assert_refused(model_copy, "label.json", "classes")


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (
            {"row": [5.1, 3.5, 1.4, 0.2], "label": "virginica", "probabilities": [0.99954, 0.0003, 0.00016]},
            "expected is virginica",
        ),
        ({"row": [5.1, 3.5, 1.4, 0.2], "label": "setosa", "probabilities": [0.9, 0.05, 0.05]}, "off by"),
        ({"row": [5.1, 3.5, 1.4, 0.2], "label": "setosa", "probabilities": [float("nan")] * 3}, "off by nan"),
        ({"row": [5.1, 3.5, 1.4, 0.2], "label": "setosa", "probabilities": [1.0, 0.0]}, "2 probabilities"),
        ({"row": [5.1, 3.5, 1.4], "label": "setosa", "probabilities": [1.0, 0.0, 0.0]}, "has 3 values"),
        ({"row": [5.1, 3.5, 1.4, float("nan")], "label": "setosa", "probabilities": [1.0, 0.0, 0.0]}, "NaN"),
        ({"row": [5.1, 3.5, 1.4, 1e39], "label": "setosa", "probabilities": [1.0, 0.0, 0.0]}, "finite"),
    ],
)
def test_a_golden_row_with_another_result_of_the_model_is_reported(model_copy, case, words):
    update_digests(model_copy, rows=[case])
    assert_refused(model_copy, "golden row", words)


def test_a_model_that_fails_while_it_runs_is_reported(model_copy, monkeypatch):
    model, pinned = load_model(model_copy)
    model.output_names = ("no such output",)
    with pytest.raises(BadModel, match="golden rows cannot be predicted"):
        golden.self_test(model, pinned.cases, pinned.tolerance)
    assert not golden.passes(model, pinned.cases, pinned.tolerance)


def save_graph(folder: Path, inputs, outputs, nodes=None) -> None:
    nodes = nodes or [helper.make_node("Identity", [inputs[0][0]], [name]) for name, *_ in outputs]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(*i) for i in inputs], [helper.make_tensor_value_info(*o) for o in outputs]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    (folder / "iris_svc.onnx").write_bytes(model.SerializeToString())
    update_digests(folder)


FLOAT, HALF, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ([("x", FLOAT, [None, 3, 2])], [("p", FLOAT, [None, 3, 2])], "must have inputs of columns"),
        ([("x", HALF, [None, 3])], [("p", HALF, [None, 3])], "must have inputs of columns"),
        ([("x", FLOAT, [3])], [("p", FLOAT, [3])], "must take any number of rows"),
        ([("x", FLOAT, [1, 3])], [("p", FLOAT, [1, 3])], "any number of rows"),
        ([("x", FLOAT, [None, None])], [("p", FLOAT, [None, None])], "must have inputs of columns"),
        ([("x", FLOAT, [None, 3])], [("p", FLOAT, [None, 3]), ("q", FLOAT, [None, 3])], "one output of probabilities"),
        ([("x", FLOAT, [None, 4])], [("p", FLOAT, [None, 4])], "for the 3 classes of label.json"),
    ],
)
def test_a_graph_of_another_form_is_refused_with_its_properties(model_copy, inputs, outputs, words):
    save_graph(model_copy, inputs, outputs)
    assert_refused(model_copy, words)


# Classes of a ZipMap, names in label.json, and the names in the order of the classes. None: the names cannot be assigned.
MAPPED = [
    ([0, 1, 2], ("a", "b", "c"), ("a", "b", "c")),
    ([2, 0, 1], ("a", "b", "c"), ("c", "a", "b")),
    ([10, 2, 7], ("a", "b", "c"), ("c", "a", "b")),
    (["10", "2", "7"], ("a", "b", "c"), ("c", "a", "b")),
    (["c", "a", "b"], ("b", "c", "a"), ("c", "a", "b")),
    ([1, 2, 3], ("3", "1", "2"), ("1", "2", "3")),
    (["x", "y", "z"], ("a", "b", "c"), None),
]


@pytest.mark.parametrize(("classes", "labels", "expected"), MAPPED)
def test_a_zipmap_assigns_each_probability_to_the_label_of_its_class(tmp_path, classes, labels, expected):
    tensor, mapped = (
        broken_models.write_broken_model(tmp_path / name, labels=labels, zipmap=given)
        for name, given in (("t", ()), ("m", classes))
    )
    seal(tensor)
    if expected is None:
        with pytest.raises(BadModel, match=r"neither numbers nor the names in label\.json"):
            seal(mapped)
        return
    seal(mapped)
    row = np.array([[3, 2, 1, 0]], np.float32)
    columns = dict(zip(expected, load_model(tensor)[0].predict(row)[0].tolist(), strict=True))
    assert load_model(mapped)[0].predict(row)[0].tolist() == [columns[label] for label in labels]


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("first row only", {}, "for 2 rows has the shape [1, 3]; it must be [2, 3]"),
        ("one dimension for one row", {}, "for 1 row has the shape [3]; it must be [1, 3]"),
        ("two columns", {}, "for the 3 classes of label.json"),
        ("nothing", {"labels": "abcd"}, "for the 4 classes of label.json"),
        ("nothing", {"labels": "abcd", "zipmap": [0, 1, 2]}, "has the shape [1, 3]; it must be [1, 4]"),
        ("nothing", {"labels": "ab", "zipmap": [0, 1, 2]}, "has the shape [1, 3]; it must be [1, 2]"),
        ("first row only", {"zipmap": ["a", "b", "c"]}, "for 2 rows has the shape [1, 3]; it must be [2, 3]"),
    ],
)
def test_a_graph_whose_output_has_another_shape_is_not_served(tmp_path, kind, options, words, capsys):
    folder = broken_models.write_broken_model(tmp_path / "broken", kind, **options)
    # A folder that another program has sealed, with one golden row.
    case = {"row": [1.0, 2.0, 3.0, 4.0], "label": "c", "probabilities": [0.1, 0.2, 0.7]}
    document = {"model": "broken.onnx", "files": {"broken.onnx": "", "label.json": ""}, "tolerance": 1, "rows": [case]}
    (folder / "golden.json").write_text(json.dumps(document))
    update_digests(folder)
    assert main(["verify", "--model-dir", str(folder)]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["rows repeated", "rows dropped"])
def test_a_run_whose_output_has_another_number_of_rows_is_an_error(tmp_path, make_app, kind):
    folder = broken_models.write_broken_model(tmp_path / "broken", kind)
    seal(folder)
    app = make_app(model_dir=str(folder), role="web_single")
    rows = [[float(i % 7), 2.0, 3.0, 1.0] for i in range(64)]
    assert len(app.post_json("/predict/batch", {"data": rows}).json["labels"]) == 64
    document = app.post_json("/predict/batch", {"data": [*rows, rows[0]]}, status=500).json["detail"]
    assert "for 65 rows has the shape" in document and "it must be [65, 3]" in document
    app = make_app(model_dir=str(folder), role="synchronous")
    tensor = {"name": "row", "shape": [65, 4], "datatype": "FP32", "data": [*rows, rows[0]]}
    document = app.post_json("/v2/models/broken/infer", {"inputs": [tensor]}, status=500).json["error"]
    assert "for 65 rows has the shape" in document


def test_a_job_whose_run_has_another_number_of_rows_fails_with_the_reason_and_affects_no_other(tmp_path, run):
    folder = broken_models.write_broken_model(tmp_path / "broken", "rows dropped")
    seal(folder)
    server = run("--model-dir", str(folder), "--cache", "off")
    rows = [[float(i), 2.0, 3.0, 1.0] for i in range(65)]
    jobs = [fetch(server, http_request("POST", "/jobs", {"data": some})).json()["href"] for some in (rows, rows[:64])]
    wait_until(lambda: all(fetch(server, http_request("GET", job)).json().get("finished") for job in jobs), "both jobs are done")
    bad, good = (fetch(server, http_request("GET", job)).json() for job in jobs)
    assert bad["status"] == "failed" and "for 65 rows has the shape [64, 3]" in bad["error"]
    assert good["status"] == "succeeded" and len(good["result"]["labels"]) == 64


def test_verify_refuses_a_first_half_that_drops_rows_and_a_member_of_three_classes(model_copy, capsys, make_app, log):
    path = next((model_copy / "prep").glob("*.onnx"))
    half = onnx.load(path)
    name = half.graph.output[0].name
    for node in half.graph.node:
        node.output[:] = ["whole" if item == name else item for item in node.output]
    for constant, value in (("zero", 0), ("one", 1)):
        half.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), constant))
    half.graph.node.append(helper.make_node("Slice", ["whole", "zero", "one", "zero"], [name]))
    onnx.save(half, path)
    golden_file = model_copy / "prep/golden.json"
    document = json.loads(golden_file.read_text())
    document["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    golden_file.write_text(json.dumps(document))
    assert main(["verify", "--model-dir", str(model_copy)]) == 1
    assert "must be [" in capsys.readouterr().err
    shutil.rmtree(model_copy / "members/setosa")
    shutil.copytree(model_copy / "fast", model_copy / "members/setosa")
    make_app(model_dir=str(model_copy), role="all")
    assert any("must have two classes, with setosa as the last" in line for line in log.raw_lines)


@pytest.mark.parametrize(
    "features",
    ["", "{}", "[1, 2, 3, 4]", '[{"name": "a"}]', '[{"name":"a"},{"name":"a"},{"name":"b"},{"name":"c"}]', '[{"min": 1}]',
     '[{"name":"a","min":"x"},{"name":"b"},{"name":"c"},{"name":"d"}]'],
)  # fmt: skip
def test_features_of_another_form_are_refused(model_copy, features):
    model = onnx.load(model_copy / "iris_svc.onnx")
    next(p for p in model.metadata_props if p.key == "features").value = features
    (model_copy / "iris_svc.onnx").write_bytes(model.SerializeToString())
    update_digests(model_copy)
    assert_refused(model_copy, "iris_svc.onnx", "features")


def test_libraries_of_another_form_are_refused(model_copy):
    model = onnx.load(model_copy / "iris_svc.onnx")
    next(p for p in model.metadata_props if p.key == "libraries").value = "[]"
    (model_copy / "iris_svc.onnx").write_bytes(model.SerializeToString())
    update_digests(model_copy)
    assert_refused(model_copy, "JSON object")


def test_the_session_has_one_thread_and_does_not_spin(service):
    options = service.model.session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert service.model.session.get_providers() == ["CPUExecutionProvider"]


def test_a_row_gets_the_same_bits_in_every_batch_and_with_every_number_of_threads(service):
    predict = service.model.predict
    rows = np.random.default_rng(3).uniform(-2, 12, (10_000, 4)).astype(np.float32)
    whole = predict(rows)
    for size in (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 100, 127, 128, 129, 500, 1000, 2000):
        assert all((predict(rows[i : i + size]) == whole[i : i + size]).all() for i in range(0, 4000, max(size, 40)))
    responses = {}

    def work(k):
        responses[k] = np.concatenate([predict(rows[i : i + 100]) for i in range(0, 10_000, 100)])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((responses[k] == whole).all() for k in range(8))


@pytest.fixture(scope="session")
def wine(tmp_path_factory) -> dict[str, Path]:
    """Returns another classifier with 13 features in three exports: a tensor, a ZipMap of numbers, and a ZipMap of names."""
    from skl2onnx import to_onnx
    from sklearn.datasets import load_wine
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = load_wine()
    names = np.array(["barolo", "grignolino", "barbera"])
    folders = {}
    for kind, target, zipmap in (
        ("tensor", data.target, False),
        ("numbers", data.target, True),
        ("names", names[data.target], True),
    ):
        fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(data.data, target)
        folder = folders[kind] = tmp_path_factory.mktemp(kind)
        exported = to_onnx(fitted, data.data[:1].astype(np.float32), options={id(fitted): {"zipmap": zipmap}})
        (folder / "wine.onnx").write_bytes(exported.SerializeToString())
        classes = fitted.classes_ if kind == "names" else names
        (folder / "label.json").write_text(json.dumps({str(i): str(name) for i, name in enumerate(classes)}))
        header = ",".join(f"c{i}" for i in range(13))
        lines = [",".join(map(str, row)) for row in data.data.tolist()]
        (folder / "training.csv").write_text("\n".join([header, *lines]) + "\n")
        (folder / "expected.json").write_text(json.dumps([names[data.target].tolist(), fitted.predict_proba(data.data).tolist()]))
    return folders


@pytest.mark.long
@pytest.mark.parametrize("kind", ["tensor", "numbers", "names"])
def test_another_model_works_by_replacing_the_files(wine, kind, make_app, capsys):
    folder = wine[kind]
    lines = (folder / "training.csv").read_text().splitlines()[1:]
    seal(folder, [[float(v) for v in line.split(",")] for line in lines[:100]])
    assert main(["verify", "--model-dir", str(folder)]) == 0
    result = capsys.readouterr().out
    assert "100 golden rows answered" in result and "alone and in a batch a row differs by up to" in result
    app = make_app(model_dir=str(folder))
    rows = [[float(v) for v in line.split(",")] for line in lines]
    labels, probabilities = json.loads((folder / "expected.json").read_text())
    response = app.post_json("/predict/batch", {"data": rows}).json
    assert np.mean(np.array(response["labels"]) == np.array(labels)) > 0.97
    assert np.allclose(response["probabilities"], probabilities, atol=1e-5)
    assert app.get("/metadata").json["data_structure"] == "(1,13)"
    for row, expected in zip(rows[:20], response["probabilities"], strict=False):
        # LinearClassifier adds in another order for a single row, unlike the operators of the Iris model.
        assert np.allclose(app.post_json("/predict", {"data": [row]}).json["prediction"], expected, atol=1e-6)
    assert (
        app.post_json("/predict", {"data": [rows[0][:4]]}, status=422).json["errors"][0]["detail"] == "has 4 values; a row has 13"
    )
