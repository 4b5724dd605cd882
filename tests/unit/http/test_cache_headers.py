"""Cache-Control directives have the same meaning for predictions and for items."""

from collections.abc import Callable
from math import inf
from time import monotonic

import pytest
import webtest
from applications import call_wsgi

from iris_wsgi.http.cache_headers import MAX_SECONDS, CacheDirectives, cache_directives
from iris_wsgi.patterns.data_cache import cache as items
from iris_wsgi.patterns.data_cache import read_through, role
from iris_wsgi.patterns.data_cache import routes as item_routes
from iris_wsgi.patterns.prediction_cache import store

ROW = {"data": [[5.1, 3.5, 1.4, 0.2]]}
# Both caches keep entries for this time.
SECONDS = 1000
HIT, STORED, PASSED, REFUSED = "hit", "fwd=request; stored", "fwd=request", "504"
# The outcome of a request by the age of the stored entry.
TABLE = [
    ("", HIT, HIT),
    ("no-cache", STORED, STORED),
    ("NO-CACHE", STORED, STORED),
    ("no-store", PASSED, PASSED),
    ("no-cache, no-store", PASSED, PASSED),
    ("max-age=0", STORED, STORED),
    ('max-age="0"', STORED, STORED),
    ("max-age=00", STORED, STORED),
    ("max-age=50", HIT, STORED),
    ("max-age=200", HIT, HIT),
    ("max-age=200, max-age=50", HIT, STORED),
    ("max-age=99999999999999999999", HIT, HIT),
    ("max-age", STORED, STORED),
    ("max-age=", STORED, STORED),
    ("max-age=-1", STORED, STORED),
    ("max-age=1.5", STORED, STORED),
    ("max-age=soon", STORED, STORED),
    ("min-fresh=1", HIT, HIT),
    ("min-fresh=870", HIT, STORED),
    ("min-fresh=2000", STORED, STORED),
    ("min-fresh=x", STORED, STORED),
    ("max-stale", HIT, HIT),
    ("max-stale=60", HIT, HIT),
    ("only-if-cached", HIT, HIT),
    ("only-if-cached, max-age=50", HIT, REFUSED),
    ("only-if-cached, no-cache", REFUSED, REFUSED),
    ("only-if-cached, no-store", REFUSED, REFUSED),
    ("only-if-cached, min-fresh=2000", REFUSED, REFUSED),
    ("no-transform", HIT, HIT),
    ("no-cached", HIT, HIT),
    ('x="no-store"', HIT, HIT),
    ('x="a, no-store, b"', HIT, HIT),
    ("x=no-store, no-cache", STORED, STORED),
    (" , no-store , ", PASSED, PASSED),
]
REQUESTS = [("POST", "/predict/label"), ("GET", "/items/0000"), ("GET", "/items/0000/prediction")]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Function that advances the time of both caches."""
    ahead = 0.0

    def move(seconds: float) -> None:
        nonlocal ahead
        ahead += seconds

    for module in (store, items, read_through, item_routes):
        monkeypatch.setattr(module, "monotonic", lambda: monotonic() + ahead)
    return move


@pytest.fixture
def caches(make_app: Callable[..., webtest.TestApp], monkeypatch: pytest.MonkeyPatch) -> webtest.TestApp:
    time_to_live = {"cache_seconds": float(SECONDS), "items_seconds": float(SECONDS)}
    monkeypatch.setattr(role, "CHECK_SECONDS", 3600.0)
    # Without a deadline, which uses the real clock.
    return make_app(**time_to_live, deadline_ms=0)


def status(app: webtest.TestApp, method: str, path: str, control: str = "") -> str:
    """Returns the parts of Cache-Status that both caches have in common, or the status of a refusal."""
    result = {"HTTP_CACHE_CONTROL": control} if control else {}
    body = webtest.app.json.dumps(ROW).encode() if method == "POST" else b""
    code, headers, _ = call_wsgi(app.service.app, method, path, body, **result)
    name, *parts = headers["Cache-Status"].split("; ")
    assert name == "iris_wsgi" and code in (200, 504), (code, headers)
    if code == 504:
        assert parts == ["detail=only-if-cached"]
        return REFUSED
    return "hit" if "hit" in parts else "; ".join(part for part in parts if not part.startswith(("detail=", "ttl=")))


@pytest.mark.parametrize("age", [0, 150])
@pytest.mark.parametrize(("method", "path"), REQUESTS)
def test_both_caches_interpret_each_directive_alike(caches, clock, age, method, path):
    for control, fresh, later in TABLE:
        status(caches, method, path, "no-cache")
        assert status(caches, method, path) == HIT
        clock(age)
        assert (control, status(caches, method, path, control)) == (control, later if age else fresh)


@pytest.mark.parametrize(("method", "path"), REQUESTS)
def test_a_missing_entry_is_not_computed_with_only_if_cached(caches, method, path):
    assert status(caches, method, path, "only-if-cached") == REFUSED
    assert status(caches, method, path, "no-store") == PASSED
    assert status(caches, method, path, "only-if-cached") == REFUSED
    assert status(caches, method, path) == ("fwd=miss; stored" if method == "POST" else "fwd=uri-miss; stored")
    assert status(caches, method, path, "only-if-cached") == HIT


def test_with_only_if_cached_one_missing_row_of_several_is_refused(caches):
    rows = {"data": [[5.1, 3.5, 1.4, 0.2], [6.7, 3.1, 4.7, 1.5]]}
    control = {"Cache-Control": "only-if-cached"}
    caches.post_json("/predict/label", ROW)
    response = caches.post_json("/predict/batch", rows, headers=control, status=504)
    assert response.content_type == "application/problem+json" and "only-if-cached" in response.json["detail"]
    caches.post_json("/predict/batch", rows)
    assert caches.post_json("/predict/batch", rows, headers=control).headers["Cache-Status"].startswith("iris_wsgi; hit")


def test_only_a_request_that_never_blocks_is_handled_in_the_loop(caches, clock):
    def inline(control: str) -> bool:
        return caches.service.app.inline("GET", "/items/0000", {"HTTP_CACHE_CONTROL": control}, 0)

    assert not inline("max-age=60") and inline("only-if-cached")
    caches.get("/items/0000")
    assert inline("max-age=60") and not inline("no-store") and not inline("max-age=0") and not inline("min-fresh=2000")
    clock(61)
    assert not inline("max-age=60") and inline("max-age=3600")


def test_the_strictest_of_repeated_directives_counts():
    assert cache_directives("max-age=5, max-age=3, min-fresh=1, min-fresh=2") == CacheDirectives(max_age=3, min_fresh=2)
    assert cache_directives("max-age=9999999999999").max_age == MAX_SECONDS and cache_directives("").max_age == inf


def test_a_header_of_spaces_and_commas_is_parsed_in_one_pass():
    # A quadratic search for spaces would not end.
    many = 1_000_000
    for text in ("no-cache" + " " * many + "x", "," * many, ' x="' + "\\" * many, "a=" + " " * many + ";", "a" * many + "=;"):
        assert cache_directives(text) == CacheDirectives()
    cache_directives.cache_clear()
