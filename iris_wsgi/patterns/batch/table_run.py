"""Run over a table: one transaction per page of the key claims rows, writes predictions, and saves the record of the run."""

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from iris_wsgi.codec.model_schema import REGRESSOR, Array, OutputSchema
from iris_wsgi.console import ProgressReporter, print_notice, remedy_for_extra
from iris_wsgi.errors import BadModel, InvalidOutput, Stopped, UnknownCategory
from iris_wsgi.model.golden import load_verified_model
from iris_wsgi.model.session import Model
from iris_wsgi.model.session import reason as reason_of
from iris_wsgi.patterns.batch.database import (
    PREDICTION,
    RUN,
    RUN_NAMES,
    Column,
    InputTable,
    PredictionRows,
    Row,
    Statements,
    prediction_columns,
)
from iris_wsgi.patterns.batch.exit_status import ExitStatus, Miscounted, RowCounts, StopSignal, report, run_to_end, summary
from iris_wsgi.patterns.batch.options import TableName, TableOptions
from iris_wsgi.setting_types import SQLITE
from iris_wsgi.settings import BadSetting, Settings
from iris_wsgi.tabular.chunk_scorer import OUTPUT_NOT_FINITE, predict_apart
from iris_wsgi.tabular.columns import feature_names, spelled_names
from iris_wsgi.tabular.feature_values import FeatureValues, InvalidValue

if TYPE_CHECKING:
    from iris_wsgi.patterns.batch.postgres import PostgresTables
    from iris_wsgi.patterns.batch.sqlite import SqliteTables

    TableDatabase = SqliteTables | PostgresTables

# Maximum time of a statement, including waits for locks.
STATEMENT_SECONDS = 60.0
NULL = "is NULL"


class TablePlan(NamedTuple):
    """The statements, the key, the features, the name of the table of predictions, and the approximate number of rows."""

    statements: Statements
    key: list[Column]
    features: Sequence[str]
    target: TableName
    rows: int | None


def run_table(options: TableOptions, settings: Settings) -> ExitStatus:
    """Scores a table. Raises BadSetting, BadModel, and Stopped."""
    stop = StopSignal()
    model, _, _ = load_verified_model(Path(settings.model_dir), settings.model_seal)
    with closing(open_database(settings.database_url)) as database:
        return TableRun(database, plan_run(database, options, model), options, model).execute(stop)


def open_database(url: str, seconds: float = STATEMENT_SECONDS) -> "TableDatabase":
    """Raises BadSetting and Stopped."""
    if url.startswith(SQLITE):
        from iris_wsgi.patterns.batch.sqlite import SqliteTables

        return SqliteTables(url.removeprefix(SQLITE), seconds)
    try:
        from iris_wsgi.patterns.batch.postgres import PostgresTables
    except ImportError:
        raise BadSetting(
            f"PostgreSQL needs the package psycopg: {remedy_for_extra('postgres')}, or use the image `full`"
        ) from None
    return PostgresTables(url, seconds)


def plan_run(database: "TableDatabase", options: TableOptions, model: Model) -> TablePlan:
    """Checks the tables, and creates the missing ones. Raises BadSetting and Stopped."""
    source = find_table(database, options.table)
    features = feature_names(model, options.features)
    if not options.features:
        features = spelled_names(features, list(source.columns))
    key = [source.columns[name] for name in unique_key(source, options.key)]
    types = [feature.type for feature in model.features]
    statements = Statements(database.dialect, source.name, key, [find_column(source, name) for name in features], types)
    target, names = source.name.sibling(PREDICTION), [column.name for column in key]
    columns = prediction_columns(model.outputs)
    check_names(target, names, columns, database.dialect.fold)
    with database.setup(source.name):
        if any(column.nullable for column in key) and database.execute(statements.null_key()):
            raise BadSetting(f"{source.name} has rows without a key: {', '.join(names)} must not be NULL")
        if not database.uses_index(statements.page_end(True), (None,) * len(key) + (1,)):
            raise BadSetting(f"the index of {', '.join(names)} has another collation than the columns")
        if database.find(target) is None:
            database.create(source, key, model.outputs)
        if database.find(source.name.sibling(RUN)) is None:
            database.execute(statements.create_runs())
        existing = find_table(database, target, [*names, *columns])
        find_table(database, source.name.sibling(RUN), RUN_NAMES)
        if set(names) not in map(set, existing.keys):
            raise BadSetting(f"{target} has another key than {', '.join(names)}")
    return TablePlan(statements, key, features, target, database.count(source.name))


