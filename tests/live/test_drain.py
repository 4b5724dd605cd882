"""Graceful shutdown after a signal: every accepted request gets a response."""

import json
import os
import random
import signal
import sys
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest
from haproxy_process import start_haproxy
from http_clients import (
    CI,
    LABEL_REQUEST,
    LARGEST_REQUEST,
    LIVEZ,
    NO_COVERAGE,
    POOLED_REQUEST,
    READYZ,
    LoadGenerator,
    RawConnection,
    child_pids,
    fetch,
    is_alive,
    stderr_to,
    wait_until,
)
from server_process import ServerProcess, refuses_connections, start_as_pid_1, start_server, wait_for_exit

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
ROUNDS = 50 if CI else 6
SWAPS = 20 if CI else 4
LONG_IDLE = {"iris_wsgi.server.connection.KEEP_ALIVE_SECONDS": 600.0}
BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])


@BOTH
def test_during_the_grace_period_the_server_serves_and_closes_each_connection(run, clock, number):
    server = run("--grace-seconds", "2", clock=clock)
    with RawConnection(server) as persistent, RawConnection(server) as other:
        assert persistent.exchange(READYZ).status == 200 and other.exchange(LABEL_REQUEST).status == 200
        server.process.send_signal(number)
        wait_until(lambda: fetch(server, READYZ).status == 503, "the server is not ready")
        response = persistent.exchange(READYZ)
        assert (response.status, response.closes) == (503, True)
        assert persistent.read_to_end() == ("closed", b"")
        response = other.exchange(LARGEST_REQUEST)
        assert (response.status, response.closes) == (200, True)
        for request_bytes in (LIVEZ, LABEL_REQUEST, POOLED_REQUEST):
            response = fetch(server, request_bytes)
            assert (response.status, response.closes) == (200, True)
        assert server.process.poll() is None
    advance_until_exit(server, clock)
    assert wait_for_exit(server) == 0


def advance_until_exit(server, clock) -> None:
    """Advances the clock until the server has ended."""

    def gone() -> bool:
        clock.advance(0.1)
        return server.process.poll() is not None

    wait_until(gone, "the end of the server")


@BOTH
def test_connections_from_before_the_end_all_get_responses(run, clock, number):
    server = run("--grace-seconds", "2", clock=clock)
    with ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server)) for _ in range(200)]
        server.process.send_signal(number)
        wait_until(lambda: fetch(server, READYZ).status == 503, "the server is not ready")
        for connection in connections:
            connection.send(LABEL_REQUEST)
        responses = [connection.receive() for connection in connections]
        assert {(response.status, response.closes) for response in responses} == {(200, True)}
    advance_until_exit(server, clock)
    assert wait_for_exit(server) == 0


def test_connections_in_the_backlog_get_responses(run):
    server = run()
    pid = server.worker_pid
    with ExitStack() as stack:
        os.kill(pid, signal.SIGSTOP)
        connections = [stack.enter_context(RawConnection(server)).send(LABEL_REQUEST) for _ in range(300)]
        server.process.terminate()
        os.kill(pid, signal.SIGCONT)
        assert {connection.receive().status for connection in connections} == {200}
    assert wait_for_exit(server) == 0


def test_connections_over_the_limit_get_503_even_at_the_end(run):
    server = run("--connections", "5")
    pid = server.worker_pid
    with ExitStack() as stack:
        os.kill(pid, signal.SIGSTOP)
        connections = [stack.enter_context(RawConnection(server)).send(LABEL_REQUEST) for _ in range(300)]
        server.process.terminate()
        os.kill(pid, signal.SIGCONT)
        statuses = [connection.receive().status for connection in connections]
        assert set(statuses) == {200, 503} and statuses.count(200) >= 5
    assert wait_for_exit(server) == 0


