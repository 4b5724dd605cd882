"""The data cache: in any order of events, no response is outdated unless it is marked as stale."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from applications import call_wsgi
from hypothesis import given, settings
from hypothesis import strategies as st
from predictors import predictor
from project import MODEL
from property_tests import examples

from iris_wsgi.codec.rows import Encoder
from iris_wsgi.errors import BackendUnavailable, DeadlineExceeded
from iris_wsgi.http.cache_headers import CacheDirectives
from iris_wsgi.model.session import load_model
from iris_wsgi.observability.metrics import Registry
from iris_wsgi.observability.shared_memory import MARKS
from iris_wsgi.patterns.data_cache import cache as cache_module
from iris_wsgi.patterns.data_cache import read_through as reader_module
from iris_wsgi.patterns.data_cache.cache import Entry, ItemCache, ItemMetrics, unpack
from iris_wsgi.patterns.data_cache.item_store import Item
from iris_wsgi.patterns.data_cache.read_through import CacheTimes, InvalidationStamps, ReadThrough
from iris_wsgi.patterns.data_cache.role import ItemResponses
from iris_wsgi.patterns.data_cache.sqlite_store import SqliteItemStore
from iris_wsgi.resilience import circuit_breaker
from iris_wsgi.resilience.circuit_breaker import CircuitBreaker
from iris_wsgi.resilience.single_flight import PendingResult
from iris_wsgi.storage.lru import LRUCache

IDS = ("a", "b")
TIMES = CacheTimes(item=60.0, missing=5.0, stale=3600.0, check=1.0)
FOREVER = float("inf")
ROW, OTHER = (np.array(row, "<f4").tobytes() for row in ([5.1, 3.5, 1.4, 0.2], [7.2, 3.6, 6.1, 2.5]))


class UnreliableStore:
    """Store that can be unavailable, and counts the reads of items."""

    def __init__(self, store, down=BackendUnavailable) -> None:
        self.store, self.down, self.is_down, self.gets = store, down, False, 0

    def __getattr__(self, name):
        real = getattr(self.store, name)

        def ask(*given):
            self.gets += name == "get"
            if self.is_down:
                raise BackendUnavailable("it is down")
            return real(*given)

        return ask


class DictionaryTier:
    """Second level with the interface of Redis."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        self.is_down = False

    def get(self, _, item_id):
        item = None if self.is_down else self.items.get(item_id)
        return item if item and item.row else None

    def put(self, _, items):
        for item_id, (version, row) in {} if self.is_down else items.items():
            item = Item(version, row)
            old = self.items.get(item_id)
            if old is None or old.version < item.version or (old.version == item.version and item.row):
                self.items[item_id] = item
        return not self.is_down


class Server:
    """Process of a server, with its own memory and possibly shared invalidation stamps."""

    def __init__(self, store, stamps, shared=None, size=100_000, model="one", times=TIMES) -> None:
        self.store, self.stamps, self.shared, self.size, self.times = store, stamps, shared, size, times
        self.runs = 0
        self.begin(model)

    def begin(self, model: str) -> None:
        """Starts again, with this model."""
        self.model = model
        self.metrics = ItemMetrics(Registry())
        breaker = CircuitBreaker(lambda *_: None, "down", "back")
        self.reader = ReadThrough(self.store, breaker, self.shared, self.times, self.stamps)
        self.cache = ItemCache(self.reader, item_body, self.say, LRUCache(self.size), self.times, self.stamps, self.metrics)

    def say(self, item_id, version, row, _):
        self.runs += 1
        return prediction_body(self.model, item_id, version, row)

    def look(self, kind: str, item_id: str, use: bool = True):
        return getattr(self.cache, kind)(item_id, FOREVER, CacheDirectives(read=use))


def item_body(item_id, version, row, _=0.0) -> bytes:
    return f"{item_id} {version} {row.hex()}".encode()


def prediction_body(model, item_id, version, row) -> bytes:
    return f"{model}: {item_body(item_id, version, row).decode()}".encode()


