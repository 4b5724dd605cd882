"""Overload of every resource: the server refuses the excess, continues, and recovers."""

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
from worker_processes import request_lines, serving_workers

from iris_wsgi.observability.shared_memory import SharedMemory, WorkerGroup
from iris_wsgi.server.event_loop import TURN_EVENTS, EventLoop
from iris_wsgi.settings import Settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def assert_overloaded(connection: RawConnection) -> None:
    """Receives a response and asserts that it is a complete 503."""
    response = connection.receive()
    assert (response.status, response.headers["retry-after"]) == (503, "1")
    assert response.json()["status"] == 503 and response.headers["content-type"] == "application/problem+json"


@pytest.fixture
def full(run):
    """Server at its connection limit, and its connections."""
    server = run("--connections", "20", under=stderr_to("/dev/null"))
    with ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server)) for _ in range(20)]
        assert [connection.exchange(LIVEZ).status for connection in connections] == [200] * 20
        yield server, connections


@pytest.mark.parametrize("when", ["at once", "late", "never", "at length", "in two parts"])
def test_a_connection_over_the_limit_gets_503_and_no_reset_whenever_it_sends_its_request(full, when):
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
                # The earlier refusals have no further effect once the other connections have their responses.
                assert connections[0].exchange(LIVEZ).status == 200
                connection.send(LABEL_REQUEST[-30:])
            assert_overloaded(connection)
            assert connection.read_to_end() == ("closed", b"")
    assert [connection.exchange(LABEL_REQUEST).status for connection in connections] == [200] * 20


def test_a_freed_connection_slot_is_reused(full):
    server, connections = full
    connections[7].socket.close()

    def served() -> bool:
        with RawConnection(server) as connection:
            return connection.exchange(LIVEZ).status == 200

    wait_until(served, "a new connection after the close of another")


def test_the_bytes_of_incomplete_requests_are_bounded_over_all_connections(run):
    server = run("--pending-bytes", "2097152", "--request-seconds", "60")
    head = b"POST /predict/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1048576\r\n\r\n"
    with ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server)) for _ in range(8)]
        for connection in connections:
            # One byte is missing, so the server must buffer the rest of each request.
            connection.send(head + b" " * 1_048_500)
        wait_until(lambda: sum(connection.readable() for connection in connections) >= 6, "the refusals")
        refused = [connection for connection in connections if connection.readable()]
        for connection in refused:
            response = connection.receive()
            assert (response.status, response.headers["retry-after"], response.headers["connection"]) == (503, "1", "close")
        # The server does not buffer complete requests, and responds to them at the same time.
        assert fetch(server, LABEL_REQUEST).status == 200
        for connection in set(connections) - set(refused):
            connection.send(b" " * 76)
            assert connection.receive().status == 400
    assert len(refused) == 6
    assert fetch(server, LARGEST_REQUEST).status == 200


@pytest.mark.long
def test_the_bytes_of_unread_responses_are_bounded_over_all_connections(run, tmp_path):
    limit, clients, requests = 4 * 1024 * 1024, 16, 12
    log = tmp_path / "log"
    server = run("--pending-bytes", str(limit), under=stderr_to(log))
    # Requests with large responses in relation to their size.
    batch = http_request("POST", "/predict/batch", {"data": [[1, 1, 1, 1]] * 10_000})
    size = len(fetch(server, batch).body)
    pid = server.worker_pid
    before = open_socket_count(pid)
    with ExitStack() as stack:
        # More than the kernel buffers hold. Each client has one response at a time.
        connections = [
            stack.enter_context(RawConnection(server, receive_buffer=4096)).send(batch * requests) for _ in range(clients)
        ]
        wait_until(lambda: open_socket_count(pid) - before <= limit // size, "the connections over the limit are closed")
        assert fetch(server, LABEL_REQUEST).status == 200
        complete_count = 0
        for connection in connections:
            with suppress(EOFError, ConnectionResetError):
                complete_count += all(connection.receive().status == 200 for _ in range(requests))
        assert complete_count == limit // size
    assert "a response was dropped" in log.read_text()


def test_the_connection_limit_follows_the_limit_of_file_descriptors(run):
    limited = ("sh", "-c", 'ulimit -n 64; exec "$@"', "sh")
    server = run(under=limited)
    with ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server)).send(LIVEZ) for _ in range(60)]
        statuses = [connection.receive().status for connection in connections]
        assert set(statuses) == {200, 503} and statuses.count(200) >= 16
        assert connections[0].exchange(METRICS).status == 200


