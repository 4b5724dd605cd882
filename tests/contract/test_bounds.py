"""More than the server can take, of everything: it says so, goes on, and recovers by itself."""

import json
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from http_clients import (
    CI,
    LABEL_REQUEST,
    LARGEST_REQUEST,
    LIVEZ,
    METRICS,
    NO_COVERAGE,
    READYZ,
    LoadGenerator,
    RawConnection,
    cpu_seconds,
    fetch,
    http_request,
    load_processes,
    metric_sum,
    open_socket_count,
    stays_asleep,
    stderr_to,
    wait_until,
)
from optional_programs import require_program, skip_or_fail
from worker_processes import serving_workers

from iris_wsgi.observability.shared_memory import SharedMemory, WorkerGroup
from iris_wsgi.server.event_loop import TURN_EVENTS, EventLoop
from iris_wsgi.settings import Settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def busy(connection: RawConnection) -> None:
    """An answer that says there is too much to do now."""
    response = connection.receive()
    assert (response.status, response.headers["retry-after"]) == (503, "1")
    assert response.json()["status"] == 503 and response.headers["content-type"] == "application/problem+json"


@pytest.fixture
def full(run):
    """A server with as many connections as it may have: the server, and the connections."""
    server = run("--connections", "20", under=stderr_to("/dev/null"))
    with ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server)) for _ in range(20)]
        assert [connection.exchange(LIVEZ).status for connection in connections] == [200] * 20
        yield server, connections


@pytest.mark.parametrize("when", ["at once", "late", "never", "at length", "in two parts"])
def test_a_connection_too_many_gets_503_and_no_reset_whenever_it_sends_its_request(full, when):
    server, connections = full
    for _ in range(20):
        with RawConnection(server) as connection:
            if when == "at once":
                connection.send(LABEL_REQUEST)
            elif when == "at length":
                connection.send(LARGEST_REQUEST)
            elif when == "late":
                wait_until(connection.readable, "the refusal")
                connection.send(LABEL_REQUEST)
            elif when == "in two parts":
                wait_until(connection.readable, "the refusal")
                connection.send(LABEL_REQUEST[:-30])
                # What this brings about at the other end has happened once others are answered.
                assert connections[0].exchange(LIVEZ).status == 200
                connection.send(LABEL_REQUEST[-30:])
            busy(connection)
            assert connection.read_to_end() == ("closed", b"")
    assert [connection.exchange(LABEL_REQUEST).status for connection in connections] == [200] * 20


def test_a_place_that_becomes_free_is_taken(full):
    server, connections = full
    connections[7].socket.close()

    def served() -> bool:
        with RawConnection(server) as connection:
            return connection.exchange(LIVEZ).status == 200

    wait_until(served, "a connection in the place of the closed one")


def test_bytes_of_unanswered_requests_are_bounded_over_all_connections(run):
    server = run("--pending-bytes", "2097152", "--request-seconds", "60")
    head = b"POST /predict/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1048576\r\n\r\n"
    with ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server)) for _ in range(8)]
        for connection in connections:
            # One byte is missing, so that the server has to keep the others.
            connection.send(head + b" " * 1_048_500)
        wait_until(lambda: sum(connection.readable() for connection in connections) >= 6, "the refusals")
        refused = [connection for connection in connections if connection.readable()]
        for connection in refused:
            response = connection.receive()
            assert (response.status, response.headers["retry-after"], response.headers["connection"]) == (503, "1", "close")
        # Requests of one piece are not kept, and are answered all the while.
        assert fetch(server, LABEL_REQUEST).status == 200
        for connection in set(connections) - set(refused):
            connection.send(b" " * 76)
            assert connection.receive().status == 400
    assert len(refused) == 6
    assert fetch(server, LARGEST_REQUEST).status == 200


@pytest.mark.long
def test_answers_that_are_not_taken_are_bounded_over_all_connections(run, tmp_path):
    limit, clients, requests = 4 * 1024 * 1024, 16, 12
    log = tmp_path / "log"
    server = run("--pending-bytes", str(limit), under=stderr_to(log))
    # Of a kind that has the longest answers for its bytes.
    batch = http_request("POST", "/predict/batch", {"data": [[1, 1, 1, 1]] * 10_000})
    size = len(fetch(server, batch).body)
    pid = server.worker_pid
    before = open_socket_count(pid)
    with ExitStack() as stack:
        # More than kernels take in, of which each client has one answer at a time.
        connections = [
            stack.enter_context(RawConnection(server, receive_buffer=4096)).send(batch * requests) for _ in range(clients)
        ]
        wait_until(lambda: open_socket_count(pid) - before <= limit // size, "those that are too many are gone")
        assert fetch(server, LABEL_REQUEST).status == 200
        whole = 0
        for connection in connections:
            with suppress(EOFError, ConnectionResetError):
                whole += all(connection.receive().status == 200 for _ in range(requests))
        assert whole == limit // size
    assert "a response was dropped" in log.read_text()


def test_as_many_connections_as_descriptors_allow_and_no_more(run):
    limited = ("sh", "-c", 'ulimit -n 64; exec "$@"', "sh")
    server = run(under=limited)
    with ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server)).send(LIVEZ) for _ in range(60)]
        statuses = [connection.receive().status for connection in connections]
        assert set(statuses) == {200, 503} and statuses.count(200) >= 16
        assert connections[0].exchange(METRICS).status == 200