def check_names(target: TableName, key: Sequence[str], columns: Sequence[str], fold: Callable[[str], str]) -> None:
    """Raises BadSetting if two columns of the table of predictions have the same name in the database."""
    seen: dict[str, str] = {}
    for name in (*columns, *key):
        if (other := seen.setdefault(fold(name), name)) is not name:
            remedy = (
                "name another unique key by --key"
                if name in key
                else "run pack on the model with other names of its labels or targets"
            )
            raise BadSetting(f"{target} cannot have the columns {other!r} and {name!r}, which are one name; {remedy}")


def unique_key(source: InputTable, wanted: Sequence[str]) -> list[str]:
    """Returns the columns of the key that identifies a row, in the order of its index. Raises BadSetting."""
    names = [find_column(source, name).name for name in wanted or source.primary]
    if not names:
        raise BadSetting(f"{source.name} has no primary key; name a unique key by --key")
    unique = next((key for key in source.keys if set(key) == set(names)), None)
    if unique is None:
        raise BadSetting(
            f"{', '.join(names)} is not a key of {source.name}: it needs a unique index on exactly these columns, "
            "without conditions"
        )
    return list(unique)


def find_column(source: InputTable, name: str) -> Column:
    if name not in source.columns:
        shown = ", ".join([*source.columns][:12]) + (", …" if len(source.columns) > 12 else "")
        raise BadSetting(f"{source.name} has no column {name!r}; it has {shown}")
    return source.columns[name]


def find_table(database: "TableDatabase", name: TableName, columns: Sequence[str] = ()) -> InputTable:
    """Returns a table with these columns. A table of an earlier run may be of another key or other labels. Raises BadSetting."""
    table = database.find(name)
    if table is None:
        raise BadSetting(f"the table {name} does not exist; upper and lower case of names count")
    if missing := [column for column in columns if column not in table.columns]:
        raise BadSetting(f"{name} exists and has no column {missing[0]!r}; rename it, or add the column")
    return table


