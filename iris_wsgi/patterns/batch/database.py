"""Types and portable SQL of a run over a table."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from iris_wsgi.codec.model_schema import REGRESSOR, OutputSchema
from iris_wsgi.patterns.batch.options import TableName
from iris_wsgi.tabular.writers import LABEL, value_names

Row = tuple[Any, ...]
PREDICTION, RUN = "_prediction", "_run"
DIGEST, RUN_ID, TIME, ERROR = "model_digest", "run", "predicted", "error"
# Columns of the table of runs. PostgreSQL has these types, and SQLite accepts them.
RUN_COLUMNS = (
    "run text PRIMARY KEY, model_digest text, source text, started timestamptz, updated timestamptz, finished timestamptz, "
    "status text, ok bigint, bad bigint, labels jsonb"
)
RUN_NAMES = [column.split()[0] for column in RUN_COLUMNS.split(", ")]


def prediction_columns(outputs: OutputSchema) -> list[str]:
    """Returns the columns of the table of predictions after the key."""
    label = [] if outputs.kind == REGRESSOR else [LABEL]
    return [*label, *value_names(outputs), DIGEST, RUN_ID, TIME, ERROR]


class Column(NamedTuple):
    """Column with its type in the database's spelling."""

    name: str
    type: str
    nullable: bool = False


class InputTable(NamedTuple):
    """Input table: its columns, its unique keys with their columns in index order, and its primary key."""

    name: TableName
    columns: dict[str, Column]
    keys: list[tuple[str, ...]]
    primary: tuple[str, ...]


class Dialect(NamedTuple):
    """Differences between the SQL of the databases."""

    placeholder: str
    now: str
    # Expressions that read a key column; and a column of a type for a feature of a type.
    key: str
    feature: Callable[[str, str, str], str]
    quoted: Callable[[str], str]
    # Types of the table of predictions.
    text: str
    real: str
    time: str
    # Clauses that lock rows until the end of the transaction, and that skip rows locked by others.
    lock: str
    skip: str
    # Maps names that are equal for the database to equal texts.
    fold: Callable[[str], str] = str

    def table(self, name: TableName) -> str:
        return ".".join(self.quoted(part) for part in name if part)

    def definitions(self, outputs: OutputSchema) -> list[str]:
        """Returns the definitions of the columns of the table of predictions after the key."""
        types = {ERROR: self.text, TIME: f"{self.time} NOT NULL"} | dict.fromkeys((DIGEST, RUN_ID), f"{self.text} NOT NULL")
        types |= {} if outputs.kind == REGRESSOR else {LABEL: self.text}
        return [f"{self.quoted(name)} {types.get(name, self.real)}" for name in prediction_columns(outputs)]


class PredictionRows(NamedTuple):
    """Keys, labels (None for a bad row), values by output column, and errors of bad rows.

    The labels of a regressor, which has none, are empty.
    """

    keys: Sequence[Row]
    labels: Sequence[str | None]
    values: Sequence[Sequence[float | None]]
    errors: Sequence[str | None]


