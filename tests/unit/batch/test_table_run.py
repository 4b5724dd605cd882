"""Tables scored by the batch command: one suite for both databases, and the failures of each."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import broken_models
import numpy as np
import pytest
from http_clients import open_files, wait_until
from postgres_server import PostgresServer
from project import MODEL, ROOT
from scored_tables import FEATURES, ITEMS, ScoringDatabase
from sealed_models import seal

from iris_wsgi.cli.main import main
from iris_wsgi.errors import Stopped
from iris_wsgi.model.session import Model, load_model
from iris_wsgi.patterns.batch.database import PREDICTION
from iris_wsgi.patterns.batch.exit_status import StopSignal
from iris_wsgi.patterns.batch.options import MaxBad, TableName, TableOptions, parse_table_name
from iris_wsgi.patterns.batch.table_run import TableRun, open_database, plan_run, predict_rows
from iris_wsgi.settings import BadSetting

pytestmark = pytest.mark.usefixtures("restored_signals")

TIMEOUT_SECONDS = 60
# Returns a row if a session waits for a PostgreSQL lock.
WAITING = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
KILLS = 50 if os.environ.get("CI") == "true" else 4


@pytest.fixture(params=["sqlite", "postgres"])
def scoring_database(request: pytest.FixtureRequest) -> ScoringDatabase:
    """Empty database."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def postgres(postgres_server: PostgresServer) -> Iterator[ScoringDatabase]:
    found = ScoringDatabase(postgres_server.url)
    found.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    yield found
    found.close()


@pytest.fixture
def sqlite() -> Iterator[ScoringDatabase]:
    """SQLite in a memory file system, because the tests kill processes and not the machine."""
    with TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        (Path(folder) / "items.db").touch()
        yield ScoringDatabase(f"sqlite:///{folder}/items.db")


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(MODEL)[0]