class TableRun:
    """Run whose counts are those of committed rows."""

    def __init__(self, database: "TableDatabase", plan: TablePlan, options: TableOptions, model: Model) -> None:
        self.database, self.plan, self.options, self.model = database, plan, options, model
        self.id = secrets.token_hex(8)
        self.statements = plan.statements
        self.labels = dict.fromkeys(model.labels, 0)
        self.ok = self.bad = self.visited = 0
        # Rows of the interrupted runs that this run continues.
        self.resumed = RowCounts(0, 0)

    @property
    def counts(self) -> RowCounts:
        return RowCounts(self.resumed.ok + self.ok, self.resumed.bad + self.bad)

    def execute(self, stop: StopSignal) -> ExitStatus:
        progress = ProgressReporter(self.plan.rows, " rows", self.options.quiet)
        status, reason = run_to_end(self, self.plan.target, self.options.max_bad, stop, progress)
        if status is ExitStatus.GOOD and not self.options.quiet and not self.ok + self.bad:
            print_notice(f"nothing to do: every row of {self.options.table} has a prediction in {self.plan.target}")
        elif status is not ExitStatus.GOOD or not self.options.quiet:
            report(
                status, summary(status, reason, self.plan.target, self.ok, self.labels, f"; {self.bad} bad" if self.bad else "")
            )
        return status

    def begin(self) -> None:
        digest = self.model.digest
        with self.database.transaction():
            self.database.execute(self.statements.mark_stale_runs(), (digest,))
            ((ok, bad),) = self.database.execute(self.statements.resumed_counts(), (digest, digest))
            self.save("running", 0, 0, self.labels)
        self.resumed = RowCounts(int(ok), int(bad))

    def finish(self, status: ExitStatus) -> None:
        with self.database.transaction():
            self.save(status.run_status, self.ok, self.bad, self.labels)

    def chunks(self) -> Iterator[int]:
        """Scores all pages. With row locks, a second pass waits for rows that other runs had locked, as these may have died."""
        self.begin()
        skips = bool(self.database.dialect.skip)
        incomplete: list[Row | None] = []
        for start, complete in self.pages(None, skips):
            incomplete = incomplete or ([] if complete else [start])
            yield self.visited
        for _ in self.pages(incomplete[0], False) if skips and incomplete else ():
            yield self.visited
        yield from self.check()

    def check(self) -> Iterator[int]:
        """Repeats all pages if a row has no prediction, as rows may have been inserted during the run.

        Raises Miscounted if the first of these rows still has no prediction: then it was lost.
        """
        missing = self.missing()
        for _ in self.pages(None, False) if missing else ():
            yield self.visited
        if missing and self.missing() == missing:
            raise Miscounted(
                f"a row of {self.options.table} has no prediction after every page; this is a defect of this program"
            )

    def missing(self) -> Row | None:
        """Returns the key of the first row without a prediction."""
        redo = self.options.redo_older
        with self.database.transaction():
            found = self.database.execute(self.statements.first_missing(redo), (self.model.digest,) if redo else ())
        return found[0] if found else None

    def pages(self, after: Row | None, skip: bool) -> Iterator[tuple[Row | None, bool]]:
        """Scores the pages after a key; yields the start of each page, and whether this run scored all of its rows."""
        end = False
        while not end:
            start, done = after, self.ok + self.bad
            after = self.page(start, skip)
            end = after is None
            yield start, self.ok + self.bad - done == self.options.chunk

    def page(self, after: Row | None, skip: bool) -> Row | None:
        """Scores one page in one transaction. Returns the key after which the next page starts, or None at the end."""
        statements, digest, size, redo = self.statements, self.model.digest, self.options.chunk, self.options.redo_older
        with self.database.transaction():
            found = self.database.execute(statements.page_end(after is not None), (*(after or ()), size - 1))
            upto = found[0] if found else None
            bounds = (*(after or ()), *(upto or ()))
            values = (*bounds, *bounds, *((digest,) if redo else ()), size)
            rows = self.database.execute(statements.claim(after is not None, upto is not None, redo, skip), values)
            ok, bad, labels = self.ok, self.bad, dict(self.labels)
            if rows:
                new = predict_rows(self.model, self.plan.features, rows)
                target = statements.table(PREDICTION)
                written = self.database.write(target, self.plan.key, self.model.outputs, new, digest, self.id, redo)
                self.check_counts(len(rows), sum(count for _, count in written))
                for label, count in written:
                    if label is None:
                        bad += count
                        continue
                    ok += count
                    if label in labels:
                        labels[label] += count
                self.save("running", ok, bad, labels)
        self.ok, self.bad, self.labels = ok, bad, labels
        # The second pass visits rows that were counted before.
        self.visited += size if upto and (skip or not self.database.dialect.skip) else 0
        # Without an end, the page was shorter than its size, unless rows were inserted since.
        return upto or (rows[-1][: len(self.plan.key)] if len(rows) == size else None)

    def check_counts(self, claimed: int, written: int) -> None:
        """Raises Miscounted if a row was lost. With row locks, other runs may have written some rows since the claim."""
        if written > claimed or (written < claimed and not self.database.dialect.skip):
            raise Miscounted(f"{claimed} rows became {written} predictions; this is a defect of this program")

    def save(self, status: str, ok: int, bad: int, labels: dict[str, int]) -> None:
        ended = int(status != "running")
        # Only a PostgreSQL of the encoding UTF8 accepts escapes of all characters.
        counts = (ok, bad, json.dumps(labels, ensure_ascii=False))
        values = (self.id, self.model.digest, str(self.options.table), ended, status, *counts)
        self.database.execute(self.statements.save_run(), values)


