"""Tables for batch runs, and processes that score them and may be killed. As a script, it executes commands from its input."""

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
from iris_wsgi.patterns.batch.sqlite import SqliteTables

# Import the modules of a run before the fork, because the forked processes are killed soon.
from iris_wsgi.patterns.batch.table_run import TableRun

assert SqliteTables and TableRun
MODEL = str(Path(__file__).parents[2] / "model")
FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
ITEMS = "CREATE TABLE items (id integer PRIMARY KEY, " + ", ".join(f"{name} double precision" for name in FEATURES) + ")"


class ScoringDatabase:
    """SQLite or PostgreSQL database with a table of items. Parameters in SQL are written as `?`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.open_connection = None
        self.is_sqlite = url.startswith("sqlite:///")

    def execute(self, statement: str, values=(), rows=()) -> list[tuple]:
        """Executes a statement and returns its rows. With `rows`, executes it for each of them."""
        with self.connection() as connection:
            cursor = connection.cursor()
            text = statement if self.is_sqlite else statement.replace("%", "%%").replace("?", "%s")
            if rows:
                cursor.executemany(text, rows)
            else:
                cursor.execute(text, values)
            result = cursor.fetchall() if cursor.description and not rows else []
            connection.commit()
            return result

    @contextmanager
    def connection(self):
        """Lends a connection. It stays open for PostgreSQL. For SQLite it is closed, because the process may fork."""
        if self.is_sqlite or self.open_connection is None or self.open_connection.closed:
            self.open_connection = self.connect()
        try:
            yield self.open_connection
        except Exception:
            self.open_connection.close()
            raise
        if self.is_sqlite:
            self.open_connection.close()

    def connect(self):
        if self.is_sqlite:
            return sqlite3.connect(self.url.removeprefix("sqlite:///"), timeout=60)
        import psycopg

        return psycopg.connect(self.url)

    def close(self) -> None:
        if self.open_connection is not None:
            self.open_connection.close()

    def has_table(self, name: str) -> bool:
        query = "SELECT name FROM sqlite_schema WHERE name = ?" if self.is_sqlite else "SELECT 1 WHERE to_regclass(?) IS NOT NULL"
        return bool(self.execute(query, (name,)))

    def fill(self, count: int, seed: int = 1, bad: bool = True) -> None:
        """Creates the table `items`. Every 97th row is invalid."""
        chance = random.Random(seed)
        self.execute(ITEMS)
        rows = [(i * 3, *(round(chance.uniform(0.1, 8), 2) for _ in FEATURES)) for i in range(count)]
        rows = [(*row[:2], None, *row[3:]) if bad and i % 97 == 5 else row for i, row in enumerate(rows)]
        self.execute("INSERT INTO items VALUES (?, ?, ?, ?, ?)", rows=rows)

    def predictions(self, name: str = "items_prediction") -> list[tuple]:
        """Returns a table of predictions without the columns of the run and the time."""
        with self.connection() as connection:
            cursor = connection.cursor()
            cursor.execute(f"SELECT * FROM {name} ORDER BY 1, 2")
            columns = [i for i, column in enumerate(cursor.description) if column[0] not in ("run", "predicted")]
            rows = [tuple(row[i] for i in columns) for row in cursor.fetchall()]
            connection.commit()
            return rows

    def runs(self) -> list[dict]:
        names = ("run", "status", "ok", "bad", "labels", "finished")
        rows = self.execute(f"SELECT {', '.join(names)} FROM items_run ORDER BY started")
        runs = [dict(zip(names, row, strict=True)) for row in rows]
        for run in runs:
            run["labels"] = run["labels"] if isinstance(run["labels"], dict) else json.loads(run["labels"])
        return runs

    def inconsistencies(self) -> list[str]:
        """Returns the differences between the recorded runs and the predictions. No run may have replaced those of another."""
        written: dict[str, Counter] = {}
        for run, label, count in self.execute("SELECT run, label, count(*) FROM items_prediction GROUP BY run, label"):
            written.setdefault(run, Counter())[label] = count
        differences = []
        for run in self.runs():
            labels = written.pop(run["run"], Counter())
            bad = labels.pop(None, 0)
            if (run["ok"], run["bad"]) != (labels.total(), bad) or any(
                run["labels"][label] != labels[label] for label in run["labels"]
            ):
                differences.append(f"{run} has written {dict(labels)} and {bad} bad")
        return differences + [f"run {run} is not recorded" for run in written]

    def drop_results(self) -> None:
        for name in ("items_prediction", "items_run"):
            self.execute(f"DROP TABLE IF EXISTS {name}")


# Standard error of the processes, by process id.
ERROR_OUTPUT: dict[int, IO[bytes]] = {}


def start_run(url: str, *options: str, max_file_bytes: int = 0) -> int:
    """Starts a run in a forked process and returns the process id."""
    stderr = TemporaryFile()  # noqa: SIM115
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            os.dup2(stderr.fileno(), 2)
            if max_file_bytes:
                resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, resource.RLIM_INFINITY))
            status = main(["batch", "--table", "items", "--database", url, "--model-dir", MODEL, "--quiet", *options])
        finally:
            sys.stderr.flush()
            os._exit(status)
    ERROR_OUTPUT[pid] = stderr
    return pid


def wait_for_run(pid: int) -> tuple[int, str]:
    """Waits for a process. Returns its exit status and its standard error."""
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with ERROR_OUTPUT.pop(pid) as stderr:
        stderr.seek(0)
        return status, stderr.read().decode()


def kill_runs(url: str, kills: int, chunk: str) -> dict[str, object]:
    """Kills runs until one of them finishes, and starts over until there were enough kills. Returns the faults."""
    database, chance, remaining, finished, faults = ScoringDatabase(url), random.Random(), kills, 0, []
    started_at = time.monotonic()
    assert wait_for_run(start_run(url, "--chunk", chunk)) == (0, "")
    # The limit of 0.4 s is for a busy machine, on which few runs then finish before the last kill.
    expected, seconds = database.predictions(), min(time.monotonic() - started_at, 0.4)
    database.drop_results()
    while remaining:
        pid = start_run(url, "--chunk", chunk)
        # Half of the kills come early, while the run creates its tables.
        time.sleep(chance.choice((0.2, 0.9)) * chance.random() * seconds)
        os.kill(pid, signal.SIGKILL)
        status, _ = wait_for_run(pid)
        remaining -= status == -signal.SIGKILL
        if status == 0 or remaining == 0:
            status, stderr = wait_for_run(start_run(url))
            faults += database.inconsistencies() + ([f"ended with {status}: {stderr}"] if status else [])
            faults += [] if database.predictions() == expected else ["predictions differ"]
            finished += 1
            database.drop_results()
    database.close()
    return {"faults": faults, "finished": finished}


def run_concurrently(url: str, count: int, chunk: str) -> list[tuple[int, str]]:
    """Executes several runs at the same time. Returns the status and the standard error of each."""
    return [wait_for_run(pid) for pid in [start_run(url, "--chunk", chunk) for _ in range(count)]]


def serve() -> None:
    """Executes one command for each line of input. A fork is quicker than a new process with all imports."""
    for line in sys.stdin:
        name, words, options = json.loads(line)
        print(json.dumps(COMMANDS[name](*words, **options)), flush=True)


COMMANDS = {function.__name__: function for function in (start_run, wait_for_run, kill_runs, run_concurrently)}

if __name__ == "__main__":
    serve()