@pytest.fixture
def batch(scoring_database: ScoringDatabase, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Function that executes a run in this process. It returns the status and the message."""

    def run(*arguments: str, table: str = "items", url: str = "", folder: Path = MODEL) -> tuple[int, str]:
        command = ["batch", "--table", table, "--database", url or scoring_database.url, "--model-dir", str(folder), *arguments]
        status = main(command)
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") <= 1 and err.startswith("iris_wsgi: "), (out, err)
        return status, err.removeprefix("iris_wsgi: ").rstrip("\n")

    return run


class RunStarter:
    """Process that forks a process for each run."""

    def __init__(self) -> None:
        command = [sys.executable, ROOT / "tests/support/scored_tables.py"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def execute(self, name: str, *words: object, **options: object):
        self.process.stdin.write(json.dumps([name, words, options]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    @contextmanager
    def run(self, scoring_database: ScoringDatabase, *arguments: str, **options: object) -> Iterator["ForkedRun"]:
        run = ForkedRun(self, self.execute("start_run", scoring_database.url, *arguments, **options))
        try:
            yield run
        finally:
            if not run.ended:
                os.kill(run.pid, signal.SIGKILL)
                run.wait()


class ForkedRun:
    """Run in a forked process."""

    def __init__(self, starter: RunStarter, pid: int) -> None:
        self.starter, self.pid, self.ended = starter, pid, False

    def wait(self) -> tuple[int, str]:
        """Waits for the end of the run. Returns its exit status and its standard error."""
        self.ended = True
        return tuple(self.starter.execute("wait_for_run", self.pid))


@pytest.fixture(scope="module")
def run_starter() -> Iterator[RunStarter]:
    starter = RunStarter()
    yield starter
    starter.process.communicate(timeout=TIMEOUT_SECONDS)
    assert starter.process.returncode == 0


def has_open(pid: int, scoring_database: ScoringDatabase) -> bool:
    """Returns whether a process has the file of a database open."""
    return str(Path(scoring_database.url.removeprefix("sqlite:///")).resolve()) in open_files(pid)


def wait_until_started(scoring_database: ScoringDatabase) -> None:
    """Waits until a run has written predictions."""
    wait_until(
        lambda: scoring_database.has_table("items_run") and scoring_database.execute("SELECT 1 FROM items_run WHERE ok > 0"),
        "a run has started",
    )


def other_model(folder: Path, labels: str | None = None) -> Path:
    """Copies the fast model, which has the same features. The classes may be changed."""
    target = folder / "other"
    target.mkdir()
    for path in (MODEL / "fast").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    if labels:
        (target / "label.json").write_text(labels)
        seal(target)
    return target


# Predictions


def test_predictions_equal_the_model_to_the_bit_with_any_chunk_size(scoring_database, batch, model):
    scoring_database.fill(1000)
    status, output = batch("--chunk", "137")
    assert status == 0 and re.fullmatch(r"wrote (public|main)\.items_prediction, 989 rows: .*; 11 bad", output)
    rows = scoring_database.execute(f"SELECT id, {', '.join(FEATURES)} FROM items ORDER BY id")
    good = [row for row in rows if None not in row]
    probabilities = model.predict(np.array([row[1:] for row in good], np.float32))
    expected = {
        row[0]: (model.labels[each.argmax()], *each.tolist(), model.digest, None)
        for row, each in zip(good, probabilities, strict=True)
    }
    expected |= {row[0]: (None,) * 4 + (model.digest, "sepal_width is NULL") for row in rows if None in row}
    assert scoring_database.predictions() == [(key, *expected[key]) for key, *_ in rows]
    (record,) = scoring_database.runs()
    assert (record["status"], record["ok"], record["bad"]) == ("succeeded", 989, 11) and record["finished"]
    assert scoring_database.inconsistencies() == []


def test_one_row_a_chunk_no_row_at_all_and_exactly_one_chunk(scoring_database, batch):
    scoring_database.execute(ITEMS)
    assert batch()[1].startswith("nothing to do: every row of items has a prediction")
    scoring_database.execute("INSERT INTO items VALUES (?, 5, 3, 1, 0.2)", rows=[(i,) for i in (-5, 0, 7)])
    assert batch("--chunk", "1")[0] == 0
    scoring_database.execute("INSERT INTO items VALUES (?, 5, 3, 1, 0.2)", rows=[(i,) for i in (-6, 1, 8)])
    assert batch("--chunk", "3")[0] == 0
    assert [row[0] for row in scoring_database.predictions()] == [-6, -5, 0, 1, 7, 8]
    assert [run["ok"] for run in scoring_database.runs()] == [0, 3, 3] and scoring_database.inconsistencies() == []


def test_only_rows_without_a_prediction_are_scored(scoring_database, batch):
    scoring_database.fill(50)
    assert batch()[0] == 0
    scoring_database.execute("DELETE FROM items_prediction WHERE id = 9")
    scoring_database.execute("INSERT INTO items VALUES (1000, 5, 3, 1, 0.2)")
    assert re.match(r"wrote \S+, 2 rows", batch()[1])
    assert [run["ok"] for run in scoring_database.runs()] == [49, 2]


def test_rows_of_another_model_are_scored_again_only_with_the_flag(scoring_database, batch, tmp_path):
    scoring_database.fill(300)
    batch()
    before, other = scoring_database.predictions(), other_model(tmp_path)
    assert batch(folder=other)[1].startswith("nothing to do") and scoring_database.predictions() == before
    status, output = batch("--redo-older", "--chunk", "70", folder=other)
    assert (status, output.split(", ")[1].split()[0]) == (0, "296")
    digest = load_model(other)[0].digest
    assert {row[-2] for row in scoring_database.predictions()} == {digest} and len(scoring_database.predictions()) == 300
    assert [row[-1] for row in scoring_database.predictions()] == [row[-1] for row in before]
    assert batch("--redo-older", folder=other)[1].startswith("nothing to do")
    assert batch("--redo-older")[0] == 0 and scoring_database.predictions() == before


VALUES = {
    None: "is NULL",
    "x": "is not a number",
    "": "is empty",
    "1_0": "is not a number",
    "0x10": "is not a number",
    "nan": "is not finite as a 32-bit float",
    "-Infinity": "is not finite as a 32-bit float",
    "1e39": "is not finite as a 32-bit float",
    "3.4028235677973366e38": "is not finite as a 32-bit float",
    "9" * 400: "is not finite as a 32-bit float",
    "3.4028235e38": None,
    " 2.50 ": None,
    "-1E-400": None,
}


def test_a_bad_row_is_reported_with_its_column_and_affects_no_other(scoring_database, batch):
    scoring_database.execute(ITEMS.replace("sepal_width double precision", "sepal_width text"))
    scoring_database.execute("INSERT INTO items VALUES (?, 5, ?, 1, 0.2)", rows=list(enumerate(VALUES)))
    assert batch("--chunk", "5")[0] == 0
    result = scoring_database.predictions()
    assert [row[-1] for row in result] == [why and f"sepal_width {why}" for why in VALUES.values()]
    assert [row[1] is None for row in result] == [why is not None for why in VALUES.values()]
    assert scoring_database.runs()[0]["bad"] == 10 and scoring_database.inconsistencies() == []
    assert batch()[1].startswith("nothing to do")


def test_numbers_of_every_type_are_the_same_floats(scoring_database, batch, model):
    kinds = ("real", "integer", "numeric(30,10)", "bigint")
    columns = ", ".join(f"{name} {kind}" for name, kind in zip(FEATURES, kinds, strict=True))
    scoring_database.execute(f"CREATE TABLE items (id integer PRIMARY KEY, {columns})")
    scoring_database.execute("INSERT INTO items VALUES (1, 5.1, 3, 1.4, 9007199254740993), (2, -0.0, 7, 0.1, -1)")
    assert batch()[0] == 0
    expected = model.predict(np.array([[5.1, 3, 1.4, 9007199254740993], [0, 7, 0.1, -1]], np.float32))
    assert [row[2:5] for row in scoring_database.predictions()] == [tuple(item) for item in expected.tolist()]


def test_a_number_in_a_double_column_is_checked_as_a_float(scoring_database, batch):
    scoring_database.execute(ITEMS)
    scoring_database.execute("INSERT INTO items VALUES (1, 1e300, 3, 1, 0.2)")
    assert batch()[0] == 3
    assert scoring_database.predictions()[0][-1] == "sepal_length is not finite as a 32-bit float"
    assert scoring_database.runs()[0]["status"] == "failed"


# Names and keys

ODD = ['we"ird', "a b", "ключ", "50% {}", "s.x", "SELECT", "?", "%s", "$1", "x'y", "--", "{0}."]


def test_unusual_names_work_like_others(scoring_database, batch, model):
    table, (first, second), features = 'It"ems of % ?', ODD[:2], ODD[2:6]
    quoted = {item: '"' + item.replace('"', '""') + '"' for item in [table, *ODD]}
    columns = ", ".join(f"{quoted[item]} double precision" for item in ODD[2:])
    with closing(scoring_database.connect()) as connection:
        cursor = connection.cursor()
        name = quoted[table]
        key = f"{quoted[first]} text NOT NULL, {quoted[second]} integer NOT NULL"
        cursor.execute(f"CREATE TABLE {name} ({key}, {columns}, PRIMARY KEY ({quoted[second]}, {quoted[first]}))")
        for i, text in enumerate(["a", 'q"\\', "ü, {}", "", "NULL", "\\N", "'", "a\nb\t"] * 3):
            values = ", ".join(str(i + j) for j in range(len(ODD) - 2))
            text = text.replace("'", "''")
            cursor.execute(f"INSERT INTO {name} VALUES ('{text}', {i // 2}, {values})")
        connection.commit()
    arguments = ["--features", ",".join(features), "--key", f'"{first.replace(chr(34), chr(34) * 2)}",{second}', "--chunk", "5"]
    given = '"' + table.replace('"', '""') + '"'
    assert batch(*arguments, table=given)[0] == 0
    assert batch("--features", ",".join(features), table=f"{'main' if scoring_database.is_sqlite else 'public'}.{given}")[
        1
    ].startswith("noth")
    target = quoted[table][:-1] + '_prediction"'
    found = scoring_database.connect()
    with closing(found):
        cursor = found.cursor()
        match = " AND ".join(f"p.{quoted[item]} = s.{quoted[item]}" for item in (first, second))
        cursor.execute(f"SELECT s.{quoted[features[0]]}, p.label FROM {quoted[table]} s JOIN {target} p ON {match}")
        rows = cursor.fetchall()
    expected = model.predict(np.array([[row[0] + j for j in range(4)] for row in rows], np.float32)).argmax(axis=1)
    assert len(rows) == 24 and [row[1] for row in rows] == [model.labels[i] for i in expected]


def test_composite_keys_are_read_in_the_order_of_their_index(scoring_database, batch):
    scoring_database.execute("CREATE TABLE items (b text, a integer, f double precision, PRIMARY KEY (a, b))")
    rows = [(text, i, 1.0) for i in range(20) for text in ("x", "X", "é", "", "~", "10", "9")]
    scoring_database.execute("INSERT INTO items VALUES (?, ?, ?)", rows=rows)
    named = ["--key", "b,a", "--chunk", "9"]
    status, output = batch(*named, "--features", "f,a,f,a")
    assert status == 2 and "must be different names" in output
    scoring_database.execute("ALTER TABLE items ADD COLUMN g double precision DEFAULT 2")
    scoring_database.execute("ALTER TABLE items ADD COLUMN h double precision DEFAULT 3")
    assert batch(*named, "--features", "f,g,h,a")[0] == 0
    got = {(row[0], row[1]) for row in scoring_database.predictions()}
    assert got == {(i, text) for text, i, _ in rows} and len(scoring_database.predictions()) == len(rows)


def test_names_that_the_output_tables_would_have_twice_are_refused(scoring_database, batch):
    for name in ("label", "error", "run", "predicted", "model_digest", "probability_setosa"):
        scoring_database.execute("DROP TABLE IF EXISTS items")
        scoring_database.execute(ITEMS.replace("id integer", f"{name} integer"))
        status, output = batch()
        assert status == 2 and name in output and not scoring_database.has_table("items_prediction")
        assert "which are one name; name another unique key by --key" in output


def test_names_of_sqlite_that_differ_in_case_only_are_one_name(sqlite, tmp_path, capsys):
    command = ["batch", "--table", "items", "--database", sqlite.url, "--model-dir"]
    sqlite.execute(ITEMS.replace("id integer", "Label integer"))
    assert main([*command, str(MODEL)]) == 2
    assert "cannot have the columns 'label' and 'Label'" in capsys.readouterr().err
    sqlite.execute("DROP TABLE items")
    sqlite.execute(ITEMS)
    assert main([*command, str(other_model(tmp_path, '{"0": "a", "1": "A", "2": "b"}'))]) == 2
    assert "run pack on the model with other names of its labels or targets" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", ".", "a.", ".b", "a.b.c", '"a', 'a"b', '""', '"a"b', "a\nb", "x\0".replace("\0", "\x7f"), "\udcff"]
)
def test_an_invalid_table_name_is_reported(batch, text):
    status, output = batch(table=text)
    assert status == 2 and ("must be" in output)


def test_qualified_names_are_split_correctly():
    assert parse_table_name("a b") == TableName(None, "a b") and parse_table_name("S.t") == TableName("S", "t")
    assert (
        parse_table_name('"a.b"') == TableName(None, "a.b")
        and parse_table_name('"x""y".z') == TableName('x"y', "z")
        and parse_table_name('s."."') == TableName("s", ".")
    )


# Errors before the start, each with one line and status 2


@pytest.mark.parametrize(
    ("made", "arguments", "expected"),
    [
        (None, [], "the table items does not exist; upper and lower case of names count"),
        (
            ITEMS,
            ["--features", "id,sepal_width,petal_length,nope"],
            r"\S+items has no column 'nope'; it has id, sepal_length, .*",
        ),
        (ITEMS, ["--features", "id"], "--features names 1 columns; the model takes 4"),
        (ITEMS, ["--key", "nope"], r"\S+items has no column 'nope'; .*"),
        (ITEMS, ["--key", "sepal_width"], r"sepal_width is not a key of \S+items: it needs a unique index .*"),
        (ITEMS, ["--key", "id,sepal_width"], r"id, sepal_width is not a key of \S+items: .*"),
        (ITEMS.replace(" PRIMARY KEY", ""), [], r"\S+items has no primary key; name a unique key by --key"),
        ("CREATE VIEW items AS SELECT 1 AS id", ["--key", "id", "--features", "id"], "--features names 1 .*"),
        (ITEMS, ["--chunk", "0"], "--chunk='0' must be a whole number from 1 to 1000000"),
        (ITEMS, ["--max-bad", "x"], "--max-bad='x' must be .*"),
        (ITEMS, ["in.csv"], "IN is for files, and not for --table"),
        (ITEMS, ["--force"], "--force is for files, and not for --table"),
        (ITEMS, ["--keep", "id"], "--keep is for files, and not for --table"),
    ],
)
def test_a_missing_or_unsuitable_table_is_reported_in_one_line(scoring_database, batch, made, arguments, expected):
    if made:
        scoring_database.execute(made)
    status, line = batch(*arguments)
    assert status == 2 and re.fullmatch(expected, line), line


def test_a_view_has_no_key(scoring_database, batch):
    scoring_database.execute(ITEMS)
    scoring_database.execute("CREATE VIEW seen AS SELECT * FROM items")
    assert batch("--key", "id", table="seen")[0] == 2


def test_the_url_may_come_from_the_environment(sqlite, monkeypatch, capsys):
    sqlite.fill(5)
    monkeypatch.setenv("IRIS_DATABASE_URL", sqlite.url)
    assert main(["batch", "--table", "items", "--model-dir", str(MODEL), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "") and len(sqlite.predictions()) == 5


def test_flags_of_tables_require_a_table(capsys):
    for flags in (["--key", "id"], ["--redo-older"], ["--chunk", "5"], ["--database", "sqlite:///x"]):
        assert main(["batch", "in.csv", "out.csv", *flags]) == 2
        assert capsys.readouterr().err.endswith(" is for --table\n")
    assert main(["batch", "--table", "items"]) == 2
    assert "--table needs --database or IRIS_DATABASE_URL" in capsys.readouterr().err


def test_rows_without_a_key_are_refused(scoring_database, batch):
    scoring_database.execute(ITEMS.replace("integer PRIMARY KEY", "integer UNIQUE"))
    scoring_database.execute("INSERT INTO items VALUES (1, 5, 3, 1, 0.2), (NULL, 5, 3, 1, 0.2)")
    status, output = batch("--key", "id")
    assert status == 2 and output.endswith("items has rows without a key: id must not be NULL")
    scoring_database.execute("DELETE FROM items WHERE id IS NULL")
    assert batch("--key", "id")[0] == 0 and len(scoring_database.predictions()) == 1


def test_a_unique_index_over_some_rows_or_over_an_expression_is_not_a_key(scoring_database, batch):
    scoring_database.execute(ITEMS.replace("integer PRIMARY KEY", "integer"))
    scoring_database.execute("CREATE UNIQUE INDEX one ON items (id) WHERE sepal_width > 3")
    scoring_database.execute("CREATE UNIQUE INDEX two ON items ((id + 1))")
    assert batch("--key", "id")[0] == 2
    scoring_database.execute("CREATE UNIQUE INDEX three ON items (id)")
    assert batch("--key", "id")[0] == 0


def test_existing_tables_with_the_output_names_are_not_changed(scoring_database, batch, tmp_path):
    scoring_database.fill(3)
    scoring_database.execute("CREATE TABLE items_prediction (id integer PRIMARY KEY, mine text)")
    status, output = batch()
    assert status == 2 and "items_prediction exists and has no column 'label'" in output
    scoring_database.execute("DROP TABLE items_prediction")
    assert batch()[0] == 0
    labels = '{"0": "setosa", "1": "versicolor", "2": "other"}'
    status, output = batch("--redo-older", folder=other_model(tmp_path, labels))
    assert status == 2 and "has no column 'probability_other'" in output
    scoring_database.execute("ALTER TABLE items ADD COLUMN other integer")
    scoring_database.execute("UPDATE items SET other = id")
    scoring_database.execute("CREATE UNIQUE INDEX other ON items (other)")
    scoring_database.execute("ALTER TABLE items_prediction ADD COLUMN other integer")
    status, output = batch("--key", "other")
    assert status == 2 and output.endswith("items_prediction has another key than other")


@pytest.mark.parametrize(
    "url",
    ["items.db", "sqlite:items.db", "sqlite:///", "mysql://h/d", "postgresql://h:port/d"]
    + [f"postgresql://u:{secret}@h/d" for secret in ("se/cret", "se@cret", "12?cret", "se#cret", "se%cret")],
)
def test_an_invalid_url_is_reported_and_not_shown(monkeypatch, capsys, url):
    monkeypatch.setenv("IRIS_DATABASE_URL", url)
    assert main(["batch", "--table", "items"]) == 2
    err = capsys.readouterr().err
    assert "must be sqlite:///file or postgresql://" in err and "cret" not in err and err.count("\n") == 1


# Bad rows over the limit


def test_too_many_bad_rows_fail_the_run_and_its_predictions_stay(scoring_database, batch):
    scoring_database.fill(1000)
    status, output = batch("--max-bad", "3", "--chunk", "100")
    assert status == 3 and output.startswith("failed: 4 bad rows are more than --max-bad 3; 296 rows: ")
    assert scoring_database.runs()[0]["status"] == "failed" and len(scoring_database.predictions()) == 300
    status, output = batch("--max-bad", "0.9%", "--chunk", "100")
    assert status == 3 and output.startswith("failed: 7 bad rows of 700 are more than --max-bad 0.9%")
    assert (
        len(scoring_database.predictions()) == 1000
        and batch("--max-bad", "0")[0] == 0
        and scoring_database.inconsistencies() == []
    )


def test_bad_rows_of_interrupted_runs_count_in_the_resumed_one(scoring_database, batch):
    scoring_database.fill(300)
    batch()
    scoring_database.execute("DELETE FROM items_prediction WHERE id > 500")
    scoring_database.execute("UPDATE items_run SET status = 'running', finished = NULL, ok = 165, bad = 2")
    status, output = batch("--max-bad", "3")
    assert status == 3 and output.startswith("failed: 4 bad rows are more than --max-bad 3")
    assert [run["status"] for run in scoring_database.runs()] == ["interrupted", "failed"]
    assert batch("--max-bad", "3")[0] == 0


# Concurrent runs, and kills


@pytest.mark.parametrize("count", [2, 4])
def test_processes_that_share_a_table_score_each_row_once(scoring_database, batch, run_starter, count):
    scoring_database.fill(2000)
    assert run_starter.execute("run_concurrently", scoring_database.url, count, "50") == [[0, ""]] * count
    assert scoring_database.inconsistencies() == [] and sum(run["ok"] + run["bad"] for run in scoring_database.runs()) == 2000
    shared = scoring_database.predictions()
    scoring_database.drop_results()
    batch()
    assert scoring_database.predictions() == shared


@pytest.mark.repeats
@pytest.mark.long
def test_runs_killed_at_any_moment_leave_the_same_as_an_uninterrupted_one(scoring_database, run_starter):
    scoring_database.fill(500)
    result = run_starter.execute("kill_runs", scoring_database.url, KILLS, "20")
    assert result["faults"] == [] and result["finished"] > 0


def test_sigterm_ends_a_run_after_its_chunk_and_the_same_command_resumes_it(scoring_database, batch, run_starter):
    scoring_database.fill(4000)
    with run_starter.run(scoring_database, "--chunk", "2") as run:
        wait_until_started(scoring_database)
        os.kill(run.pid, signal.SIGTERM)
        status, output = run.wait()
    assert status == 4
    assert re.fullmatch(r"iris_wsgi: stopped: SIGTERM, after \d+ rows: .*; the same command resumes the run\n", output)
    assert (
        scoring_database.runs()[0]["status"] == "interrupted"
        and 0 < len(scoring_database.predictions()) < 4000
        and scoring_database.inconsistencies() == []
    )
    assert batch()[0] == 0 and len(scoring_database.predictions()) == 4000 and scoring_database.inconsistencies() == []


def test_rows_that_change_during_a_run_cause_no_error(scoring_database, batch, run_starter):
    scoring_database.fill(1000)
    with run_starter.run(scoring_database, "--chunk", "5") as run:
        wait_until_started(scoring_database)
        for i in range(1, 30, 3):
            scoring_database.execute("INSERT INTO items VALUES (?, 5, 3, 1, 0.2)", (i,))
            scoring_database.execute("INSERT INTO items VALUES (?, 5, 3, 1, 0.2)", (3000 + i,))
            scoring_database.execute("DELETE FROM items WHERE id = ?", (3000 - i - 2,))
        assert run.wait() == (0, "")
    assert batch()[0] == 0 and scoring_database.inconsistencies() == []
    assert scoring_database.execute(
        "SELECT count(*) FROM items s LEFT JOIN items_prediction p ON p.id = s.id WHERE p.id IS NULL"
    ) == [(0,)]


# Properties of one database


def runs(scoring_database: ScoringDatabase, model: Model, chunk: int = 100) -> TableRun:
    """Returns a run on a separate connection that has not started."""
    options = TableOptions(TableName(None, "items"), (), (), False, chunk, MaxBad(), True)
    database = open_database(scoring_database.url, TIMEOUT_SECONDS)
    return TableRun(database, plan_run(database, options, model), options, model)


def model_with_predictions(model: Model, predict: Callable) -> object:
    """Returns a model with other predictions."""
    return type(
        "StandIn",
        (),
        {
            "digest": model.digest,
            "labels": model.labels,
            "outputs": model.outputs,
            "schema": model.schema,
            "predict": staticmethod(predict),
        },
    )


def test_a_page_is_found_by_its_key_and_reads_no_other_predictions(scoring_database, model):
    """The planner must choose the index right after the table was filled, without statistics."""
    scoring_database.fill(5000)
    run = runs(scoring_database, model)
    with closing(run.database):
        assert run.execute(StopSignal()) == 0
        for first, last, redo in ((None, 297, False), (12000, 12297, True), (14700, None, False)):
            bounds = tuple(item for item in (first, last) if item is not None)
            values = (*bounds, *bounds, *((model.digest,) if redo else ()), 100)
            claim = run.statements.claim(first is not None, last is not None, redo, skip=True)
            if scoring_database.is_sqlite:
                result = [row[-1] for row in run.database.execute(f"EXPLAIN QUERY PLAN {claim}", values)]
                assert [line.split()[:2] for line in result if "SUBQUERY" not in line] == [["SEARCH", "s"], ["SEARCH", "p"]], (
                    result
                )
            else:
                ((plan,),) = run.database.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {claim}", values)
                read = [int(found) for found in re.findall(r"'Actual Rows': ([0-9]+)", str(plan))]
                assert max(read) <= 101 and "Seq Scan" not in str(plan), plan


@pytest.mark.long
def test_a_lock_of_another_session_ends_the_run_in_one_line_and_it_resumes_later(scoring_database, model, batch, capsys):
    scoring_database.fill(50)
    run = runs(scoring_database, model)
    if scoring_database.is_sqlite:
        run.database.seconds = 0.1
    else:
        run.database.execute("SET lock_timeout = 100")
    with closing(run.database), closing(scoring_database.connect()) as other:
        cursor = other.cursor()
        cursor.execute("UPDATE items SET sepal_length = 1 WHERE id = 9")
        assert run.execute(StopSignal()) == 5
        (line,) = capsys.readouterr().err.splitlines()
        reason = "is locked by another process" if scoring_database.is_sqlite else "canceling statement due to lock timeout"
        assert re.fullmatch(rf"iris_wsgi: stopped: the .* {reason}, after \d+ rows: .*; the same command resumes the run", line)
        other.rollback()
    assert batch()[0] == 0 and scoring_database.inconsistencies() == [] and len(scoring_database.predictions()) == 50


def test_a_second_signal_ends_a_waiting_run_at_once(scoring_database, run_starter):
    scoring_database.fill(50)
    with closing(scoring_database.connect()) as other:
        other.cursor().execute("UPDATE items SET sepal_length = 1 WHERE id = 9")
        with run_starter.run(scoring_database) as run:
            # A locked file does not show its waiting processes, but the run handles signals before it opens the file.
            while (
                not has_open(run.pid, scoring_database) if scoring_database.is_sqlite else not scoring_database.execute(WAITING)
            ):
                time.sleep(0.005)
            # Two signals of the same kind may be merged into one.
            os.kill(run.pid, signal.SIGTERM)
            os.kill(run.pid, signal.SIGINT)
            status, output = run.wait()
    assert (status, output) == (4, "")


def test_a_model_that_cannot_be_run_ends_the_run_in_one_line(scoring_database, model, capsys):
    scoring_database.fill(50)
    run = runs(scoring_database, model)
    with closing(run.database):
        run.model = model_with_predictions(model, lambda rows: 1 / 0)
        assert run.execute(StopSignal()) == 5
    assert "the model cannot be run on 49 rows" in capsys.readouterr().err
    assert scoring_database.runs()[0]["status"] == "interrupted" and scoring_database.predictions() == []


def test_a_model_with_another_number_of_rows_fails_the_run_and_writes_no_prediction(scoring_database, tmp_path, capsys):
    scoring_database.fill(200, bad=False)
    folder = broken_models.write_broken_model(tmp_path / "broken", "rows repeated")
    seal(folder)
    arguments = ["--model-dir", str(folder), "--features", ",".join(FEATURES)]
    assert main(["batch", "--table", "items", "--database", scoring_database.url, *arguments]) == 1
    assert "for 200 rows has the shape [336, 3]; it must be [200, 3]" in capsys.readouterr().err
    assert scoring_database.runs()[0]["status"] == "failed" and scoring_database.predictions() == []


def test_a_row_without_a_prediction_ends_the_run_with_a_separate_status(scoring_database, model, capsys):
    """Simulates a defect: every page leaves out the same row."""
    scoring_database.fill(20, bad=False)
    run = runs(scoring_database, model)
    claim = run.statements.claim
    run.statements.claim = lambda *words: claim(*words).replace(" WHERE ", " WHERE s.id > (SELECT min(id) FROM items) AND ", 1)
    with closing(run.database):
        assert run.execute(StopSignal()) == 6
    assert "has no prediction after every page" in capsys.readouterr().err
    assert scoring_database.runs()[0]["status"] == "failed" and len(scoring_database.predictions()) == 19


def test_rows_inserted_behind_the_current_page_are_scored_before_the_run_ends(scoring_database, model):
    scoring_database.fill(20, bad=False)
    run = runs(scoring_database, model)
    missing = run.missing
    came = iter([None])

    def missing_later():
        for _ in came:
            scoring_database.execute("INSERT INTO items VALUES (-1, 5.1, 3.5, 1.4, 0.2)")
        return missing()

    run.missing = missing_later
    with closing(run.database):
        assert run.execute(StopSignal()) == 0
    assert len(scoring_database.predictions()) == 21


def test_a_prediction_that_is_not_finite_makes_a_bad_row(scoring_database, model):
    scoring_database.fill(5, bad=False)
    run = runs(scoring_database, model)

    def predict(rows):
        probabilities = model.predict(rows)
        probabilities[2, 1] = np.nan
        return probabilities

    run.model = model_with_predictions(model, predict)
    with closing(run.database):
        assert run.execute(StopSignal()) == 0
    result = scoring_database.predictions()
    assert [row[-1] for row in result] == [None, None, "the model gives a value that is not a finite number", None, None]
    assert result[2][1:5] == (None,) * 4 and scoring_database.inconsistencies() == []


def test_rows_scored_by_another_run_between_the_read_and_the_lock_are_not_written_or_counted_twice(postgres, model):
    postgres.fill(50)
    first, second = runs(postgres, model), runs(postgres, model)
    with closing(first.database), closing(second.database):
        first.begin()
        second.begin()
        with first.database.transaction():
            rows = first.database.execute(first.statements.claim(False, False, False, True), (100,))
            late_thread = threading.Thread(target=second.page, args=(None, False))
            late_thread.start()
            while not postgres.execute(WAITING):
                assert late_thread.is_alive()
            new = predict_rows(model, FEATURES, rows)
            target = first.statements.table(PREDICTION)
            written = first.database.write(target, first.plan.key, model.outputs, new, model.digest, first.id, False)
        late_thread.join(TIMEOUT_SECONDS)
        assert sum(count for _, count in written) == 50 and (second.ok, second.bad) == (0, 0)
    assert postgres.execute("SELECT DISTINCT run FROM items_prediction") == [(first.id,)] and len(postgres.predictions()) == 50


def test_rows_abandoned_by_another_run_are_scored_in_the_last_pass(postgres, model):
    postgres.fill(300)
    run = runs(postgres, model)
    with closing(run.database), closing(postgres.connect()) as other:
        other.cursor().execute("SELECT 1 FROM items WHERE id < 30 FOR UPDATE")
        run.begin()
        chunks = run.chunks()
        for _ in range(4):
            next(chunks)
        assert run.ok + run.bad == 290
        other.close()
        assert sum(1 for _ in chunks) == 4 and run.ok + run.bad == 300


KEYS = {
    "timestamptz": ["'infinity'", "'-infinity'", "'2000-01-01 00:00:00.000001+00'", "'0044-03-15 12:00 BC'"],
    "double precision": ["'NaN'", "'Infinity'", "0.1", "1e-320", "-0.0", "0.30000000000000004"],
    "numeric": ["'NaN'", "1.10", "1e100", "-5"],
    "uuid": ["'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"],
    "bytea": ["''", "'\\x00ff'", "'\\x5c22'"],
    "char(5)": ["'a'", "''", "'a b'"],
    '"char"': ["'a'", "'\"'"],
    "boolean": ["true", "false"],
    "interval": ["'1 month'", "'-3 days 00:00:00.5'"],
    "text[]": ["'{}'", '\'{a,NULL,"x,\\"y"}\''],
    "int4range": ["'empty'", "'[1,5)'", "'(,)'"],
    "inet": ["'::1'", "'10.0.0.0/8'"],
    "varchar(3) COLLATE nocase": ["'é'", "'B'", "'c'"],
    "mood": ["'b a'", "'\"'"],
    "positive": ["1", "7"],
    "oid": ["0", "4294967295"],
    "date": ["'infinity'", "'2024-02-29'"],
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_every_type_are_kept_unchanged(postgres, kind, model):
    postgres.execute("CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    postgres.execute("CREATE TYPE mood AS ENUM ('b a', '\"')")
    postgres.execute("CREATE DOMAIN positive AS integer CHECK (VALUE > 0)")
    postgres.execute(ITEMS.replace("id integer", f"id {kind}"))
    values = ", ".join(f"({key}, 5, 3, 1, 0.2)" for key in KEYS[kind])
    postgres.execute(f"INSERT INTO items VALUES {values}")
    run = runs(postgres, model, chunk=1)
    with closing(run.database):
        assert run.execute(StopSignal()) == 0 and run.ok == len(KEYS[kind])
    query = "SELECT count(*) FROM items s JOIN items_prediction p USING (id) WHERE s.id::text = p.id::text"
    assert postgres.execute(query) == [(len(KEYS[kind]),)]
    types = "SELECT count(DISTINCT (atttypid, atttypmod, attcollation)) FROM pg_attribute WHERE attname = 'id'"
    assert postgres.execute(f"{types} AND attrelid IN ('items'::regclass, 'items_prediction'::regclass)") == [(1,)]


def test_settings_of_a_role_make_no_difference(postgres, model, postgres_server):
    postgres.fill(100)
    postgres.execute("DROP ROLE IF EXISTS odd")
    postgres.execute("CREATE ROLE odd LOGIN SUPERUSER")
    ways = {"default_transaction_isolation": "serializable", "extra_float_digits": "-15", "datestyle": "'SQL, DMY'"}
    ways |= {"search_path": "nowhere, public", "bytea_output": "escape", "client_encoding": "LATIN1"}
    for name, value in ways.items():
        postgres.execute(f"ALTER ROLE odd SET {name} = {value}")
    run = runs(postgres, model)
    with closing(run.database):
        run.execute(StopSignal())
    expected = postgres.predictions()
    postgres.drop_results()
    run = runs(ScoringDatabase(postgres_server.url.replace("postgres@", "odd@")), model)
    with closing(run.database):
        assert run.execute(StopSignal()) == 0
    assert postgres.predictions() == expected


def test_a_missing_permission_is_an_invalid_argument(postgres, postgres_server, capsys):
    postgres.fill(10)
    postgres.execute("DROP ROLE IF EXISTS poor")
    postgres.execute("CREATE ROLE poor LOGIN")
    postgres.execute("GRANT USAGE ON SCHEMA public TO poor")
    postgres.execute("GRANT SELECT ON items TO poor")
    command = ["batch", "--table", "items", "--model-dir", str(MODEL)]
    assert main([*command, "--database", postgres_server.url.replace("postgres@", "poor@")]) == 2
    assert re.fullmatch(r"iris_wsgi: the PostgreSQL at \S+ failed: permission denied .*\n", capsys.readouterr().err)
    assert not postgres.has_table("items_prediction")


def test_partitions_schemas_and_inherited_tables(postgres, model, capsys):
    columns = ", ".join(f"{feature} float8 DEFAULT 1" for feature in FEATURES)
    postgres.execute('DROP SCHEMA IF EXISTS "Other.one" CASCADE')
    postgres.execute('CREATE SCHEMA "Other.one"')
    postgres.execute(f'CREATE TABLE "Other.one"."Parts" (id int PRIMARY KEY, {columns}) PARTITION BY RANGE (id)')
    for i in range(3):
        bounds = f"FROM ({i * 10}) TO ({i * 10 + 10})"
        postgres.execute(f'CREATE TABLE "Other.one".part{i} PARTITION OF "Other.one"."Parts" FOR VALUES {bounds}')
    postgres.execute('INSERT INTO "Other.one"."Parts" SELECT generate_series(0, 29)')
    command = ["batch", "--database", postgres.url, "--model-dir", str(MODEL), "--chunk", "7", "--table"]
    assert main([*command, "Parts"]) == 2 and main([*command, '"Other.one".parts']) == 2
    assert main([*command, '"Other.one"."Parts"']) == 0
    assert postgres.execute('SELECT count(*) FROM "Other.one"."Parts_prediction"') == [(30,)]
    postgres.execute(f"CREATE TABLE items (id int PRIMARY KEY, {columns})")
    postgres.execute("CREATE TABLE heir () INHERITS (items)")
    capsys.readouterr()
    assert main([*command, "items"]) == 2
    assert "id is not a key of public.items" in capsys.readouterr().err


def test_names_that_the_database_would_truncate_are_refused(postgres, capsys):
    """The truncated name of the predictions would be that of the table itself."""
    name = "ü" * 31
    postgres.execute(ITEMS.replace("items", f'"{name}"'))
    assert main(["batch", "--table", name, "--database", postgres.url, "--model-dir", str(MODEL)]) == 2
    assert "has no column" in capsys.readouterr().err
    assert postgres.execute("SELECT count(*) FROM pg_class WHERE relname LIKE 'ü%' AND relkind = 'r'") == [(1,)]


def test_a_lost_database_ends_the_run_in_one_line_and_it_resumes_later(postgres, postgres_server, model, run_starter):
    postgres.fill(4000)
    try:
        with run_starter.run(postgres, "--chunk", "2") as run:
            wait_until_started(postgres)
            postgres.close()
            postgres_server.stop()
            status, output = run.wait()
        assert status == 5
        assert re.fullmatch(
            r"iris_wsgi: stopped: the PostgreSQL at \S+ failed: .*; the same command resumes the run\n", output
        ), output
        with run_starter.run(postgres) as again:
            status, output = again.wait()
        assert status == 5 and re.fullmatch(r"iris_wsgi: stopped: the PostgreSQL at \S+ failed: .*\n", output), output
    finally:
        postgres_server.start()
    assert 0 < len(postgres.predictions()) < 4000 and postgres.inconsistencies() == []
    again = runs(postgres, model, chunk=5000)
    with closing(again.database):
        assert again.execute(StopSignal()) == 0
    assert len(postgres.predictions()) == 4000 and postgres.inconsistencies() == []


def test_a_database_that_hangs_causes_a_timeout(postgres, model, capsys):
    postgres.fill(100)
    run = runs(postgres, model)
    ((pid,),) = run.database.execute("SELECT pg_backend_pid()")
    os.kill(pid, signal.SIGSTOP)
    run.database.seconds = 0.2
    try:
        assert run.execute(StopSignal()) == 5
    finally:
        os.kill(pid, signal.SIGCONT)
    (line,) = capsys.readouterr().err.splitlines()
    assert "failed: no response within 0.2 s, after 0 rows" in line
    run.database.close()


def test_a_missing_database_is_an_invalid_argument_and_an_unreachable_server_is_a_failure(
    postgres, postgres_server, monkeypatch, capsys
):
    command = ["batch", "--table", "items", "--model-dir", str(MODEL), "--database"]
    assert main([*command, postgres_server.url.replace("/postgres?", "/nope?")]) == 2
    assert 'database "nope" does not exist' in capsys.readouterr().err
    for address, status in (("postgresql://user:secret@/db?host=/nowhere", 5), ("postgresql://user:secret@h/db?nope=1", 2)):
        # The connection is made as a user without this database.
        monkeypatch.setenv("IRIS_DATABASE_URL", address)
        assert main(command[:-1]) == status
    result = capsys.readouterr().err
    assert "secret" not in result and result.count("\n") == 2


def test_without_psycopg_one_line_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for name in ("storage.postgres", "patterns.batch.postgres"):
        monkeypatch.delitem(sys.modules, f"iris_wsgi.{name}", raising=False)
    assert main(["batch", "--table", "items", "--database", "postgresql://h/d", "--model-dir", str(MODEL)]) == 2
    assert "pip install '.[postgres]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "url", ["sqlite:////nowhere/items.db", "sqlite:///nowhere.db", f"sqlite:///{MODEL}", f"sqlite:///{__file__}"]
)
def test_a_file_that_is_not_a_database_is_reported_and_none_is_created(url, capsys):
    assert main(["batch", "--table", "items", "--database", url, "--model-dir", str(MODEL)]) == 2
    assert re.fullmatch(r"iris_wsgi: the database \S+ (cannot be opened|is not an SQLite database)\n", capsys.readouterr().err)
    assert not Path("nowhere.db").exists()


def test_a_full_disk_ends_the_run_in_one_line_and_it_resumes_later(sqlite, model, run_starter):
    """A limit for the size of files replaces a full disk."""
    sqlite.fill(5000)
    size = Path(sqlite.url.removeprefix("sqlite:///")).stat().st_size

    with run_starter.run(sqlite, "--chunk", "100", max_file_bytes=size + 300_000) as run:
        status, output = run.wait()
    assert status == 5 and re.fullmatch(r"iris_wsgi: stopped: the database \S+ (cannot|has no room).*; the same .*\n", output), (
        output
    )
    assert 0 < len(sqlite.predictions()) < 5000 and sqlite.inconsistencies() == []
    again = runs(sqlite, model)
    with closing(again.database):
        assert again.execute(StopSignal()) == 0
    assert len(sqlite.predictions()) == 5000 and sqlite.inconsistencies() == []


def test_keys_of_sqlite_have_any_type_in_one_column(sqlite, model):
    columns = ", ".join(f"{feature} REAL DEFAULT 1" for feature in FEATURES)
    keys = [1, 1.5, "1", b"1", "a", "A", b"\xff", 2**63 - 1, -1e300, "", "\0x"]
    for kind, more in (("", ""), ("BLOB", ""), ("ANY", " STRICT"), ("ANY", " STRICT, WITHOUT ROWID"), ("INTEGER", "")):
        constraint = "NOT NULL UNIQUE" if kind == "INTEGER" else "PRIMARY KEY NOT NULL"
        sqlite.execute(f"CREATE TABLE items (id {kind} {constraint}, {columns}){more}")
        sqlite.execute("INSERT OR IGNORE INTO items (id) VALUES (?)", rows=[(key,) for key in keys])
        options = TableOptions(TableName(None, "items"), ("id",), (), False, 3, MaxBad(), True)
        with closing(open_database(sqlite.url)) as database:
            run = TableRun(database, plan_run(database, options, model), options, model)
            assert run.execute(StopSignal()) == 0
        query = "SELECT typeof(id), id FROM items{} ORDER BY id"
        assert sqlite.execute(query.format("")) == sqlite.execute(query.format("_prediction"))
        assert len(sqlite.predictions()) >= len(keys) - 1
        sqlite.drop_results()
        sqlite.execute("DROP TABLE items")


def test_keys_of_sqlite_are_unique_in_their_collation(sqlite, batch):
    sqlite.execute(ITEMS.replace("integer PRIMARY KEY", "TEXT COLLATE NOCASE PRIMARY KEY NOT NULL"))
    sqlite.execute("INSERT INTO items VALUES ('a', 5, 3, 1, 0.2), ('B', 5, 3, 1, 0.2), ('c', 5, 3, 1, 0.2)")
    assert batch("--chunk", "1", url=sqlite.url)[0] == 0 and [row[0] for row in sqlite.predictions()] == ["a", "B", "c"]
    with pytest.raises(Exception, match="UNIQUE"):
        sqlite.execute(
            "INSERT INTO items_prediction SELECT 'A', label, 0, 0, 0, model_digest, run, predicted, '' FROM items_prediction"
        )
    sqlite.drop_results()
    sqlite.execute("DROP TABLE items")
    sqlite.execute(ITEMS.replace("integer PRIMARY KEY", "TEXT COLLATE NOCASE NOT NULL"))
    sqlite.execute("CREATE UNIQUE INDEX one ON items (id COLLATE BINARY)")
    status, output = batch("--key", "id", url=sqlite.url)
    assert status == 2 and output == "the index of id has another collation than the columns"


def test_text_that_is_not_utf_8_is_a_bad_row_and_as_a_key_one_line(sqlite, batch):
    sqlite.execute(ITEMS.replace("integer PRIMARY KEY", "TEXT PRIMARY KEY NOT NULL"))
    sqlite.execute("INSERT INTO items VALUES ('a', 5, CAST(x'ff' AS TEXT), 1, 0.2), ('b', 5, 3, 1, x'00'), ('c', 5, 3, 1, 0.2)")
    assert batch(url=sqlite.url)[0] == 0
    result = [row[-1] for row in sqlite.predictions()]
    assert result == ["sepal_width is not a number", "petal_width is not a number", None]
    sqlite.execute("INSERT INTO items VALUES (CAST(x'ff' AS TEXT), 5, 3, 1, 0.2)")
    status, line = batch(url=sqlite.url)
    assert status == 5 and "has a key that is text and not UTF-8" in line and len(sqlite.predictions()) == 3


def test_a_file_is_found_by_a_relative_path_with_url_characters_in_it_and_keeps_its_journal(tmp_path, monkeypatch, batch, sqlite):
    monkeypatch.chdir(tmp_path)
    for mode in ("wal", "delete"):
        name = f"it's {mode} 50%41?mode=ro#.db"
        (tmp_path / name).touch()
        scoring_database = ScoringDatabase(f"sqlite:///{name}")
        scoring_database.execute(f"PRAGMA journal_mode = {mode}")
        scoring_database.fill(10)
        assert batch(url=scoring_database.url)[0] == 0 and len(scoring_database.predictions()) == 10
        assert scoring_database.execute("PRAGMA journal_mode") == [(mode,)]


def test_computed_columns_can_be_features(scoring_database, batch, model):
    computed = "petal_width double precision GENERATED ALWAYS AS (sepal_length / 4) STORED"
    scoring_database.execute(ITEMS.replace("petal_width double precision", computed))
    scoring_database.execute("INSERT INTO items (id, sepal_length, sepal_width, petal_length) VALUES (1, 6, 3, 4.5)")
    assert batch()[0] == 0
    assert scoring_database.predictions()[0][2:5] == tuple(model.predict(np.array([[6, 3, 4.5, 1.5]], np.float32))[0].tolist())


def test_a_url_that_becomes_invalid_is_reported_without_its_secret():
    with pytest.raises(BadSetting, match="not valid for PostgreSQL") as error:
        open_database("postgresql://user:secret@h/db?nope=1")
    assert "secret" not in str(error.value)
    with pytest.raises(Stopped, match="failed: "):
        open_database("postgresql://user:secret@/db?host=/nowhere")
