"""A run over a table: page by page along its key, each of them in one transaction with its predictions and the run's record."""

import json
import secrets
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from iris_wsgi.batch.cutter import Position
from iris_wsgi.batch.preparation import Plan, opened, planned
from iris_wsgi.batch.progress import teller
from iris_wsgi.batch.record import Progress
from iris_wsgi.batch.run import STATUS, End, Say, Wish, end_of, summary
from iris_wsgi.batch.statements import PREDICTION
from iris_wsgi.batch.table_options import TableOptions
from iris_wsgi.batch.tables import Database, Failed, Row
from iris_wsgi.batch.values import answers
from iris_wsgi.golden import self_test
from iris_wsgi.model import Model, load_model
from iris_wsgi.settings import Settings


def run_table(options: TableOptions, settings: Settings, say: Say) -> End:
    """The whole of it; lines for people go to `say`. Raises BadSetting and BadModel."""
    wish = Wish()
    model, golden = load_model(Path(settings.model_dir), settings.model_seal)
    self_test(model, golden.cases, golden.tolerance)
    try:
        with closing(opened(settings.database_url)) as database:
            plan = planned(database, options, model)
            return Run(database, plan, options, model).go(say, wish)
    except Failed as failed:
        say(f"stopped: {failed}")
        return End.STOPPED


class Run:
    """Counts of rows are those of what is committed."""

    def __init__(self, database: Database, plan: Plan, options: TableOptions, model: Model) -> None:
        self.database, self.plan, self.options, self.model = database, plan, options, model
        self.id = secrets.token_hex(8)
        self.statements = plan.statements
        self.labels = dict.fromkeys(model.labels, 0)
        self.bad = self.walked = 0
        self.carried_ok = self.carried_bad = 0

    @property
    def ok(self) -> int:
        return sum(self.labels.values())

    @property
    def progress(self) -> Progress:
        """With the rows of interrupted runs which this one goes on with."""
        return Progress(Position(), 0, 0, self.carried_ok + self.ok, self.carried_bad + self.bad, self.labels)

    def go(self, say: Say, wish: Wish) -> End:
        told = teller(self.plan.rows, " rows", self.options.quiet)

        def chunks() -> Iterator[Progress]:
            for _ in self.chunks():
                told.tell(self.walked, self.ok + self.bad, self.bad)
                yield self.progress

        try:
            self.begin()
            end, why = end_of(self.progress, chunks(), self.options.max_bad, wish)
            self.finish(STATUS[end])
        except Failed as failed:
            end, why = End.STOPPED, str(failed)
            # It may be that only the rows or the disk are the trouble, and not the database.
            with suppress(Failed):
                self.finish(STATUS[end])
        finally:
            told.end()
        self.summarise(end, why, say)
        return end

    def begin(self) -> None:
        digest = self.model.digest
        with self.database.transaction():
            self.database.execute(self.statements.forsaken(), (digest,))
            ((ok, bad),) = self.database.execute(self.statements.carried(), (digest, digest))
            self.save("running", self.labels, 0)
        self.carried_ok, self.carried_bad = int(ok), int(bad)

    def finish(self, status: str) -> None:
        with self.database.transaction():
            self.save(status, self.labels, self.bad)

    def chunks(self) -> Iterator[None]:
        """After each page. Where others lock rows a last pass waits for what they have left over, as they may have died."""
        skips = bool(self.database.dialect.skip)
        left: list[Row | None] = []
        for start, whole in self.walk(None, skips):
            left = left or ([] if whole else [start])
            yield
        for _ in self.walk(left[0], False) if skips and left else ():
            yield

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
                for label, count in self.database.write(target, self.plan.key, self.model.labels, new, digest, self.id, redo):
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

    def save(self, status: str, labels: dict[str, int], bad: int) -> None:
        over = int(status != "running")
        counts = (sum(labels.values()), bad, json.dumps(labels))
        told = (self.id, self.model.digest, str(self.options.table), over, status, *counts)
        self.database.execute(self.statements.save(), told)

    def summarise(self, end: End, why: str, say: Say) -> None:
        if end is End.GOOD and self.options.quiet:
            return
        if end is End.GOOD and not self.ok + self.bad:
            say(f"nothing to do: every row of {self.options.table} has a prediction in {self.plan.target}")
        else:
            say(summary(end, why, self.plan.target, self.labels, f"; {self.bad} bad" if self.bad else "", True))
