"""The SQL of a run over a table, for any database: every name in it is quoted, every value beside it."""

from collections.abc import Sequence

from iris_wsgi.patterns.batch.database import Column, Dialect, Name
from iris_wsgi.tabular.writers import LABEL, PROBABILITY

PREDICTION, RUN = "_prediction", "_run"
DIGEST, RUN_ID, TIME, ERROR = "model_digest", "run", "predicted", "error"
# Of runs, with types that PostgreSQL has and SQLite takes.
COLUMNS = (
    "run text PRIMARY KEY, model_digest text, source text, started timestamptz, updated timestamptz, finished timestamptz, "
    "status text, ok bigint, bad bigint, labels jsonb"
)
RECORD = [column.split()[0] for column in COLUMNS.split(", ")]


def answer_columns(labels: Sequence[str]) -> list[str]:
    """What stands beside the key in the table of predictions."""
    return [LABEL, *(PROBABILITY + label for label in labels), DIGEST, RUN_ID, TIME, ERROR]


class Statements:
    """For one table, one key, one list of features."""

    def __init__(self, dialect: Dialect, source: Name, key: Sequence[Column], features: Sequence[Column]) -> None:
        self.dialect, self.source = dialect, source
        self.key = [dialect.quoted(one.name) for one in key]
        self.read_key = [dialect.key.format(f"s.{one}") for one in self.key]
        self.read_features = [dialect.feature(f"s.{dialect.quoted(one.name)}", one.type) for one in features]

    def table(self, suffix: str = "") -> str:
        return self.source.beside(suffix).written(self.dialect.quoted)

    def page_end(self, after: bool) -> str:
        """The key of the last row of a page of `OFFSET + 1` rows, after a key or from the start."""
        where = self.compared("s", ">") if after else self.has_key()
        return (
            f"SELECT {', '.join(self.read_key)} FROM {self.table()} s WHERE {where} "
            f"ORDER BY {self.order()} LIMIT 1 OFFSET {self.dialect.mark}"
        )

    def claim(self, after: bool, upto: bool, redo: bool, skip: bool) -> str:
        """Rows to do of a page. Values: its bounds, for the rows, and again for predictions; the digest, to `redo`; the most."""
        signs = [sign for sign, told in ((">", after), ("<=", upto)) if told]
        rows = [self.compared("s", sign) for sign in signs] + ([] if after else [self.has_key()])
        joined = [f"p.{one} = s.{one}" for one in self.key]
        # The bounds are told of predictions too, or a join would read all of them for each page.
        joined += [self.compared("p", sign) for sign in signs]
        joined += [f"p.{self.dialect.quoted(DIGEST)} = {self.dialect.mark}"] if redo else []
        return (
            f"SELECT {', '.join(self.read_key + self.read_features)} FROM {self.table()} s WHERE {' AND '.join(rows)} "
            f"AND NOT EXISTS (SELECT 1 FROM {self.table(PREDICTION)} p WHERE {' AND '.join(joined)}) "
            f"ORDER BY {self.order()} LIMIT {self.dialect.mark}{self.dialect.lock}{self.dialect.skip if skip else ''}"
        )

    def left(self, redo: bool) -> str:
        """The first key without a prediction. Value: the digest, to `redo` predictions of other models."""
        joined = [f"p.{one} = s.{one}" for one in self.key]
        joined += [f"p.{self.dialect.quoted(DIGEST)} = {self.dialect.mark}"] if redo else []
        return (
            f"SELECT {', '.join(self.read_key)} FROM {self.table()} s WHERE {self.has_key()} "
            f"AND NOT EXISTS (SELECT 1 FROM {self.table(PREDICTION)} p WHERE {' AND '.join(joined)}) "
            f"ORDER BY {self.order()} LIMIT 1"
        )

    def keyless(self) -> str:
        """A row without a key, if there is one."""
        without = " OR ".join(f"s.{one} IS NULL" for one in self.key)
        return f"SELECT 1 FROM {self.table()} s WHERE {without} LIMIT 1"

    def compared(self, alias: str, sign: str) -> str:
        """The whole key, in the order of its index."""
        marks = ", ".join([self.dialect.mark] * len(self.key))
        names = ", ".join(f"{alias}.{one}" for one in self.key)
        return f"({names}) {sign} ({marks})"

    def has_key(self) -> str:
        return " AND ".join(f"s.{one} IS NOT NULL" for one in self.key)

    def order(self) -> str:
        return ", ".join(f"s.{one}" for one in self.key)

    def make_runs(self) -> str:
        return f"CREATE TABLE {self.table(RUN)} ({COLUMNS})"

    def save(self) -> str:
        """A run's record, new or changed. Values: run, digest, source, whether it is over, status, rows ok, bad, labels."""
        mark, now = self.dialect.mark, self.dialect.now
        changed = ", ".join(f"{one} = excluded.{one}" for one in RECORD if one not in ("run", "started"))
        return (
            f"INSERT INTO {self.table(RUN)} ({', '.join(RECORD)}) "
            f"VALUES ({mark}, {mark}, {mark}, {now}, {now}, CASE WHEN {mark} = 1 THEN {now} END, {mark}, {mark}, {mark}, {mark}) "
            f"ON CONFLICT (run) DO UPDATE SET {changed}"
        )

    def forsaken(self) -> str:
        """Runs that say they run are over, as far as one can know: one that lives says so again with its next chunk."""
        return (
            f"UPDATE {self.table(RUN)} SET status = 'interrupted' WHERE status = 'running' AND model_digest = {self.dialect.mark}"
        )

    def carried(self) -> str:
        """Rows ok and bad of the interrupted runs of a model (its digest, twice) since one came to its end."""
        mark, runs = self.dialect.mark, self.table(RUN)
        return (
            f"SELECT coalesce(sum(r.ok), 0), coalesce(sum(r.bad), 0) FROM {runs} r WHERE r.status = 'interrupted' "
            f"AND r.model_digest = {mark} AND NOT EXISTS (SELECT 1 FROM {runs} o WHERE o.model_digest = {mark} "
            "AND o.status IN ('succeeded', 'failed') AND o.finished >= r.started)"
        )
