"""Stores with a permanent error, such as a missing permission: readiness and responses state the remedy."""

from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest
import redis
from http_clients import fetch, http_request, wait_until

from iris_wsgi.cli.main import main
from iris_wsgi.errors import BackendUnavailable, OperationDenied
from iris_wsgi.patterns.asynchronous.redis_store import RedisJobStore
from iris_wsgi.patterns.asynchronous.sqlite_store import SqliteJobStore
from iris_wsgi.patterns.data_cache import postgres_store
from iris_wsgi.patterns.data_cache.postgres_store import PostgresItemStore
from iris_wsgi.storage.redis import GRANT, PRIMARY, SIGN_IN

ROW = b"aaaa" * 4
BODY = {"data": [[5.1, 3.5, 1.4, 0.2]]}
TIMEOUT_SECONDS = 60.0


@pytest.fixture
def database(postgres_server) -> Iterator[Callable[[str], str]]:
    """Function that returns the URL of an item database for a role."""
    url = postgres_server.create_database("refused")
    with closing(PostgresItemStore(url, {"a": ROW}, 10)) as store:
        store.get("a")
        store.pool.free[0].execute("CREATE ROLE limited LOGIN")
        store.pool.free[0].execute("REVOKE CONNECT ON DATABASE refused FROM public")
        store.pool.free[0].execute("GRANT CONNECT ON DATABASE refused TO limited")
    yield lambda role: url.replace("postgres@", f"{role}@")
    postgres_server.execute("DROP DATABASE refused WITH (FORCE)")
    postgres_server.execute("DROP ROLE limited")


def change(url: str, *statements: str) -> None:
    with closing(PostgresItemStore(url, {}, 10)) as store:
        store.get("a")
        for statement in statements:
            store.pool.free[0].execute(statement)


def refusal(store, use: Callable) -> BackendUnavailable:
    with closing(store), pytest.raises(BackendUnavailable) as caught:
        use(store)
    return caught.value


def get(store):
    return store.get("a")


def put(store):
    return store.put("a", ROW)


READ_ONLY = "ALTER ROLE limited SET default_transaction_read_only TO on"
GRANTED = "GRANT SELECT ON iris_items, iris_items_store TO limited"


@pytest.mark.parametrize(
    ("role", "statements", "use", "remedy"),
    [
        ("nobody", [], get, postgres_store.SIGN_IN),
        ("limited", ["REVOKE CONNECT ON DATABASE refused FROM limited"], get, postgres_store.SIGN_IN),
        ("limited", ["ALTER ROLE limited NOLOGIN"], get, postgres_store.SIGN_IN),
        ("limited", [], get, postgres_store.GRANT),
        ("limited", [GRANTED], put, postgres_store.GRANT),
        ("limited", ["ALTER TABLE iris_items RENAME COLUMN features TO others", GRANTED], get, postgres_store.RESTART),
        ("limited", [GRANTED, "DROP TABLE iris_items"], get, postgres_store.RESTART),
        ("limited", ["GRANT ALL ON iris_items TO limited", READ_ONLY], put, postgres_store.PRIMARY),
        ("limited", ["DROP TABLE iris_items, iris_items_store"], get, postgres_store.GRANT),
    ],
)  # fmt: skip
def test_each_permanent_error_of_postgresql_has_its_remedy(database, role, statements, use, remedy):
    change(database("postgres"), *statements)
    refused = refusal(PostgresItemStore(database(role), {}, 10), use)
    assert refused.remedy == remedy, refused


def test_a_missing_database_is_a_permanent_error_and_an_unavailable_one_is_not(postgres_server):
    url = postgres_server.url.replace("/postgres?", "/missing?")
    assert refusal(PostgresItemStore(url, {}, 10), get).remedy == postgres_store.CREATE
    assert refusal(PostgresItemStore("postgresql://user:secret@127.0.0.1:1/d", {}, 0.2), get).remedy == ""


def test_a_server_of_an_encoding_without_utf_8_is_not_ready_and_one_line_names_the_remedy(postgres_server, run):
    server = run("--role", "data_cache", IRIS_DATABASE_URL=postgres_server.create_database("mule", "MULE_INTERNAL"))

    def detail():
        return fetch(server, http_request("GET", "/readyz")).json().get("detail", "")

    wait_until(lambda: postgres_store.ENCODING in detail(), "readiness names the remedy")
    assert fetch(server, http_request("GET", "/items/a")).status == 503
    _, log = server.stop()
    assert log.count(postgres_store.ENCODING) == 1