@pytest.mark.long
def test_requests_in_the_pool_are_finished_and_idle_connections_are_closed(run):
    # The drain time is longer than the test's timeout.
    server = run("--threads", "1", "--drain-seconds", "600", "--deadline-ms", "0", constants=LONG_IDLE)
    with ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server)).send(LARGEST_REQUEST) for _ in range(12)]
        wait_until(connections[0].readable, "the first response")
        idle = stack.enter_context(RawConnection(server))
        server.process.terminate()
        assert [connection.receive().status for connection in connections] == [200] * 12
        # These clients keep their connections open, and the server does not wait for them.
        assert wait_for_exit(server) == 0
        assert idle.read_to_end() == ("closed", b"")


@pytest.mark.long
def test_a_response_of_the_pool_after_the_signal_closes_the_connection(run, clock):
    server = run("--threads", "1", "--grace-seconds", "2", clock=clock)
    with ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server)).send(LARGEST_REQUEST) for _ in range(12)]
        wait_until(connections[0].readable, "the first response")
        server.process.terminate()
        wait_until(lambda: fetch(server, READYZ).status == 503, "the server is not ready")
        waiting = [connection for connection in connections if not connection.readable()]
        responses = [connection.receive() for connection in waiting]
        assert {response.status for response in responses} == {200}
        # At most two responses lack the header: one started before the signal, and another arrived during the check.
        assert len(responses) > 3 and all(response.closes for response in responses[2:])
        assert waiting[-1].read_to_end() == ("closed", b"")
    advance_until_exit(server, clock)
    assert wait_for_exit(server) == 0


def test_a_response_with_a_slow_reader_is_sent_to_its_end(run):
    server = run("--drain-seconds", "60")
    with RawConnection(server, receive_buffer=4096) as connection:
        connection.send(LARGEST_REQUEST * 8)
        first = connection.receive()
        server.process.terminate()
        responses = [first]
        while not responses[-1].closes:
            responses.append(connection.receive())
            time.sleep(0.01)
        assert {response.status for response in responses} == {200}
        assert connection.read_to_end() == ("closed", b"")
    assert wait_for_exit(server) == 0


@pytest.mark.parametrize("unfinished", [LABEL_REQUEST[:30], LABEL_REQUEST[:-5]], ids=["head", "body"])
def test_a_client_that_never_finishes_its_request_does_not_delay_the_end(run, clock, unfinished):
    server = run("--grace-seconds", "0.5", "--drain-seconds", "1", clock=clock)
    with RawConnection(server) as connection:
        connection.send(unfinished)
        assert fetch(server, LIVEZ).status == 200
        server.process.terminate()
        wait_until(lambda: fetch(server, READYZ).status == 503, "the server is not ready")
        clock.advance(0.6)
        # Two rounds of the loop: one starts the drain, and the next may close the listener.
        clock.advance(0.3)
        wait_until(lambda: refuses_connections(server), "the end of the listener")
        assert server.process.poll() is None
        clock.advance(1)
        assert wait_for_exit(server) == 0
        assert "cut off" in server.process.stderr.read()


def test_a_request_that_is_completed_during_the_drain_gets_its_response(run):
    server = run("--drain-seconds", "60")
    with RawConnection(server) as connection:
        connection.send(LABEL_REQUEST[:-5])
        assert fetch(server, LIVEZ).status == 200
        server.process.terminate()
        wait_until(lambda: refuses_connections(server), "the end of the listener")
        response = connection.exchange(LABEL_REQUEST[-5:])
        assert (response.status, response.closes) == (200, True)
    assert wait_for_exit(server) == 0


@BOTH
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_signal_ends_the_server_at_once(run, number, workers):
    server = run("--grace-seconds", "600", "--workers", workers)
    server.process.terminate()
    wait_until(lambda: fetch(server, READYZ).status == 503, "the server is not ready")
    pids = [server.process.pid, *child_pids(server.process.pid)]
    server.process.send_signal(number)
    assert wait_for_exit(server) == 128 + number
    wait_until(lambda: refuses_connections(server) and not any(map(is_alive, pids)), "the end of all processes")