def test_work_beyond_the_queue_gets_503_while_the_pool_is_busy_and_the_connection_goes_on(run):
    server = run("--queue", "2", "--threads", "1")
    with ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server)).send(LARGEST_REQUEST) for _ in range(20)]
        order, waiting = [], list(connections)
        while waiting:
            wait_until(lambda: any(item.readable() for item in waiting), "another answer")
            for connection in [item for item in waiting if item.readable()]:
                waiting.remove(connection)
                response = connection.receive()
                order.append(response.status)
                assert not response.closes
                assert response.status == 200 or response.headers["retry-after"] == "1"
        assert len(order) == 20 and set(order) == {200, 503}
        # Two that wait; one more if the thread had taken the first by then.
        assert order.count(200) >= 2
        assert order.index(503) < max(i for i, status in enumerate(order) if status == 200)
        assert [connection.exchange(LABEL_REQUEST).status for connection in connections] == [200] * 20
        assert [connection.exchange(LARGEST_REQUEST).status for connection in connections] == [200] * 20


def test_probes_metrics_and_single_predictions_do_not_wait_for_the_pool(run):
    server = run("--threads", "2", "--deadline-ms", "0")
    with ExitStack() as stack:
        prober = stack.enter_context(RawConnection(server))
        connections = [stack.enter_context(RawConnection(server)).send(LARGEST_REQUEST) for _ in range(24)]
        wait_until(lambda: metric_sum(prober.exchange(METRICS).body.decode(), "http_requests_in_flight") == 3, "two busy threads")
        for request_bytes in (LIVEZ, READYZ, METRICS, LABEL_REQUEST):
            assert prober.exchange(request_bytes).status == 200
            assert fetch(server, request_bytes).status == 200
        assert not all(connection.readable() for connection in connections)
        assert [connection.receive().status for connection in connections] == [200] * 24


@pytest.mark.long
def test_the_metrics_tell_of_connections_of_the_queue_and_of_what_is_held(run):
    server = run("--threads", "1", "--queue", "10", "--deadline-ms", "0")

    def now(name: str, **labels: str) -> float:
        return metric_sum(prober.exchange(METRICS).body.decode(), name, **labels)

    with ExitStack() as stack:
        prober = stack.enter_context(RawConnection(server))
        part = LARGEST_REQUEST[:50_000]
        half = stack.enter_context(RawConnection(server)).send(part)
        wait_until(
            lambda: now("http_held_bytes", of="requests") == len(part) - part.index(b"\r\n\r\n") - 4,
            "the half of a request is held",
        )
        assert now("http_connections") == 2
        half.socket.close()
        connections = [
            stack.enter_context(RawConnection(server, receive_buffer=4096)).send(LARGEST_REQUEST * 12) for _ in range(8)
        ]
        wait_until(lambda: now("http_requests_queued") > 0, "some wait for the thread")
        assert now("http_held_bytes", of="requests") > 0
        wait_until(lambda: now("http_held_bytes", of="answers") > 0, "answers are not taken")
        for connection in connections:
            connection.socket.close()
        wait_until(lambda: now("http_connections") == 1, "all but one are gone")
        for name in ("http_requests_queued", "http_held_bytes"):
            wait_until(lambda name=name: now(name) == 0, f"{name} is as before")


