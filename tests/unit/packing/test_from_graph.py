"""Folders from an .onnx file: kinds, labels, expected columns, and the graphs that pack refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from broken_models import write_broken_model
from onnx import TensorProto, helper, numpy_helper
from project import MODEL
from small_models import LEVELS, golden_of, graph_of, inputs, logistic, targets, write_csv, write_graph

import iris_wsgi
from iris_wsgi.errors import BadModel
from iris_wsgi.model.golden import load_verified_model
from iris_wsgi.packing.packer import pack_model
from iris_wsgi.packing.proof import PackOptions

ROWS = inputs(60, seed=1)
FLOAT = TensorProto.FLOAT
SOFTMAX = helper.make_node("Softmax", ["values"], ["out"])


def pack(path: Path, rows=None, **options):
    return pack_model(path, rows, path.parent, PackOptions(**options))


def network(nodes=(), width: int = 3, outputs=None) -> bytes:
    """Returns the graph of a matrix product, the output of PyTorch without a label."""
    weights = np.random.default_rng(2).normal(0, 1, (4, width)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["values" if nodes else "out"]), *nodes],
        "network",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 4])],
        outputs or [helper.make_tensor_value_info("out", FLOAT, ["n", width])],
        [numpy_helper.from_array(weights, "w")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


@pytest.fixture(scope="module")
def strings() -> tuple[bytes, object]:
    estimator = logistic(LEVELS)
    return graph_of(estimator, zipmap=True), estimator


def test_a_graph_with_string_labels_needs_no_label_file(tmp_path, strings):
    content, estimator = strings
    csv = write_csv(tmp_path / "rows.csv", ROWS, label=estimator.predict(ROWS).tolist())
    report = pack(write_graph(tmp_path / "m", content), csv)
    golden = golden_of(tmp_path / "m")
    assert golden["classes"] == LEVELS.tolist() and golden["proof"] == "expected" and golden["label"] == "both"
    assert json.loads((tmp_path / "m/label.json").read_text()) == {"0": "high", "1": "low", "2": "mid"}
    assert "60 rows compared with the expected results: labels equal" in str(report)
    assert [feature["name"] for feature in golden["features"]] == ["a", "b", "c", "d"]
    model, manifest, _ = load_verified_model(tmp_path / "m")
    assert (report.digest, report.seal) == (model.digest, manifest.seal)
    assert (tmp_path / "m/training.csv").read_text().splitlines()[0] == "a,b,c,d,label"


def test_without_expected_columns_the_report_says_that_nothing_was_compared(tmp_path, strings):
    report = pack(write_graph(tmp_path, strings[0]), ROWS)
    assert golden_of(tmp_path)["proof"] == report.proof == "self"
    assert report.lines[-1].startswith("no outside result was compared: ")
    assert "60 rows were predicted, and none was compared" in str(report)


def test_expected_probabilities_are_pinned(tmp_path, strings):
    content, estimator = strings
    expected = estimator.predict_proba(ROWS)
    columns = {f"probability_{name}": expected[:, i].tolist() for i, name in reversed(list(enumerate(LEVELS)))}
    csv = write_csv(tmp_path / "rows.csv", ROWS, **columns)
    report = pack(write_graph(tmp_path / "m", content), csv)
    assert "probabilities within" in str(report) and golden_of(tmp_path / "m")["proof"] == "expected"
    csv = write_csv(tmp_path / "rows.csv", ROWS, **{name: np.roll(values, 1) for name, values in columns.items()})
    with pytest.raises(BadModel, match=r"values are off by more than 1e-05 on \d+ of 60 rows: row \d+: \w+ expected 0\.\d+, the"):
        pack(write_graph(tmp_path / "m", content), csv)
    columns.pop("probability_low")
    with pytest.raises(BadModel, match="are not one for each of the labels high, low, mid"):
        pack(write_graph(tmp_path / "m", content), write_csv(tmp_path / "rows.csv", ROWS, **columns))


def test_a_wrong_expected_label_is_refused_with_its_row_and_the_old_folder_stays(tmp_path, strings):
    content, estimator = strings
    pack(write_graph(tmp_path / "m", content), ROWS)
    before = (tmp_path / "m/golden.json").read_bytes()
    labels = estimator.predict(ROWS).tolist()
    labels[6] = "mid" if labels[6] != "mid" else "low"
    csv = write_csv(tmp_path / "rows.csv", ROWS, label=labels)
    with pytest.raises(BadModel, match=r"the label is another one on 1 of 60 rows: row 7: expected \w+, the graph gives \w+"):
        pack(tmp_path / "m/model.onnx", csv)
    assert (tmp_path / "m/golden.json").read_bytes() == before
    assert pack(tmp_path / "m/model.onnx", csv, compare_columns=False).proof == "self"
    csv = write_csv(tmp_path / "rows.csv", ROWS, truth=["x"] * 60)
    with pytest.raises(BadModel, match="the column truth has the label x, and the labels of the model are high, low, mid"):
        pack(tmp_path / "m/model.onnx", csv, label_column="truth")


def test_the_labels_of_a_graph_in_another_order_are_refused(tmp_path, strings):
    path = write_graph(tmp_path, strings[0], {"0": "low", "1": "mid", "2": "high"})
    with pytest.raises(BadModel, match=r"label\.json has the labels in another order than the graph"):
        pack(path, ROWS)
    assert not (tmp_path / "golden.json").exists()


def test_whole_number_labels_are_named_by_position_or_by_value(tmp_path):
    estimator = logistic([10, 20, 30])
    content = graph_of(estimator)
    for folder, names in (
        ("a", {"0": "ten", "1": "twenty", "2": "thirty"}),
        ("b", {"10": "ten", "20": "twenty", "30": "thirty"}),
    ):
        expected = {"labels": estimator.predict(ROWS), "probabilities": estimator.predict_proba(ROWS)}
        pack(write_graph(tmp_path / folder, content, names), ROWS, expected=expected)
        golden = golden_of(tmp_path / folder)
        assert golden["classes"] == [10, 20, 30] and golden["rows"][0]["label"] in ("ten", "twenty", "thirty")


def test_scores_are_not_probabilities(tmp_path):
    estimator = logistic()
    report = pack(write_graph(tmp_path, graph_of(estimator, raw_scores=True)), ROWS, expected=estimator.predict(ROWS))
    golden = golden_of(tmp_path)
    assert golden["kind"] == "scores" and golden["label"] == "graph" and golden["columns"] == ["0", "1", "2"]
    assert "scores" in golden["rows"][0] and "classifier with scores" in report.lines[0]
    with pytest.raises(BadModel, match="the expected results are probabilities, and the graph gives scores"):
        pack(tmp_path / "model.onnx", ROWS, expected={"probabilities": estimator.predict_proba(ROWS)})


def test_logits_without_a_label_are_refused(tmp_path):
    path = write_graph(tmp_path, network(), {"0": "a", "1": "b", "2": "c"})
    with pytest.raises(BadModel, match="are not probabilities.* Export the model with its softmax"):
        pack(path, ROWS)


def test_a_network_with_a_softmax_is_a_classifier(tmp_path):
    pack(write_graph(tmp_path, network([SOFTMAX]), {"0": "a", "1": "b", "2": "c"}), ROWS)
    golden = golden_of(tmp_path)
    assert (golden["kind"], golden["label"], golden["classes"]) == ("classifier", "argmax", [0, 1, 2])
    for names in ({"0": "a", "1": "b"}, {"0": "a", "1": "b", "2": "c", "3": "d"}):
        with pytest.raises(BadModel, match="too (few|many) names"):
            pack(write_graph(tmp_path, network([SOFTMAX]), names), ROWS)


def test_a_network_with_one_sigmoid_is_a_classifier_of_two_classes_if_they_are_named(tmp_path):
    content = network([helper.make_node("Sigmoid", ["values"], ["out"])], 1)
    pack(write_graph(tmp_path / "a", content, {"0": "no", "1": "yes"}), ROWS)
    assert golden_of(tmp_path / "a")["kind"] == "classifier" and len(golden_of(tmp_path / "a")["rows"][0]["probabilities"]) == 2
    pack(write_graph(tmp_path / "b", content), ROWS)
    assert golden_of(tmp_path / "b")["kind"] == "regressor"


def test_a_network_with_values_is_a_regressor_with_named_targets(tmp_path):
    content = network(width=2)
    path = write_graph(tmp_path / "m", content)
    values = pack(path, ROWS) and [row["values"] for row in golden_of(tmp_path / "m")["rows"]]
    assert golden_of(tmp_path / "m")["columns"] == ["value_0", "value_1"] and not (tmp_path / "m/label.json").exists()
    rows = np.array([row["row"] for row in golden_of(tmp_path / "m")["rows"]])
    columns = dict(zip(("price", "rent"), np.array(values).T.tolist(), strict=True))
    csv = write_csv(tmp_path / "rows.csv", rows, **columns)
    report = pack(path, csv, targets=("price", "rent"))
    assert report.proof == "expected" and golden_of(tmp_path / "m")["columns"] == ["price", "rent"]
    columns["rent"][3] += 1
    with pytest.raises(BadModel, match="row 4: rent expected"):
        pack(path, write_csv(tmp_path / "rows.csv", rows, **columns), targets=("price", "rent"))
    with pytest.raises(BadModel, match="gives 2 values per row, and 1 targets are named"):
        pack(path, ROWS, targets=("price",))


def voting(content: bytes) -> bytes:
    """Returns the graph with the label 0 in every row, like a graph with its own threshold."""
    model = onnx.load_model_from_string(content)
    model.graph.output[0].name = "own"
    zero = numpy_helper.from_array(np.array(0, np.int64), "zero")
    model.graph.initializer.append(zero)
    model.graph.node.append(helper.make_node("Mul", ["label", "zero"], ["own"]))
    return model.SerializeToString()


def test_a_label_that_is_not_the_highest_probability_needs_a_decision(tmp_path):
    estimator = logistic()
    path = write_graph(tmp_path, voting(graph_of(estimator)))
    with pytest.raises(BadModel, match=r"on \d+ of 60 rows the label of the graph is not the class .* Give --label graph"):
        pack(path, ROWS)
    for choice in ("argmax", "graph"):
        pack(path, ROWS, label=choice)
        golden = golden_of(tmp_path)
        assert golden["label"] == choice and len({row["label"] for row in golden["rows"]}) == (3 if choice == "argmax" else 1)
    pack(path, ROWS, expected=[0] * 60)
    assert golden_of(tmp_path)["label"] == "graph"
    pack(path, ROWS, expected=estimator.predict(ROWS))
    assert golden_of(tmp_path)["label"] == "argmax"
    with pytest.raises(BadModel, match="the label is another one"):
        pack(path, ROWS, expected=[0] * 60, label="argmax")


def test_the_folder_of_the_iris_model_is_packed_in_place_without_rows(tmp_path):
    folder = Path(shutil.copytree(MODEL, tmp_path / "m"))
    before = load_verified_model(folder)[0]
    report = pack(folder / "iris_svc.onnx")
    model, golden, _ = load_verified_model(folder)
    assert model.digest == before.digest and (model.name, model.version) == ("iris_svc", "1.0.0")
    assert "32 rows drawn from the training ranges were predicted" in str(report)
    assert set(golden.files) == {"iris_svc.onnx", "label.json", "training.csv"}
    assert (folder / "training.csv").read_bytes() == (MODEL / "training.csv").read_bytes()
    for j, feature in enumerate(model.features):
        assert feature.unit == "cm" and all(feature.min - 0.001 <= case.row[j] <= feature.max + 0.001 for case in golden.cases)


def test_the_rows_of_named_features_are_found_by_name(tmp_path):
    folder = Path(shutil.copytree(MODEL / "fast", tmp_path / "m"))
    header = "Petal.Width,note,petal length (cm),sepal_width,sepal_length"
    (tmp_path / "rows.csv").write_text(f"{header}\n0.2,x,1.4,3.5,5.1\n")
    pack(folder / "iris_lr.onnx", tmp_path / "rows.csv")
    assert golden_of(folder)["rows"][0]["row"] == [5.1, 3.5, 1.4, 0.2]
    (tmp_path / "rows.csv").write_text("petal_width,petal_length,sepal_width\n0.2,1.4,3.5\n")
    with pytest.raises(BadModel, match="the rows have no column sepal_length; their columns are petal_width,"):
        pack(folder / "iris_lr.onnx", tmp_path / "rows.csv")


def test_another_number_of_columns_is_refused(tmp_path, strings):
    with pytest.raises(BadModel, match=r"the rows have 3 columns for the features .* takes 4 features"):
        pack(write_graph(tmp_path, strings[0]), ROWS[:, :3])


def test_weights_in_another_file_are_part_of_the_folder(tmp_path, strings):
    model = onnx.load_model_from_string(network([SOFTMAX]))
    source = tmp_path / "source"
    source.mkdir()
    onnx.save(model, str(source / "net.onnx"), save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    pack_model(source / "net.onnx", ROWS, tmp_path / "out", PackOptions())
    assert set(golden_of(tmp_path / "out")["files"]) == {"net.onnx", "net.onnx.data", "label.json", "training.csv"}
    assert load_verified_model(tmp_path / "out")[0].name == "net"
    (source / "net.onnx.data").unlink()
    with pytest.raises(BadModel, match=r"net\.onnx\.data cannot be read"):
        pack_model(source / "net.onnx", ROWS, tmp_path / "out", PackOptions())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("first row only", "gives 1 rows of outputs for 60 rows"),
        ("one dimension for one row", "with 1 row|for 1 row"),
        ("two columns", "too many names"),
    ],
)
def test_a_graph_with_another_shape_of_outputs_is_refused(tmp_path, kind, words):
    folder = write_broken_model(tmp_path, kind)
    with pytest.raises(BadModel, match=words):
        pack(folder / "broken.onnx", ROWS)
    assert not (folder / "golden.json").exists()


def test_a_zipmap_without_a_label_has_its_classes_in_the_order_of_the_nodes(tmp_path):
    folder = write_broken_model(tmp_path, labels=("c", "a", "b"), zipmap=("c", "a", "b"))
    pack(folder / "broken.onnx", ROWS)
    assert golden_of(folder)["classes"] == ["c", "a", "b"]


def test_results_that_are_not_finite_are_refused(tmp_path):
    content = network([helper.make_node("Log", ["values"], ["out"])], 1)
    with pytest.raises(BadModel, match=r"row \d+: the values of the graph are not finite"):
        pack(write_graph(tmp_path, content), ROWS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: setattr(model, "ir_version", 99), "set `model.ir_version`"),
        (lambda model: setattr(model.opset_import[0], "version", 99), "`target_opset=`"),
        (lambda model: setattr(model.graph.node[0], "op_type", "Nothing"), "Nothing"),
        (lambda model: model.graph.input[0].type.tensor_type.shape.dim[0].__setattr__("dim_value", 1), "free batch axis"),
    ],
)
def test_a_refusal_of_onnxruntime_names_the_change_of_the_export(tmp_path, change, words):
    model = onnx.load_model_from_string(network([SOFTMAX]))
    change(model)
    with pytest.raises(BadModel) as caught:
        pack(write_graph(tmp_path, model.SerializeToString()), ROWS)
    assert words in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x07"])
def test_a_file_that_is_not_an_onnx_model_is_refused(tmp_path, content):
    with pytest.raises(BadModel, match=r"model\.onnx is not an ONNX model"):
        pack(write_graph(tmp_path, content), ROWS)


def test_the_function_takes_a_model_in_memory(tmp_path, strings):
    content, estimator = strings
    for given in (content, onnx.load_model_from_string(content)):
        report = iris_wsgi.pack(given, ROWS.tolist(), tmp_path, expected=estimator.predict(ROWS), name="levels", version="2")
        assert report.lines[0].startswith(f"packed levels 2 in {tmp_path}: classifier with probabilities, 4 features")
    with pytest.raises(BadModel, match="must have letters, digits, dots, dashes, and underscores only"):
        iris_wsgi.pack(content, ROWS, tmp_path, name="a/b")
    with pytest.raises(BadModel, match="expected has 2 rows, and there are 60 rows of features"):
        iris_wsgi.pack(content, ROWS, tmp_path, expected=["low", "low"])


def test_missing_values_of_the_rows_are_allowed_for_their_feature(tmp_path):
    rows = ROWS.copy()
    rows[3, 1] = np.nan
    node = helper.make_node("Where", ["lost", "zero", "x"], ["filled"])
    graph = onnx.load_model_from_string(network([SOFTMAX]))
    graph.graph.node[0].input[0] = "filled"
    graph.graph.node.insert(0, node)
    graph.graph.node.insert(0, helper.make_node("IsNaN", ["x"], ["lost"]))
    graph.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "zero"))
    pack(write_graph(tmp_path, graph.SerializeToString()), rows)
    golden = golden_of(tmp_path)
    assert [feature["missing"] for feature in golden["features"]] == [False, True, False, False]
    assert any(row["row"][1] is None for row in golden["rows"])


def test_classes_that_no_node_names_come_from_the_rows_or_from_the_names(tmp_path):
    numbers = targets(ROWS)
    assert set(numbers.tolist()) == {0, 1, 2}
    argmax = helper.make_node("ArgMax", ["out"], ["label"], axis=1, keepdims=0)
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
        helper.make_tensor_value_info("out", FLOAT, ["n", 3]),
    ]
    pack(write_graph(tmp_path, network([SOFTMAX, argmax], outputs=outputs)), ROWS)
    assert golden_of(tmp_path)["classes"] == [0, 1, 2] and golden_of(tmp_path)["label"] == "both"
    shift = [
        helper.make_node("ArgMax", ["out"], ["number"], axis=1, keepdims=0),
        helper.make_node("Add", ["number", "number"], ["label"]),
    ]
    with pytest.raises(BadModel, match="the nodes of the graph do not name its classes"):
        pack(write_graph(tmp_path, network([SOFTMAX, *shift], outputs=outputs)), ROWS)


def test_a_disagreement_names_what_to_change(tmp_path, strings):
    content, estimator = strings
    wrong = np.roll(estimator.predict(ROWS), 1).tolist()
    csv = write_csv(tmp_path / "rows.csv", ROWS, label=wrong)
    with pytest.raises(BadModel, match=r"label is another one on .* rows: .*or train another kind"):
        pack(write_graph(tmp_path / "m", content), csv)
    large = np.round(ROWS, 3) + 2.0**31
    csv = write_csv(tmp_path / "large.csv", large, label=estimator.predict(ROWS).tolist())
    with pytest.raises(BadModel, match="float32 makes different values of a, b, c, d equal: export with a float64 input"):
        pack(write_graph(tmp_path / "m", content), csv)
    tied = np.full((60, 3), 1 / 3)
    columns = {f"probability_{name}": tied[:, i].tolist() for i, name in enumerate(LEVELS)}
    csv = write_csv(tmp_path / "tied.csv", ROWS, **columns)
    with pytest.raises(BadModel, match=r"probabilities are equal in some rows \(60\)"):
        pack(write_graph(tmp_path / "m", content), csv)


def test_a_label_column_may_have_truth_values_and_words_for_missing_values(tmp_path):
    numbers = logistic(classes=2)
    truth = [bool(label) for label in numbers.predict(ROWS)]
    csv = write_csv(tmp_path / "truth.csv", ROWS, label=truth)
    pack(write_graph(tmp_path / "truth", graph_of(numbers)), csv)
    assert golden_of(tmp_path / "truth")["proof"] == "expected"
    words = logistic(["NA", "none"], classes=2)
    csv = write_csv(tmp_path / "words.csv", ROWS, label=words.predict(ROWS).tolist())
    pack(write_graph(tmp_path / "words", graph_of(words)), csv)
    assert golden_of(tmp_path / "words")["proof"] == "expected"


def text_graph(*names: str) -> bytes:
    """Returns the graph of a ZipMap whose class is the place of a text among these names."""
    nodes = [
        helper.make_node("LabelEncoder", ["text"], ["place"], domain="ai.onnx.ml", keys_strings=names, values_int64s=[0, 1, 2]),
        helper.make_node("Gather", ["table", "flat"], ["out"]),
        helper.make_node("Reshape", ["place", "all"], ["flat"]),
    ]
    graph = helper.make_graph(
        [nodes[0], nodes[2], nodes[1]],
        "texts",
        [helper.make_tensor_value_info("text", TensorProto.STRING, ["n", 1])],
        [helper.make_tensor_value_info("out", FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.eye(3, dtype=np.float32), "table"), numpy_helper.from_array(np.array([-1]), "all")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


@pytest.mark.parametrize("names", [("TRUE", "false", "True"), ("NA", "1.50", "007"), (" x", "x ", "x")])
def test_texts_are_those_of_the_cells(tmp_path, names):
    lines = [f"{name},{label}" for name, label in zip(names, "abc", strict=True)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *lines, *lines]))
    pack(write_graph(tmp_path, text_graph(*names), {"0": "a", "1": "b", "2": "c"}), tmp_path / "rows.csv")
    assert {case["row"][0]: case["label"] for case in golden_of(tmp_path)["rows"]} == dict(zip(names, "abc", strict=True))


@pytest.mark.parametrize("noise", [False, True])
def test_a_graph_that_mixes_rows_or_draws_numbers_is_refused(tmp_path, noise):
    nodes = [
        helper.make_node("RandomNormalLike", ["values"], ["random"])
        if noise
        else helper.make_node("Identity", ["values"], ["random"]),
        helper.make_node("Softmax", ["random"], ["out"], axis=1 if noise else 0),
    ]
    path = write_graph(tmp_path, network(nodes))
    with pytest.raises(BadModel, match="the graph gives other values for the row alone than in a batch of 60 rows"):
        pack(path, ROWS, targets=("a", "b", "c"))


def one_input(kind: int, node: onnx.NodeProto) -> bytes:
    """Returns the graph of a regressor with two inputs of this type, of which the node makes floats."""
    graph = helper.make_graph(
        [node, helper.make_node("ReduceSum", ["cast"], ["out"], keepdims=1)],
        "sums",
        [helper.make_tensor_value_info("x", kind, ["n", 2])],
        [helper.make_tensor_value_info("out", FLOAT, ["n", 1])],
        [],
    )
    opsets = [helper.make_opsetid("", 11), helper.make_opsetid("ai.onnx.ml", 3)]
    node.attribute[0].i = FLOAT
    graph.node[1].attribute.append(helper.make_attribute("axes", [1]))
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.UINT8, TensorProto.BOOL, TensorProto.DOUBLE])
def test_rows_of_each_type_are_drawn(tmp_path, kind):
    node = helper.make_node("Cast", ["x"], ["cast"], to=FLOAT)
    report = pack(write_graph(tmp_path, one_input(kind, node)))
    assert "32 rows drawn from the training ranges" in str(report)
    assert len(golden_of(tmp_path)["rows"]) == 32 and not (tmp_path / "training.csv").exists()


def test_rows_of_text_are_not_drawn(tmp_path):
    with pytest.raises(BadModel, match="the feature feature_0 takes text, of which no rows can be drawn"):
        pack(write_graph(tmp_path, text_graph("a", "b", "c")))


def labeled(label_nodes, kind: int = TensorProto.INT64, width: int = 2, last: str = "Softmax") -> bytes:
    """Returns a network with the label of these nodes, which take the output `out`."""
    node = helper.make_node(last, ["values"], ["out"])
    outputs = [helper.make_tensor_value_info("label", kind, ["n"]), helper.make_tensor_value_info("out", FLOAT, ["n", width])]
    return network([node, *label_nodes], width, outputs)


BEST = helper.make_node("ArgMax", ["out"], ["best"], axis=1, keepdims=0)
FIRST_OR_SECOND = helper.make_node("ArgMax", ["out"], ["label"], axis=1, keepdims=0)


@pytest.mark.parametrize(
    ("nodes", "kind", "names", "classes"),
    [
        ([BEST, helper.make_node("Cast", ["best"], ["label"], to=TensorProto.BOOL)], TensorProto.BOOL, None, [False, True]),
        (
            [
                BEST,
                helper.make_node(
                    "LabelEncoder", ["best"], ["label"], domain="ai.onnx.ml", keys_int64s=[0, 1], values_strings=["n", "y"]
                ),
            ],
            TensorProto.STRING,
            None,
            ["n", "y"],
        ),
        (
            [
                BEST,
                helper.make_node(
                    "LabelEncoder",
                    ["best"],
                    ["label"],
                    domain="ai.onnx.ml",
                    keys_int64s=[5, 1],
                    values_strings=["n", "y"],
                    default_string="n",
                ),
            ],
            TensorProto.STRING,
            {"0": "n", "1": "y"},
            ["n", "y"],
        ),
    ],
)
def test_the_classes_of_a_label_are_followed_through_its_nodes(tmp_path, nodes, kind, names, classes):
    pack(write_graph(tmp_path, labeled(nodes, kind), names), ROWS)
    assert golden_of(tmp_path)["classes"] == classes and golden_of(tmp_path)["label"] == "both"


def test_the_labels_of_an_outlier_detector_need_no_names(tmp_path):
    sign = [helper.make_node("Sign", ["out"], ["sign"]), helper.make_node("Cast", ["sign"], ["label"], to=TensorProto.INT64)]
    outputs = [
        helper.make_tensor_value_info(name, kind, ["n", 1]) for name, kind in (("label", TensorProto.INT64), ("out", FLOAT))
    ]
    pack(write_graph(tmp_path, network([helper.make_node("Identity", ["values"], ["out"]), *sign], 1, outputs)), ROWS)
    assert golden_of(tmp_path)["classes"] == [-1, 1] and golden_of(tmp_path)["kind"] == "scores"


def test_a_zipmap_with_other_keys_than_the_label_is_refused(tmp_path, strings):
    model = onnx.load_model_from_string(strings[0])
    node = next(node for node in model.graph.node if node.op_type == "ZipMap")
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("classlabels_strings", ["high", "low", "other"]))
    with pytest.raises(BadModel, match="has the classes high, low, mid, and its ZipMap has high, low, other"):
        pack(write_graph(tmp_path, model.SerializeToString()), ROWS)


def test_another_label_of_a_classifier_of_scores_is_refused(tmp_path):
    estimator = logistic()
    wrong = np.roll(estimator.predict(ROWS), 1)
    with pytest.raises(BadModel, match="the label is another one"):
        pack(write_graph(tmp_path, graph_of(estimator, raw_scores=True)), ROWS, expected=wrong)


def test_the_label_of_a_graph_without_a_label_cannot_be_chosen(tmp_path):
    with pytest.raises(BadModel, match="the graph has no label output; use --label argmax"):
        pack(write_graph(tmp_path, network([SOFTMAX])), ROWS, label="graph")
    with pytest.raises(BadModel, match='label must be "argmax" or "graph", and it is \'both\''):
        pack(write_graph(tmp_path, network([SOFTMAX])), ROWS, label="both")


def test_another_number_of_expected_columns_is_refused(tmp_path):
    with pytest.raises(BadModel, match="the graph gives 3 columns, and 2 are expected"):
        pack(write_graph(tmp_path, network([SOFTMAX])), ROWS, expected=np.zeros((60, 2)))
