"""Access log and request metrics: collected requests are counted and logged together, each once, in order, and in time."""

import json
import os
import random
from bisect import bisect_left
from collections import Counter
from contextlib import suppress
from datetime import datetime
from functools import partial

import pytest
from metrics_text import sample_value
from racing_threads import race

from iris_wsgi.observability.log import MAX_WAITING_LINES, PIPE_BUF, Log
from iris_wsgi.observability.metrics import SECONDS, Registry
from iris_wsgi.observability.trace_context import RequestIds, TraceContext
from iris_wsgi.wsgi import request_observer
from iris_wsgi.wsgi.application import METHODS, UNMATCHED, Response
from iris_wsgi.wsgi.request_observer import MAX_DELAY_SECONDS, MAX_PATH, RequestObserver

OK = Response(b"{}", rows=1)
PATHS = ("/predict", "/livez", "/predict")
VERSION = '1"\n'


class Clock:
    """Monotonic and system time of the observer, which the test sets. The system time is later by a day, and then by `step`."""

    def __init__(self) -> None:
        self.now, self.step = 1000.0, 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 86_400 + self.step


@pytest.fixture
def clock(monkeypatch):
    standing = Clock()
    monkeypatch.setattr(request_observer, "monotonic", standing.monotonic)
    monkeypatch.setattr(request_observer, "time", standing.time)
    return standing


class Observed:
    """A request observer with its log in a file."""

    def __init__(self, path, buffered: bool) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.log, self.registry = Log(self.descriptor, buffered), Registry()
        self.observer = RequestObserver(self.log, self.registry, PATHS, VERSION)
        self.registry.join()

    def answer(self, request_id="r", method="POST", path="/predict", route="/predict", response=OK, took=0.0, context=None):
        ended = request_observer.monotonic()
        self.observer.answered(method, path, route, response, ended - took, request_id, context)

    def turn(self) -> None:
        """Ends a turn of the event loop."""
        self.observer.flush()
        self.log.flush()

    def lines(self) -> list[dict]:
        """Returns the lines in the file."""
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def ids(self) -> list[str]:
        return [line["request_id"] for line in self.lines()]

    def counted(self) -> float:
        """Returns the number of counted requests, without a flush."""
        first, count = self.observer.requests.first.start, self.observer.requests.first.count
        return sum(self.observer.cells[first : first + count])


@pytest.fixture
def observed(tmp_path):
    """An observer whose log is written at the end of a turn, as in the event loop."""
    made = Observed(tmp_path / "log", buffered=True)
    yield made
    os.close(made.descriptor)


@pytest.fixture
def direct(tmp_path):
    """An observer whose log is written at once, as under another WSGI server."""
    made = Observed(tmp_path / "direct", buffered=False)
    yield made
    os.close(made.descriptor)


def test_the_requests_of_a_turn_are_counted_and_logged_together_in_order(observed, clock):
    for i in range(100):
        clock.now += 0.0001
        observed.answer(str(i), route=("/predict", "/livez", UNMATCHED)[i % 3])
    assert observed.counted() == 0 and observed.lines() == []
    observed.turn()
    assert observed.counted() == 100 and observed.ids() == [str(i) for i in range(100)]
    observed.turn()
    assert observed.counted() == 100 and len(observed.lines()) == 100


def test_a_scrape_counts_the_requests_before_it(observed, clock):
    observed.answer(), observed.answer(response=Response(b"", status=404))
    text = observed.registry.text().decode()
    for status in ("200", "404"):
        assert sample_value(text, "http_requests_total", method="POST", route="/predict", status=status) == 1
    assert len(observed.log.waiting) == 2


def test_counters_and_histograms_are_those_of_counting_one_at_a_time(observed, clock):
    drawn, counts, buckets, sums = random.Random(3), Counter(), Counter(), Counter()
    for _ in range(2000):
        method, route, status = (
            drawn.choice(["GET", "POST"]),
            drawn.choice(["/predict", "/livez", UNMATCHED]),
            drawn.choice([200, 422]),
        )
        # Differences from the standing clock are exact for these numbers.
        took = drawn.choice([2.0 ** -drawn.randrange(1, 20), 0.25, 0.5, 1.0, 2.5, 64.0])
        observed.answer(method=method, route=route, response=Response(b"", status=status), took=took)
        counts[method, route, str(status)] += 1
        sums[method, route] += took
        buckets[method, route, (*map(str, SECONDS), "+Inf")[bisect_left(SECONDS, took)]] += 1
    text = observed.registry.text().decode()
    for (method, route, status), count in counts.items():
        assert sample_value(text, "http_requests_total", method=method, route=route, status=status) == count
    for (method, route), seconds in sums.items():
        labels = {"method": method, "route": route}
        assert sample_value(text, "http_request_duration_seconds_sum", **labels) == seconds
        below = 0
        for bound in (*map(str, SECONDS), "+Inf"):
            below += buckets[method, route, bound]
            assert sample_value(text, "http_request_duration_seconds_bucket", le=bound, **labels) == below


