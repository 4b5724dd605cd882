"""The record splitter divides streams into chunks of whole records, like the csv module, with any chunk boundaries."""

import csv
import io

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from property_tests import examples

from iris_wsgi.tabular import record_splitter
from iris_wsgi.tabular.record_splitter import Position, RecordSplitter, line_end

CHUNK, RECORD = 64, 256
START = Position()
fields = st.text(st.sampled_from('ab,"\n\r 1.é\t'), max_size=8)
tables = st.lists(st.lists(fields, min_size=1, max_size=4), max_size=25)
pieces = st.lists(st.sampled_from(["a", '"', ",", "\n", '""', "x" * 40, "1,2,3\n", "\r\n", "y" * 300, "é"]), max_size=60)
styles = st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])


@pytest.fixture(autouse=True, scope="module")
def small():
    """Uses small sizes, so that a few lines reach every limit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_splitter, "CHUNK_BYTES", CHUNK)
        patch.setattr(record_splitter, "RECORD_BYTES", RECORD)
        patch.setattr(record_splitter, "READ_BYTES", 17)
        yield


def cut(data: bytes, delimiter: str | None = ",", start: Position = START, piece: int = 17):
    stream = io.BytesIO(data)
    stream.seek(start.offset)
    stream.read, read = (lambda count: read(min(count, piece))), stream.read
    return list(RecordSplitter(stream, start, delimiter).chunks())


def records(data: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(data.decode(), newline="")))


@pytest.mark.long
@settings(max_examples=examples(400), deadline=None)
@given(tables, styles, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.data())
def test_the_records_of_all_chunks_are_those_of_the_csv_module(table, style, end, is_whole, draw):
    # The csv module writes carriage returns without quotes, and cannot read them.
    assume(style == csv.QUOTE_ALL or not any("\r" in field for row in table for field in row))
    text = io.StringIO()
    csv.writer(text, lineterminator=end, quoting=style).writerows(table)
    data = text.getvalue().encode()
    data = data if is_whole else data.removesuffix(end.encode())
    chunks = cut(data)
    assert not any(chunk.bad_rows for chunk in chunks)
    assert b"".join(chunk.data for chunk in chunks) == data
    assert [record for chunk in chunks for record in records(chunk.data)] == records(data)
    assert sum(chunk.records for chunk in chunks) == sum(map(bool, records(data)))
    if chunks:
        i = draw.draw(st.integers(0, len(chunks) - 1))
        assert cut(data, start=chunks[i].start, piece=5) == chunks[i:]


@pytest.mark.long
@settings(max_examples=examples(400), deadline=None)
@given(pieces, st.sampled_from([",", None]))
def test_every_byte_is_in_one_chunk_or_in_one_fault(texts, delimiter):
    data = "".join(texts).encode()
    position = Position()
    for chunk in cut(data, delimiter):
        assert chunk.start == position and bool(chunk.data) != bool(chunk.bad_rows)
        assert len(chunk.data) <= CHUNK + 2 * RECORD + 17
        assert all(fault.line == position.line for fault in chunk.bad_rows)
        line = data[position.offset : chunk.next.offset]
        assert chunk.data in (b"", line)
        assert chunk.next == Position(position.chunk + 1, position.offset + len(line), position.line + line.count(b"\n"))
        position = chunk.next
    assert position.offset == len(data)


@settings(max_examples=examples(400), deadline=None)
@given(st.lists(st.sampled_from(["1", ",", "\n", "\r", " ", "\n\n", "\r\n", "\t"]), max_size=60), st.sampled_from([",", None]))
def test_the_number_of_records_is_that_of_the_lines_that_are_not_blank(texts, delimiter):
    data = "".join(texts).encode()
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    expected = [line for line in lines if line.strip(b"\r" if delimiter else None)]
    assert sum(chunk.records for chunk in cut(data, delimiter)) == len(expected)


@pytest.mark.parametrize(
    ("text", "is_whole", "expected"),
    [
        (b"a\nb\r", False, b"\n"), (b"a\rb\n", False, b"\r"), (b"a\r\nb", False, b"\n"), (b"a\r\r\nb", False, b"\n"),
        (b"a\r\rb", False, b"\r"), (b"a\r", False, None), (b"a\r", True, b"\r"), (b"a", False, None), (b"a", True, b"\n"),
        (b"", False, None), (b"", True, b"\n"), (b'"a\rb"\nc', False, b"\n"), (b'"a\nb"\rc', False, b"\r"),
        (b'5" pipe\r1', False, None), (b'5" pipe\r1', True, b"\r"),
    ],
)  # fmt: skip
def test_the_first_line_end_outside_of_quotes_counts(text, is_whole, expected):
    assert line_end(text, is_whole) == expected


@pytest.mark.parametrize("delimiter", [",", None])
def test_a_line_without_an_end_is_left_out_alone(delimiter):
    before, after = b"1,2\n" * 20, b"3,4\n5,6"
    chunks = cut(before + b"x" * 5000 + b"\n" + after, delimiter)
    assert b"".join(chunk.data for chunk in chunks) == before + after
    ((line, column, reason),) = [fault for chunk in chunks for fault in chunk.bad_rows]
    assert (line, column) == (21, "") and "longer than" in reason


def test_an_unclosed_quote_affects_its_line_only():
    chunks = cut(b'1,2\n3,"4\n' + b"5,6\n" * 200)
    assert b"".join(chunk.data for chunk in chunks) == b"1,2\n" + b"5,6\n" * 200
    ((line, _, reason),) = [fault for chunk in chunks for fault in chunk.bad_rows]
    assert line == 2 and "not closed" in reason


def test_an_unclosed_quote_at_the_end_is_reported():
    chunks = cut(b'1,2\n3,"4\n5,6')
    assert [chunk.data for chunk in chunks] == [b"1,2\n", b"", b"5,6"]


def test_a_record_of_several_lines_is_in_one_chunk():
    record = b'1,"' + b"a\n" * 60 + b'"\n'
    assert [chunk.data for chunk in cut(record * 3)] == [record] * 3


def test_an_empty_stream_has_no_chunk():
    assert cut(b"") == [] and cut(b"", None) == []


def test_json_lines_are_split_at_line_feeds_only():
    data = b'{"a": "\\"}\n' * 20
    assert b"".join(chunk.data for chunk in cut(data, None)) == data
