"""Rows as they come, a line in and a line out, in CSV or in JSON lines."""

from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from iris_wsgi.batch.columns import columns_of, features_of, fields_of
from iris_wsgi.batch.csv_rows import CsvReader, fault_of_number
from iris_wsgi.batch.cutter import BOM, RECORD_BYTES, TOO_LONG, Fault
from iris_wsgi.batch.json_rows import JsonReader
from iris_wsgi.batch.output import Standard
from iris_wsgi.batch.scorer import Scorer
from iris_wsgi.batch.writers import CsvWriter, JsonWriter
from iris_wsgi.model import Model

COMMA = ","


class Wanted(NamedTuple):
    """The columns of the features and those that answers repeat, as they are called; without a header by numbers from 1."""

    features: tuple[str, ...]
    keep: tuple[str, ...]
    header: bool


def stream(model: Model, wanted: Wanted, source: BinaryIO, target: Standard, tell: Callable[[Fault], None]) -> int:
    """Answers each row before it waits for the next one; how many were bad. Raises BadSetting for columns that are not there."""
    scorer, bad = None, 0
    for number, line in numbered_lines(source):
        if line is None:
            faults = [Fault(number, "", TOO_LONG)]
        elif not line.strip():
            continue
        elif scorer is None:
            scorer, is_row = prepared(model, wanted, line)
            target.write(scorer.writer.start)
            faults = answer(scorer, line, number, target) if is_row else []
        else:
            faults = answer(scorer, line, number, target)
        for fault in faults:
            tell(fault)
        bad += len(faults)
    return bad


def answer(scorer: Scorer, line: bytes, number: int, target: Standard) -> list[Fault]:
    outcome = scorer.score(line, number)
    target.write(outcome.data)
    return outcome.faults


def prepared(model: Model, wanted: Wanted, first: bytes) -> tuple[Scorer, bool]:
    """What the first line that is not empty asks for, and whether it is a row itself and not the names of the columns."""
    start = first.lstrip()[:1]
    if start in (b"{", b"["):
        # In a list features are where they are, and not under their names.
        places = tuple(str(i + 1) for i in range(model.width)) if start == b"[" else ()
        features = features_of(model, wanted.features or places)
        return Scorer(model, JsonReader(features, wanted.keep), JsonWriter(model, wanted.keep, False)), True
    # Nobody calls all columns by numbers.
    header = wanted.header and any(map(fault_of_number, fields_of(first.decode("utf-8", "replace"), COMMA)))
    reader = CsvReader(columns_of(model, first, COMMA, header, wanted.features, wanted.keep), COMMA)
    return Scorer(model, reader, CsvWriter(model, wanted.keep, False, COMMA)), not header


def numbered_lines(source: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Each line with its number from 1, as soon as it is there; None in place of one that is too long to be a row."""
    number = 0
    while line := source.readline(RECORD_BYTES + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(BOM)
        whole = len(line) <= RECORD_BYTES or line.endswith(b"\n")
        yield number, line if whole else None
        while not whole:
            rest = source.readline(RECORD_BYTES)
            whole = not rest or rest.endswith(b"\n")
