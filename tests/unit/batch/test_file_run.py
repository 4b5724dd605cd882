"""The batch command on files: the output, bad rows, the end of a run, and its resumption."""

import csv
import errno
import fcntl
import gzip
import io
import itertools
import json
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import broken_models
import numpy as np
import pytest
from batch_command import (
    BAD_ARGUMENTS,
    BAD_MODEL,
    FEATURES,
    GOOD,
    HEADER,
    INTERRUPTED,
    MISCOUNTED,
    STOPPED,
    TOO_MANY_BAD,
    batch,
    command,
    text_of,
)
from http_clients import CI, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from project import MODEL, ROOT
from property_tests import examples
from sealed_models import seal

from iris_wsgi.model.session import load_model
from iris_wsgi.patterns.batch.exit_status import ExitStatus, summary
from iris_wsgi.tabular.columns import csv_columns
from iris_wsgi.tabular.csv_reader import CsvReader
from iris_wsgi.tabular.record_splitter import BadRow

MODEL_OF_IRIS = load_model(MODEL)[0]
PROBABILITIES = [f"probability_{label}" for label in MODEL_OF_IRIS.labels]
ROWS = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.1, 4.7, 1.5], [7.2, 3.6, 6.1, 2.5]]
# Total number of kills of a run, by its output.
KILLS = {"out.csv": 40, "out.jsonl.gz": 15, "out.parquet": 6} if CI else {"out.csv": 2, "out.jsonl.gz": 1, "out.parquet": 1}


def answers(rows: list[list[float]]) -> list[tuple[str, list[float]]]:
    probabilities = MODEL_OF_IRIS.predict(np.array(rows, np.float32))
    return [(MODEL_OF_IRIS.labels[row.argmax()], row.tolist()) for row in probabilities]


