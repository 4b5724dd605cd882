"""Answers as text: CSV and JSON lines, a chunk at once."""

import json
import re
from collections.abc import Sequence
from typing import Any

from iris_wsgi.model import Model
from iris_wsgi.payload import Array

# Nine digits are every float32 exactly.
NUMBER = "%.9g"
LABEL, PROBABILITY, DIGEST = "label", "probability_", "model_digest"

must_be_quoted = re.compile(r'[",\t\r\n]').search


class CsvWriter:
    """The header, and lines that end in a line feed; quoted is what must be."""

    def __init__(self, model: Model, keep: Sequence[str], digest: bool, delimiter: str) -> None:
        names = [*keep, LABEL, *(PROBABILITY + label for label in model.labels), *([DIGEST] if digest else [])]
        self.start = delimiter.join(map(quoted, names)).encode() + b"\n"
        self.labels = [quoted(label) for label in model.labels]
        fields = ["%s"] * (len(keep) + 1) + [NUMBER] * len(model.labels) + ([model.digest] if digest else [])
        self.line = delimiter.join(fields) + "\n"

    def text(self, kept: Sequence[Sequence[Any]], classes: Sequence[int], probabilities: Array) -> bytes:
        columns = [plain(column) for column in kept]
        labels = map(self.labels.__getitem__, classes)
        return "".join(map(self.line.__mod__, zip(*columns, labels, *probabilities.T.tolist(), strict=True))).encode()


def plain(column: Sequence[Any]) -> Sequence[str]:
    """A column as fields of CSV."""
    texts = column if set(map(type, column)) <= {str} else [text_of(value) for value in column]
    # One look at all of it, because nearly always there is nothing to be quoted.
    return [quoted(text) for text in texts] if must_be_quoted("".join(texts)) else texts


def text_of(value: Any) -> str:
    """A value of JSON in CSV: text as it is, nothing for null, all else as JSON has it."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if must_be_quoted(text) else text


class JsonWriter:
    """An object a line, with the names that CSV has in its header."""

    def __init__(self, model: Model, keep: Sequence[str], digest: bool) -> None:
        self.start = b""
        self.labels = [json.dumps(label) for label in model.labels]
        members = [(name, "%s") for name in (*keep, LABEL)]
        members += [(PROBABILITY + label, NUMBER) for label in model.labels]
        members += [(DIGEST, json.dumps(model.digest))] if digest else []
        self.line = "{" + ", ".join(f"{json.dumps(name).replace('%', '%%')}: {value}" for name, value in members) + "}\n"

    def text(self, kept: Sequence[Sequence[Any]], classes: Sequence[int], probabilities: Array) -> bytes:
        columns = [[json.dumps(value) for value in column] for column in kept]
        labels = map(self.labels.__getitem__, classes)
        return "".join(map(self.line.__mod__, zip(*columns, labels, *probabilities.T.tolist(), strict=True))).encode()
