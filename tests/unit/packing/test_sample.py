"""The rows that pack reads: types, missing values, and the errors of rows that a server would refuse."""

import numpy as np
import pytest
from optional_programs import require_package

from iris_wsgi.codec.model_schema import Feature
from iris_wsgi.errors import BadModel
from iris_wsgi.packing.sample import needs_float64, read_sample

CSV = "age,city,n,ok,code,gap\n31.5,Tokyo,1,true,007,\n40,Osaka,2,False,100,2.5\n"


def types_of(sample) -> list[str]:
    return [column.dtype.kind for column in sample.columns]


def test_a_csv_has_the_first_type_that_has_all_cells_of_a_column(tmp_path):
    (tmp_path / "rows.csv").write_text(CSV)
    sample = read_sample(tmp_path / "rows.csv")
    assert sample.names == ("age", "city", "n", "ok", "code", "gap") and sample.named
    assert types_of(sample) == ["f", "O", "i", "b", "O", "f"]
    assert [sample.has_missing(j) for j in range(6)] == [False, False, False, False, False, True]
    assert sample.range_of(0) == (31.5, 40.0) and sample.range_of(1) == (None, None) and sample.range_of(5) == (2.5, 2.5)


def test_the_cells_of_a_column_of_text_stay_as_they_are(tmp_path):
    (tmp_path / "rows.csv").write_text("city,gap,flag\nTokyo,NA,true\nNA,,false\n x ,1,True\n,2,no\n")
    sample = read_sample(tmp_path / "rows.csv")
    assert sample.columns[0].tolist() == ["Tokyo", "NA", " x ", None] and sample.columns[1].dtype.kind == "f"
    assert sample.columns[2].tolist() == ["true", "false", "True", "no"]
    assert sample.with_texts(["", "string", ""]).columns[1].tolist() == ["NA", None, "1", "2"]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_a_csv_has_any_line_ends_a_byte_order_mark_and_blank_lines(tmp_path, end):
    lines = ["\ufeffa,note,b", "1,x\u2028y\x0c,2", "", ",,", "3,z,4"]
    (tmp_path / "rows.csv").write_bytes(end.join(lines).encode())
    sample = read_sample(tmp_path / "rows.csv")
    assert sample.names == ("a", "note", "b") and [column.tolist() for column in sample.columns][::2] == [[1, 3], [2, 4]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no header with rows below it"),
        ("a,b\n", "no header with rows below it"),
        ("a,b\n1,2\n3\n", "row 2 has 1 cells, and the header names 2 columns"),
        ("a,a\n1,2\n", "two columns have one name"),
    ],
)
def test_a_csv_without_rows_or_with_a_short_row_is_refused(tmp_path, content, words):
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(BadModel, match=words):
        read_sample(tmp_path / "rows.csv")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BadModel, match="cannot be read: No such file or directory"):
        read_sample(tmp_path / "none.csv")


def test_lists_and_arrays_have_numbered_features():
    lists = read_sample([[1, 2.5, "x", None], [2, None, "y", None]])
    assert types_of(lists) == ["i", "f", "O", "f"] and lists.names[0] == "feature_0" and not lists.named
    array = read_sample(np.array([[1.0, np.nan]], np.float32))
    assert types_of(array) == ["f", "f"] and array.has_missing(1)
    assert array.matrix(None) is array.source


@pytest.mark.parametrize("rows", [[1, 2], "text", np.zeros(3), [[1], [1, 2]], []])
def test_other_rows_are_refused(rows):
    with pytest.raises(BadModel):
        read_sample(rows)


def test_a_data_frame_keeps_its_names_and_types():
    pandas = require_package("pandas")
    frame = pandas.DataFrame({"a": [1.5, None], "b": [1, 2], "c": ["x", "y"], "d": [True, False]})
    frame["e"] = pandas.array([1, None], dtype="Int64")
    sample = read_sample(frame)
    assert types_of(sample) == ["f", "i", "O", "b", "f"] and sample.names == tuple("abcde") and sample.has_missing(4)
    assert list(sample.select([1, 0]).matrix(None)) == ["b", "a"]
    frame["when"] = pandas.Timestamp(0)
    with pytest.raises(BadModel, match="the column when has dates"):
        read_sample(frame)


def test_row_values_are_json_values_of_the_types_of_the_features():
    sample = read_sample([[1, 2.5, "x"], [2, None, "y"]])
    features = [Feature("a", type="float32"), Feature("b", type="float64", missing=True), Feature("c", type="string")]
    assert sample.row_values(features) == [[1.0, 2.5, "x"], [2.0, None, "y"]]
    features[0] = Feature("a", type="int64")
    assert [type(row[0]) for row in sample.row_values(features)] == [int, int]


@pytest.mark.parametrize(
    ("rows", "kind", "words"),
    [
        ([[1.0], [None]], "float32", "row 2: x must be a number, and it is None: the model must have been trained with missing"),
        ([["a"], [None]], "string", "a missing value of text cannot be served"),
        ([[1.5]], "int64", "row 1: x must be a whole number"),
        ([["a"]], "float32", "must be a number, and it is 'a'"),
        ([[1e39]], "float32", "must be finite as a 32-bit float"),
        ([[None], [1.0]], "int64", "a missing value of type int64 cannot be served"),
    ],
)
def test_a_value_that_the_server_would_refuse_is_named_with_its_row(rows, kind, words):
    with pytest.raises(BadModel) as caught:
        read_sample(rows).row_values([Feature("x", type=kind)])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("values", "needed"),
    [
        ([0.1, 0.2], False),
        ([16_777_217], True),
        ([1.7e9, 1.7e9 + 1], True),
        ([1e6, 1e6 + 0.001], True),
        ([1e300, 2e300], True),
        (["a"], False),
        ([True], False),
        ([None, 1.0], False),
    ],
)
def test_values_that_are_equal_in_float32_need_float64(values, needed):
    assert needs_float64(read_sample([[value] for value in values]).columns[0]) is needed