class Statements:
    """SQL for one table, one key, and one list of features."""

    def __init__(
        self, dialect: Dialect, source: TableName, key: Sequence[Column], features: Sequence[Column], types: Sequence[str]
    ) -> None:
        """Takes the columns of the key and of the features, and the types of the features."""
        self.dialect, self.source = dialect, source
        self.key = [dialect.quoted(column.name) for column in key]
        self.read_key = [dialect.key.format(f"s.{name}") for name in self.key]
        self.read_features = [
            dialect.feature(f"s.{dialect.quoted(column.name)}", column.type, kind)
            for column, kind in zip(features, types, strict=True)
        ]
        self.has_key = " AND ".join(f"s.{name} IS NOT NULL" for name in self.key)
        self.order = ", ".join(f"s.{name}" for name in self.key)

    def table(self, suffix: str = "") -> str:
        return self.dialect.table(self.source.sibling(suffix))

    def page_end(self, after: bool) -> str:
        """Selects the last key of a page of `OFFSET + 1` rows, after a key or from the start."""
        where = self.compare("s", ">") if after else self.has_key
        return (
            f"SELECT {', '.join(self.read_key)} FROM {self.table()} s WHERE {where} "
            f"ORDER BY {self.order} LIMIT 1 OFFSET {self.dialect.placeholder}"
        )

    def claim(self, after: bool, upto: bool, redo: bool, skip: bool) -> str:
        """Selects the rows of a page without a prediction.

        Values: the bounds of the page twice (of rows, of predictions), with `redo` the digest, and the maximum of rows.
        """
        signs = [sign for sign, is_bound in ((">", after), ("<=", upto)) if is_bound]
        where = [self.compare("s", sign) for sign in signs] + ([] if after else [self.has_key])
        # Without bounds for the predictions, a join would read all of them for each page.
        missing = self.has_no_prediction([self.compare("p", sign) for sign in signs], redo)
        return (
            f"SELECT {', '.join(self.read_key + self.read_features)} FROM {self.table()} s WHERE {' AND '.join(where)} "
            f"AND {missing} ORDER BY {self.order} LIMIT {self.dialect.placeholder}"
            f"{self.dialect.lock}{self.dialect.skip if skip else ''}"
        )

    def first_missing(self, redo: bool) -> str:
        """Selects the first key without a prediction. Value: with `redo`, the digest."""
        return (
            f"SELECT {', '.join(self.read_key)} FROM {self.table()} s WHERE {self.has_key} "
            f"AND {self.has_no_prediction([], redo)} ORDER BY {self.order} LIMIT 1"
        )

    def has_no_prediction(self, bounds: Sequence[str], redo: bool) -> str:
        """Returns the condition that a row has no prediction; with `redo`, no prediction of this model."""
        joined = [f"p.{name} = s.{name}" for name in self.key] + [*bounds]
        joined += [f"p.{self.dialect.quoted(DIGEST)} = {self.dialect.placeholder}"] if redo else []
        return f"NOT EXISTS (SELECT 1 FROM {self.table(PREDICTION)} p WHERE {' AND '.join(joined)})"

    def null_key(self) -> str:
        """Selects a row with a NULL in its key."""
        is_null = " OR ".join(f"s.{name} IS NULL" for name in self.key)
        return f"SELECT 1 FROM {self.table()} s WHERE {is_null} LIMIT 1"

    def compare(self, alias: str, sign: str) -> str:
        """Compares the whole key, in the order of its index."""
        placeholders = ", ".join([self.dialect.placeholder] * len(self.key))
        return f"({', '.join(f'{alias}.{name}' for name in self.key)}) {sign} ({placeholders})"

    def create_runs(self) -> str:
        return f"CREATE TABLE {self.table(RUN)} ({RUN_COLUMNS})"

    def save_run(self) -> str:
        """Inserts or updates a run. Values: run, digest, source, whether it has ended, status, rows ok, bad, labels."""
        mark, now = self.dialect.placeholder, self.dialect.now
        changed = ", ".join(f"{name} = excluded.{name}" for name in RUN_NAMES if name not in ("run", "started"))
        return (
            f"INSERT INTO {self.table(RUN)} ({', '.join(RUN_NAMES)}) "
            f"VALUES ({mark}, {mark}, {mark}, {now}, {now}, CASE WHEN {mark} = 1 THEN {now} END, {mark}, {mark}, {mark}, {mark}) "
            f"ON CONFLICT (run) DO UPDATE SET {changed}"
        )

    def mark_stale_runs(self) -> str:
        """Marks running runs as interrupted. A run that is still alive corrects this with its next chunk."""
        mark = self.dialect.placeholder
        return f"UPDATE {self.table(RUN)} SET status = 'interrupted' WHERE status = 'running' AND model_digest = {mark}"

    def resumed_counts(self) -> str:
        """Sums rows ok and bad of a model's interrupted runs since a complete one. Values: the digest, twice."""
        mark, runs = self.dialect.placeholder, self.table(RUN)
        return (
            f"SELECT coalesce(sum(r.ok), 0), coalesce(sum(r.bad), 0) FROM {runs} r WHERE r.status = 'interrupted' "
            f"AND r.model_digest = {mark} AND NOT EXISTS (SELECT 1 FROM {runs} o WHERE o.model_digest = {mark} "
            "AND o.status IN ('succeeded', 'failed') AND o.finished >= r.started)"
        )
