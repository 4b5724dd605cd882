"""CSV and JSON Lines writers: each formats a whole chunk at once."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iris_wsgi.codec.decimals import TEXT_TYPE, format_floats
from iris_wsgi.codec.model_schema import CLASSIFIER, REGRESSOR, SCORES, Array, OutputSchema
from iris_wsgi.errors import InvalidOutput
from iris_wsgi.model.session import Model
from iris_wsgi.settings import BadSetting

LABEL, DIGEST, ERROR = "label", "model_digest", "error"
# The start of the names of the columns with probabilities, scores, and values.
PREFIXES = {CLASSIFIER: "probability_", SCORES: "score_", REGRESSOR: ""}

# Separates the ends of lines during formatting; no line contains it.
SEPARATOR = "\1"
# Types whose JSON contains no separator of values.
SCALARS = {str, int, float, bool, type(None)}
SPECIAL = '",\t\r\n'


class LineTemplate:
    """Formatter of lines that differ only in the kept columns, the label, and the values."""

    def __init__(self, before: Sequence[str], labels: Sequence[str], numbers: Sequence[str], end: str) -> None:
        """Takes the texts before each kept column, the labels with the text before them, the texts before numbers, the end.

        Without `labels`, the lines have no label.
        """
        self.before, self.labels = before, labels
        self.numbers = [f"number_{i}" for i in range(len(numbers))]
        fixed = [text.encode() for text in (*numbers, end + SEPARATOR)]
        self.fixed = {f"fixed_{i}": text for i, text in enumerate(fixed) if text}
        kinds = [
            (f"fixed_{i // 2}", f"S{len(fixed[i // 2])}") if i % 2 == 0 else (f"number_{i // 2}", TEXT_TYPE)
            for i in range(2 * len(numbers) + 1)
        ]
        self.kind = np.dtype([(name, kind) for name, kind in kinds if kind != "S0"])

    def text(self, kept: Sequence[Sequence[str]], labels: NDArray[np.intp], values: Array) -> bytes:
        """Returns the lines of values [n, numbers]. Raises InvalidOutput for another number of columns."""
        check_width(values, len(self.numbers))
        # Every field of this uninitialized memory is written below.
        ends = np.empty(len(values), self.kind)
        for name, text in self.fixed.items():
            ends[name] = text
        for name, column in zip(self.numbers, format_floats(values).T, strict=True):
            ends[name] = column
        tails = ends.tobytes().translate(None, b"\0").decode().split(SEPARATOR)[:-1]
        columns: list[Sequence[str]] = []
        for before, column in zip(self.before, kept, strict=True):
            columns += [[before] * len(tails), column] if before else [column]
        columns += [list(map(self.labels.__getitem__, labels.tolist())), tails] if self.labels else [tails]
        # Column by column into one list, which is several times faster than row by row.
        pieces = [""] * (len(columns) * len(tails))
        for i, column in enumerate(columns):
            pieces[i :: len(columns)] = column
        return "".join(pieces).encode()


def check_width(values: Array, width: int) -> None:
    """Raises InvalidOutput if the values are not [n, width]."""
    if values.ndim != 2 or values.shape[1] != width:
        raise InvalidOutput(f"The model's output has the shape {list(values.shape)}; it must have {width} columns.")


def value_names(outputs: OutputSchema) -> list[str]:
    """Returns the names of the output columns with probabilities, scores, or values."""
    return [PREFIXES[outputs.kind] + name for name in outputs.columns]


def output_names(model: Model, keep: Sequence[str], digest: bool) -> list[str]:
    """Returns the names of the output columns. Raises BadSetting if two columns have one name."""
    outputs = model.outputs
    own = [*([] if outputs.kind == REGRESSOR else [LABEL]), *value_names(outputs), *([DIGEST] if digest else [])]
    if twice := [name for name in keep if name in own]:
        raise BadSetting(
            f"--keep {twice[0]!r}: OUT has a column of this name already; rename the column in IN, or do not keep it"
        )
    if repeated := [name for name, count in Counter(own).items() if count > 1]:
        raise BadSetting(f"OUT would have two columns {repeated[0]!r}; run pack on the model with other names")
    return [*keep, *own]


class CsvWriter:
    """Writes a header and lines that end in a line feed; quotes a field only where necessary."""

    def __init__(self, model: Model, keep: Sequence[str], digest: bool, delimiter: str) -> None:
        self.start = delimiter.join(map(quote_field, output_names(model, keep, digest))).encode() + b"\n"
        outputs, first = model.outputs, delimiter if keep else ""
        labels = [] if outputs.kind == REGRESSOR else [first + quote_field(label) for label in outputs.labels]
        numbers = [delimiter if i or labels else first for i in range(len(outputs.columns))]
        end = (delimiter + model.digest if digest else "") + "\n"
        self.lines = LineTemplate([delimiter if i else "" for i in range(len(keep))], labels, numbers, end)

    def text(self, kept: Sequence[Sequence[Any]], labels: NDArray[np.intp], values: Array) -> bytes:
        return self.lines.text([csv_fields(column) for column in kept], labels, values)


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
        outputs, first = model.outputs, ", " if keep else "{"
        has_label = outputs.kind != REGRESSOR
        labels = [f"{first}{json.dumps(LABEL)}: {json.dumps(label)}" for label in outputs.labels] if has_label else []
        starts = [", " if i or labels else first for i in range(len(outputs.columns))]
        numbers = [f"{start}{json.dumps(name)}: " for start, name in zip(starts, value_names(outputs), strict=True)]
        end = (f", {json.dumps(DIGEST)}: {json.dumps(model.digest)}" if digest else "") + "}\n"
        self.lines = LineTemplate(before, labels, numbers, end)

    def text(self, kept: Sequence[Sequence[Any]], labels: NDArray[np.intp], values: Array) -> bytes:
        return self.lines.text([json_values(column) for column in kept], labels, values)


def json_values(column: Sequence[Any]) -> Sequence[str]:
    """Returns the values of a column as JSON."""
    if not set(map(type, column)) <= SCALARS:
        return [json.dumps(value, default=str) for value in column]
    # One call with a line feed as the separator. Only lists and objects would contain separators.
    return json.dumps(list(column), separators=("\n", ": "))[1:-1].split("\n")
