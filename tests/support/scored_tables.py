"""Tables for runs to score, and processes that do so, among them such as are killed at any moment; also run as a script."""

import json
import os
import random
import resource
import signal
import sqlite3
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from iris_wsgi.cli.main import main
from iris_wsgi.patterns.batch.sqlite import SqliteDatabase

# What a run needs is imported before processes are forked that are to be killed soon.
from iris_wsgi.patterns.batch.table_run import TableRun

assert SqliteDatabase and TableRun
MODEL = str(Path(__file__).parents[2] / "model")
FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
ITEMS = "CREATE TABLE items (id integer PRIMARY KEY, " + ", ".join(f"{one} double precision" for one in FEATURES) + ")"


class ScoringDatabase:
    """A database by its URL; SQL has ? in both."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.kept = None
        self.is_sqlite = url.startswith("sqlite:///")

    def ask(self, statement: str, values=(), rows=()) -> list[tuple]:
        """What a statement gives; with `rows` it is done for each of them."""
        with self.connection() as connection:
            cursor = connection.cursor()
            text = statement if self.is_sqlite else statement.replace("%", "%%").replace("?", "%s")
            if rows:
                cursor.executemany(text, rows)
            else:
                cursor.execute(text, values)
            found = cursor.fetchall() if cursor.description and not rows else []
            connection.commit()
            return found

    @contextmanager
    def connection(self):
        """For a moment. That of a server is kept; of a file nothing may be open in a process that forks."""
        if self.is_sqlite or self.kept is None or self.kept.closed:
            self.kept = self.connect()
        try:
            yield self.kept
        except Exception:
            self.kept.close()
            raise
        if self.is_sqlite:
            self.kept.close()

    def connect(self):
        if self.is_sqlite:
            return sqlite3.connect(self.url.removeprefix("sqlite:///"), timeout=60)
        import psycopg

        return psycopg.connect(self.url)

    def close(self) -> None:
        if self.kept is not None:
            self.kept.close()

    def has(self, name: str) -> bool:
        told = "SELECT name FROM sqlite_schema WHERE name = ?" if self.is_sqlite else "SELECT 1 WHERE to_regclass(?) IS NOT NULL"
        return bool(self.ask(told, (name,)))

    def fill(self, count: int, seed: int = 1, bad: bool = True) -> None:
        """The table `items`; every 97th row is bad."""
        chance = random.Random(seed)
        self.ask(ITEMS)
        rows = [(i * 3, *(round(chance.uniform(0.1, 8), 2) for _ in FEATURES)) for i in range(count)]
        rows = [(*row[:2], None, *row[3:]) if bad and i % 97 == 5 else row for i, row in enumerate(rows)]
        self.ask("INSERT INTO items VALUES (?, ?, ?, ?, ?)", rows=rows)

    def content(self, name: str = "items_prediction") -> list[tuple]:
        """All of a table of predictions but when and by which run they were made."""
        with self.connection() as connection:
            cursor = connection.cursor()
            cursor.execute(f"SELECT * FROM {name} ORDER BY 1, 2")
            kept = [i for i, column in enumerate(cursor.description) if column[0] not in ("run", "predicted")]
            rows = [tuple(row[i] for i in kept) for row in cursor.fetchall()]
            connection.commit()
            return rows

    def records(self) -> list[dict]:
        names = ("run", "status", "ok", "bad", "labels", "finished")
        rows = self.ask(f"SELECT {', '.join(names)} FROM items_run ORDER BY started")
        told = [dict(zip(names, row, strict=True)) for row in rows]
        return [
            {**one, "labels": one["labels"] if isinstance(one["labels"], dict) else json.loads(one["labels"])} for one in told
        ]

    def faults(self) -> list[str]:
        """What records say otherwise than the predictions; for runs that did not redo others'."""
        written: dict[str, Counter] = {}
        for run, label, count in self.ask("SELECT run, label, count(*) FROM items_prediction GROUP BY run, label"):
            written.setdefault(run, Counter())[label] = count
        found = []
        for one in self.records():
            there = written.pop(one["run"], Counter())
            bad = there.pop(None, 0)
            if (one["ok"], one["bad"]) != (there.total(), bad) or any(
                one["labels"][label] != there[label] for label in one["labels"]
            ):
                found.append(f"{one} has written {dict(there)} and {bad} bad")
        return found + [f"nobody has written {run}" for run in written]

    def empty(self) -> None:
        for name in ("items_prediction", "items_run"):
            self.ask(f"DROP TABLE IF EXISTS {name}")


# What processes have said, by their ids.
ERROR_OUTPUT: dict[int, IO[bytes]] = {}


def start_run(url: str, *more: str, bound: int = 0) -> int:
    """The id of a process with a run, in which no file may grow over the `bound`."""
    said = TemporaryFile()  # noqa: SIM115
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            os.dup2(said.fileno(), 2)
            if bound:
                resource.setrlimit(resource.RLIMIT_FSIZE, (bound, resource.RLIM_INFINITY))
            status = main(["batch", "--table", "items", "--database", url, "--model-dir", MODEL, "--quiet", *more])
        finally:
            sys.stderr.flush()
            os._exit(status)
    ERROR_OUTPUT[pid] = said
    return pid


def wait_for_run(pid: int) -> tuple[int, str]:
    """Its status and what it said, once it has ended."""
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with ERROR_OUTPUT.pop(pid) as said:
        said.seek(0)
        return status, said.read().decode()


def kill_runs(url: str, kills: int, chunk: str) -> dict[str, object]:
    """Runs that are killed until one gets to its end, again and again; what was then not as it should be."""
    place, chance, left, ends, faults = ScoringDatabase(url), random.Random(), kills, 0, []
    begun = time.monotonic()
    assert wait_for_run(start_run(url, "--chunk", chunk)) == (0, "")
    # A busy machine takes long; there it is killed sooner than it would come to its end, which comes after the last kill.
    wanted, seconds = place.content(), min(time.monotonic() - begun, 0.4)
    place.empty()
    while left:
        pid = start_run(url, "--chunk", chunk)
        # Some in their first moments, in which tables are made, some on their way.
        time.sleep(chance.choice((0.2, 0.9)) * chance.random() * seconds)
        os.kill(pid, signal.SIGKILL)
        status, _ = wait_for_run(pid)
        left -= status == -signal.SIGKILL
        if status == 0 or left == 0:
            status, said = wait_for_run(start_run(url))
            faults += place.faults() + ([f"ended with {status}: {said}"] if status else [])
            faults += [] if place.content() == wanted else ["predictions differ"]
            ends += 1
            place.empty()
    place.close()
    return {"faults": faults, "ends": ends}


def run_concurrently(url: str, count: int, chunk: str) -> list[tuple[int, str]]:
    """Several runs at once; how they ended."""
    return [wait_for_run(pid) for pid in [start_run(url, "--chunk", chunk) for _ in range(count)]]


def serve() -> None:
    """Does what it is told, line by line: to fork is quicker than to import all of it each time."""
    for line in sys.stdin:
        name, words, options = json.loads(line)
        print(json.dumps(COMMANDS[name](*words, **options)), flush=True)


COMMANDS = {"start": start_run, "end": wait_for_run, "kill": kill_runs, "share": run_concurrently}

if __name__ == "__main__":
    serve()