def test_work_beyond_the_queue_gets_503_while_the_pool_is_busy_and_the_connection_stays_open(run):
    server = run("--queue", "2", "--threads", "1")
    with ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server)).send(LARGEST_REQUEST) for _ in range(20)]
        order, waiting = [], list(connections)
        while waiting:
            wait_until(lambda: any(item.readable() for item in waiting), "another response")
            for connection in [item for item in waiting if item.readable()]:
                waiting.remove(connection)
                response = connection.receive()
                order.append(response.status)
                assert not response.closes
                assert response.status == 200 or response.headers["retry-after"] == "1"
        assert len(order) == 20 and set(order) == {200, 503}
        # Two requests wait. One more waits if the thread had already started the first one.
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
def test_the_metrics_show_the_connections_the_queue_and_the_buffered_bytes(run):
    server = run("--threads", "1", "--queue", "10", "--deadline-ms", "0")

    def now(name: str, **labels: str) -> float:
        return metric_sum(prober.exchange(METRICS).body.decode(), name, **labels)

    with ExitStack() as stack:
        prober = stack.enter_context(RawConnection(server))
        part = LARGEST_REQUEST[:50_000]
        half = stack.enter_context(RawConnection(server)).send(part)
        wait_until(
            lambda: now("http_held_bytes", of="requests") == len(part) - part.index(b"\r\n\r\n") - 4,
            "the server buffers half of the request",
        )
        assert now("http_connections") == 2
        half.socket.close()
        connections = [
            stack.enter_context(RawConnection(server, receive_buffer=4096)).send(LARGEST_REQUEST * 12) for _ in range(8)
        ]
        wait_until(lambda: now("http_requests_queued") > 0, "some requests wait for the thread")
        assert now("http_held_bytes", of="requests") > 0
        wait_until(lambda: now("http_held_bytes", of="answers") > 0, "responses are unread")
        for connection in connections:
            connection.socket.close()
        wait_until(lambda: now("http_connections") == 1, "all connections except one are closed")
        for name in ("http_requests_queued", "http_held_bytes"):
            wait_until(lambda name=name: now(name) == 0, f"{name} has its old value")


