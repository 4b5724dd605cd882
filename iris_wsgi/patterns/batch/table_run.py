"""A run over a table: page by page along its key, each of them in one transaction with its predictions and the run's record."""

import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from iris_wsgi.console import Teller
from iris_wsgi.model.golden import load_verified_model
from iris_wsgi.model.session import Model
from iris_wsgi.patterns.batch.database import Database, Row
from iris_wsgi.patterns.batch.exit_status import Counts, End, Miscounted, Wish, end_of, summary
from iris_wsgi.patterns.batch.options import TableOptions
from iris_wsgi.patterns.batch.sql import PREDICTION
from iris_wsgi.patterns.batch.table_plan import Plan, opened, planned
from iris_wsgi.patterns.batch.table_rows import answers
from iris_wsgi.settings import Settings

Say = Callable[[str], None]


def run_table(options: TableOptions, settings: Settings, say: Say) -> End:
    """The whole of it; lines for people go to `say`. Raises BadSetting, BadModel and Stopped."""
    wish = Wish()
    model, _, _ = load_verified_model(Path(settings.model_dir), settings.model_seal)
    with closing(opened(settings.database_url)) as database:
        plan = planned(database, options, model)
        return TableRun(database, plan, options, model).go(say, wish)


class TableRun:
    """A Run. Counts of rows are those of what is committed."""

    def __init__(self, database: Database, plan: Plan, options: TableOptions, model: Model) -> None:
        self.database, self.plan, self.options, self.model = database, plan, options, model
        self.id = secrets.token_hex(8)
        self.statements = plan.statements
        self.labels = dict.fromkeys(model.labels, 0)
        self.bad = self.walked = 0
        # Of interrupted runs which this one goes on with.
        self.carried = Counts(0, 0)

    @property
    def ok(self) -> int:
        return sum(self.labels.values())

    @property
    def counts(self) -> Counts:
        return Counts(self.carried.ok + self.ok, self.carried.bad + self.bad)

    def go(self, say: Say, wish: Wish) -> End:
        teller = Teller(self.plan.rows, " rows", self.options.quiet)
        end, why = end_of(self, self.plan.target, self.options.max_bad, wish, teller)
        if end is End.GOOD and not self.options.quiet and not self.ok + self.bad:
            say(f"nothing to do: every row of {self.options.table} has a prediction in {self.plan.target}")
        elif end is not End.GOOD or not self.options.quiet:
            say(summary(end, why, self.plan.target, self.labels, f"; {self.bad} bad" if self.bad else ""))
        return end

    def begin(self) -> None:
        digest = self.model.digest
        with self.database.transaction():
            self.database.execute(self.statements.forsaken(), (digest,))
            ((ok, bad),) = self.database.execute(self.statements.carried(), (digest, digest))
            self.save("running", self.labels, 0)
        self.carried = Counts(int(ok), int(bad))

    def finish(self, end: End) -> None:
        with self.database.transaction():
            self.save(end.status, self.labels, self.bad)

    def chunks(self) -> Iterator[int]:
        """Where others lock rows a last pass waits for what they have left over, as they may have died."""
        self.begin()
        skips = bool(self.database.dialect.skip)
        left: list[Row | None] = []
        for start, whole in self.walk(None, skips):
            left = left or ([] if whole else [start])
            yield self.walked
        for _ in self.walk(left[0], False) if skips and left else ():
            yield self.walked
        yield from self.check()

    def check(self) -> Iterator[int]:
        """Looks whether a row has no prediction, and goes over the table once more for rows that came meanwhile.

        Raises Miscounted if the first such row still has none: then it was lost.
        """
        missing = self.missing()
        for _ in self.walk(None, False) if missing else ():
            yield self.walked
        if missing and self.missing() == missing:
            raise Miscounted(
                f"a row of {self.options.table} has no prediction after every page; this is a defect of this program"
            )

    def missing(self) -> Row | None:
        """The key of the first row without a prediction."""
        redo = self.options.redo_older
        with self.database.transaction():
            found = self.database.execute(self.statements.left(redo), (self.model.digest,) if redo else ())
        return found[0] if found else None

    def walk(self, after: Row | None, skip: bool) -> Iterator[tuple[Row | None, bool]]:
        """Pages from there to the end: after which key each began, and whether all of its rows were done here and now."""
        end = False
        while not end:
            start, done = after, self.ok + self.bad
            after = self.page(start, skip)
            end = after is None
            yield start, self.ok + self.bad - done == self.options.chunk

    def page(self, after: Row | None, skip: bool) -> Row | None:
        """The rows to do of one page, in one transaction; after which key the next page begins, or None at the end."""
        run, digest, most = self.statements, self.model.digest, self.options.chunk
        with self.database.transaction():
            found = self.database.execute(run.page_end(after is not None), (*(after or ()), most - 1))
            upto = found[0] if found else None
            bounds = (*(after or ()), *(upto or ()))
            redo = self.options.redo_older
            values = (*bounds, *bounds, *((digest,) if redo else ()), most)
            rows = self.database.execute(run.claim(after is not None, upto is not None, redo, skip), values)
            labels, bad = dict(self.labels), self.bad
            if rows:
                new = answers(self.model, self.plan.features, rows)
                target = run.table(PREDICTION)
                done = self.database.write(target, self.plan.key, self.model.labels, new, digest, self.id, redo)
                self.check_counts(len(rows), sum(count for _, count in done))
                for label, count in done:
                    if label is None:
                        bad += count
                    else:
                        labels[label] += count
                self.save("running", labels, bad)
        self.labels, self.bad = labels, bad
        # The last pass goes over what has been counted.
        self.walked += most if upto and (skip or not self.database.dialect.skip) else 0
        # Without an end there were fewer rows than a page has, unless more have come since.
        return upto or (rows[-1][: len(self.plan.key)] if len(rows) == most else None)

    def check_counts(self, claimed: int, written: int) -> None:
        """Raises Miscounted. Where rows are locked one by one, others may have written some of them since the look."""
        if written > claimed or (written < claimed and not self.database.dialect.skip):
            raise Miscounted(f"{claimed} rows became {written} predictions; this is a defect of this program")

    def save(self, status: str, labels: dict[str, int], bad: int) -> None:
        over = int(status != "running")
        counts = (sum(labels.values()), bad, json.dumps(labels))
        told = (self.id, self.model.digest, str(self.options.table), over, status, *counts)
        self.database.execute(self.statements.save(), told)