def test_an_event_between_two_requests_is_logged_between_them(observed, direct, clock):
    for which in (observed, direct):
        which.answer("one")
        which.log.event("warning", "between", request_id="event")
        which.answer("two")
        which.observer.failed(RequestIds("failure"))
        which.answer("three")
        which.observer.rejected(431, RequestIds("refused"))
        which.turn()
        assert which.ids() == ["one", "event", "two", "failure", "three", "refused"]
        assert which.counted() == 4


def test_under_another_server_each_request_is_logged_and_counted_at_once(direct):
    for i in range(3):
        direct.answer(str(i))
        assert direct.ids() == [str(j) for j in range(i + 1)] and direct.counted() == i + 1


def test_unknown_methods_and_paths_are_counted_together_and_never_remembered(observed, clock):
    for i in range(50):
        observed.answer(method=f"BREW{i}", path=f"/{i}", route=UNMATCHED, response=Response(b"", status=501))
        observed.answer(method=f"BREW{i}", response=Response(b"", status=501))
        observed.answer(method="GET", path=f"/{i}", route=UNMATCHED, response=Response(b"", status=404))
    assert observed.observer.known == {}
    observed.answer(), observed.answer()
    assert list(observed.observer.known) == [("POST", "/predict", 200)]
    text = observed.registry.text().decode()
    found = [("other", UNMATCHED, "501"), ("other", "/predict", "501"), ("GET", UNMATCHED, "404"), ("POST", "/predict", "200")]
    counts = [sample_value(text, "http_requests_total", method=m, route=r, status=s) for m, r, s in found]
    assert counts == [50, 50, 50, 2] and "BREW" not in text
    observed.turn()
    assert {line["method"] for line in observed.lines()} == {"other", "GET", "POST"} and "BREW" not in observed.path.read_text()


def test_the_known_requests_are_as_many_as_routes_methods_and_statuses_at_most(observed, clock):
    for method in (*METHODS, "BREW"):
        for status in (200, 404):
            for _ in range(3):
                observed.answer(method=method, response=Response(b"", status=status))
    assert len(observed.observer.known) == 2 * len(METHODS)
    observed.turn()
    assert Counter(line["method"] for line in observed.lines()) == dict.fromkeys((*METHODS, "other"), 6)


def seconds_of(line: dict) -> float:
    return datetime.fromisoformat(line["time"]).timestamp()


@pytest.mark.parametrize("step", [0.0, 7200.0, -7200.0])
def test_the_time_of_a_line_is_the_end_of_its_request_in_the_system_time_of_the_flush(observed, clock, step):
    ends = []
    for after in (0.0, 0.0004, 0.0123, 0.9, 3.0, 59.0, 0.001):
        clock.now += after
        ends.append(clock.time())
        # Without the flush that the delay causes.
        observed.observer.answers.append((observed.observer.series("POST", "/", "/predict", 200), OK, "r", None, 0.0, clock.now))
    clock.now += 5.0
    clock.step = step
    observed.turn()
    for line, ended in zip(observed.lines(), ends, strict=True):
        assert -1e-6 < ended + step - seconds_of(line) < 0.001001
    assert len({line["time"] for line in observed.lines()}) >= 6


def test_a_line_has_the_fields_of_its_request(observed, clock):
    context = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "1122334455667788", 1, "")
    observed.answer("a", response=Response(b"", status=202, rows=7, job="the-job"), took=0.015625, context=context)
    observed.answer("b", "GET", "/livez", "/livez", Response(b""))
    observed.answer("c", response=Response(b"", rows=0))
    observed.turn()
    first, second, third = observed.lines()
    assert list(first) == [
        "time", "level", "method", "route", "status", "ms", "rows", "request_id", "trace_id", "span_id", "parent_id", "job",
        "model",
    ]  # fmt: skip
    assert first.pop("time").endswith("Z") and first == {
        "level": "info", "method": "POST", "route": "/predict", "status": 202, "ms": 15.625, "rows": 7, "request_id": "a",
        "trace_id": context.trace, "span_id": context.span, "parent_id": context.parent, "job": "the-job", "model": VERSION,
    }  # fmt: skip
    assert list(second) == ["time", "level", "method", "route", "status", "ms", "rows", "request_id", "model"]
    assert (second["rows"], second["method"], second["route"], third["rows"]) == (None, "GET", "/livez", 0)


@pytest.mark.parametrize("path", ['/a"b', "/\\", "/\n{}", "/\x1b[31m\x00", "/é京\U0001f600", "/\udcff", "/" + '"' * 1000, ""])
def test_no_path_can_forge_a_line_and_only_an_unknown_one_is_logged(observed, clock, path):
    observed.answer(path=path, route=UNMATCHED, response=Response(b"", status=404))
    observed.answer(path=path)
    observed.turn()
    unknown, known = observed.lines()
    assert unknown["path"] == path[:MAX_PATH] and unknown["route"] == UNMATCHED and unknown["status"] == 404
    assert "path" not in known and observed.path.read_text().isascii()


