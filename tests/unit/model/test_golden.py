"""golden.json: malformed members, and labels and columns that differ from those of the graph, are refused in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from packed_models import KINDS, classes, node, output, regressor, save, seal, write, write_model
from property_tests import examples

from iris_wsgi.errors import BadModel, InvalidOutput
from iris_wsgi.model.artifact import parse_golden
from iris_wsgi.model.golden import load_verified_model, passes
from iris_wsgi.model.session import load_model

relaxed = settings(max_examples=examples(400), deadline=None, suppress_health_check=list(HealthCheck))
FORM = "does not have the members model, files, tolerance and rows in their right form"
NAN = float("nan")


def change(folder: Path, **members: Any) -> Path:
    """Replaces members of golden.json, and updates the digests of the other files."""
    document = json.loads((folder / "golden.json").read_text()) | members
    if "files" not in members:
        del document["files"]
    seal(folder, document)
    return folder


def refused(folder: Path) -> str:
    """Returns the message with which a folder is refused, which is one line."""
    with pytest.raises(BadModel) as caught:
        load_verified_model(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    return message


FEATURE = {"name": "a", "unit": None, "min": 0.0, "max": 1.0, "type": "float32", "missing": False}
MALFORMED = {
    "kind": ["ranker", "", None, 1, ["classifier"], {"classifier": 1}],
    "label": ["best", "", None, 1, ["both"]],
    "proof": ["trust me", "", None, 1, ["self"]],
    "classes": [None, "abc", 3, {"a": 1}, [1, 1], [1, "1"], [True, 1], [1.5, 2.5], [None, 1], [[1], [2]], ["\ud800", "b"]],
    "columns": [None, "price", 1, [1], [None], ["a", "a"], [["a"]], ["\ud800"]],
    "features": [
        None,
        "abc",
        {"name": "a"},
        [1],
        ["a"],
        [[]],
        [{}],
        *([FEATURE | wrong] for wrong in (
            {"name": ""}, {"name": None}, {"name": 1}, {"name": "\ud800"}, {"type": "float16"}, {"type": "float"}, {"type": None},
            {"type": ["float32"]}, {"missing": "false"}, {"missing": 0}, {"missing": None}, {"unit": 1}, {"min": "x"},
            {"min": NAN},
            {"max": float("inf")}, {"max": []}, {"min": 10**400}, {"type": "string"},
        )),
    ],
    "name": [None, 1, ["a"], "\ud800"],
    "version": [None, 1, 1.5, {}],
    "runtime": [None, 1, []],
    "tolerance": [None, "x", [], {}],
    "rows": [None, {}, [1], [None], [[]], [{}], [{"row": [1]}], [{"row": 1, "label": "a", "probabilities": [1]}]],
    "files": [None, [], "x"],
}  # fmt: skip
MALFORMED_CASES = [(member, value) for member, values in MALFORMED.items() for value in values]


@pytest.fixture(scope="module")
def iris_like(tmp_path_factory) -> bytes:
    return (write_model(tmp_path_factory.mktemp("kind"), "string classes") / "golden.json").read_bytes()


@pytest.mark.parametrize(("member", "value"), MALFORMED_CASES, ids=[f"{m} {str(v)[:40]!a}" for m, v in MALFORMED_CASES])
def test_a_malformed_member_is_refused_in_one_line(iris_like, member, value):
    document = json.loads(iris_like) | {member: value}
    with pytest.raises(BadModel) as caught:
        parse_golden(json.dumps(document).encode(), "golden.json")
    assert str(caught.value) in (f"golden.json {FORM}", "golden.json holds no rows to test the model with")


def test_every_new_member_may_be_absent(iris_like):
    document = json.loads(iris_like)
    for member in ("kind", "label", "proof", "classes", "columns", "features", "name", "version", "runtime"):
        without = {name: value for name, value in document.items() if name != member}
        assert parse_golden(json.dumps(without).encode(), "golden.json").cases


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["graph", "scores"])
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
BASES = ("string classes", "scores", "regressor of three targets", "columns of several types with missing values")


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> list[Path]:
    return [write_model(tmp_path_factory.mktemp("base"), kind) for kind in BASES]


@relaxed
@given(data=st.data())
def test_no_value_of_any_member_causes_more_than_a_refusal_in_one_line(bases, data):
    folder = data.draw(st.sampled_from(bases))
    content = (folder / "golden.json").read_bytes()
    document = json.loads(content)
    place, key = document, data.draw(st.sampled_from([key for key in document if key != "files"]))
    # Members of members too, such as the type of a feature.
    while isinstance(place[key], (list, dict)) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
    place[key] = data.draw(documents)
    try:
        (folder / "golden.json").write_text(json.dumps(document))
        load_verified_model(folder)
    except BadModel as error:
        message = str(error)
        if "\n" in message:
            pytest.fail(message)
    finally:
        (folder / "golden.json").write_bytes(content)


# Golden rows with other values.

WRONG_ROWS = {
    "nan in the first column": ("probabilities", 0, NAN),
    "nan in the last column": ("probabilities", -1, NAN),
    "infinity": ("probabilities", 1, float("inf")),
    "another probability": ("probabilities", 0, 0.5),
}


@pytest.mark.parametrize(("member", "j", "value"), WRONG_ROWS.values(), ids=WRONG_ROWS)
def test_another_probability_in_any_column_is_refused(tmp_path, member, j, value):
    folder = write_model(tmp_path, "string classes")
    rows = json.loads((folder / "golden.json").read_text())["rows"]
    rows[2][member][j] = value
    assert "golden row 2 has the label" in refused(change(folder, rows=rows))


@pytest.mark.parametrize("i", [0, 1])
@pytest.mark.parametrize("kind", ["scores", "classes 10, 20, 30"])
def test_a_golden_row_with_another_number_of_values_is_refused(tmp_path, kind, i):
    folder = write_model(tmp_path, kind)
    rows, name = json.loads((folder / "golden.json").read_text())["rows"], "scores" if kind == "scores" else "probabilities"
    rows[i][name] = []
    assert refused(change(folder, rows=rows)) == f"golden row {i} has 0 {name}, the model returns 3"


@pytest.mark.parametrize(("kind", "name"), [("regressor of three targets", "values"), ("scores", "scores")])
def test_scores_and_values_are_compared_by_the_largest_value_of_their_column(tmp_path, kind, name):
    folder = write_model(tmp_path, kind)
    rows = json.loads((folder / "golden.json").read_text())["rows"]
    largest = max(abs(row[name][1]) for row in rows)
    rows[0][name][1] += 9e-6 * largest
    load_verified_model(change(folder, rows=rows))
    rows[0][name][1] += 9e-6 * largest
    assert "golden row 0" in refused(change(folder, rows=rows)) and "off by 1.8e-05" in refused(folder)


def test_a_first_row_near_zero_stays_ready_within_the_tolerance_of_its_column(tmp_path):
    folder = write_model(tmp_path, "regressor")
    rows = json.loads((folder / "golden.json").read_text())["rows"]
    rows[0], rows[-1] = {"row": [0.0, 0.0, 0.0, 0.0], "values": [1e-9]}, rows[0]
    model, golden, _ = load_verified_model(change(folder, rows=rows))
    assert passes(model, golden.cases, golden.tolerance)
    assert not passes(model, [golden.cases[0]._replace(outputs=[1.0]), *golden.cases[1:]], golden.tolerance)


@pytest.mark.parametrize("tolerance", [NAN, -1.0])
def test_a_tolerance_that_is_not_a_distance_is_refused(tmp_path, tolerance):
    assert "off by" in refused(write_model(tmp_path, "scores", tolerance=tolerance))


# Labels and columns.

LABELS = {
    "another order of names": ("classes 10, 20, 30", {}, ["ten", "thirty", "twenty"], ["golden row", "twenty"]),
    "another order of classes": (
        "classes 10, 20, 30",
        {"classes": [20, 10, 30]},
        None,
        ["gives the label 10", "20, 10, 30", "ten, twenty, thirty"],
    ),
    "classes in another order than their names": (
        "string classes",
        {"classes": ["alpha", "zeta", "mu"]},
        None,
        ["alpha, zeta, mu", "zeta, alpha, mu", "another order"],
    ),
    "a class less": ("classes 10, 20, 30", {"classes": [10, 20]}, None, ["10, 20", "ten, twenty, thirty", "differ"]),
    "a class more": ("classes 10, 20, 30", {"classes": [10, 20, 30, 40]}, None, ["10, 20, 30, 40", "ten, twenty, thirty"]),
    "another class": (
        "classes 10, 20, 30",
        {"classes": [10, 21, 30]},
        None,
        ["the label 20", "10, 21, 30", "ten, twenty, thirty"],
    ),
    "no classes for other numbers than 0 to 2": ("classes 10, 20, 30", {"classes": []}, None, ["the label 10", "0, 1, 2"]),
    "a letter less in a class": (
        "string classes",
        {"classes": ["zeta", "alph", "mu"]},
        None,
        ["the label alpha", "zeta, alph, mu", "zeta, alpha, mu"],
    ),
    "bools for strings": ("bool classes", {"classes": ["False", "True"]}, None, ["the label False", "False, True"]),
    "the threshold of the graph": (
        "the label of the graph",
        {"label": "both"},
        None,
        ["golden row 2", "the label 1", "the label no", "own threshold", "0, 1", "no, yes"],
    ),
    "a name less": ("string classes", {}, ["zeta", "alpha"], ["zeta, alpha, mu", "zeta, alpha:"]),
    "a name more": ("string classes", {"classes": []}, ["zeta", "alpha", "mu", "nu"], ["4 classes", "has 3 columns"]),
    "the label of the graph without such an output": (
        "one probability",
        {"label": "graph"},
        None,
        ["has no label", "run pack again"],
    ),
    "scores without classes": ("scores", {"classes": []}, None, ["does not name its classes", "run pack again"]),
    "scores with a column less": ("scores", {"columns": ["a", "b"]}, None, ["gives 3 scores columns", "names 2: a, b"]),
    "a map with another class": ("map of numbers", {"classes": [10, 20, 40]}, None, ["ZipMap whose rows have different classes"]),
}


@pytest.mark.parametrize(("kind", "members", "names", "words"), LABELS.values(), ids=LABELS)
def test_labels_that_differ_from_the_graph_are_refused_with_both_lists(tmp_path, kind, members, names, words):
    folder = write_model(tmp_path, kind)
    if names:
        (folder / "label.json").write_text(json.dumps({str(i): name for i, name in enumerate(names)}))
    if members.get("label") == "both":
        rows = json.loads((folder / "golden.json").read_text())["rows"]
        members = members | {"rows": [row | {"label": ["no", "yes"][int(np.argmax(row["probabilities"]))]} for row in rows]}
    message = refused(change(folder, **members))
    for word in words:
        assert word in message


def test_an_older_file_names_no_classes(tmp_path):
    for i, kind in enumerate(("float64 input", "string classes", "bool classes")):
        load_verified_model(change(write_model(tmp_path / str(i), kind), classes=[]))


def test_a_regressor_has_no_labels_even_with_a_label_json(tmp_path, make_app):
    folder = write_model(tmp_path / "model", "regressor of three targets")
    (folder / "label.json").write_text('{"0": "a", "1": "b"}')
    app = make_app(model_dir=str(change(folder)), role="all")
    rows = KINDS["regressor of three targets"].rows
    for row in rows:
        app.post_json("/predict", {"data": [row]})
    app.post_json("/predict/batch", {"data": rows})
    assert app.get("/metadata").json["model"]["labels"] == []


FEATURES = {
    "another type": ({"type": "float64"}, "takes x0 as float32, and golden.json says float64"),
    "a missing integer": ({"type": "int64", "missing": True}, "takes x0 as float32, and golden.json says int64"),
    "a name twice": ({"name": "x1"}, "takes 4 features, and its metadata names 4 that should differ"),
}


@pytest.mark.parametrize(("changes", "words"), FEATURES.values(), ids=FEATURES)
def test_features_that_differ_from_the_inputs_are_refused(tmp_path, changes, words):
    folder = write_model(tmp_path, "scores")
    features = json.loads((folder / "golden.json").read_text())["features"]
    assert words in refused(change(folder, features=[features[0] | changes, *features[1:]]))
    assert "takes 4 features" in refused(change(folder, features=features[1:]))


@pytest.mark.parametrize("kind", ["int64 input", "bool input", "one input of strings"])
def test_only_floats_may_be_missing(tmp_path, kind):
    folder = write_model(tmp_path, kind)
    features = json.loads((folder / "golden.json").read_text())["features"]
    message = refused(change(folder, features=[features[0] | {"missing": True}, *features[1:]]))
    assert "which has no missing values" in message


REFUSED_OUTPUTS = {
    "two float outputs": ([output("scores", shape=[None, 3]), output("more", shape=[None, 3])], "must have one output of"),
    "several labels per row": (
        [output("labels", TensorProto.INT64, [None, 3]), output("scores", shape=[None, 3])],
        "several labels",
    ),
    "two labels": ([output("twice", TensorProto.INT64, [None]), output("scores", shape=[None, 3])], "must have one output of"),
    "no float output": ([], "must have one output of"),
}


@pytest.mark.parametrize(("outputs", "words"), REFUSED_OUTPUTS.values(), ids=REFUSED_OUTPUTS)
def test_outputs_that_cannot_be_served_are_refused(tmp_path, outputs, words):
    packed, folder = KINDS["scores"], write_model(tmp_path, "scores")
    nodes = [
        *packed.nodes,
        node("Identity", "scores", "more"),
        node("Identity", "label", "twice"),
        node("Cast", "scores", "labels", to=TensorProto.INT64),
    ]
    save(packed._replace(nodes=nodes, outputs=[packed.outputs[0], *outputs]), folder)
    assert words in refused(change(folder))


def rewrite_shape(folder: Path, shape: list[int | str]) -> Path:
    """Changes the declared shape of the first input of a graph."""
    model = onnx.load(folder / "model.onnx")
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info(model.graph.input[0].name, TensorProto.FLOAT, shape))
    onnx.save(model, folder / "model.onnx")
    return change(folder)


SHAPES = {
    "a fixed number of rows": ([1, 4], "Export with a free batch axis"),
    "a fixed number of rows without columns": ([4], "Export with a free batch axis"),
    "three dimensions": (["N", "M", 4], "must have inputs of columns"),
}


@pytest.mark.parametrize(("shape", "words"), SHAPES.values(), ids=SHAPES)
def test_inputs_that_are_not_columns_of_rows_are_refused(tmp_path, shape, words):
    assert words in refused(rewrite_shape(write_model(tmp_path, "regressor of a column"), shape))


def test_a_free_number_of_columns_is_that_of_golden_json(tmp_path):
    folder = rewrite_shape(write_model(tmp_path, "regressor of a column"), ["N", "columns"])
    assert load_verified_model(folder)[0].width == 4
    assert "must have inputs of columns" in refused(change(folder, features=[]))


NAMES = {
    "int64 input": ["feature_0", "feature_1", "feature_2", "feature_3"],
    "columns of several types": ["age", "city", "visits", "member"],
    "float columns with missing values, and strings": ["numbers_0", "numbers_1", "city"],
    "columns of rank one": ["column_0", "column_1", "column_2", "column_3"],
}


@pytest.mark.parametrize(("kind", "names"), NAMES.items())
def test_without_features_in_golden_json_they_have_the_names_and_types_of_the_inputs(tmp_path, kind, names):
    folder = write_model(tmp_path, kind)
    rows = [row for row in json.loads((folder / "golden.json").read_text())["rows"] if None not in row["row"]]
    model, _, _ = load_verified_model(change(folder, features=[], rows=rows))
    assert [feature.name for feature in model.features] == names
    assert [feature.type for feature in model.features] == [feature_type for _, feature_type, _ in KINDS[kind].features]
    assert not any(feature.missing for feature in model.features)


def test_the_first_run_decides_whether_a_graph_gives_the_second_probability_alone(tmp_path):
    packed = KINDS["one probability in a column"]
    model, _ = load_model(write(tmp_path, packed._replace(outputs=[output("probabilities", shape=[None, "n"])])))
    rows = model.schema.from_values(packed.rows)
    two = model.predict(rows)
    assert (two.shape, np.abs(two.sum(axis=1) - 1).max() < 1e-6) == ((len(rows), 2), True)
    with pytest.raises(InvalidOutput, match=r"has the shape \[1, 2\]; it must be \[1, 1\]"):
        model.values_of(np.array([[0.25, 0.75]], np.float32), 1)


def test_a_value_over_float32_becomes_infinite_without_a_warning(tmp_path):
    packed = regressor([None, 1], ["price"], TensorProto.DOUBLE)
    big = packed._replace(
        nodes=[*packed.nodes[:-1], node("Mul", "values_2d big", "values")],
        constants={**packed.constants, "big": np.array([1e300])},
    )
    zero = big._replace(rows=[[0.0, 0.0, 0.0, 0.0]])
    model, _ = load_model(write(tmp_path, zero))
    assert model.predict(np.ones((1, 4), np.float32)).tolist() == [[float("inf")]]


def test_the_files_of_weights_are_part_of_the_digest_and_are_needed(tmp_path):
    folder = write_model(tmp_path, "weights in a second file")
    digest = load_model(folder)[0].digest
    plain = write(tmp_path / "plain", KINDS["weights in a second file"]._replace(external=False))
    assert load_model(plain)[0].digest != digest
    weights = folder / "model.onnx.data"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"\x01")
    assert "model.onnx.data has the SHA-256" in refused(folder)
    change(folder)
    assert load_model(folder)[0].digest != digest
    weights.unlink()
    assert "model.onnx.data cannot be read" in refused(folder)
    message = refused(change(folder))
    assert "run pack on the model" in message


@pytest.mark.parametrize("label", ["both", "argmax", "graph"])
def test_the_label_that_golden_json_names_is_served(tmp_path, label):
    packed = classes((0, 1), ("no", "yes"), label, threshold=0.25 if label != "both" else 0.5)
    model, golden, _ = load_verified_model(write(tmp_path, packed))
    rows = model.schema.from_values(packed.rows)
    own = [int(value) for value in model.graph_labels(rows)]
    best = model.outputs.values(model.predict(rows)).argmax(axis=1).tolist()
    assert (own == best) == (label == "both")
    assert model.outputs.best(model.predict(rows)).tolist() == (own if label == "graph" else best)
    assert [case.label for case in golden.cases] == [packed.labels[i] for i in (own if label == "graph" else best)]
