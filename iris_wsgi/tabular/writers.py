"""CSV and JSON Lines writers: each formats a whole chunk at once."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from iris_wsgi.codec.rows import Array
from iris_wsgi.model.session import Model
from iris_wsgi.settings import BadSetting
from iris_wsgi.tabular.decimals import TEXT_TYPE, format_floats

LABEL, PROBABILITY, DIGEST = "label", "probability_", "model_digest"

# Separates the ends of lines during formatting; no line contains it.
SEPARATOR = "\1"
# Types whose JSON contains no separator of values.
SCALARS = {str, int, float, bool, type(None)}
SPECIAL = '",\t\r\n'


class LineTemplate:
    """Formatter of lines that differ only in the kept columns, the label, and the probabilities."""

    def __init__(self, before: Sequence[str], labels: Sequence[str], numbers: Sequence[str], end: str) -> None:
        """Takes the texts before each kept column, the labels with the text before them, the texts before numbers, the end."""
        self.before, self.labels = before, labels
        self.numbers = [f"number_{i}" for i in range(len(numbers))]
        fixed = [text.encode() for text in (*numbers, end + SEPARATOR)]
        self.fixed = {f"fixed_{i}": text for i, text in enumerate(fixed)}
        kinds = [
            (f"fixed_{i // 2}", f"S{len(fixed[i // 2])}") if i % 2 == 0 else (f"number_{i // 2}", TEXT_TYPE)
            for i in range(2 * len(numbers) + 1)
        ]
        self.kind = np.dtype(kinds)

    def text(self, kept: Sequence[Sequence[str]], classes: Sequence[int], probabilities: Array) -> bytes:
        # Every field of this uninitialized memory is written below.
        ends = np.empty(len(classes), self.kind)
        for name, text in self.fixed.items():
            ends[name] = text
        for name, column in zip(self.numbers, format_floats(probabilities).T, strict=True):
            ends[name] = column
        tails = ends.tobytes().translate(None, b"\0").decode().split(SEPARATOR)[:-1]
        columns: list[Sequence[str]] = []
        for before, column in zip(self.before, kept, strict=True):
            columns += [[before] * len(tails), column] if before else [column]
        columns += [list(map(self.labels.__getitem__, classes)), tails]
        # Column by column into one list, which is several times faster than row by row.
        pieces = [""] * (len(columns) * len(tails))
        for i, column in enumerate(columns):
            pieces[i :: len(columns)] = column
        return "".join(pieces).encode()


def output_names(model: Model, keep: Sequence[str], digest: bool) -> list[str]:
    """Returns the names of the output columns. Raises BadSetting if a kept column has the name of another column."""
    own = [LABEL, *(PROBABILITY + label for label in model.labels), *([DIGEST] if digest else [])]
    if twice := [name for name in keep if name in own]:
        raise BadSetting(
            f"--keep {twice[0]!r}: OUT has a column of this name already; rename the column in IN, or do not keep it"
        )
    return [*keep, *own]


class CsvWriter:
    """Writes a header and lines that end in a line feed; quotes a field only where necessary."""

    def __init__(self, model: Model, keep: Sequence[str], digest: bool, delimiter: str) -> None:
        self.start = delimiter.join(map(quote_field, output_names(model, keep, digest))).encode() + b"\n"
        labels = [(delimiter if keep else "") + quote_field(label) for label in model.labels]
        end = (delimiter + model.digest if digest else "") + "\n"
        self.lines = LineTemplate([delimiter if i else "" for i in range(len(keep))], labels, [delimiter] * len(labels), end)

    def text(self, kept: Sequence[Sequence[Any]], classes: Sequence[int], probabilities: Array) -> bytes:
        return self.lines.text([csv_fields(column) for column in kept], classes, probabilities)


def csv_fields(column: Sequence[Any]) -> Sequence[str]:
    """Returns the values of a column as fields of CSV."""
    texts = column if set(map(type, column)) <= {str} else [csv_text(value) for value in column]
    # One search in all of them, because hardly any column needs quotes.
    joined = "".join(texts)
    return [quote_field(text) for text in texts] if any(character in joined for character in SPECIAL) else texts


def csv_text(value: Any) -> str:
    """Returns text unchanged, null as an empty string, and any other value as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def quote_field(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(character in text for character in SPECIAL) else text


class JsonWriter:
    """Writes an object per line with the column names of the CSV header."""

    def __init__(self, model: Model, keep: Sequence[str], digest: bool) -> None:
        self.start = b""
        output_names(model, keep, digest)
        before = [f"{', ' if i else '{'}{json.dumps(name)}: " for i, name in enumerate(keep)]
        labels = [f"{', ' if keep else '{'}{json.dumps(LABEL)}: {json.dumps(label)}" for label in model.labels]
        numbers = [f", {json.dumps(PROBABILITY + label)}: " for label in model.labels]
        end = (f", {json.dumps(DIGEST)}: {json.dumps(model.digest)}" if digest else "") + "}\n"
        self.lines = LineTemplate(before, labels, numbers, end)

    def text(self, kept: Sequence[Sequence[Any]], classes: Sequence[int], probabilities: Array) -> bytes:
        return self.lines.text([json_values(column) for column in kept], classes, probabilities)


def json_values(column: Sequence[Any]) -> Sequence[str]:
    """Returns the values of a column as JSON."""
    if not set(map(type, column)) <= SCALARS:
        return [json.dumps(value, default=str) for value in column]
    # One call with a line feed as the separator. Only lists and objects would contain separators.
    return json.dumps(list(column), separators=("\n", ": "))[1:-1].split("\n")
