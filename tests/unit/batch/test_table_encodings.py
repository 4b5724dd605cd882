"""The batch command on tables of PostgreSQL databases of several encodings."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from packed_models import classes, write, write_model
from postgres_server import PostgresServer

from iris_wsgi.cli.main import main
from iris_wsgi.patterns.batch.postgres import NO_CHARACTER, NOT_UTF8, UTF8

pytestmark = pytest.mark.usefixtures("restored_signals")

LABELS = ("größer", "è")
# Two rows of each table are good, and one of NULLs is bad.
ROWS = """VALUES ('ä', '5.5', 3.25, 1.5, 0.25), ('é\\', '-2', 4.5, -1, 0.1), ('', '', 0, 0, 0)"""
FEATURES = "x0 text, x1 float8, x2 float8, x3 float8"
Create = Callable[..., str]


@pytest.fixture
def create(postgres_server: PostgresServer) -> Iterator[Create]:
    """Function that executes statements in a new database of an encoding, and returns its URL. The bytes are not converted."""
    names: list[str] = []

    def create_database(encoding: str, *statements: bytes) -> str:
        names.append(f"encoded_{encoding}")
        url = postgres_server.create_database(names[-1], encoding)
        with psycopg.connect(url, client_encoding="SQL_ASCII", autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)
        return url

    yield create_database
    for name in names:
        postgres_server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def score(url: str, folder: Path, table: str = "items") -> int:
    return main(["batch", "--table", table, "--database", url, "--model-dir", str(folder)])


def rows_of(url: str, query: str) -> list[tuple]:
    with closing(psycopg.connect(url, client_encoding="UTF8")) as connection:
        return connection.execute(query.encode()).fetchall()


@pytest.mark.parametrize(
    ("encoding", "codec"), [("UTF8", "utf-8"), ("SQL_ASCII", "utf-8"), ("LATIN1", "latin-1"), ("WIN1252", "cp1252")]
)
def test_names_texts_and_labels_of_any_encoding_are_the_same(create, tmp_path, capsys, encoding, codec):
    model = classes(LABELS, LABELS)
    folder = write(tmp_path / "model", model)
    table = f'CREATE TABLE "Maße" ("Schlüssel" text PRIMARY KEY, {FEATURES})'
    url = create(encoding, *(text.encode(codec) for text in (table, f'INSERT INTO "Maße" {ROWS}')))
    assert score(url, folder, '"Maße"') == 0
    found = rows_of(
        url,
        'SELECT "Schlüssel", label, "probability_größer" + "probability_è" > 0.99, error FROM "Maße_prediction" ORDER BY 3, 1',
    )
    assert [row[0] for row in found] == ["ä", "é\\", ""] and {row[1] for row in found[:2]} <= set(LABELS)
    assert [row[2:] for row in found] == [(True, None)] * 2 + [(None, "x0 is empty")]
    ((labels, ok, bad),) = rows_of(url, 'SELECT labels, ok, bad FROM "Maße_run"')
    assert set(labels) == set(LABELS) and (sum(labels.values()), ok, bad) == (2, 2, 1)
    assert "wrote public.Maße_prediction, 2 rows" in capsys.readouterr().err


# The table exists and the labels of the model have no equivalent; or the name of the table has none.
@pytest.mark.parametrize("table", ["items", "品"])
def test_characters_that_the_encoding_lacks_are_refused_at_the_start_with_one_line(create, tmp_path, capsys, table):
    labels = ("日本", "è")
    url = create("LATIN1", f"CREATE TABLE items (id text PRIMARY KEY, {FEATURES})".encode())
    assert score(url, write(tmp_path / "model", classes(labels, labels)), table) == 2
    error = capsys.readouterr().err
    assert 'has no equivalent in encoding "LATIN1"' in error and error.endswith(f"; {NO_CHARACTER}\n") and error.count("\n") == 1
    assert rows_of(url, "SELECT to_regclass('items_prediction')") == [(None,)]


def test_a_feature_that_is_not_utf_8_is_a_bad_row_of_a_database_without_an_encoding(create, tmp_path):
    folder = write_model(tmp_path / "model", "columns of several types")
    rows = b"VALUES (1, 31.5, 'Tokyo', 3, true), (2, 31.5, 'T\xf4kyo', 3, true), (3, 31.5, '\xc3\xa9', 3, true)"
    columns = b"id int PRIMARY KEY, age real, city text, visits bigint, member boolean"
    url = create("SQL_ASCII", b"CREATE TABLE items (" + columns + b")", b"INSERT INTO items " + rows)
    assert score(url, folder) == 0
    errors = dict(rows_of(url, "SELECT id, error FROM items_prediction"))
    assert errors[1] is None and errors[2] == "city is not UTF-8" and len(errors) == 3


def test_a_key_that_is_not_utf_8_ends_the_run_with_one_line(create, tmp_path, capsys):
    folder = write(tmp_path / "model", classes((0, 1), ("no", "yes")))
    statements = f"CREATE TABLE items (id text PRIMARY KEY, {FEATURES})", "INSERT INTO items VALUES ('\xe4', '1', 1, 1, 1)"
    assert score(create("SQL_ASCII", *(text.encode("latin-1") for text in statements)), folder) == 5
    error = capsys.readouterr().err
    assert NOT_UTF8 in error and error.count("\n") == 1


def test_an_encoding_without_a_conversion_to_utf_8_is_refused_at_the_start_with_one_line(create, tmp_path, capsys):
    assert score(create("MULE_INTERNAL"), write(tmp_path / "model", classes((0, 1), ("no", "yes")))) == 2
    error = capsys.readouterr().err
    assert error.endswith(f"; {UTF8}\n") and error.count("\n") == 1
