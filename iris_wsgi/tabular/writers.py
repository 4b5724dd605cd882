"""Answers as text: CSV and JSON lines, a chunk at once."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from iris_wsgi.codec.rows import Array
from iris_wsgi.model.session import Model
from iris_wsgi.settings import BadSetting
from iris_wsgi.tabular.decimals import WRITTEN, written

LABEL, PROBABILITY, DIGEST = "label", "probability_", "model_digest"

# Stands between the lines' ends for a moment, and in none of them.
BETWEEN = "\1"
# Types whose JSON has no line feed in it, whatever separates values.
PLAIN = {str, int, float, bool, type(None)}

QUOTED = '",\t\r\n'


class Lines:
    """The lines of a text, which differ in what is kept, in the label and in the probabilities, and in nothing else."""

    def __init__(self, before: Sequence[str], labels: Sequence[str], numbers: Sequence[str], end: str) -> None:
        """What stands before each thing kept, each label with what stands before it, what before each number, the end."""
        self.before, self.labels = before, labels
        self.numbers = [f"number_{i}" for i in range(len(numbers))]
        fixed = [text.encode() for text in (*numbers, end + BETWEEN)]
        self.fixed = {f"fixed_{i}": text for i, text in enumerate(fixed)}
        kinds = [
            (f"fixed_{i // 2}", f"S{len(fixed[i // 2])}") if i % 2 == 0 else (f"number_{i // 2}", WRITTEN)
            for i in range(2 * len(numbers) + 1)
        ]
        self.kind = np.dtype(kinds)

    def text(self, kept: Sequence[Sequence[str]], classes: Sequence[int], probabilities: Array) -> bytes:
        ends = np.empty(len(classes), self.kind)
        for name, text in self.fixed.items():
            ends[name] = text
        # Nothing of this memory may stay as it was found.
        for name, column in zip(self.numbers, written(probabilities).T, strict=True):
            ends[name] = column
        tails = ends.tobytes().translate(None, b"\0").decode().split(BETWEEN)[:-1]
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
    """Returns the names of the columns of an output. Raises BadSetting if a kept column has the name of another one."""
    own = [LABEL, *(PROBABILITY + label for label in model.labels), *([DIGEST] if digest else [])]
    if twice := [name for name in keep if name in own]:
        raise BadSetting(
            f"--keep {twice[0]!r}: OUT has a column of this name already; rename the column in IN, or do not keep it"
        )
    return [*keep, *own]


class CsvWriter:
    """The header, and lines that end in a line feed; quoted is what must be."""

    def __init__(self, model: Model, keep: Sequence[str], digest: bool, delimiter: str) -> None:
        self.start = delimiter.join(map(quoted, output_names(model, keep, digest))).encode() + b"\n"
        labels = [(delimiter if keep else "") + quoted(label) for label in model.labels]
        end = (delimiter + model.digest if digest else "") + "\n"
        self.lines = Lines([delimiter if i else "" for i in range(len(keep))], labels, [delimiter] * len(labels), end)

    def text(self, kept: Sequence[Sequence[Any]], classes: Sequence[int], probabilities: Array) -> bytes:
        return self.lines.text([plain(column) for column in kept], classes, probabilities)


def plain(column: Sequence[Any]) -> Sequence[str]:
    """A column as fields of CSV."""
    texts = column if set(map(type, column)) <= {str} else [text_of(value) for value in column]
    # One look at all of it, because nearly always there is nothing to be quoted.
    joined = "".join(texts)
    return [quoted(text) for text in texts] if any(one in joined for one in QUOTED) else texts


def text_of(value: Any) -> str:
    """A value of JSON in CSV: text as it is, nothing for null, all else as JSON has it."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(one in text for one in QUOTED) else text


class JsonWriter:
    """An object a line, with the names that CSV has in its header."""

    def __init__(self, model: Model, keep: Sequence[str], digest: bool) -> None:
        self.start = b""
        output_names(model, keep, digest)
        before = [f"{', ' if i else '{'}{json.dumps(name)}: " for i, name in enumerate(keep)]
        labels = [f"{', ' if keep else '{'}{json.dumps(LABEL)}: {json.dumps(label)}" for label in model.labels]
        numbers = [f", {json.dumps(PROBABILITY + label)}: " for label in model.labels]
        end = (f", {json.dumps(DIGEST)}: {json.dumps(model.digest)}" if digest else "") + "}\n"
        self.lines = Lines(before, labels, numbers, end)

    def text(self, kept: Sequence[Sequence[Any]], classes: Sequence[int], probabilities: Array) -> bytes:
        return self.lines.text([texts_of(column) for column in kept], classes, probabilities)


def texts_of(column: Sequence[Any]) -> Sequence[str]:
    """A column as values of JSON."""
    if not set(map(type, column)) <= PLAIN:
        return [json.dumps(value, default=str) for value in column]
    # All at once, a line each: only what is in a list or an object would have the same line feed in it.
    return json.dumps(list(column), separators=("\n", ": "))[1:-1].split("\n")