@pytest.mark.long
def test_in_overload_every_request_succeeds_and_throughput_stays_high(run):
    server = run(under=stderr_to("/dev/null"), **NO_COVERAGE)
    seconds = 4 if CI else 1

    def successes_per_cpu_second(keeping: int, fresh: int) -> float:
        """Returns the successful requests per second of the server's CPU time, because other processes may use the machine."""
        spent = cpu_seconds(server.worker_pid)
        with load_processes(server, 2, keeping, fresh, seconds) as totals:
            totals_now = totals()
        assert totals_now.lost == [] and totals_now.refused == 0
        # Far fewer connections than the limit are open at a time.
        assert set(totals_now.statuses) == {200}
        return totals_now.statuses[200] / (cpu_seconds(server.worker_pid) - spent)

    shares = []
    for _ in range(3):
        peak = successes_per_cpu_second(7, 1)
        shares.append(successes_per_cpu_second(140, 20) / peak)
        if shares[-1] >= 0.6:
            break
    assert fetch(server, LABEL_REQUEST).status == 200
    assert max(shares) >= 0.6, shares


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Raises the limit of file descriptors for this process and its children to some thousands."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] if before[1] != resource.RLIM_INFINITY else 65536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.long
@pytest.mark.parametrize(("workers", "connection_count"), [(1, 1500), (2, 2500)])
def test_new_connections_are_accepted_in_turn_while_thousands_of_others_are_ready(
    run, tmp_path, many_descriptors, workers, connection_count
):
    log = tmp_path / "log"
    server = run("--role", "web_single", "--workers", str(workers), under=stderr_to(log), **NO_COVERAGE)
    wait_until(lambda: len(serving_workers(server)) == workers, "the workers")
    pids = serving_workers(server)
    with ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server)) for _ in range(connection_count)]
        for connection in connections:
            assert connection.exchange(LIVEZ).status == 200
        for turn in range(1, 4):
            # All requests that arrive while the workers are stopped are ready when the workers continue, with the new connections
            # last.
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            for connection in connections:
                connection.send(LIVEZ)
            newcomers = [stack.enter_context(RawConnection(server)).send(READYZ) for _ in range(4)]
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            assert {connection.receive().status for connection in (*newcomers, *connections)} == {200}
            expected = (turn + 1) * connection_count + turn * len(newcomers)
            wait_until(lambda expected=expected: len(request_lines(log)) == expected, "a line for each request")
            routes = [line["route"] for line in request_lines(log)][-connection_count - len(newcomers) :]
            last = max(i for i, route in enumerate(routes) if route == "/readyz")
            # This is a few turns of each worker, and fewer than the number of ready connections.
            assert last < 8 * workers * TURN_EVENTS < connection_count


def test_the_loop_accepts_connections_even_if_the_poller_reports_only_others(log, make_app):
    """Each turn of the loop accepts connections, even if other connections are always ready and reported first."""
    with socket.create_server(("127.0.0.1", 0)) as bound, ExitStack() as stack:
        address = bound.getsockname()
        service = make_app(role="web_single").service
        server = EventLoop(
            service.app, bound, Settings(), 1, service.observer, log, WorkerGroup(os.getppid(), SharedMemory(2), 0)
        )
        connection_count = [stack.enter_context(socket.create_connection(address)) for _ in range(TURN_EVENTS)]
        while server.handle_accept():
            pass
        ready = [(fd, select.EPOLLIN) for fd in server.connections]
        assert len(ready) == TURN_EVENTS
        server.poller = FullPoller(server.poller, ready, server)
        for item in connection_count:
            item.sendall(LIVEZ)
        late_connection = stack.enter_context(socket.create_connection(address))
        late_connection.sendall(READYZ)
        server.run()
        assert late_connection.recv(20).startswith(b"HTTP/1.1 200 ")
        assert [json.loads(line)["route"] for line in log.raw_lines].index("/readyz") == TURN_EVENTS


class FullPoller:
    """Poller that reports the same connections in each turn, and ends the server after the first turn."""

    def __init__(self, real, ready, server) -> None:
        self.real, self.ready, self.server, self.turns = real, ready, server, 0
        self.register, self.modify, self.unregister, self.close = real.register, real.modify, real.unregister, real.close

    def poll(self, timeout: float, events: int) -> list[tuple[int, int]]:
        self.turns += 1
        if self.turns > 1:
            self.server.stop()
        return self.ready[:events]


def test_an_overloaded_pool_does_not_affect_other_requests(run):
    server = run("--queue", "4", "--threads", "1", under=stderr_to("/dev/null"), **NO_COVERAGE)
    with LoadGenerator(server, 40, 10, [LARGEST_REQUEST]) as large, LoadGenerator(server, 4, 4, [LABEL_REQUEST]) as small:
        wait_until(lambda: large.statuses[503] >= 100 and large.statuses[200] >= 5 and small.responses >= 200, "responses")
    assert large.lost == [] and small.lost == []
    assert set(large.statuses) == {200, 503} and set(small.statuses) == {200}
    assert fetch(server, LARGEST_REQUEST).status == 200