@pytest.mark.long
def test_in_overload_there_is_200_or_503_and_nearly_as_much_gets_done(run):
    server = run(under=stderr_to("/dev/null"), **NO_COVERAGE)
    seconds = 4 if CI else 1

    def good_by_cpu_second(keeping: int, fresh: int) -> float:
        """By the processor time that the server had, as other processes may take the rest of the machine."""
        spent = cpu_seconds(server.worker_pid)
        with load_processes(server, 2, keeping, fresh, seconds) as totals:
            got = totals()
        assert got.lost == [] and got.refused == 0
        assert set(got.statuses) <= {200, 503}
        return got.statuses[200] / (cpu_seconds(server.worker_pid) - spent)

    shares = []
    for _ in range(3):
        peak = good_by_cpu_second(7, 1)
        shares.append(good_by_cpu_second(140, 20) / peak)
        if shares[-1] >= 0.6:
            break
    assert fetch(server, LABEL_REQUEST).status == 200
    assert max(shares) >= 0.6, shares


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """For some thousand connections of this process, and of those that it starts."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] if before[1] != resource.RLIM_INFINITY else 65536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.long
@pytest.mark.parametrize(("workers", "crowd"), [(1, 1500), (2, 2500)])
def test_new_connections_have_their_turn_however_many_others_are_ready(run, tmp_path, many_descriptors, workers, crowd):
    log = tmp_path / "log"
    server = run("--role", "web_single", "--workers", str(workers), under=stderr_to(log), **NO_COVERAGE)
    wait_until(lambda: len(serving_workers(server)) == workers, "the workers")
    pids = serving_workers(server)
    with ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server)) for _ in range(crowd)]
        for connection in connections:
            assert connection.exchange(LIVEZ).status == 200
        for turn in range(1, 4):
            # While the workers stand still all that comes is ready when they go on, and the newcomers are behind it.
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            for connection in connections:
                connection.send(LIVEZ)
            newcomers = [stack.enter_context(RawConnection(server)).send(READYZ) for _ in range(4)]
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            assert {connection.receive().status for connection in (*newcomers, *connections)} == {200}
            expected = (turn + 1) * crowd + turn * len(newcomers)
            wait_until(lambda expected=expected: len(log.read_text().splitlines()) == expected, "a line for each request")
            routes = [json.loads(line)["route"] for line in log.read_text().splitlines()][-crowd - len(newcomers) :]
            last = max(i for i, route in enumerate(routes) if route == "/readyz")
            # A few turns of each worker, and not all that is ready.
            assert last < 8 * workers * TURN_EVENTS < crowd


def test_a_turn_of_the_loop_accepts_though_the_poller_reports_others(log, make_app):
    """Connections that are always ready and come first, as the poller tells: each turn accepts all the same."""
    with socket.create_server(("127.0.0.1", 0)) as bound, ExitStack() as stack:
        address = bound.getsockname()
        service = make_app(role="web_single").service
        server = EventLoop(
            service.app, bound, Settings(), 1, service.observer, log, WorkerGroup(os.getppid(), SharedMemory(2), 0)
        )
        crowd = [stack.enter_context(socket.create_connection(address)) for _ in range(TURN_EVENTS)]
        while server.handle_accept():
            pass
        ready = [(fd, select.EPOLLIN) for fd in server.connections]
        assert len(ready) == TURN_EVENTS
        server.poller = FullPoller(server.poller, ready, server)
        for item in crowd:
            item.sendall(LIVEZ)
        late = stack.enter_context(socket.create_connection(address))
        late.sendall(READYZ)
        server.run()
        assert late.recv(20).startswith(b"HTTP/1.1 200 ")
        assert [json.loads(line)["route"] for line in log.raw_lines].index("/readyz") == TURN_EVENTS


class FullPoller:
    """Reports the same connections in each turn, and ends the server after the first."""

    def __init__(self, real, ready, server) -> None:
        self.real, self.ready, self.server, self.turns = real, ready, server, 0
        self.register, self.modify, self.unregister, self.close = real.register, real.modify, real.unregister, real.close

    def poll(self, timeout: float, events: int) -> list[tuple[int, int]]:
        self.turns += 1
        if self.turns > 1:
            self.server.stop()
        return self.ready[:events]


def test_overload_of_the_pool_leaves_the_rest_alone(run):
    server = run("--queue", "4", "--threads", "1", under=stderr_to("/dev/null"), **NO_COVERAGE)
    with LoadGenerator(server, 40, 10, [LARGEST_REQUEST]) as large, LoadGenerator(server, 4, 4, [LABEL_REQUEST]) as small:
        wait_until(lambda: large.statuses[503] >= 100 and large.statuses[200] >= 5 and small.responses >= 200, "answers")
    assert large.lost == [] and small.lost == []
    assert set(large.statuses) == {200, 503} and set(small.statuses) == {200}
    assert fetch(server, LARGEST_REQUEST).status == 200


def test_without_descriptors_it_waits_and_goes_on_when_there_are_some_again(run, tmp_path):
    log = tmp_path / "log"
    # Of a role without threads of its own, which would open files meanwhile.
    server = run("--role", "web_single", under=stderr_to(log))
    pid = server.worker_pid
    with ExitStack() as stack:
        kept = stack.enter_context(RawConnection(server))
        assert kept.exchange(LIVEZ).status == 200
        used = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(used) + 3, before[1]))
        connections = [stack.enter_context(RawConnection(server)).send(LIVEZ) for _ in range(max(used) + 30)]
        wait_until(lambda: "connections wait" in log.read_text(), "the log's line about it")
        assert 0 < sum(connection.readable() for connection in connections) < len(connections)
        for request_bytes in (LIVEZ, READYZ, METRICS, LABEL_REQUEST):
            assert kept.exchange(request_bytes).status == 200
        wait_until(lambda: stays_asleep(pid), "a server that waits and does nothing else")
        assert log.read_text().count("connections wait") <= 3
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        assert {connection.receive().status for connection in connections} == {200}
    server.stop()
    assert server.process.returncode == 0


def test_a_full_disk_under_the_log_stops_nothing(run):
    server = run(under=stderr_to("/dev/full"))
    with RawConnection(server) as connection:
        for _ in range(20):
            connection.send(LABEL_REQUEST * 50)
            assert [connection.receive().status for _ in range(50)] == [200] * 50
    server.stop()
    assert server.process.returncode == 0


@pytest.mark.long
def test_a_log_that_nobody_reads_stops_nothing_and_every_lost_line_is_counted(run):
    server = run()
    asked = 0
    seen, lost = Counter(), []

    def read() -> None:
        for line in map(json.loads, server.process.stderr):
            seen[line.get("route")] += 1
            lost.extend([line["lines"]] if line.get("message") == "log lines were lost" else [])

    def accounted() -> int:
        return seen["/livez"] + sum(lost)

    reader = threading.Thread(target=read)
    with RawConnection(server) as connection:
        while asked < 14_000:
            connection.send(LIVEZ * 200)
            assert {connection.receive().status for _ in range(200)} == {200}
            asked += 200
        reader.start()
        try:
            wait_until(
                lambda: accounted() == asked, "a line for each request, or its place in the number of those that were lost"
            )
            assert connection.exchange(LIVEZ).status == 200
            wait_until(lambda: accounted() == asked + 1, "the line of a later request")
        finally:
            server.process.terminate()
            server.process.wait(120)
            reader.join(120)
    assert len(lost) == 1
    assert server.process.returncode == 0


def test_a_clock_that_jumps_an_hour_ends_no_connection(run, tmp_path):
    require_program("faketime")
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None) or skip_or_fail(
        "the library of faketime is not found"
    )
    offset, log = tmp_path / "offset", tmp_path / "log"
    offset.write_text("+0")
    server = run(
        under=stderr_to(log),
        LD_PRELOAD=str(library),
        FAKETIME_TIMESTAMP_FILE=str(offset),
        FAKETIME_NO_CACHE="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
        **NO_COVERAGE,
    )
    asked = 0
    with RawConnection(server) as new, RawConnection(server) as kept, RawConnection(server) as begun:
        begun.send(LABEL_REQUEST[:30])
        for hours in (0, 1, -1, 0):
            following = tmp_path / "following"
            following.write_text(f"{hours:+d}h")
            following.rename(offset)

            def told(hours: int = hours) -> bool:
                response = kept.exchange(LABEL_REQUEST)
                assert response.status == 200
                told.asked += 1
                date = parsedate_to_datetime(response.headers["date"]).timestamp()
                return abs(date - time.time() - hours * 3600) < 60

            told.asked = 0
            wait_until(told, f"a date {hours} hours away")
            asked += told.asked
            assert fetch(server, LIVEZ).status == 200
            asked += 1
        assert new.exchange(LABEL_REQUEST).status == 200
        assert begun.exchange(LABEL_REQUEST[30:]).status == 200
        asked += 2
        wait_until(lambda: stays_asleep(server.worker_pid), "a server that waits and does nothing else")
    server.stop()
    assert server.process.returncode == 0
    assert len(log.read_text().splitlines()) == asked


def test_nothing_is_left_open_after_all_that(run):
    server = run("--role", "web_single", under=stderr_to("/dev/null"))
    with RawConnection(server) as kept:
        kept.exchange(LIVEZ)
        before = len(os.listdir(f"/proc/{server.worker_pid}/fd"))
        with ExitStack() as stack:
            for request_bytes in (LABEL_REQUEST, LABEL_REQUEST[:40], LARGEST_REQUEST, b"nonsense\r\n\r\n", b""):
                for _ in range(20):
                    stack.enter_context(RawConnection(server)).send(request_bytes)
        wait_until(
            lambda: kept.exchange(LIVEZ) and len(os.listdir(f"/proc/{server.worker_pid}/fd")) == before, "as few as before"
        )
        text = kept.exchange(METRICS).body.decode()
        assert metric_sum(text, "http_requests_in_flight") == 1
