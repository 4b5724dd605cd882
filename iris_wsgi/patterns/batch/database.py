"""What a database must do for a run over one of its tables, and the names and columns that are spoken of."""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from iris_wsgi.settings import BadSetting

PART = r'(?:"((?:[^"]|"")+)"|([^".]+))'
is_name = re.compile(rf"(?:{PART}\.)?{PART}").fullmatch

Row = tuple[Any, ...]


class Name(NamedTuple):
    """Of a table; without a schema it is where the database looks first."""

    schema: str | None
    table: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}" if self.schema else self.table

    def beside(self, suffix: str) -> "Name":
        return Name(self.schema, self.table + suffix)

    def written(self, quote: Callable[[str], str]) -> str:
        """As a part of a statement."""
        return ".".join(quote(part) for part in self if part)


class Column(NamedTuple):
    """Its type as the database spells it, and whether rows may have none of it."""

    name: str
    type: str
    nullable: bool = False


class Source(NamedTuple):
    """The table of the rows: its columns, the unique keys that it has, in the order of their indexes."""

    name: Name
    columns: dict[str, Column]
    keys: list[tuple[str, ...]]
    primary: tuple[str, ...]


class Dialect(NamedTuple):
    """Where the SQL of databases differs."""

    mark: str
    now: str
    # What a key is read as, and a feature of a type.
    key: str
    feature: Callable[[str, str], str]
    quoted: Callable[[str], str]
    # What keeps rows from others until the end of the transaction, and leaves out those that others keep.
    lock: str
    skip: str
    # Names of columns that are the same for the database become the same text.
    folded: Callable[[str], str] = str


class Answers(NamedTuple):
    """Of rows: their keys, labels (None for a bad row), probabilities by class, and what is wrong with bad ones."""

    keys: Sequence[Row]
    labels: Sequence[str | None]
    probabilities: Sequence[Sequence[float | None]]
    errors: Sequence[str | None]


class Database(Protocol):
    """One connection, of one thread. Each method raises Stopped, and then nothing of the transaction is there; those that prepare
    also BadSetting for what is not there."""

    dialect: Dialect

    def find(self, name: Name) -> Source | None: ...

    def count(self, name: Name) -> int | None:
        """About how many rows it has; None where it would take long to know."""
        ...

    def make(self, source: Source, key: Sequence[Column], labels: Sequence[str]) -> None:
        """Makes the table for predictions; called in a transaction that no other run has at once."""

    def walks(self, page: str, values: Sequence[Any]) -> bool:
        """Whether it finds pages of the key by an index."""
        ...

    def preparing(self, name: Name) -> AbstractContextManager[None]:
        """The transaction of `make`."""
        ...

    def transaction(self) -> AbstractContextManager[None]:
        """What is done in it is there for good when it ends well, and else nothing of it."""
        ...

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[Row]: ...

    def write(
        self, target: str, key: Sequence[Column], labels: Sequence[str], answers: Answers, digest: str, run: str, redo: bool
    ) -> list[tuple[str | None, int]]:
        """Predictions, to `redo` those of another model in their place; how many were written by label: some may be there."""
        ...

    def close(self) -> None: ...


def name_of(text: str) -> Name:
    """`table` or `schema.table`, as they are written; in double quotes what holds a dot. Raises BadSetting."""
    found = is_name(text)
    if not found:
        raise BadSetting(f"--table={text[:60]!r} must be a name or schema.name, in double quotes where a name holds a dot")
    first, second = ((quoted or "").replace('""', '"') or plain for quoted, plain in (found.group(1, 2), found.group(3, 4)))
    return Name(first, second)


def quoted(name: str) -> str:
    """As an identifier of standard SQL."""
    return '"' + name.replace('"', '""') + '"'