def test_readiness_and_responses_name_the_missing_grant_and_work_after_it(run, database):
    server = run("--role", "data_cache", IRIS_DATABASE_URL=database("limited"))

    def ready():
        return fetch(server, http_request("GET", "/readyz"))

    wait_until(lambda: ready().status == 503, "the server is not ready")
    item, written = (
        fetch(server, request_bytes) for request_bytes in (http_request("GET", "/items/a"), http_request("PUT", "/items/a", BODY))
    )
    for response in (ready(), item, written):
        assert response.status == 503 and "retry-after" not in response.headers
        assert postgres_store.GRANT in response.json()["detail"] and "again soon" not in response.json()["detail"]
        assert not any(word in response.body.decode() for word in ("limited", "permission denied", "refused?"))
    change(database("postgres"), GRANTED)
    wait_until(lambda: ready().status == 200, "the server is ready")
    assert fetch(server, http_request("GET", "/items/a")).status == 200
    # A server without write permission serves reads, and names the missing permission.
    assert postgres_store.GRANT in fetch(server, http_request("PUT", "/items/a", BODY)).json()["detail"]
    assert ready().json() == {"ready": True, "warnings": [postgres_store.GRANT]}
    assert fetch(server, http_request("GET", "/items/a", None, "Cache-Control: no-cache")).status == 200
    change(database("postgres"), "GRANT INSERT, UPDATE ON iris_items TO limited")
    assert fetch(server, http_request("PUT", "/items/a", BODY)).status == 200 and ready().json() == {"ready": True}
    server.process.terminate()
    log = server.process.communicate(timeout=TIMEOUT_SECONDS)[1]
    # The log has one message for each operation, independent of the number of attempts.
    assert log.count(postgres_store.GRANT) <= 4 and "permission denied for table" in log


def test_a_run_over_a_table_without_permission_names_the_missing_grant(database, postgres_server, capsys):
    change(database("postgres"), "CREATE TABLE t (id int PRIMARY KEY)", "ALTER TABLE iris_items DROP COLUMN features")
    columns = "ADD sepal_length float8, ADD sepal_width float8, ADD petal_length float8, ADD petal_width float8"
    postgres_server.create_database("scored")
    with closing(PostgresItemStore(postgres_server.url.replace("/postgres?", "/scored?"), {}, 10)) as store:
        store.get("a")
        for text in ("CREATE TABLE t (id int PRIMARY KEY)", f"ALTER TABLE t {columns}", "GRANT SELECT, UPDATE ON t TO limited"):
            store.pool.free[0].execute(text)
    url = postgres_server.url.replace("/postgres?", "/scored?").replace("postgres@", "limited@")
    assert main(["batch", "--table", "t", "--database", url]) == 2
    assert "grant the role SELECT and UPDATE on the table, CREATE in its schema" in capsys.readouterr().err
    postgres_server.execute("ALTER ROLE limited SET default_transaction_read_only TO on")
    assert main(["batch", "--table", "t", "--database", url]) == 2
    assert "must lead to the primary" in capsys.readouterr().err
    postgres_server.execute("DROP DATABASE scored WITH (FORCE)")


def test_a_read_only_state_is_a_permanent_error_and_its_jobs_can_be_read(tmp_path):
    with closing(SqliteJobStore(tmp_path / "jobs.db")) as store:
        job = store.submit(ROW)
        store.database.writer.execute("PRAGMA query_only = on")
        with pytest.raises(OperationDenied) as denied:
            store.submit(ROW)
        assert "read-only" in denied.value.remedy and store.get(job.id) == job


def test_the_permanent_errors_of_redis_have_their_remedies(own_redis):
    users = {"limited": "+@all -xadd -eval", "none": "-@all"}
    for name, rules in users.items():
        own_redis.execute("ACL", "SETUSER", name, "on", ">right", "~*", *rules.split())

    def jobs(user: str, password: str) -> RedisJobStore:
        return RedisJobStore(own_redis.url.replace("unix://", f"unix://{user}:{password}@"), timeout_seconds=TIMEOUT_SECONDS)

    assert refusal(jobs("limited", "wrong"), lambda store: store.counts()).remedy == SIGN_IN
    assert refusal(jobs("none", "right"), lambda store: store.counts()).remedy == GRANT
    denied = refusal(jobs("limited", "right"), lambda store: store.submit(ROW))
    assert denied.remedy == GRANT and isinstance(denied, OperationDenied)
    with closing(jobs("limited", "right")) as store:
        assert store.counts().by_state["running"] == 0
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("requirepass", "secret")
    refused = refusal(RedisJobStore(own_redis.url, timeout_seconds=TIMEOUT_SECONDS), lambda store: store.counts())
    assert refused.remedy == SIGN_IN and "secret" not in str(refused)


def test_a_job_server_with_a_replica_names_the_primary_as_its_remedy(run, own_redis):
    server = run("--role", "asynchronous", IRIS_REDIS_URL=own_redis.url)
    wait_until(lambda: fetch(server, http_request("POST", "/jobs", BODY)).status == 202, "jobs are accepted")
    own_redis.execute("REPLICAOF", "127.0.0.1", "1")
    response = fetch(server, http_request("POST", "/jobs", BODY))
    assert response.status == 503 and PRIMARY in response.json()["detail"]
    assert PRIMARY in fetch(server, http_request("GET", "/readyz")).json()["warnings"]
    own_redis.execute("REPLICAOF", "NO", "ONE")
    wait_until(lambda: fetch(server, http_request("POST", "/jobs", BODY)).status == 202, "jobs are accepted again")
    with suppress(KeyError):
        assert PRIMARY not in fetch(server, http_request("GET", "/readyz")).json()["warnings"]
