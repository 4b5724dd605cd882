"""Expected results: those of estimators with unusual methods, and those of columns and arguments."""

import numpy as np
import pytest

from iris_wsgi.errors import BadModel
from iris_wsgi.packing.reference import (
    KindOf,
    checked_reference,
    column_reference,
    estimator_reference,
    given_reference,
    score_names,
)
from iris_wsgi.packing.sample import read_sample, split_columns

ROWS = np.zeros((3, 2))
CLASSIFIER = KindOf("classifier", (0, 1), ("no", "yes"))


def estimator(**members):
    """Returns an object with these methods and attributes. A list is the result of a method."""
    methods = {name: (lambda self, rows, value=value: np.array(value)) for name, value in members.items() if name != "classes_"}
    return type("Guess", (), {**methods, "classes_": np.array(members["classes_"])} if "classes_" in members else methods)()


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"predict": ["a", "b", "c"]}, "returns values of type <U1; a regressor returns numbers"),
        ({"predict": [1.0, 2.0]}, r"returns the shape \[2\]; it must be \[N\] or \[N, targets\]"),
        ({"predict": [0, 1, 0], "classes_": [0.5, 1.5]}, "the classes must be whole numbers, strings, or booleans; one is 0.5"),
        ({"predict": [0, 1, 2], "classes_": [0, 1]}, "returns labels that are not in classes_: 0, 1"),
        ({"predict": [0, 0, 0], "classes_": [0]}, "the model has one class only, 0"),
        (
            {"predict": [0, 1, 0], "classes_": [0, 1], "predict_proba": [[1.0], [1.0], [1.0]]},
            r"returns the shape \[3, 1\] for 2 classes",
        ),
        ({"predict": [[0, 1], [0, 1], [0, 1]], "classes_": [0, 1]}, "gives several labels per row"),
    ],
)
def test_unusual_results_of_an_estimator_are_refused(members, words):
    with pytest.raises(BadModel, match=words):
        estimator_reference(estimator(**members), ROWS, 3)


def test_a_classifier_without_values_has_its_labels():
    found = estimator_reference(estimator(predict=["b", "a", "b"], classes_=["a", "b"]), ROWS, 3)
    assert found.kind == "scores" and found.labels.tolist() == [1, 0, 1] and found.values is None


def test_scores_have_the_names_of_the_classes_only_if_the_highest_is_the_label():
    scores = np.array([[1.0, 2.0], [3.0, 0.0]])
    assert score_names(scores, np.array([1, 0]), ("a", "b")) == ()
    assert score_names(scores, np.array([0, 1]), ("a", "b")) == ("score_0", "score_1")
    assert score_names(scores[:, :1], np.array([0, 1]), ("a", "b")) == ("score",)


def columns(tmp_path, text: str):
    (tmp_path / "rows.csv").write_text(text)
    return split_columns(read_sample(tmp_path / "rows.csv"), ["x"], 1, ("label",)).others


def test_scores_and_values_of_columns_have_names(tmp_path):
    found = column_reference(columns(tmp_path, "x,score_a,score_b,score_c\n1,2,3,4\n"), (0, 1), ("no", "yes"), (), "label")
    assert (found.kind, found.columns, found.values.tolist()) == ("scores", ("a", "b", "c"), [[2.0, 3.0, 4.0]])
    found = column_reference(columns(tmp_path, "x,value_price\n1,2\n"), (), (), (), "label")
    assert (found.kind, found.columns) == ("regressor", ("price",))
    assert column_reference(columns(tmp_path, "x\n1\n"), (), (), ("price",), "label") is None
    assert column_reference(columns(tmp_path, "x,note\n1,2\n"), (0, 1), ("no", "yes"), (), "label") is None


@pytest.mark.parametrize(
    ("text", "targets", "words"),
    [
        ("x,price\n1,2\n", ("price", "rent"), "the rows have no column rent of the targets price, rent"),
        ("x,price\n1,cheap\n", ("price",), "the column price must have a number in every row"),
        ("x,price\n1,\n", ("price",), "the column price must have a number in every row"),
    ],
)
def test_columns_without_the_expected_numbers_are_refused(tmp_path, text, targets, words):
    with pytest.raises(BadModel, match=words):
        column_reference(columns(tmp_path, text), (), (), targets, "label")


def test_the_argument_has_labels_values_or_both():
    assert given_reference(None, CLASSIFIER, 2) is None
    assert given_reference(["yes", 0], CLASSIFIER, 2).labels.tolist() == [1, 0]
    assert given_reference([[0.1, 0.9]], CLASSIFIER, 1).values.tolist() == [[0.1, 0.9]]
    both = given_reference({"labels": [1], "scores": [[2.0]]}, CLASSIFIER, 1)
    assert both.labels.tolist() == [1] and both.kind == "scores"
    assert given_reference([3.0, 4.0], KindOf("regressor"), 2).values.tolist() == [[3.0], [4.0]]
    with pytest.raises(BadModel, match="expected must be labels, values, or a mapping"):
        given_reference({"answers": [1]}, CLASSIFIER, 1)
    with pytest.raises(BadModel, match="expected has the label maybe, and the labels of the model are n"):
        given_reference(["maybe"], CLASSIFIER, 1)


def test_results_of_another_kind_are_refused():
    with pytest.raises(BadModel, match="the expected results are scores, and the graph gives probabilities"):
        checked_reference(CLASSIFIER, given_reference({"scores": [[1.0]]}, CLASSIFIER, 1))
    with pytest.raises(BadModel, match="the graph gives values without a label"):
        checked_reference(KindOf("regressor"), given_reference(["yes"], CLASSIFIER, 1))