def predict_rows(model: Model, names: Sequence[str], rows: Sequence[Row]) -> PredictionRows:
    """Scores rows of a key and of the features `names` in one run of the model. Raises Stopped and BadModel."""
    outputs, width = model.outputs, len(names)
    values, errors = convert_features([row[-width:] for row in rows], names, FeatureValues(model.schema))
    valid = np.array([error is None for error in errors])
    predictions = np.full((len(rows), outputs.width), np.nan, np.float32)
    try:
        if valid.any():
            predictions[valid] = model.predict(values[valid])
    except InvalidOutput as error:
        raise BadModel(error.detail) from None
    except UnknownCategory:
        # Some rows have values that the graph does not take.
        predictions[valid], reasons = predict_apart(model, values[valid])
        numbers = np.flatnonzero(valid).tolist()
        for i, reason in reasons.items():
            errors[numbers[i]] = reason
    except Exception as error:
        raise Stopped(f"the model cannot be run on {valid.sum()} rows: {reason_of(error)}") from None
    labels = label_names(outputs, predictions)
    columns: list[list[float | None]] = [
        [value if label is not None else None for value, label in zip(column, labels, strict=True)]
        for column in outputs.values(predictions).T.tolist()
    ]
    errors = [error or (OUTPUT_NOT_FINITE if label is None else None) for error, label in zip(errors, labels, strict=True)]
    return PredictionRows([row[:-width] for row in rows], labels, columns, errors)


def label_names(outputs: OutputSchema, predictions: Array) -> list[str | None]:
    """Returns the label of each row, which is empty for a regressor, and None for a row that is not finite."""
    good = np.asarray(np.isfinite(predictions).all(axis=1))
    if outputs.kind == REGRESSOR:
        return ["" if is_good else None for is_good in good.tolist()]
    numbers = np.full(len(predictions), -1, np.intp)
    numbers[good] = outputs.best(predictions[good])
    return [None if i < 0 else outputs.labels[i] for i in numbers.tolist()]


def convert_features(rows: Sequence[Row], names: Sequence[str], features: FeatureValues) -> tuple[Array, list[str | None]]:
    """Returns the rows [n, features], with 0 or "" in place of invalid values, and the first error of each row."""
    errors: list[str | None] = [None] * len(rows)
    columns = []
    for j, (name, values) in enumerate(zip(names, zip(*rows, strict=True), strict=True)):
        if (column := features.column(values, j)) is None:
            column, reasons = convert_values(values, j, features)
            for i, reason in reasons.items():
                errors[i] = errors[i] or f"{name} {reason}"
        columns.append(column)
    return features.rows(columns, len(rows)), errors


def convert_values(values: Sequence[Any], j: int, features: FeatureValues) -> tuple[Array | Sequence[str], dict[int, str]]:
    """Converts the values of one feature one by one. Returns the column, and the reasons of the invalid values by row."""
    reasons: dict[int, str] = {}
    found: list[Any] = []
    for i, value in enumerate(values):
        try:
            found.append(convert_value(value, j, features))
        except InvalidValue as error:
            reasons[i] = str(error)
            found.append("" if features.types[j] == "string" else 0)
    column = features.column(found, j)
    assert column is not None
    return column, reasons


def convert_value(value: Any, j: int, features: FeatureValues) -> Any:
    """Returns a value of the database as a value of JSON. Text of a number is read as in CSV. Raises InvalidValue."""
    if value is None and not features.optional[j]:
        raise InvalidValue(NULL)
    if isinstance(value, str) and features.types[j] != "string":
        return features.from_text(value, j)
    return features.checked(value, j)
