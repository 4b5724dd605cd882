"""PostgreSQL behind PgBouncer: a pool lends one connection to many applications, and our use leaves no state on it."""

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from http_clients import fetch, http_request, wait_until
from optional_programs import require_program
from pgbouncer_server import PgBouncer, pgbouncer_program
from postgres_server import PostgresServer
from project import MODEL
from scored_tables import ScoringDatabase

from iris_wsgi.cli.main import main
from iris_wsgi.patterns.data_cache.item_store import Item
from iris_wsgi.patterns.data_cache.postgres_store import PostgresItemStore

ROW = b"aaaa" * 4
# The state that the next application on the connection can see.
STATE = {
    "settings": "SELECT name, setting FROM pg_settings WHERE name <> 'application_name'",
    "origins": "SELECT name FROM pg_settings WHERE source = 'session' AND name <> 'application_name'",
    "prepared statements": "SELECT name FROM pg_prepared_statements",
    "cursors": "SELECT name FROM pg_cursors",
    "advisory locks": "SELECT objid FROM pg_locks WHERE locktype = 'advisory'",
    "temporary tables": "SELECT relname FROM pg_class WHERE relpersistence = 't'",
    "channels": "SELECT pg_listening_channels()",
    "role": "SELECT session_user::text, current_user::text",
    "connection": "SELECT pg_backend_pid()",
}


@pytest.fixture(params=["transaction", "session"])
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def pool(postgres_server: PostgresServer, mode: str) -> Iterator[PgBouncer]:
    require_program(pgbouncer_program())
    bouncer = PgBouncer(postgres_server, mode)
    yield bouncer
    bouncer.remove()


@pytest.fixture
def assert_state_unchanged(pool: PgBouncer) -> Callable[[str], None]:
    """Asserts that the state of the connection is the same before and after our use."""

    def state(name: str) -> dict[str, object]:
        return {part: sorted(pool.execute(sql, name)) for part, sql in STATE.items()}

    before: dict[str, dict[str, object]] = {}

    def compare(name: str, may_reconnect: bool = False) -> None:
        now = state(name)
        first = before.setdefault(name, now)
        if may_reconnect:
            now["connection"] = first["connection"]
        assert {part: found for part, found in now.items() if found != first[part]} == {}

    return compare


def test_a_run_over_a_table_leaves_no_state_on_the_connection_of_the_pool(pool, postgres_server, assert_state_unchanged):
    url = postgres_server.create_database(f"batch_{pool.process.pid}")
    name = url.partition("@/")[2].partition("?")[0]
    with closing(ScoringDatabase(url)) as database:
        database.fill(300)
        assert_state_unchanged(name)
        for expected, arguments in (0, ()), (0, ("--redo-older",)), (2, ("--key", "sepal_length")):
            command = ["batch", "--table", "items", "--database", pool.url_of(name), "--model-dir", str(MODEL), "--chunk", "50"]
            assert main([*command, "--quiet", *arguments]) == expected
            assert_state_unchanged(name)
        assert len(database.predictions()) == 300 and database.inconsistencies() == []


def test_items_leave_no_state_on_the_connection_of_the_pool(pool, postgres_server, assert_state_unchanged):
    url = postgres_server.create_database(f"pooled_{pool.process.pid}")
    name = url.partition("@/")[2].partition("?")[0]
    postgres_server.execute(f"ALTER DATABASE {name} SET synchronous_commit TO off")
    assert_state_unchanged(name)
    with closing(PostgresItemStore(pool.url_of(name), {"a": ROW}, 10)) as store:
        # Enough executions that psycopg would prepare the statement by default.
        for i in range(12):
            assert store.put("b", ROW) == i + 1 and store.get("a") == Item(1, ROW)
        assert store.changes(None, 3600).versions == {"b": 12} and list(store.ids("", 9)) == ["a", "b"]
    assert_state_unchanged(name)


def test_a_put_is_on_the_disk_before_it_returns_on_any_connection_of_the_pool(postgres_server):
    url = postgres_server.create_database("durable")
    postgres_server.execute("ALTER DATABASE durable SET synchronous_commit TO off")
    with closing(PostgresItemStore(url, {}, 10)) as store:
        store.put("a", ROW)
        # Another client of a transaction pool may have set this.
        store.pool.free[0].execute("SET synchronous_commit TO off")
        store.pool.free[0].execute(
            "CREATE FUNCTION seen() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "INSERT INTO durability VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$"
        )
        store.pool.free[0].execute("CREATE TABLE durability (level text)")
        store.pool.free[0].execute(
            "CREATE CONSTRAINT TRIGGER seen AFTER INSERT OR UPDATE ON iris_items DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION seen()"
        )
        assert store.put("a", ROW) == 2 and store.put("b", ROW) == 1
        assert store.pool.free[0].execute("SELECT level FROM durability").fetchall() == [("on",), ("on",)]
        assert store.pool.free[0].execute("SHOW synchronous_commit").fetchall() == [("off",)]
        store.pool.free[0].execute("SET synchronous_commit TO remote_apply")
        store.put("b", ROW)
        assert store.pool.free[0].execute("SELECT level FROM durability").fetchall()[-1] == ("remote_apply",)


@pytest.mark.parametrize("mode", ["transaction"], indirect=True)
@pytest.mark.long
def test_a_server_and_a_run_share_the_one_connection_of_a_pool_with_others(pool, postgres_server, run, assert_state_unchanged):
    url = postgres_server.create_database("crowded")
    with closing(ScoringDatabase(url)) as database:
        database.fill(500)
    assert_state_unchanged("crowded")
    server = run("--role", "data_cache", "--workers", "2", IRIS_DATABASE_URL=pool.url_of("crowded"))
    row = {"data": [[5.1, 3.5, 1.4, 0.2]]}
    wait_until(lambda: fetch(server, http_request("PUT", "/items/a", row)).status in (200, 201), "the database responds")
    command = ["batch", "--table", "items", "--database", pool.url_of("crowded"), "--model-dir", str(MODEL), "--chunk", "20"]
    assert main([*command, "--quiet"]) == 0
    # The server gives up a query after 0.2 s, which a busy machine exceeds. The pool then replaces its connection.
    assert_state_unchanged("crowded", may_reconnect=True)
    wait_until(lambda: fetch(server, http_request("PUT", "/items/a", row)).status == 200, "the item can be written again")
    server.stop()
    assert_state_unchanged("crowded", may_reconnect=True)