def test_lines_that_find_no_room_are_counted_and_their_requests_too(clock):
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)
    # The pipe is full, and the test reads it later.
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"\n" * PIPE_BUF)
    log, registry = Log(writer, buffered=True), Registry()
    observer = RequestObserver(log, registry, PATHS, "1")
    registry.join()
    for i in range(MAX_WAITING_LINES + 50):
        observer.answered("POST", "/predict", "/predict", OK, clock.now, str(i))
    observer.flush()
    log.flush()
    text = registry.text().decode()
    assert sample_value(text, "http_requests_total", method="POST", route="/predict", status="200") == MAX_WAITING_LINES + 50
    content = b""
    while log.waiting:
        content += os.read(reader, 1 << 20)
        log.flush()
    content += os.read(reader, 1 << 20)
    found = [json.loads(line) for line in content.split(b"\n") if line]
    assert [line["request_id"] for line in found if "request_id" in line] == [str(i) for i in range(MAX_WAITING_LINES)]
    assert [line["lines"] for line in found if "lines" in line] == [50]
    os.close(reader), os.close(writer)


def test_a_flush_ends_while_requests_end(observed, clock):
    time_of, more = observed.log.time_of, iter(range(10))

    def time_and_request(seconds):
        if next(more, None) is not None:
            observed.answer("later")
        return time_of(seconds)

    observed.log.time_of = time_and_request
    observed.answer("0"), observed.answer("1")
    observed.turn()
    assert observed.ids() == ["0", "1"]


def test_a_flush_counts_and_writes_under_one_lock_so_that_another_flush_comes_before_or_after(observed, clock):
    time_of, write, held = observed.log.time_of, observed.log.write, []
    observed.log.time_of = lambda seconds: (held.append(observed.registry.lock.locked()), time_of(seconds))[1]
    observed.log.write = lambda *lines: (held.append(observed.registry.lock.locked()), write(*lines))
    observed.answer(), observed.answer()
    observed.turn()
    assert held == [True, True, True] and len(observed.lines()) == 2


# At the latest after 50 ms


def test_a_request_that_ends_50_ms_after_the_oldest_collected_one_writes_all(observed, clock):
    # The first request after a quiet time waits for the others.
    clock.now += 10
    first = clock.now
    observed.answer("0")
    clock.now = first + 0.03
    observed.answer("1")
    clock.now = first + MAX_DELAY_SECONDS
    observed.answer("2")
    assert observed.lines() == [] and observed.counted() == 0
    clock.now = first + MAX_DELAY_SECONDS + 0.001
    observed.answer("3")
    assert observed.ids() == ["0", "1", "2", "3"] and observed.counted() == 4
    # Now "4" is the oldest.
    observed.answer("4")
    clock.now += MAX_DELAY_SECONDS - 0.001
    observed.answer("5")
    assert len(observed.lines()) == 4
    clock.now += 0.002
    observed.answer("6")
    assert observed.ids() == [str(i) for i in range(7)]


@pytest.mark.parametrize("flush", ["turn", "event", "scrape"])
def test_the_delay_begins_again_after_each_flush(observed, clock, flush):
    observed.answer("0")
    clock.now += 0.04
    if flush == "turn":
        observed.turn()
    elif flush == "event":
        observed.log.event("info", "an event", request_id="event")
    else:
        observed.registry.text()
    observed.answer("1")
    before = observed.ids()
    clock.now += MAX_DELAY_SECONDS - 0.001
    observed.answer("2")
    assert observed.ids() == before
    clock.now += 0.002
    observed.answer("3")
    assert [one for one in observed.ids() if one != "event"] == ["0", "1", "2", "3"]


def test_a_turn_without_delay_writes_once(observed, clock, monkeypatch):
    written, write = [], os.write
    monkeypatch.setattr(os, "write", lambda fd, data: (written.append(data.count(b"\n")), write(fd, data))[1])
    for _ in range(3):
        for i in range(8):
            clock.now += 0.001
            observed.answer(str(i))
        observed.turn()
        clock.now += 1
    assert written == [8, 8, 8]


# Threads


@pytest.mark.parametrize("is_buffered", [True, False])
def test_threads_write_each_line_once_and_count_each_request_once(observed, direct, is_buffered):
    which, count = observed if is_buffered else direct, 1500

    def answer(k):
        for i in range(count):
            which.answer(f"{k} {i}", route=("/predict", "/livez", UNMATCHED)[i % 3], took=0.25)

    race(*(partial(answer, k) for k in range(4)), meanwhile=lambda: (which.turn(), which.registry.text()))
    which.turn()
    found = [tuple(map(int, one.split())) for one in which.ids()]
    assert len(found) == 4 * count == which.counted() and which.log.lost == 0
    for k in range(4):
        assert [i for thread, i in found if thread == k] == list(range(count))
    text = which.registry.text().decode()
    for route in ("/predict", "/livez", UNMATCHED):
        assert sample_value(text, "http_request_duration_seconds_count", method="POST", route=route) == 4 * count / 3
