"""The labels are the model's: no change of label.json is packed or loaded."""

import csv
import hashlib
import json
import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from project import ROOT
from property_tests import examples

sys.path.insert(0, str(ROOT / "tests/own_models"))
from exports import make_graph

from iris_wsgi.cli.main import main
from iris_wsgi.errors import BadModel
from iris_wsgi.model.golden import load_verified_model

NAMES = ("high", "low", "mid", "top")
WIDTH = len(NAMES)
ML_OPSET = ("ai.onnx.ml", 3)
PROPERTY = settings(deadline=None, max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])


class Exported(NamedTuple):
    """Graph, and the name of the label of each row."""

    graph: bytes
    labels: list[str]


def rows() -> np.ndarray:
    """Rows [40, 4]. Their softmax is the output of each graph, and each class is that of some rows."""
    return np.random.default_rng(0).normal(0, 1, (40, WIDTH)).astype(np.float32)


def best_names() -> list[str]:
    return [NAMES[place] for place in rows().argmax(axis=1)]


SOFTMAX = helper.make_node("Softmax", ["input"], ["probabilities"])
ARGMAX = helper.make_node("ArgMax", ["probabilities"], ["place"], axis=1, keepdims=0)
PROBABILITIES = ("probabilities", TensorProto.FLOAT, ["batch", WIDTH])


def with_string_labels() -> Exported:
    """Classifier whose label output has strings."""
    encode = helper.make_node(
        "LabelEncoder",
        ["place"],
        ["label"],
        domain="ai.onnx.ml",
        keys_int64s=list(range(WIDTH)),
        values_strings=list(NAMES),
    )
    outputs = [("label", TensorProto.STRING, ["batch"]), PROBABILITIES]
    return Exported(make_graph([SOFTMAX, ARGMAX, encode], WIDTH, outputs, domains=[ML_OPSET]), best_names())


def with_numbers() -> Exported:
    """Classifier whose label output has the numbers 10, 20, 30, and 40."""
    values = numpy_helper.from_array(np.array([10, 20, 30, 40], np.int64), "values")
    gather = helper.make_node("Gather", ["values", "place"], ["label"])
    outputs = [("label", TensorProto.INT64, ["batch"]), PROBABILITIES]
    return Exported(make_graph([SOFTMAX, ARGMAX, gather], WIDTH, outputs, initializers=[values]), best_names())


def with_zipmap() -> Exported:
    """Classifier whose only output is a ZipMap with the names as keys."""
    import onnx

    node = helper.make_node("ZipMap", ["probabilities"], ["maps"], domain="ai.onnx.ml", classlabels_strings=list(NAMES))
    model = onnx.load_model_from_string(make_graph([SOFTMAX, node], WIDTH, [PROBABILITIES], domains=[ML_OPSET]))
    map_type = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    model.graph.output[0].CopyFrom(helper.make_value_info("maps", helper.make_sequence_type_proto(map_type)))
    return Exported(model.SerializeToString(), best_names())


EXPORTS = (with_string_labels, with_numbers, with_zipmap)


def document(names: list[str]) -> dict[str, str]:
    return {str(place): name for place, name in enumerate(names)}


@st.composite
def changed_documents(draw: st.DrawFn) -> dict[str, str]:
    """Returns label.json after a permutation, a removal, an addition, or a change of one letter."""
    names = list(NAMES)
    change = draw(st.sampled_from(("permutation", "removal", "hole", "addition", "letter", "key")))
    place = draw(st.integers(0, WIDTH - 1))
    if change == "permutation":
        names = draw(st.permutations(NAMES).filter(lambda found: found != list(NAMES)))
    elif change == "removal":
        del names[place]
    elif change == "addition":
        names.insert(draw(st.integers(0, WIDTH)), draw(st.text(string.ascii_lowercase, min_size=1, max_size=5)))
    elif change == "letter":
        name, letter = names[place], draw(st.sampled_from(string.ascii_letters + " -é"))
        at = draw(st.integers(0, len(name) - 1))
        names[place] = draw(st.sampled_from((name[:at] + letter + name[at + 1 :], name[:at] + letter + name[at:], name[1:])))
    found = document(names)
    if change == "hole":
        del found[str(place)]
    if change == "key":
        found[str(draw(st.integers(WIDTH, 99)))] = found.pop(str(place))
    if found == document(list(NAMES)):
        found["0"] += "s"
    return found


@pytest.fixture(scope="module")
def make_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Exported, dict[str, str]], Path]:
    """Function that writes an export with its label.json and its rows with expected labels."""

    def write(exported: Exported, labels: dict[str, str]) -> Path:
        folder = tmp_path_factory.mktemp("exported")
        (folder / "model.onnx").write_bytes(exported.graph)
        (folder / "label.json").write_text(json.dumps(labels))
        with (folder / "rows.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["a", "b", "c", "d", "label"])
            writer.writerows([*row, name] for row, name in zip(rows().tolist(), exported.labels, strict=True))
        return folder

    return write


def pack(folder: Path) -> int:
    return main(["pack", str(folder / "model.onnx"), "--rows", str(folder / "rows.csv"), "--out", str(folder / "packed")])


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.__name__)
@PROPERTY
@given(changed=changed_documents())
def test_pack_refuses_every_change_of_label_json(make_folder, capsys, export, changed):
    folder = make_folder(export(), changed)
    assert pack(folder) == 1
    message = capsys.readouterr().err
    assert "label" in message
    assert not (folder / "packed/golden.json").exists()


@pytest.fixture(scope="module")
def packed(make_folder) -> dict[str, Path]:
    """Packed folders, by the name of the export."""
    found = {}
    for export in EXPORTS:
        folder = make_folder(export(), document(list(NAMES)))
        assert pack(folder) == 0, export.__name__
        found[export.__name__] = folder / "packed"
        model, golden, _ = load_verified_model(folder / "packed", "")
        assert model.labels == NAMES
        assert {case.label for case in golden.cases} == set(NAMES)
    return found


@pytest.mark.parametrize("repair", [False, True], ids=["as it is", "with its digest"])
@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.__name__)
@PROPERTY
@given(changed=changed_documents())
def test_the_start_refuses_every_change_of_label_json(packed, export, repair, changed):
    folder = packed[export.__name__]
    kept = {name: (folder / name).read_bytes() for name in ("label.json", "golden.json")}
    content = json.dumps(changed).encode()
    try:
        (folder / "label.json").write_bytes(content)
        if repair:
            golden = json.loads(kept["golden.json"])
            golden["files"]["label.json"] = hashlib.sha256(content).hexdigest()
            (folder / "golden.json").write_text(json.dumps(golden))
        with pytest.raises(BadModel, match=r"label\.json|labels?"):
            load_verified_model(folder, "")
    finally:
        for name, original in kept.items():
            (folder / name).write_bytes(original)