def read_csv(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else open(path, newline="") as file:
        return list(csv.DictReader(file))


def same_answers(found: list[dict], rows: list[list[float]]) -> None:
    assert len(found) == len(rows)
    for item, (label, probabilities) in zip(found, answers(rows), strict=True):
        assert item["label"] == label
        # The values have the same bits as float32.
        assert [np.float32(item[name]) for name in PROBABILITIES] == [np.float32(probability) for probability in probabilities]


def record_of(path: Path) -> dict:
    return json.loads(Path(f"{path}.run.json").read_text())


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Function that writes an input file."""

    def write(content: str | bytes, name: str = "in.csv") -> Path:
        path = tmp_path / name
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


def rows_text(rows=ROWS, header: str = HEADER) -> str:
    return "\n".join([header, *(f"k{i}," + ",".join(map(str, row)) for i, row in enumerate(rows))]) + "\n"


# Input and output


def test_every_row_gets_its_label_and_probabilities_and_keeps_its_key(file, tmp_path):
    source = file(text_of(30_000))
    batch(source, tmp_path / "out.csv", "--keep", "id", "--workers", "2")
    rows = [[float(row[name]) for name in FEATURES] for row in read_csv(source)]
    found = read_csv(tmp_path / "out.csv")
    assert list(found[0]) == ["id", "label", *PROBABILITIES]
    assert [row["id"] for row in found] == [f"r{i}" for i in range(30_000)]
    same_answers(found, rows)


@pytest.mark.long
@pytest.mark.parametrize(
    "text",
    [
        rows_text(),
        rows_text().removesuffix("\n"),
        rows_text().replace("\n", "\r\n"),
        "\ufeff" + rows_text(),
        "quoted",
        rows_text().replace("\n", "\r"),
        rows_text().replace("\n", "\r").removesuffix("\r"),
        rows_text().replace("\n", "\r\r"),
        "\ufeff\r" + rows_text().replace("\n", "\r"),
        rows_text().replace("\n", "\r\r\n"),
        "\n\r\n" + rows_text(),
        ",,,,\n , \n" + rows_text(),
        rows_text().replace("\n", "\n\n"),
        rows_text(header=f" id , {' , '.join(FEATURES)}"),
        rows_text([[f" {value} " for value in row] for row in ROWS]),
        rows_text([[f"+{value}e0" for value in row] for row in ROWS]),
    ],
    ids=["plain", "no last line feed", "CRLF", "byte order mark", "quoted", "CR",
         "CR, none at the end", "CR and blank lines", "mark, blank line and CR", "CR CR LF", "leading blank lines",
         "leading empty fields", "blank lines", "blanks in names", "blanks", "signs"],
)  # fmt: skip
def test_csv_may_have_many_notations(file, tmp_path, text):
    if text == "quoted":
        buffer = io.StringIO()
        csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows(csv.reader(io.StringIO(rows_text())))
        text = buffer.getvalue()
    batch(file(text), tmp_path / "out.csv", "--keep", "id")
    found = read_csv(tmp_path / "out.csv")
    assert [row["id"] for row in found] == ["k0", "k1", "k2"]
    same_answers(found, ROWS)


@pytest.mark.long
@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet"])
@pytest.mark.parametrize("twice", ["label", "probability_setosa", "model_digest"])
def test_a_kept_column_with_the_name_of_an_output_column_is_refused(file, tmp_path, name, twice):
    source = file(rows_text(header=",".join([twice, *FEATURES])))
    text = batch(source, tmp_path / name, "--keep", twice, "--digest", status=BAD_ARGUMENTS).stderr.decode()
    assert text == (
        f"iris_wsgi: --keep {twice!r}: OUT has a column of this name already; rename the column in IN, or do not keep it\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]
    # The output has its own column of this name.
    batch(source, tmp_path / "digest.csv", *(("--keep", twice) if twice == "model_digest" else ()))


@pytest.mark.long
@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_another_delimiter_is_recognized_in_a_header_without_commas_or_named(file, tmp_path, delimiter):
    text = rows_text().replace(",", delimiter)
    result = batch(file("\n" + delimiter * 4 + "\n" + text), tmp_path / "one.csv", "--keep", "id").stderr.decode()
    assert f"the separator of the columns of IN is {delimiter!r}" in result
    batch(file(text.replace("k0", '"k,0"'), "two.csv"), tmp_path / "out2.csv", "--keep", "id", "--delimiter", delimiter)
    bare = text.partition("\n")[2].replace(f"k0{delimiter}", "").replace(f"k1{delimiter}", "").replace(f"k2{delimiter}", "")
    result = batch(file(bare, "bare.csv"), tmp_path / "three.csv", "--no-header", status=BAD_ARGUMENTS).stderr.decode()
    assert "set the separator of its columns by --delimiter" in result
    batch(tmp_path / "bare.csv", tmp_path / "three.csv", "--no-header", "--delimiter", "tab" if delimiter == "\t" else delimiter)
    for name in ("one", "out2", "three"):
        same_answers(read_csv(tmp_path / f"{name}.csv"), ROWS)
    assert [row["id"] for row in read_csv(tmp_path / "out2.csv")] == ["k,0", "k1", "k2"]


@pytest.mark.long
def test_a_decimal_comma_is_reported_and_never_another_number(file, tmp_path):
    text = rows_text().replace(",", ";").replace(".", ",")
    batch(file(text), tmp_path / "out.csv", status=TOO_MANY_BAD)
    result = read_csv(tmp_path / "out.csv.errors.csv")
    assert [(row["column"], row["reason"]) for row in result] == [
        ("sepal_length", "is not a number: it has a decimal comma in place of a point")
    ] * 3
    bare = "5,1;3,5;1,4;0,2\n"
    assert b"--delimiter" in batch(file(bare, "bare.csv"), tmp_path / "o.csv", "--no-header", status=BAD_ARGUMENTS).stderr
    batch(tmp_path / "bare.csv", tmp_path / "o.csv", "--no-header", "--delimiter", ";", status=TOO_MANY_BAD)


@pytest.mark.long
@pytest.mark.parametrize("name", ["in.csv", "in.csv.gz"])
def test_lines_that_end_in_carriage_returns_are_split_between_processes_like_others(file, tmp_path, name):
    lines = text_of(30_000)
    batch(file(lines), tmp_path / "wanted.csv", "--keep", "id")
    batch(file(lines.replace("\n", "\r"), name), tmp_path / "out.csv", "--keep", "id", "--workers", "2")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "wanted.csv").read_bytes()


def test_line_ends_in_quotes_stay_as_they_are_and_others_are_reported(file, tmp_path):
    good = ",".join(map(str, ROWS[0]))
    keys = ['"a\rb"', '"c\nd"', '"e\r\nf"']
    for end, name, other in (("\r", "a line feed", "\n"), ("\n", "a carriage return", "\r")):
        lines = [HEADER, *(f"{key},{good}" for key in keys), f"g{other}h,{good}", f"i,{good}"]
        batch(file(end.join(lines)), tmp_path / "out.csv", "--keep", "id", "--force")
        assert [row["id"] for row in read_csv(tmp_path / "out.csv")] == [*(key.strip('"') for key in keys), "i"]
        (fault,) = read_csv(tmp_path / "out.csv.errors.csv")
        assert fault["reason"] == f"has {name} outside of quotes"


def test_json_lines_may_end_in_carriage_returns(file, tmp_path):
    rows = [json.dumps(dict(zip(FEATURES, row, strict=True))) for row in ROWS]
    batch(file("\r".join(rows), "in.jsonl"), tmp_path / "out.csv")
    same_answers(read_csv(tmp_path / "out.csv"), ROWS)


def test_characters_that_look_like_line_ends_are_none(file, tmp_path):
    keys = ["a\u2028b", "c\x0cd", "e\x0bf", "g\x85h", "i\x1cj"]
    batch(file(rows_text([ROWS[0]] * 5).replace("k", "{}").format(*keys)), tmp_path / "out.csv", "--keep", "id")
    assert [row["id"][:3] for row in read_csv(tmp_path / "out.csv")] == keys


# The command with a reader that loses the first row of each chunk.
LOSSY = """
import sys
from iris_wsgi.cli.main import main
from iris_wsgi.tabular.csv_reader import CsvReader
whole = CsvReader.rows
def rows(self, data, line):
    found = whole(self, data, line)
    return found._replace(values=found.values[1:], kept=[column[1:] for column in found.kept])
CsvReader.rows = rows
sys.exit(main())
"""


def test_a_row_that_is_neither_predicted_nor_reported_ends_the_run_with_a_separate_status(file, tmp_path):
    words = ["batch", "--model-dir", MODEL, file(rows_text()), tmp_path / "out.csv", "--keep", "id"]
    result = subprocess.run([sys.executable, "-c", LOSSY, *words], capture_output=True, text=True)
    assert result.returncode == MISCOUNTED and "3 rows from line 2 gave 2 predictions and 0 bad rows" in result.stderr
    assert not (tmp_path / "out.csv").exists() and record_of(tmp_path / "out.csv")["status"] == "failed"


def test_a_record_whose_counts_do_not_add_up_ends_the_run_with_that_status(file, tmp_path):
    source = file(rows_text() + "bad,x,1,1,1\n")
    batch(source, tmp_path / "out.csv", "--max-bad", "0", status=TOO_MANY_BAD)
    result = record_of(tmp_path / "out.csv")
    result["rows"]["bad"] = 0
    (tmp_path / "out.csv.run.json").write_text(json.dumps(result))
    result = batch(source, tmp_path / "out.csv", status=MISCOUNTED).stderr.decode()
    assert "4 rows were read, 3 were predicted, 0 were bad" in result and not (tmp_path / "out.csv").exists()


def test_columns_are_found_by_name_in_any_order_among_others(file, tmp_path):
    lines = ["x,petal_width,petal_length,b,sepal_width,sepal_length", *(f"1,{d},{c},two,{b},{a}" for a, b, c, d in ROWS)]
    batch(file("\n".join(lines)), tmp_path / "out.csv", "--keep", "b,x")
    assert [list(row)[:2] for row in read_csv(tmp_path / "out.csv")] == [["b", "x"]] * 3
    same_answers(read_csv(tmp_path / "out.csv"), ROWS)


@pytest.mark.long
def test_other_names_and_numbers_of_columns_may_be_given(file, tmp_path):
    batch(file(rows_text(header="id,a,b,c,d")), tmp_path / "one.csv", "--features", "a,b,c,d")
    bare = "".join(f"{','.join(map(str, row))},key\n" for row in ROWS)
    batch(file(bare, "bare.csv"), tmp_path / "two.csv", "--no-header", "--keep", "5")
    turned = "".join(f"{','.join(map(str, row[::-1]))}\n" for row in ROWS)
    batch(file(turned, "turned.csv"), tmp_path / "three.csv", "--no-header", "--features", "4,3,2,1")
    for name in ("one", "two", "three"):
        same_answers(read_csv(tmp_path / f"{name}.csv"), ROWS)
    assert [row["5"] for row in read_csv(tmp_path / "two.csv")] == ["key"] * 3


@pytest.mark.long
def test_keys_that_need_quotes_get_them(file, tmp_path):
    keys = ['a"b', "a,b", "two\nlines", "", " ", "ü", "\t"]
    text = io.StringIO()
    csv.writer(text).writerows([HEADER.split(","), *([key, *ROWS[0]] for key in keys)])
    batch(file(text.getvalue()), tmp_path / "out.csv", "--keep", "id")
    assert [row["id"] for row in read_csv(tmp_path / "out.csv")] == keys
    batch(file(text.getvalue()), tmp_path / "out.jsonl", "--keep", "id")
    assert [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == keys


def test_json_lines_of_objects_and_of_lists(file, tmp_path):
    objects = [{"k": {"a": [1, None]}, **dict(zip(FEATURES, row, strict=True))} for row in ROWS]
    batch(file("\n".join(map(json.dumps, objects)), "in.jsonl"), tmp_path / "out.jsonl", "--keep", "k", "--digest")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    same_answers(found, ROWS)
    assert [row["k"] for row in found] == [{"a": [1, None]}] * 3
    assert {row["model_digest"] for row in found} == {MODEL_OF_IRIS.digest}
    lists = "\n".join(json.dumps([*row, "key"]) for row in ROWS)
    batch(file(lists, "in.ndjson"), tmp_path / "lists.csv", "--features", "1,2,3,4", "--keep", "5")
    same_answers(read_csv(tmp_path / "lists.csv"), ROWS)


@pytest.mark.long
def test_gzip_is_recognized_by_the_name_of_the_input_and_the_output(file, tmp_path):
    batch(file(text_of(20_000), "in.csv.gz"), tmp_path / "out.csv.gz", "--keep", "id")
    batch(file(text_of(20_000)), tmp_path / "out.csv", "--keep", "id")
    assert gzip.decompress((tmp_path / "out.csv.gz").read_bytes()) == (tmp_path / "out.csv").read_bytes()


def test_standard_streams(tmp_path):
    result = batch("-", "-", "--in-format", "csv", input=rows_text().encode())
    same_answers(list(csv.DictReader(io.StringIO(result.stdout.decode()))), ROWS)
    batch("-", tmp_path / "out.csv", "--in-format", "csv", input=rows_text().encode())
    assert (tmp_path / "out.csv").read_bytes() == result.stdout
    result = batch("-", "-", "--in-format", "csv", "--out-format", "jsonl", "--quiet", input=rows_text().encode())
    assert len(result.stdout.splitlines()) == 3 and result.stderr == b"line,column,reason\n"


@pytest.mark.long
def test_parquet_is_read_and_written_and_keeps_its_types(tmp_path):
    import pyarrow as arrow
    from pyarrow import parquet

    chance = np.random.default_rng(3)
    columns = {name: chance.uniform(0.1, 7, 20_000) for name in FEATURES}
    keys = arrow.array(range(20_000), arrow.int64())
    parquet.write_table(arrow.table({"id": keys, **columns}), tmp_path / "in.parquet", row_group_size=3000)
    batch(tmp_path / "in.parquet", tmp_path / "out.parquet", "--keep", "id", "--digest")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.column("id").combine_chunks() == keys and table.schema.field(PROBABILITIES[0]).type == arrow.float32()
    rows = np.stack(list(columns.values()), axis=1).astype(np.float32)
    expected = MODEL_OF_IRIS.predict(rows)
    assert (np.stack([table.column(name).to_numpy() for name in PROBABILITIES], axis=1) == expected).all()
    assert table.column("label").to_pylist() == [MODEL_OF_IRIS.labels[i] for i in expected.argmax(axis=1)]
    batch(tmp_path / "in.parquet", tmp_path / "out.csv", "--keep", "id")
    same_answers(read_csv(tmp_path / "out.csv")[:100], rows[:100].tolist())


@pytest.mark.long
def test_parquet_with_missing_and_infinite_values_and_of_wrong_types(tmp_path):
    import pyarrow as arrow
    from pyarrow import parquet

    columns = {name: [1.0, None, float("nan"), 1e39, 2.0] for name in FEATURES}
    parquet.write_table(arrow.table({**columns, "text": list("abcde")}), tmp_path / "in.parquet")
    batch(tmp_path / "in.parquet", tmp_path / "out.csv", "--keep", "text")
    assert [row["text"] for row in read_csv(tmp_path / "out.csv")] == ["a", "e"]
    assert [(row["line"], row["reason"]) for row in read_csv(tmp_path / "out.csv.errors.csv")] == [
        ("2", "is empty"),
        ("3", "is not finite as a 32-bit float"),
        ("4", "is not finite as a 32-bit float"),
    ]
    text = ",".join(["text", *FEATURES[1:]])
    assert b"not numeric" in batch(tmp_path / "in.parquet", tmp_path / "o.csv", "--features", text, status=BAD_ARGUMENTS).stderr


# Bad rows

BAD_LINES = {
    "x,3,1,1": ("sepal_length", "is not a number"),
    ",3,1,1": ("sepal_length", "is empty"),
    "1,2,3,nan": ("petal_width", "is not finite as a 32-bit float"),
    "1,2,-Infinity,4": ("petal_length", "is not finite as a 32-bit float"),
    "1,1e39,3,4": ("sepal_width", "is not finite as a 32-bit float"),
    "1,2,3": ("", "has 4 columns, not 5"),
    "1,2,3,4,5": ("", "has 6 columns, not 5"),
    "1,2,3,4\0": ("", "has a NUL"),
    "1,2,3,1_0": ("petal_width", "is not a number"),
    "1,2,3,0x10": ("petal_width", "is not a number"),
    "1,2,3,٣": ("petal_width", "is not a number"),
    "1,2,3,4\r5": ("", "has a carriage return outside of quotes"),
    "1,2,3,5.1.1": ("petal_width", "is not a number"),
    '"1\n2",2,3,4': ("sepal_length", "is not a number"),
    "#1,2,3,4": ("sepal_length", "is not a number"),
}


def test_a_bad_row_is_reported_with_line_column_and_reason_and_affects_no_other(file, tmp_path):
    lines, expected, at = [HEADER], [], 2
    for text, (column, reason) in BAD_LINES.items():
        lines += [f"good{at}," + ",".join(map(str, ROWS[0])), f"bad{at},{text}"]
        expected.append((str(at + 1), column, reason))
        at += 2 + text.count("\n")
    result = batch(file("\n".join(lines)), tmp_path / "out.csv", "--keep", "id")
    assert [(row["line"], row["column"], row["reason"]) for row in read_csv(tmp_path / "out.csv.errors.csv")] == expected
    same_answers(read_csv(tmp_path / "out.csv"), [ROWS[0]] * len(BAD_LINES))
    assert f"{len(BAD_LINES)} bad, listed in {tmp_path}/out.csv.errors.csv".encode() in result.stderr
    assert record_of(tmp_path / "out.csv")["rows"] == {"ok": len(BAD_LINES), "bad": len(BAD_LINES)}


def test_hostile_lines_are_left_out_and_the_rest_is_scored(file, tmp_path):
    good = ",".join(map(str, ROWS[0])).encode()
    lines = [
        HEADER.encode(),
        b"1," + good,
        b"2," + b"9" * 10_000_000,
        b"3," + good,
        b"\xff\xfe," + good,
        b'4,"' + good,
        b"5," + good,
    ]
    batch(file(b"\n".join(lines) + b"\n"), tmp_path / "out.csv", "--keep", "id")
    assert [row["id"] for row in read_csv(tmp_path / "out.csv")] == ["1", "3", "5"]
    result = [(row["line"], row["reason"].split(" ")[0:3]) for row in read_csv(tmp_path / "out.csv.errors.csv")]
    assert result == [("3", ["is", "longer", "than"]), ("5", ["is", "not", "UTF-8"]), ("6", ["has", "a", "quote"])]


JSON_BAD = {
    "{": ("", "is not JSON"),
    "null": ("", "is neither an object nor a list"),
    "[1, 2, 3]": ("sepal_length", "is missing"),
    '{"sepal_length": 1}': ("sepal_width", "is missing"),
    json.dumps(dict.fromkeys(FEATURES, "1")): ("sepal_length", "is not a number"),
    json.dumps(dict.fromkeys(FEATURES, True)): ("sepal_length", "is not a number"),
    json.dumps(dict.fromkeys(FEATURES, float("nan"))): ("sepal_length", "is not finite as a 32-bit float"),
    json.dumps(dict.fromkeys(FEATURES, 10**400)): ("sepal_length", "is not finite as a 32-bit float"),
    "[" * 100_000: ("", "is not JSON"),
}


def test_bad_json_lines_are_reported_likewise(file, tmp_path):
    good = json.dumps(dict(zip(FEATURES, ROWS[0], strict=True)))
    batch(file("\n".join([good, *JSON_BAD, "", good]), "in.jsonl"), tmp_path / "out.csv")
    result = [(row["line"], row["column"], row["reason"]) for row in read_csv(tmp_path / "out.csv.errors.csv")]
    assert result == [(str(i), *why) for i, why in enumerate(JSON_BAD.values(), 2)]
    same_answers(read_csv(tmp_path / "out.csv"), [ROWS[0]] * 2)


@pytest.mark.long
@pytest.mark.parametrize(
    ("limit", "status", "why"),
    [
        (None, GOOD, b""), ("2", GOOD, b""), ("1", TOO_MANY_BAD, b"2 bad rows are more than --max-bad 1"), ("40%", GOOD, b""),
        ("39.9%", TOO_MANY_BAD, b"2 bad rows of 5 are more than --max-bad 39.9%"), ("0", TOO_MANY_BAD, b"more than --max-bad 0"),
    ],
)  # fmt: skip
def test_more_bad_rows_than_allowed_fail_the_run_with_a_message(file, tmp_path, limit, status, why):
    source = file(rows_text() + "bad,x,1,1,1\nbad,1,1,1\n")
    result = batch(source, tmp_path / "out.csv", *(("--max-bad", limit) if limit else ()), status=status)
    assert why in result.stderr and (tmp_path / "out.csv").exists() == (status == GOOD)
    assert record_of(tmp_path / "out.csv")["status"] == ("succeeded" if status == GOOD else "failed")
    assert len(read_csv(tmp_path / "out.csv.errors.csv")) == 2
    # With another limit the same run resumes at this point.
    batch(source, tmp_path / "out.csv", "--max-bad", "100%")
    same_answers(read_csv(tmp_path / "out.csv"), ROWS)


def test_a_run_with_only_bad_rows_fails(file, tmp_path):
    result = batch(file(f"{HEADER}\n1,2,3\n"), tmp_path / "out.csv", status=TOO_MANY_BAD)
    assert b"all 1 rows are bad" in result.stderr


def test_a_header_without_rows_gives_a_header_without_rows(file, tmp_path):
    batch(file(f"{HEADER}\n"), tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == ",".join(["label", *PROBABILITIES]) + "\n"
    assert not (tmp_path / "out.csv.errors.csv").exists()


# Errors before the start of a run


@pytest.mark.long
@pytest.mark.parametrize(
    ("content", "arguments", "why"),
    [
        (b"", (), "IN is empty"),
        ("a,b\n1,2\n", (), "no column 'sepal_length'; it has a, b."),
        (rows_text(header="id,sepal_length,sepal_length,petal_length,petal_width"), (), "several columns 'sepal_length'"),
        (rows_text(), ("--keep", "nothing"), "no column 'nothing'"),
        (rows_text(), ("--features", "a,b"), "names 2 columns; the model takes 4"),
        (rows_text(), ("--features", "a,a,b,c"), "must be different names"),
        ("1,2\n", ("--no-header",), "IN has 2 columns, the model takes 4 features"),
        ("1,2,3,4\n", ("--no-header", "--keep", "5"), "numbers from 1 to 4, not '5'"),
        (rows_text().encode("utf-16"), (), "is UTF-16, as Excel's Unicode Text is; save it as CSV UTF-8"),
        (gzip.compress(rows_text().encode(), mtime=0), (), "is compressed with gzip; give it a name that ends in .gz"),
        (b"PK\x03\x04", (), "is a ZIP archive, as an Excel workbook is"),
        ("\n\r\n,,,\n", (), "IN is empty"),
        (rows_text(), ("--max-bad", "-1"), "must be a number of rows"),
        (rows_text(), ("--shard", "4/4"), "must be like 0/4"),
        (rows_text(), ("--delimiter", "."), "must be one character"),
        (rows_text(), ("--delimiter", "1"), "must be one character"),
        (rows_text(), ("--delimiter", ";;"), "must be one character"),
        (rows_text(), ("--delimiter", ";", "--in-format", "jsonl"), "--delimiter is for CSV"),
        (rows_text().replace("petal_length", "petal length, cm").replace(",p", ";p"), (), "or --delimiter"),
        (rows_text(), ("--out-format", "xml"), "invalid choice"),
    ],
)
def test_an_invalid_argument_is_one_line_and_status_2_and_leaves_no_file(file, tmp_path, content, arguments, why):
    result = batch(file(content), tmp_path / "out.csv", *arguments, status=BAD_ARGUMENTS)
    assert why in result.stderr.decode()
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


@pytest.mark.long
def test_unusable_paths_are_refused(file, tmp_path):
    source = file(rows_text())
    for arguments, why in (
        ((source, source), "the same file"),
        ((tmp_path / "none.csv", tmp_path / "out.csv"), "cannot be read: No such file"),
        ((source, tmp_path / "none/out.csv"), "cannot be written: No such file"),
        ((source,), "needs IN and OUT"),
        (("-", tmp_path / "out.csv"), "the format of IN"),
        ((source, tmp_path / "out.parquet.gz"), "cannot be Parquet under gzip"),
        ((source, "-", "--out-format", "parquet"), "cannot be Parquet on a standard stream"),
    ):
        assert why in batch(*arguments, status=BAD_ARGUMENTS).stderr.decode()


def test_a_model_that_cannot_be_used_is_status_1(file, tmp_path):
    result = batch(file(rows_text()), tmp_path / "out.csv", "--model-dir", tmp_path, status=BAD_MODEL)
    start, end = result.stderr.decode().split("; ")
    assert start == f"iris_wsgi: {tmp_path}/golden.json cannot be read: No such file or directory"
    assert end == "IRIS_MODEL_DIR names the folder of a model\n"


@pytest.mark.long
@pytest.mark.parametrize("kind", ["rows repeated", "rows dropped"])
@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_a_model_with_another_number_of_rows_fails_the_run_and_writes_nothing(file, tmp_path, kind, name):
    folder = broken_models.write_broken_model(tmp_path / "broken", kind)
    seal(folder)
    lines = ["k,feature_0,feature_1,feature_2,feature_3", *(f"k{i},5.1,3.5,1.4,0.2" for i in range(200))]
    text = batch(file("\n".join(lines)), tmp_path / name, "--model-dir", folder, status=BAD_MODEL).stderr.decode()
    assert "for 200 rows has the shape" in text and "it must be [200, 3]" in text and text.count("\n") == 1
    assert not (tmp_path / name).exists() and record_of(tmp_path / name)["status"] == "failed"


# One output belongs to one run


def test_a_finished_run_is_not_repeated(file, tmp_path):
    source = file(rows_text())
    batch(source, tmp_path / "out.csv")
    before = (tmp_path / "out.csv").stat()
    assert b"nothing to do" in batch(source, tmp_path / "out.csv").stderr
    assert (tmp_path / "out.csv").stat() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv", "out.csv.run.json"]


@pytest.mark.long
@pytest.mark.parametrize("what", ["input", "model", "options"])
def test_an_output_of_another_run_is_replaced_only_with_force(file, tmp_path, what, slow_model):
    source, names = file(rows_text()), ("--features", ",".join(FEATURES))
    batch(source, tmp_path / "out.csv", *names)
    before = (tmp_path / "out.csv").read_bytes()
    arguments = names
    if what == "input":
        source = file(rows_text(ROWS[:1]))
    elif what == "options":
        arguments = (*names, "--keep", "id")
    else:
        arguments = (*names, "--model-dir", slow_model)
    result = batch(source, tmp_path / "out.csv", *arguments, status=BAD_ARGUMENTS)
    assert f"its {what} differ; --force starts again".encode() in result.stderr
    assert (tmp_path / "out.csv").read_bytes() == before
    batch(source, tmp_path / "out.csv", *arguments, "--force")
    assert (tmp_path / "out.csv").read_bytes() != before


@pytest.mark.long
@pytest.mark.parametrize("name", ["out.csv", "out.csv.errors.csv", "out.csv.run.json"])
def test_a_file_that_is_no_output_of_a_run_is_replaced_only_with_force(file, tmp_path, name):
    (tmp_path / name).write_text("another user's work")
    source = file(rows_text() + "bad,x,1,1,1\n")
    assert b"--force" in batch(source, tmp_path / "out.csv", status=BAD_ARGUMENTS).stderr
    assert (tmp_path / name).read_text() == "another user's work"
    batch(source, tmp_path / "out.csv", "--force")
    same_answers(read_csv(tmp_path / "out.csv"), ROWS)


# Outputs that are not regular files


@pytest.mark.long
def test_a_fifo_is_written_to_and_stays_with_or_without_force(file, tmp_path):
    source, fifo = file(rows_text()), tmp_path / "out.jsonl"
    os.mkfifo(fifo)
    for force in ((), ("--force",)):
        # The fifo is opened for reading and writing, so it buffers the rows and no side waits for the other.
        descriptor = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        batch(source, fifo, *force)
        assert len(os.read(descriptor, 1 << 16).splitlines()) == 3
        os.close(descriptor)
        assert fifo.is_fifo() and sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.jsonl"]


@pytest.mark.long
def test_a_device_is_written_to_and_a_link_to_it_stays(file, tmp_path):
    source, link = file(rows_text() + "bad,x,1,1,1\n"), tmp_path / "null.csv"
    link.symlink_to("/dev/null")
    text = batch(source, link, "--errors", link).stderr.decode()
    assert "wrote" in text and "--force" not in text
    batch(source, link, "--force")
    batch(source, tmp_path / "out.csv", "--errors", link, "--force")
    assert link.is_symlink() and Path("/dev/null").is_char_device()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "null.csv", "out.csv", "out.csv.run.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_a_device_of_root_stays_a_device(file, tmp_path):
    device = tmp_path / "null.csv"
    os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    batch(file(rows_text()), device, "--force")
    assert device.is_char_device()


@pytest.mark.long
@pytest.mark.parametrize("there", [True, False])
def test_the_target_of_a_link_is_written(file, tmp_path, there):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere/real.csv", tmp_path / "out.csv"
    link.symlink_to("elsewhere/real.csv")
    if there:
        target.write_text("another user's work")
        assert b"--force overwrites it" in batch(file(rows_text()), link, status=BAD_ARGUMENTS).stderr
    batch(file(rows_text()), link, *(("--force",) if there else ()))
    assert link.is_symlink() and not target.is_symlink()
    same_answers(read_csv(target), ROWS)
    # Both names belong to the same run.
    assert b"nothing to do" in batch(tmp_path / "in.csv", target).stderr
    assert b"nothing to do" in batch(tmp_path / "in.csv", link).stderr


@pytest.mark.long
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_a_descriptor_is_written_to_at_its_position(file, tmp_path, name):
    source, log = file(rows_text()), tmp_path / "log.csv"
    log.write_text("before\n")
    with log.open("ab") as appended:
        result = subprocess.run(command(source, name, "--quiet"), stdout=appended, stderr=subprocess.PIPE)
    assert result.returncode == GOOD, result.stderr
    first, *rest = log.read_text().splitlines()
    assert first == "before" and len(rest) == 4


@pytest.mark.long
def test_a_record_or_a_partial_output_that_is_not_a_regular_file_is_not_changed(file, tmp_path):
    source = file(rows_text())
    for name in ("out.csv.partial", "out.csv.run.json"):
        link = tmp_path / name
        link.symlink_to("/dev/null")
        text = batch(source, tmp_path / "out.csv", "--force", status=BAD_ARGUMENTS).stderr.decode()
        assert f"{name} cannot be written: it is a character device, not a regular file" in text
        assert link.is_symlink() and not (tmp_path / "out.csv").exists()
        link.unlink()
    # The run does not follow a link at the path of its partial output.
    (tmp_path / "mine").write_text("another user's work")
    (tmp_path / "out.csv.partial").symlink_to("mine")
    batch(source, tmp_path / "out.csv", status=BAD_ARGUMENTS)
    assert (tmp_path / "mine").read_text() == "another user's work"


@pytest.mark.long
def test_two_outputs_or_an_output_and_the_input_in_one_file_are_refused(file, tmp_path):
    source = file(rows_text())
    before = source.read_bytes()
    (tmp_path / "link.csv").symlink_to("in.csv")
    (tmp_path / "hard.csv").hardlink_to(source)
    (tmp_path / "out.csv.partial").hardlink_to(source)
    (tmp_path / "two.csv.run.json").symlink_to("in.csv")
    out = tmp_path / "out.csv"
    for arguments, why in (
        ((source, tmp_path / "link.csv"), "IN and OUT"),
        ((source, tmp_path / "hard.csv"), "IN and OUT"),
        ((tmp_path / "link.csv", source), "IN and OUT"),
        ((source, tmp_path / "one.csv", "--errors", source), "IN and --errors"),
        ((source, tmp_path / "one.csv", "--errors", tmp_path / "one.csv"), "OUT and --errors"),
        ((source, tmp_path / "one.csv", "--errors", tmp_path / "one.csv.run.json"), "--errors and OUT.run.json"),
        ((source, out), "IN and OUT.partial"),
        ((source, tmp_path / "two.csv"), "IN and OUT.run.json"),
    ):
        text = batch(*arguments, "--force", status=BAD_ARGUMENTS).stderr.decode()
        assert f"{why} are the same file" in text
    with source.open("rb") as rows:
        text = batch("-", source, "--in-format", "csv", "--force", stdin=rows, status=BAD_ARGUMENTS)
    with source.open("ab") as rows:
        line = subprocess.run(command(source, "-"), stdout=rows, stderr=subprocess.PIPE)
    assert line.returncode == BAD_ARGUMENTS and b"IN and OUT are the same file" in text.stderr + line.stderr
    assert source.read_bytes() == before
    for path in (tmp_path, f"{tmp_path}/none/"):
        assert b"OUT is a directory" in batch(source, path, status=BAD_ARGUMENTS).stderr


@pytest.mark.long
def test_a_second_run_on_one_output_stops_with_one_line(file, tmp_path):
    source = file(rows_text())
    with open(tmp_path / "out.csv.partial", "w") as taken:
        fcntl.flock(taken, fcntl.LOCK_EX)
        result = batch(source, tmp_path / "out.csv", status=BAD_ARGUMENTS)
    assert result.stderr.decode() == f"iris_wsgi: another run is writing {tmp_path}/out.csv\n"
    batch(source, tmp_path / "out.csv")


@pytest.mark.long
def test_shards_contain_all_rows_once(file, tmp_path):
    source = file(text_of(60_000))
    for i in range(3):
        batch(source, tmp_path / f"out{i}.csv", "--keep", "id", "--shard", f"{i}/3")
    parts = [[row["id"] for row in read_csv(tmp_path / f"out{i}.csv")] for i in range(3)]
    assert all(parts) and sorted(itertools.chain(*parts)) == sorted(f"r{i}" for i in range(60_000))


# Interrupted runs


@pytest.fixture(scope="module")
def large_input(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Input of a dozen chunks, some of which have bad rows."""
    folder = tmp_path_factory.mktemp("large")
    lines = text_of(90_000).splitlines()
    for i in (5, 40_000, 40_001, 89_000):
        lines[i] = "bad,1,2,x,4"
    lines[60_000] = '"quoted, and\nof two lines",5.1,3.5,1.4,0.2'
    (folder / "in.csv").write_text("\n".join(lines))
    (folder / "in.csv.gz").write_bytes(gzip.compress((folder / "in.csv").read_bytes()))
    return folder


@pytest.fixture(scope="module")
def large(large_input: Path) -> Path:
    """Large input, and its outputs without an interruption by name."""
    for source, target in RUNS:
        batch(large_input / source, large_input / target, "--keep", "id", "--quiet")
    return large_input


RUNS = [("in.csv", "out.csv"), ("in.csv.gz", "out.jsonl.gz"), ("in.csv", "out.parquet")]


def start(*arguments: str | Path) -> subprocess.Popen:
    line = command(*arguments, "--keep", "id", "--quiet", "--checkpoint", "0")
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def run(*arguments: str | Path) -> None:
    process = start(*arguments)
    text = process.communicate()[1].decode()
    assert process.returncode == GOOD, text


def checkpoint(out: Path) -> int:
    """Returns the next chunk in the record of a run."""
    try:
        return record_of(out)["checkpoint"]["chunk"]
    except FileNotFoundError:
        return 0


def wait_for_checkpoint(out: Path, process: subprocess.Popen) -> None:
    wait_until(lambda: checkpoint(out) > 0 or process.poll() is not None, "a checkpoint, or the end of the run")


def same_run(out: Path, expected: Path) -> None:
    """Asserts that the output files are those of an uninterrupted run, byte for byte."""
    assert out.read_bytes() == expected.read_bytes()
    assert Path(f"{out}.errors.csv").read_bytes() == Path(f"{expected}.errors.csv").read_bytes()
    for name in ("status", "rows", "labels", "checkpoint"):
        assert record_of(out)[name] == record_of(expected)[name]
    assert not Path(f"{out}.partial").exists()


@pytest.mark.repeats
@pytest.mark.long
@pytest.mark.parametrize(("source", "target"), RUNS)
def test_a_run_killed_at_any_moments_ends_like_an_uninterrupted_one(large, tmp_path, source, target):
    chance, out, kills, went_on = random.Random(target), tmp_path / target, 0, 0
    began = time.monotonic()
    run(large / source, out)
    took = time.monotonic() - began
    while kills < KILLS[target]:
        # A run that was killed between its output and the last entry of its record resumes too.
        if out.exists() and record_of(out)["status"] != "finishing":
            same_run(out, large / target)
            for path in tmp_path.iterdir():
                path.unlink()
        before = checkpoint(out)
        process, moment = start(large / source, out), chance.uniform(0.2, 1.1) * took
        if before == 0 and kills % 3 == 0:
            # However fast the machine is, some kills come soon after a checkpoint.
            wait_for_checkpoint(out, process)
            moment = chance.uniform(0, 0.1) * took
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.communicate()
        assert process.returncode in (GOOD, -signal.SIGKILL)
        went_on += 0 < before <= checkpoint(out)
    run(large / source, out)
    same_run(out, large / target)
    assert went_on or not CI


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_interrupted_run_stores_its_progress_and_resumes(large, tmp_path, number):
    out = tmp_path / "out.csv"
    process = start(large / "in.csv", out)
    wait_until(lambda: checkpoint(out) > 1, "the run has started")
    process.send_signal(number)
    text = process.communicate()[1].decode()
    assert (
        process.returncode == INTERRUPTED
        and f"stopped: {number.name}, after" in text
        and "the same command resumes the run" in text
    )
    assert text.count("\n") == 1
    assert record_of(out)["status"] == "interrupted" and not out.exists()
    run(large / "in.csv", out)
    same_run(out, large / "out.csv")


@pytest.mark.long
def test_a_killed_process_of_the_run_stops_it_with_one_line(large, tmp_path):
    out = tmp_path / "out.csv"
    process = start(large / "in.csv", out)
    wait_until(lambda: checkpoint(out) > 1, "the run has started")
    child = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
    os.kill(int(child), signal.SIGKILL)
    text = process.communicate()[1].decode()
    assert process.returncode == STOPPED and "a process of this run was killed" in text and text.count("\n") == 1
    run(large / "in.csv", out)
    same_run(out, large / "out.csv")


@pytest.mark.long
def test_a_run_killed_between_the_last_checkpoint_and_the_rename_is_finished(large, tmp_path):
    out = tmp_path / "out.csv"
    run(large / "in.csv", out)
    # State of the files just before and just after the rename of the output.
    done = json.loads((tmp_path / "out.csv.run.json").read_text())
    (tmp_path / "out.csv.run.json").write_text(json.dumps({**done, "status": "finishing"}))
    out.rename(tmp_path / "out.csv.partial")
    run(large / "in.csv", out)
    same_run(out, large / "out.csv")
    (tmp_path / "out.csv.run.json").write_text(json.dumps({**done, "status": "finishing"}))
    run(large / "in.csv", out)
    same_run(out, large / "out.csv")


@pytest.mark.long
@pytest.mark.parametrize(("source", "target"), RUNS[:2])
def test_a_full_disk_is_one_line_and_the_run_resumes_when_there_is_room(large, tmp_path, source, target):
    out = tmp_path / target
    limit = (large / target).stat().st_size // 2
    line = command(large / source, out, "--keep", "id", "--quiet", "--checkpoint", "0")

    def little_room() -> None:
        # Python ignores SIGXFSZ, so that a write raises an error like on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    result = subprocess.run(line, capture_output=True, text=True, preexec_fn=little_room)
    assert result.returncode == STOPPED and result.stderr.count("\n") == 1
    assert os.strerror(errno.EFBIG) in result.stderr and "the same command resumes the run" in result.stderr
    assert checkpoint(out) > 0
    run(large / source, out)
    same_run(out, large / target)


@pytest.mark.long
def test_a_reader_that_closes_the_pipe_stops_the_run_with_one_line(large_input):
    process = subprocess.Popen(command(large_input / "in.csv", "-", "--quiet"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1000)
    process.stdout.close()
    text = process.stderr.read().decode()
    assert process.wait() == STOPPED and text.splitlines()[-1].startswith(
        "iris_wsgi: stopped: the reader of the output closed it"
    )
    process.stderr.close()


@pytest.mark.long
@pytest.mark.parametrize("damage", ["cut off", "no gzip"])
def test_an_input_that_ends_too_soon_stops_the_run_with_one_line(large_input, tmp_path, damage):
    data = (large_input / "in.csv.gz").read_bytes()
    (tmp_path / "in.csv.gz").write_bytes(data[: len(data) // 2] if damage == "cut off" else data[:50_000] + b"x" * 50_000)
    text = batch(tmp_path / "in.csv.gz", tmp_path / "out.csv", "--keep", "id", status=STOPPED).stderr.decode()
    assert "cannot be read to its end" in text and not (tmp_path / "out.csv").exists()


def test_an_input_that_is_not_gzip_is_reported_in_one_line(tmp_path):
    (tmp_path / "in.csv.gz").write_bytes(b"no gzip")
    assert b"in.csv.gz cannot be read" in batch(tmp_path / "in.csv.gz", tmp_path / "out.csv", status=STOPPED).stderr


@pytest.mark.long
def test_a_truncated_output_is_not_resumed(large_input, tmp_path):
    out = tmp_path / "out.csv"
    process = start(large_input / "in.csv", out)
    wait_until(lambda: checkpoint(out) > 1, "the run has started")
    process.kill()
    process.communicate()
    os.truncate(tmp_path / "out.csv.partial", 100)
    result = batch(large_input / "in.csv", out, "--keep", "id", status=BAD_ARGUMENTS)
    assert b"was truncated; --force starts again" in result.stderr


# Progress and summary


def test_a_log_gets_a_line_now_and_then_and_a_terminal_a_progress_bar(tmp_path, monkeypatch, capsys):
    from iris_wsgi import console

    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    reporter = console.ProgressReporter(100, "B", quiet=False)
    reporter.update(10, 1000, 0)
    reporter.update(50, 5000, 2)
    reporter.end()
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("50%, about ") and "5000 rows, " in line and line.endswith(" 2 bad")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar = console.ProgressReporter(100, "B", quiet=False)
    bar.update(50, 5000, 2)
    bar.end()
    assert "50%" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    console.ProgressReporter(None, "B", quiet=False).update(50, 5000, 2)
    assert capsys.readouterr().err.endswith("5000 rows, 0 rows/s, 2 bad\n")
    console.ProgressReporter(None, "B", quiet=True).update(1, 1, 1)
    assert capsys.readouterr().err == ""


@pytest.mark.long
def test_the_summary_has_the_labels_and_quiet_prints_nothing(file, tmp_path):
    text = batch(file(rows_text()), tmp_path / "out.csv").stderr.decode()
    assert text == f"iris_wsgi: wrote {tmp_path}/out.csv, 3 rows: 1 setosa, 1 versicolor, 1 virginica\n"
    assert batch(file(rows_text(ROWS[:1])), tmp_path / "two.csv", "--quiet").stderr == b""


def log_lines(result: subprocess.CompletedProcess) -> list[dict]:
    return [json.loads(line) for line in result.stderr.splitlines()]


@pytest.mark.long
def test_all_messages_are_json_lines_if_the_log_format_is_json(file, tmp_path, monkeypatch):
    source, target = file(rows_text()), tmp_path / "out.csv"
    for last in (f"wrote {target}, 3 rows: 1 setosa, 1 versicolor, 1 virginica", "nothing to do: run "):
        (line,) = log_lines(batch(source, target, "--log-format", "json"))
        assert list(line) == ["time", "level", "message"] and line["level"] == "info" and line["message"].startswith(last)
    for arguments, status in ((("--max-bad", "x"), BAD_ARGUMENTS), (("--chank", "5"), BAD_ARGUMENTS), (("--model-dir", "/"), 1)):
        (line,) = log_lines(batch(source, target, "--log-format=json", *arguments, status=status))
        assert line["level"] == "error" and ("--max-bad" in line["message"] or "--chunk" in line["message"] or status == 1)
    (line,) = log_lines(batch(file("a,b\n1,2\n"), tmp_path / "bad.csv", "--log-format", "json", status=BAD_ARGUMENTS))
    assert line["level"] == "error" and "sepal" in line["message"]
    (line,) = log_lines(batch(file(rows_text([["x"] * 4])), tmp_path / "b.csv", "--log-format", "json", status=TOO_MANY_BAD))
    assert line["level"] == "error" and line["message"].startswith("failed: all 1 rows are bad")


def test_a_line_of_progress_has_its_numbers_in_a_json_log(monkeypatch, capsys):
    from iris_wsgi import console
    from iris_wsgi.cli.main import as_log_line

    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(console, "log_formatter", as_log_line)
    progress = console.ProgressReporter(100, "B", quiet=False)
    progress.update(10, 1000, 0)
    progress.update(50, 5000, 2)
    first, line = map(json.loads, capsys.readouterr().err.splitlines())
    # The first amount of work says nothing about the rest.
    assert first["message"].startswith("1000 rows")
    assert list(line) == ["time", "level", "message", "rows", "bad"] and line["message"].startswith("50%, about ")
    assert (line["level"], line["rows"], line["bad"]) == ("info", 5000, 2)


def test_a_defect_of_a_command_is_one_line_of_a_json_log(monkeypatch, capsys):
    from iris_wsgi import console
    from iris_wsgi.cli import main

    def fail(*_):
        raise ZeroDivisionError("no rows")

    monkeypatch.setattr(console, "log_formatter", None)
    monkeypatch.setitem(main.COMMANDS, "batch", main.COMMANDS["batch"]._replace(run=fail))
    assert main.main(["batch", "in.csv", "out.csv", "--log-format", "json"]) == 1
    line = json.loads(capsys.readouterr().err)
    assert line["message"] == "the command failed" and line["traceback"].endswith("ZeroDivisionError: no rows\n")
    with pytest.raises(ZeroDivisionError):
        main.main(["batch", "in.csv", "out.csv"])


def test_the_summary_of_many_labels_has_the_most_frequent_ones():
    labels = {f"c{i}": i for i in range(1000)}
    text = summary(ExitStatus.GOOD, "", "out.csv", 499500, labels, "; 1 bad")
    assert text.startswith("wrote out.csv, 499500 rows: 999 c999, 998 c998, ") and text.endswith(
        "980 c980, … (1000 labels); 1 bad"
    )
    assert summary(ExitStatus.GOOD, "", "out.csv", 7, {}, "") == "wrote out.csv, 7 rows"


def test_the_record_describes_the_run(file, tmp_path):
    source = file(rows_text())
    batch(source, tmp_path / "out.csv")
    result = record_of(tmp_path / "out.csv")
    assert result["of"]["model"]["digest"] == MODEL_OF_IRIS.digest and result["of"]["input"]["bytes"] == source.stat().st_size
    assert result["status"] == "succeeded" and result["labels"] == {"setosa": 1, "versicolor": 1, "virginica": 1}
    assert result["started"] <= result["updated"] == result["finished"] and len(result["run"]) == 16


@pytest.mark.long
def test_bin_batch_is_the_same_command(file, tmp_path):
    source = file(rows_text())
    subprocess.run([ROOT / "bin/batch", source, tmp_path / "out.csv", "--quiet"], check=True)
    same_answers(read_csv(tmp_path / "out.csv"), ROWS)


# The fast parser and the strict parser

numbers = st.one_of(
    st.floats(width=64).map(repr), st.integers(-(10**6), 10**6).map(str), st.text("0123456789.eE+-_ xinfa\t", max_size=8)
)
READER = CsvReader(csv_columns(MODEL_OF_IRIS, HEADER.encode(), ",", True, (), ["id"]), ",", MODEL_OF_IRIS.schema)


@pytest.mark.long
@settings(max_examples=examples(1500), deadline=None)
@given(st.lists(st.tuples(st.text("ab é#", max_size=3), numbers, numbers, numbers, numbers), min_size=1, max_size=5))
def test_input_of_the_fast_parser_gives_the_same_in_the_strict_parser(rows):
    data = "".join(",".join(row) + "\n" for row in rows).encode()
    quick, careful = READER.parse_fast(data, 2), READER.parse_strict(data, 2)
    if quick is not None:
        assert (quick.values.tobytes(), list(quick.lines), quick.kept, quick.bad_rows) == (
            careful.values.tobytes(), careful.lines, careful.kept, careful.bad_rows,
        )  # fmt: skip
    else:
        assert careful.bad_rows or any(not "".join(row).strip() for row in rows)


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4))
def test_numbers_have_the_values_that_python_reads(row):
    data = ("k," + ",".join(map(repr, row)) + "\n").encode()
    assert READER.rows(data, 2).values.tolist() == [np.array(row, np.float64).astype(np.float32).tolist()]


def test_only_the_row_on_which_the_model_fails_is_left_out():
    from iris_wsgi.tabular.chunk_scorer import MODEL_FAILS, OUTPUT_NOT_FINITE, ChunkScorer
    from iris_wsgi.tabular.writers import CsvWriter

    class Failing:
        labels, outputs, digest = MODEL_OF_IRIS.labels, MODEL_OF_IRIS.outputs, MODEL_OF_IRIS.digest

        def predict(self, rows):
            if (rows[:, 0] == 99).any():
                raise RuntimeError("no memory")
            response = MODEL_OF_IRIS.predict(rows)
            response[rows[:, 0] == 98] = np.inf
            return response

    lines = [f"a{i},{value},3,1,1\n" for i, value in enumerate((5, 99, 98, 6))]
    outcome = ChunkScorer(Failing(), READER, CsvWriter(Failing(), ["id"], False, ",")).score("".join(lines).encode(), 2)
    assert outcome.bad_rows == [BadRow(3, "", MODEL_FAILS), BadRow(4, "", OUTPUT_NOT_FINITE)]
    assert [line.split(",")[0] for line in outcome.data.decode().splitlines()] == ["a0", "a3"]
    assert sum(outcome.labels.values()) == 2


def test_a_defect_is_reported_with_its_place_and_not_as_a_killed_process():
    from iris_wsgi.errors import Stopped
    from iris_wsgi.patterns.batch.chunk_worker import ChunkWorker, ScoreChunk

    class Defective:
        def score(self, data, line):
            raise ZeroDivisionError("no rows")

    worker = ChunkWorker(MODEL_OF_IRIS, "")
    worker.scorer = Defective()
    with pytest.raises(Stopped, match=r"a defect at the rows from line 7 on: ZeroDivisionError\('no rows'\)"):
        worker(ScoreChunk(b"1,2", 7))
