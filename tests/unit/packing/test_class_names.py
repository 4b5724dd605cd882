"""Names of classes: only label.json that fits the labels of the graph is accepted."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iris_wsgi.errors import BadModel
from iris_wsgi.packing.folder import class_names, read_names

WORDS = ("high", "low", "mid")
# Classes of the graph, names, and the accepted names.
FITS = [
    ((0, 1, 2), None, ("0", "1", "2")),
    ((False, True), None, ("False", "True")),
    ((0, 1, 2), {"0": "a", "1": "b", "2": "c"}, ("a", "b", "c")),
    ((0, 1, 2), {"2": "c", "0": "a", "1": "b"}, ("a", "b", "c")),
    ((10, 20, 30), {"0": "ten", "1": "twenty", "2": "thirty"}, ("ten", "twenty", "thirty")),
    ((10, 20, 30), {"30": "thirty", "10": "ten", "20": "twenty"}, ("ten", "twenty", "thirty")),
    ((-1, 1), {"-1": "bad", "1": "good"}, ("bad", "good")),
    ((10, 20), ["ten", "twenty"], ("ten", "twenty")),
    (WORDS, {"0": "high", "1": "low", "2": "mid"}, WORDS),
    (WORDS, {"high": "High!", "low": "Low!", "mid": "Mid!"}, ("High!", "Low!", "Mid!")),
    ((1, 2, 3), {"1": "a", "2": "b", "3": "c"}, ("a", "b", "c")),
]
# Classes of the graph, names, and words of the message.
REFUSED = [
    (WORDS, {"0": "low", "1": "mid", "2": "high"}, "in another order"),
    (WORDS, {"0": "high", "1": "low", "2": "mit"}, "has the name mit, which is not a label"),
    (WORDS, {"0": "a", "1": "b", "2": "c"}, "which is not a label of the graph"),
    (WORDS, {"0": "high", "1": "low"}, "too few names"),
    (WORDS, {"0": "high", "1": "low", "2": "mid", "3": "x"}, "too many names"),
    (WORDS, {"high": "low", "low": "high", "mid": "mid"}, "in another order"),
    (WORDS, {"high": "low", "low": "x", "mid": "mid"}, "the label of another class"),
    (WORDS, {"hihg": "a", "low": "b", "mid": "c"}, "other keys"),
    ((0, 1, 2), {"0": "a", "1": "b"}, "too few names"),
    ((0, 1, 2), {"0": "a", "1": "b", "2": "c", "3": "d"}, "too many names"),
    ((0, 1, 2), {"0": "a", "2": "b", "3": "c"}, "other keys"),
    ((0, 1, 2), {"0": "a", "1": "a", "2": "c"}, "gives two classes one name"),
    ((0, 1, 2), {"0": "1", "1": "2", "2": "3"}, "has the name 3"),
    ((10, 20, 30), {"0": "10", "1": "30", "2": "20"}, "in another order"),
    ((0, 2, 1), {"0": "a", "1": "b", "2": "c"}, "is ambiguous"),
    ((10, 20), ["a", "b", "c"], "too many names"),
]


@pytest.mark.parametrize(("classes", "names", "expected"), FITS)
def test_names_that_fit_are_in_the_order_of_the_classes(classes, names, expected):
    assert class_names(classes, names, "label.json") == expected


@pytest.mark.parametrize(("classes", "names", "words"), REFUSED)
def test_names_that_do_not_fit_are_refused_with_both_lists(classes, names, words):
    with pytest.raises(BadModel, match=words) as caught:
        class_names(classes, names, "label.json")
    assert str(classes[0]) in str(caught.value)


@given(st.permutations(WORDS).filter(lambda names: tuple(names) != WORDS))
def test_every_other_order_is_refused(names):
    with pytest.raises(BadModel, match="another order"):
        class_names(WORDS, {str(i): name for i, name in enumerate(names)}, "label.json")


@given(st.integers(0, 2), st.integers(0, 2), st.characters(codec="ascii", categories=["L"]))
def test_every_change_of_one_letter_is_refused(number, position, letter):
    names = list(WORDS)
    names[number] = names[number][:position] + letter + names[number][position + 1 :]
    if tuple(names) != WORDS:
        with pytest.raises(BadModel):
            class_names(WORDS, {str(i): name for i, name in enumerate(names)}, "label.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"0": "a", "0": "b"}', "has a key twice"),
        ('{"0": 1}', "must map each class to a name"),
        ('{"0": ""}', "must map each class to a name"),
        ("[]", "does not hold a JSON object"),
    ],
)
def test_a_damaged_label_file_is_refused(tmp_path, content, words):
    (tmp_path / "label.json").write_text(content)
    with pytest.raises(BadModel, match=words):
        read_names(tmp_path / "label.json")


def test_a_label_file_is_read(tmp_path):
    (tmp_path / "label.json").write_text(json.dumps({"10": "ten"}))
    assert read_names(tmp_path / "label.json") == {"10": "ten"}