def test_without_descriptors_the_server_waits_and_continues_when_there_are_some_again(run, tmp_path):
    log = tmp_path / "log"
    # This role has no additional threads, which would open files during the test.
    server = run("--role", "web_single", under=stderr_to(log))
    pid = server.worker_pid
    with ExitStack() as stack:
        persistent = stack.enter_context(RawConnection(server))
        assert persistent.exchange(LIVEZ).status == 200
        used = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(used) + 3, before[1]))
        connections = [stack.enter_context(RawConnection(server)).send(LIVEZ) for _ in range(max(used) + 30)]
        wait_until(lambda: "connections wait" in log.read_text(), "the message in the log")
        assert 0 < sum(connection.readable() for connection in connections) < len(connections)
        for request_bytes in (LIVEZ, READYZ, METRICS, LABEL_REQUEST):
            assert persistent.exchange(request_bytes).status == 200
        wait_until(lambda: stays_asleep(pid), "a server that waits without using the CPU")
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
def test_a_log_without_a_reader_stops_nothing_and_every_lost_line_is_counted(run):
    server = run()
    request_count = 0
    seen, lost = Counter(), []

    def read() -> None:
        for line in map(json.loads, server.process.stderr):
            seen[line.get("route")] += 1
            lost.extend([line["lines"]] if line.get("message") == "log lines were lost" else [])

    def accounted() -> int:
        return seen["/livez"] + sum(lost)

    reader = threading.Thread(target=read)
    with RawConnection(server) as connection:
        while request_count < 14_000:
            connection.send(LIVEZ * 200)
            assert {connection.receive().status for _ in range(200)} == {200}
            request_count += 200
        reader.start()
        try:
            wait_until(lambda: accounted() == request_count, "a line for each request, or its part in the number of lost lines")
            assert connection.exchange(LIVEZ).status == 200
            wait_until(lambda: accounted() == request_count + 1, "the line of a later request")
        finally:
            server.process.terminate()
            server.process.wait(120)
            reader.join(120)
    assert len(lost) == 1
    assert server.process.returncode == 0


def test_a_clock_that_jumps_by_an_hour_ends_no_connection(run, tmp_path):
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
    request_count = 0
    with RawConnection(server) as new, RawConnection(server) as persistent, RawConnection(server) as incomplete:
        incomplete.send(LABEL_REQUEST[:30])
        for hours in (0, 1, -1, 0):
            following = tmp_path / "following"
            following.write_text(f"{hours:+d}h")
            following.rename(offset)

            def date_is_changed(hours: int = hours) -> bool:
                response = persistent.exchange(LABEL_REQUEST)
                assert response.status == 200
                date_is_changed.asked += 1
                date = parsedate_to_datetime(response.headers["date"]).timestamp()
                return abs(date - time.time() - hours * 3600) < 60

            date_is_changed.asked = 0
            wait_until(date_is_changed, f"a date {hours} hours away")
            request_count += date_is_changed.asked
            assert fetch(server, LIVEZ).status == 200
            request_count += 1
        assert new.exchange(LABEL_REQUEST).status == 200
        assert incomplete.exchange(LABEL_REQUEST[30:]).status == 200
        request_count += 2
        wait_until(lambda: stays_asleep(server.worker_pid), "a server that waits without using the CPU")
    server.stop()
    assert server.process.returncode == 0
    assert len(request_lines(log)) == request_count


def test_no_connection_is_left_open_after_an_overload(run):
    server = run("--role", "web_single", under=stderr_to("/dev/null"))
    with RawConnection(server) as persistent:
        persistent.exchange(LIVEZ)
        before = len(os.listdir(f"/proc/{server.worker_pid}/fd"))
        with ExitStack() as stack:
            for request_bytes in (LABEL_REQUEST, LABEL_REQUEST[:40], LARGEST_REQUEST, b"nonsense\r\n\r\n", b""):
                for _ in range(20):
                    stack.enter_context(RawConnection(server)).send(request_bytes)
        wait_until(
            lambda: persistent.exchange(LIVEZ) and len(os.listdir(f"/proc/{server.worker_pid}/fd")) == before,
            "the old number of descriptors",
        )
        text = persistent.exchange(METRICS).body.decode()
        assert metric_sum(text, "http_requests_in_flight") == 1