def test_the_log_is_complete_at_the_end_if_it_has_a_reader(run):
    server = run()
    request_count = 0
    with RawConnection(server) as connection:
        while request_count < 4000:
            connection.send(LIVEZ * 200)
            assert {connection.receive().status for _ in range(200)} == {200}
            request_count += 200
    _, err = server.stop()
    assert sum(json.loads(line)["route"] == "/livez" for line in err.splitlines()) == request_count


WAYS = {"process": start_server, "PID 1": start_as_pid_1}


@pytest.mark.repeats
@pytest.mark.long
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("way", WAYS)
def test_no_request_is_lost_under_load_at_any_number_of_shutdowns(way, workers):
    # The first server runs with coverage, and the others at full speed.
    for turn in range(-(-ROUNDS // 4)):
        server = WAYS[way]("--workers", workers, **({} if turn == 0 else NO_COVERAGE))
        try:
            pid = server.process.pid if way == "process" else child_pids(server.process.pid)[0]
            drain = threading.Thread(target=server.process.stderr.read)
            drain.start()
            with LoadGenerator(server, 3, 5, [LABEL_REQUEST] * 9 + [POOLED_REQUEST]) as load:
                enough = random.randrange(20, 300)
                wait_until(lambda load=load, enough=enough: load.responses >= enough, "load")
                os.kill(pid, signal.SIGTERM)
                load.thread.join(60)
            assert (load.lost, set(load.statuses), load.refused) == ([], {200}, 8), (turn, enough, load.lost, load.errors)
            assert wait_for_exit(server) == 0
        finally:
            server.process.kill()
            server.process.wait(120)
            drain.join(120)
            server.process.stderr.close()


PROXY = """
defaults
    mode http
    timeout connect 60s
    timeout client 120s
    timeout server 120s
    timeout check 60s
    # What haproxy tries again is a connection that it could not make, and nothing else: a request that was sent and not
    # answered is never sent twice (there is no retry-on), and the client gets 502.
    retries 3
    option redispatch
frontend front
    bind 127.0.0.1:{front}
    default_backend servers
backend servers
    balance roundrobin
    option httpchk GET /readyz
    http-check expect status 200
    default-server check inter 50ms fastinter 20ms downinter 50ms fall 1 rise 1
    server one 127.0.0.1:{one}
    server two 127.0.0.1:{two}
"""


@pytest.fixture
def proxy(tmp_path):
    with start_haproxy(tmp_path, PROXY, ("one", "two")) as proxy_server:
        yield proxy_server


@contextmanager
def load_threads(server, count: int):
    loads = [LoadGenerator(server, 2, 1, [LABEL_REQUEST] * 19 + [POOLED_REQUEST]) for _ in range(count)]
    with ExitStack() as stack:
        for load in loads:
            stack.enter_context(load)
        yield loads


@pytest.mark.repeats
@pytest.mark.long
@pytest.mark.parametrize("workers", ["1", "2"])
def test_behind_haproxy_servers_are_replaced_without_a_failed_request(run, proxy, workers):
    names = ("one", "two")

    def start(which: int) -> ServerProcess:
        options = ("--port", str(proxy.ports[which]), "--workers", workers, "--grace-seconds", "2")
        server = run(*options, under=stderr_to("/dev/null"), **NO_COVERAGE)
        wait_until(lambda: proxy.states()[names[which]] == "UP", f"haproxy sees {names[which]}")
        return server

    serving = start(0)
    with load_threads(proxy, 4) as loads:
        for turn in range(SWAPS // 2):
            following = start((turn + 1) % 2)
            before = [load.responses for load in loads]
            serving.process.terminate()
            assert wait_for_exit(serving) == 0
            wait_until(
                lambda before=before: all(load.responses > had for load, had in zip(loads, before, strict=True)),
                "the load continues",
            )
            serving = following
    assert [load.lost for load in loads] == [[]] * 4
    assert {status for load in loads for status in load.statuses} == {200}, [load.errors for load in loads]
    assert sum(load.refused for load in loads) == 0