def stamps() -> InvalidationStamps:
    return InvalidationStamps(memoryview(bytearray(MARKS * 8)).cast("Q"))


@pytest.fixture
def items(tmp_path):
    with closing(SqliteItemStore(tmp_path / "items.db", {}, 10)) as store:
        yield UnreliableStore(store)


@pytest.fixture
def clock(monkeypatch):
    """Clock that stands still until a test advances it."""
    now = [1000.0]
    for module in (cache_module, reader_module):
        monkeypatch.setattr(module, "monotonic", lambda: now[0])
    monkeypatch.setattr(circuit_breaker.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def server(items, clock):
    return Server(items, stamps())


# The first ids are chosen more often, so that more happens to them.
SERVERS, NAMES = st.sampled_from([0, 0, 1, 2, 2]), st.sampled_from([*IDS, *IDS[:1] * 3])
LOOK = st.tuples(st.sampled_from(["item", "prediction"]), SERVERS, NAMES, st.sampled_from([True] * 5 + [False]))
PUT = st.tuples(st.just("put"), SERVERS, NAMES, st.sampled_from([ROW, OTHER]))
CHECK = st.tuples(st.just("check"), SERVERS)
LATER = st.tuples(st.just("later"), st.sampled_from([0.2, 0.6, 0.9, 1.1, 70.0]))
OTHERS = st.one_of(
    st.tuples(st.just("model"), SERVERS, st.sampled_from(["one", "two"])),
    st.tuples(st.just("evict"), SERVERS),
    st.tuples(st.just("database"), st.sampled_from([True, False, False])),
    st.tuples(st.just("redis"), st.booleans()),
)
STEP = st.one_of(LOOK, LOOK, LOOK, LOOK, PUT, PUT, CHECK, LATER, OTHERS)


@pytest.fixture(scope="module")
def new_database(tmp_path_factory):
    """Function that returns an empty database each time."""
    folder, count = tmp_path_factory.mktemp("property"), iter(range(10**6))
    return lambda: SqliteItemStore(folder / f"{next(count)}.db", {"a": ROW}, 10)


@pytest.mark.long
@pytest.mark.parametrize("with_redis", [False, True], ids=["memory", "memory and redis"])
def test_cached_responses_equal_those_without_a_cache_in_any_order_of_events(with_redis, new_database):
    """Two processes of one server, and another server, with one database."""

    @settings(max_examples=examples(100), deadline=None)
    @given(steps=st.lists(STEP, min_size=20, max_size=100))
    def hold(steps):
        with pytest.MonkeyPatch.context() as patch:
            now = [1000.0]
            for module in (cache_module, reader_module, circuit_breaker.time):
                patch.setattr(module, "monotonic", lambda: now[0])
            with closing(new_database()) as real:
                follow(steps, real, now)

    def follow(steps, real, now):
        store, redis = UnreliableStore(real), DictionaryTier() if with_redis else None
        own_stamps, size = stamps(), 1100
        servers = [
            Server(store, own_stamps, redis, size),
            Server(store, own_stamps, redis, size),
            Server(store, stamps(), redis, size),
        ]
        # Versions of each item, with the time of each change.
        history = {item_id: [(0.0, 0, b"", None)] for item_id in IDS}
        history["a"].append((0.0, 1, ROW, None))
        for step in steps:
            match step:
                case ("item" | "prediction" as kind, number, item_id, use):
                    server = servers[number]
                    try:
                        found = server.look(kind, item_id, use)
                    except BackendUnavailable:
                        assert store.is_down or not server.reader.breaker.up
                        continue
                    entry = found.entry
                    expected_body = (
                        item_body if kind == "item" else lambda *arguments, model=server.model: prediction_body(model, *arguments)
                    )
                    if entry.version:
                        assert entry.body == expected_body(item_id, entry.version, entry.row)
                    _, version, row, _ = history[item_id][-1]
                    if (entry.version, entry.row) == (version, row):
                        continue
                    since = next(time_of_change for time_of_change, newer, _, _ in history[item_id] if newer > entry.version)
                    writers = {writer for _, newer, _, writer in history[item_id] if newer > entry.version}
                    if found.source == "stale":
                        # A server never returns a version that is older than its own write.
                        assert not writers & ({0, 1} if number < 2 else {2})
                        continue
                    assert use and now[0] - since <= TIMES.check, (found, history[item_id])
                    assert not writers & ({0, 1} if number < 2 else {2})
                case ("put", number, item_id, row):
                    try:
                        version, body = servers[number].cache.put(item_id, row)
                    except BackendUnavailable:
                        continue
                    assert version == history[item_id][-1][1] + 1 and body == item_body(item_id, version, row)
                    history[item_id].append((now[0], version, row, number))
                case ("check", number):
                    try:
                        servers[number].cache.check()
                    except BackendUnavailable:
                        assert store.is_down or not servers[number].reader.breaker.up
                case ("later", seconds):
                    now[0] += seconds
                case ("model", number, model):
                    servers[number].begin(model)
                case ("evict", number):
                    entries = servers[number].cache.entries
                    for key in list(entries.entries)[:1]:
                        entries.discard(key)
                case ("database", is_down):
                    store.is_down = is_down
                case ("redis", is_down) if redis is not None:
                    redis.is_down = is_down

    hold()


def test_two_hundred_requests_for_a_cold_item_cause_one_read_and_one_run(server, items):
    server.cache.put("a", ROW)
    reading, go_on, get = threading.Event(), threading.Event(), items.store.get

    def slow(item_id):
        reading.set()
        assert go_on.wait(60)
        return get(item_id)

    items.store.get = slow
    with ThreadPoolExecutor(200) as pool:
        lookups = [pool.submit(server.look, "prediction", "a") for _ in range(200)]
        assert reading.wait(60)
        go_on.set()
        found = [future.result(60) for future in lookups]
    assert {item.entry.body for item in found} == {prediction_body("one", "a", 1, ROW)}
    assert (items.gets, server.runs) == (1, 1)
    assert server.look("item", "a").source == "hit" and items.gets == 1


def test_a_request_after_a_put_does_not_get_the_result_of_an_earlier_read(server, items):
    server.cache.put("a", ROW)
    reading, go_on, get = threading.Event(), threading.Event(), items.store.get

    def slow(item_id):
        found = get(item_id)
        if not reading.is_set():
            reading.set()
            assert go_on.wait(60)
        return found

    items.store.get = slow
    with ThreadPoolExecutor(1) as pool:
        before = pool.submit(server.look, "item", "a")
        assert reading.wait(60)
        server.cache.put("a", OTHER)
        assert server.look("item", "a").entry.version == 2
        go_on.set()
        assert before.result(60).entry.version == 1
    assert server.look("item", "a").entry.version == 2


def test_a_read_that_overlaps_a_change_is_not_stored(server, items):
    other = Server(items, stamps())
    server.cache.put("a", ROW)
    server.cache.check()
    get = items.store.get

    def overtaken(item_id):
        found = get(item_id)
        items.store.get = get
        other.cache.put("a", OTHER)
        server.cache.check()
        return found

    items.store.get = overtaken
    found = server.look("item", "a")
    assert (found.entry.version, found.stored) == (1, False)
    assert server.look("item", "a").entry.version == 2


def test_an_item_counts_until_its_expiry_and_then_only_while_the_database_is_unavailable(server, items, clock):
    server.cache.put("a", ROW)
    assert [server.look("item", "a").source for _ in range(2)] == ["database", "hit"]
    for _ in range(200):
        clock[0] += 0.5
        server.cache.check()
    assert server.look("item", "a").source == "database"
    items.is_down = True
    clock[0] += 0.9
    assert server.look("item", "a").source == "hit"
    clock[0] += 0.2
    assert [server.look(kind, "a").source for kind in ("item", "prediction")] == ["stale", "stale"]
    clock[0] += TIMES.item + TIMES.stale
    with pytest.raises(BackendUnavailable):
        server.look("item", "a")


def test_a_negative_entry_has_a_shorter_time_to_live_and_is_never_stale(server, items, clock):
    assert [server.look("item", "a").source for _ in range(2)] == ["database", "negative"]
    assert server.look("prediction", "a").source == "negative" and server.runs == 0
    for _ in range(10):
        clock[0] += 0.5
        server.cache.check()
    assert server.look("item", "a").source == "database"
    items.is_down = True
    clock[0] += 2
    with pytest.raises(BackendUnavailable):
        server.look("item", "a")


def test_a_put_with_an_unknown_outcome_removes_nothing_from_the_cache(server, items, clock):
    server.cache.put("a", ROW)
    server.look("item", "a")
    items.is_down = True
    with pytest.raises(BackendUnavailable):
        server.cache.put("a", OTHER)
    assert server.look("item", "a").source == "stale"
    items.is_down = False
    clock[0] += circuit_breaker.PAUSE_SECONDS
    assert server.look("item", "a").source == "database"


def test_a_failure_is_returned_to_all_waiting_requests_and_stored_for_none(server, items):
    server.cache.put("a", ROW)
    items.is_down = True
    for _ in range(2):
        with pytest.raises(BackendUnavailable):
            server.look("prediction", "a")
    items.is_down = False
    assert server.look("prediction", "a").source == "run" and not server.cache.flights


def test_a_waiting_request_with_a_later_deadline_tries_again(server, monkeypatch):
    server.cache.put("a", ROW)
    running, waiting, go_on, wait = threading.Event(), threading.Event(), threading.Event(), PendingResult.wait

    def late(*_):
        server.cache.predict = server.say
        running.set()
        assert go_on.wait(60)
        raise DeadlineExceeded("too late")

    def seen(flight, until):
        waiting.set()
        return wait(flight, until)

    server.cache.predict = late
    monkeypatch.setattr(PendingResult, "wait", seen)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(server.look, "prediction", "a")
        assert running.wait(60)
        second = pool.submit(server.look, "prediction", "a")
        assert waiting.wait(60)
        go_on.set()
        with pytest.raises(DeadlineExceeded, match="too late"):
            first.result(60)
        assert second.result(60).source == "run" and not server.cache.flights


def test_a_row_that_is_read_again_unchanged_needs_no_run(server, items, clock):
    server.cache.put("a", ROW)
    assert [server.look("prediction", "a").source, server.runs] == ["run", 1]
    clock[0] += 2
    assert [server.look("prediction", "a").source, server.runs] == ["again", 1]
    server.cache.put("a", ROW)
    assert [server.look("prediction", "a").source, server.runs] == ["run", 2]


def test_entries_without_room_in_memory_are_evicted_and_counted(items):
    small = Server(items, stamps(), size=1000)
    for i in range(10):
        small.cache.put(f"i{i}", ROW)
        small.look("item", f"i{i}")
    assert small.cache.entries.bytes <= 1000
    assert small.metrics.evicted.cells[small.metrics.evicted.first[()]] == 10 - len(small.cache.entries.entries) > 0


def test_after_a_failed_invalidation_redis_is_not_used_until_the_database_was_read(items, clock):
    redis = DictionaryTier()
    first, second = Server(items, stamps(), redis), Server(items, stamps(), redis)
    for server in (first, second):
        server.cache.check()
    first.cache.put("a", ROW)
    assert second.look("item", "a").source == "redis"
    redis.is_down = True
    first.cache.put("a", OTHER)
    redis.is_down = False
    # The writer does not use Redis for its own write.
    assert first.look("item", "a").entry.version == 2
    redis.items["a"] = Item(1, ROW)
    clock[0] += TIMES.check * 0.9
    third = Server(items, stamps(), redis)
    third.cache.check()
    assert second.look("item", "a").entry.version == 1
    # A new server gets the latest changes, and invalidates Redis.
    assert third.look("item", "a").entry.version == 2
    redis.items["a"] = Item(1, ROW)
    clock[0] += TIMES.check * 0.2
    assert second.look("item", "a").entry.version == 2


def test_too_many_changes_empty_the_memory(server, items, monkeypatch):
    for job_id in IDS:
        server.cache.put(job_id, ROW)
        server.look("item", job_id)
    server.cache.check()
    server.look("item", "a")
    monkeypatch.setattr("iris_wsgi.patterns.data_cache.sqlite_store.MAX_CHANGES", 1)
    other = Server(items, stamps())
    for job_id in IDS:
        other.cache.put(job_id, OTHER)
    server.cache.check()
    assert not server.cache.entries.entries and server.look("item", "a").entry.version == 2


@pytest.mark.long
def test_threads_that_read_and_write_at_once_see_each_acknowledged_write(items):
    own_stamps = stamps()
    servers = [Server(items.store, own_stamps, DictionaryTier()) for _ in range(2)]
    servers[1].shared = servers[0].shared
    servers[1].begin("one")
    acknowledged, done = dict.fromkeys(IDS, 0), threading.Event()

    def write(server, seed):
        for i in range(60):
            item_id = IDS[(i + seed) % 2]
            version, _ = server.cache.put(item_id, ROW if i % 2 else OTHER)
            acknowledged[item_id] = max(acknowledged[item_id], version)

    def read(server):
        while not done.is_set():
            for item_id in IDS:
                min_version = acknowledged[item_id]
                for kind in ("item", "prediction"):
                    found = server.look(kind, item_id).entry
                    assert found.version >= min_version
                    assert not found.version or found.body.endswith(item_body(item_id, found.version, found.row))

    def check(server):
        while not done.is_set():
            server.cache.check()

    with ThreadPoolExecutor(12) as pool:
        futures = [pool.submit(work, server) for work in (read, read, check) for server in servers]
        writers = [pool.submit(write, servers[i % 2], i) for i in range(4)]
        for writer in writers:
            writer.result(120)
        done.set()
        for other in futures:
            other.result(120)


def test_an_entry_is_the_same_after_packing():
    for row in (b"", ROW):
        entry = Entry((2**64 - 1, 3), 7, 1.5, 2.5, row, b"body" if row else b"")
        assert unpack(entry.pack()) == entry


def test_bodies_have_the_sent_numbers_and_the_prediction_of_the_model():
    model, _ = load_model(MODEL)
    responses = ItemResponses(model.schema, Encoder(model.outputs), predictor(lambda rows, _: model.predict(rows)))
    assert responses.item("a", 1, ROW) == b'{"id":"a","version":1,"data":[[5.1,3.5,1.4,0.2]]}\n'
    document = json.loads(responses.prediction("a", 1, ROW, 0))
    assert (
        document["label"] == "setosa"
        and document["probabilities"] == model.predict(np.array([[5.1, 3.5, 1.4, 0.2]], np.float32))[0].tolist()
    )
    with pytest.raises(Exception, match="The item has 2 features, and the model requires 4"):
        responses.prediction("a", 1, ROW[:8], 0)


# Routes


@pytest.fixture
def app(make_app: Callable):
    return make_app(role="data_cache")


@pytest.mark.parametrize("item_id", ["a.b", "a b", "é", "\U0001f33c", "x" * 65, "a\n", "a%00", "..", "~", "a+b"])
def test_an_invalid_id_gets_404_and_causes_no_read(app, item_id):
    for method, path in (("GET", ""), ("GET", "/prediction"), ("PUT", "")):
        item_path = f"/items/{item_id}{path}".encode().decode("latin-1")
        status, headers, body = call_wsgi(app.service.app, method, item_path, b'{"data": [[1, 2, 3, 4]]}')
        assert status == 404 and "Cache-Status" not in headers and item_id not in json.loads(body)["detail"].split()
    assert 'item_lookups_total{source="database"} 0' in app.get("/metrics").text


@pytest.mark.parametrize(
    "path", ["/items/../../etc/passwd", "/items/", "/items/a/b", "/items//prediction", "/items", "/items/a/prediction/"]
)
def test_a_path_with_more_or_fewer_segments_gets_404(app, path):
    assert call_wsgi(app.service.app, "GET", path)[0] == 404


def test_an_id_may_have_sixty_four_letters_digits_and_two_signs(app):
    item_id = ("aZ09_-" * 11)[:64]
    assert app.put_json(f"/items/{item_id}", {"data": [[1, 2, 3, 4]]}, status=201).headers["Location"] == f"/items/{item_id}"
    assert app.get(f"/items/{item_id}").json == {"id": item_id, "version": 1, "data": [[1.0, 2.0, 3.0, 4.0]]}


def test_cache_status_names_the_source_of_a_response(app):
    def status(path, **headers):
        return app.get(path, headers=headers, status="*").headers["Cache-Status"]

    assert status("/items/0000") == "iris_wsgi; fwd=uri-miss; stored; detail=database"
    assert status("/items/0000").startswith("iris_wsgi; hit; ttl=5")
    assert status("/items/0000", **{"Cache-Control": "no-cache"}) == "iris_wsgi; fwd=request; stored; detail=database"
    assert status("/items/0000/prediction") == "iris_wsgi; fwd=uri-miss; stored"
    assert status("/items/0000/prediction").startswith("iris_wsgi; hit; ttl=5")
    assert status("/items/none") == "iris_wsgi; fwd=uri-miss; stored; detail=database"
    assert status("/items/none").endswith("; detail=negative")
    put = app.put_json("/items/0000", {"data": [[7.2, 3.6, 6.1, 2.5]]})
    assert (put.status_int, put.headers["Cache-Status"]) == (200, "iris_wsgi; fwd=method")
    assert status("/items/0000") == "iris_wsgi; fwd=stale; stored; detail=database"
    assert app.get("/items/0000/prediction").json["label"] == "virginica"


def test_cached_and_uncached_bodies_are_the_same_bytes(app):
    for i in range(150):
        for path in (f"/items/{i:04d}", f"/items/{i:04d}/prediction"):
            first, second = app.get(path), app.get(path)
            anew = app.get(path, headers={"Cache-Control": "no-cache"})
            assert "; hit" in second.headers["Cache-Status"] and first.body == second.body == anew.body


@pytest.mark.parametrize(
    "data", [[[1, 2, 3]], [[1, 2, 3, 4], [1, 2, 3, 4]], [["1", 2, 3, 4]], [], [[1, 2, 3, 1e39]], [[True, 2, 3, 4]]]
)
def test_an_invalid_row_is_not_written(app, data):
    assert app.put_json("/items/0000", {"data": data}, status=422).json["errors"]
    assert app.get("/items/0000").json["version"] == 1


def test_hits_and_malformed_ids_are_handled_in_the_loop_and_nothing_else(app):
    service = app.service.app

    def inline(method, path, **variables):
        return service.inline(method, path, variables, 0)

    assert not inline("GET", "/items/0000") and not inline("GET", "/items/0000/prediction")
    app.get("/items/0000/prediction")
    assert inline("GET", "/items/0000") and inline("GET", "/items/0000/prediction") and inline("HEAD", "/items/0000")
    assert not inline("GET", "/items/0000", HTTP_CACHE_CONTROL="no-cache") and not inline("PUT", "/items/0000")
    assert inline("GET", "/items/a.b") and not inline("GET", "/items/none")
    app.get("/items/none", status=404)
    assert inline("GET", "/items/none") and inline("GET", "/items/none/prediction")
    app.put_json("/items/0000", {"data": [[1, 2, 3, 4]]})
    assert not inline("GET", "/items/0000") and not inline("GET", "/items/0000/prediction")
