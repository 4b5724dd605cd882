"""Several workers on one socket: their metrics are one, and the death of a worker affects no other."""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from http_clients import (
    LABEL_REQUEST,
    LARGEST_REQUEST,
    LIVEZ,
    METRICS,
    NO_COVERAGE,
    POOLED_REQUEST,
    READYZ,
    LoadGenerator,
    RawConnection,
    child_pids,
    cpu_seconds,
    fetch,
    is_alive,
    metric_sum,
    open_socket_count,
    stays_asleep,
    stderr_to,
    wait_until,
)
from server_process import error_of, refuses_connections, run_failing_start, start_server, wait_for_exit
from worker_processes import events_containing, log_events, serving_workers, wait_for_two_workers

from iris_wsgi.server import supervisor as workers
from iris_wsgi.server.serve import RETIRE
from iris_wsgi.server.supervisor import FIRST_DELAY_SECONDS, YOUNG_SECONDS, Supervisor, WorkerProcess
from iris_wsgi.settings import Settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
TWO = ("--workers", "2")


@pytest.fixture
def pair(run, tmp_path):
    """Server of two workers, with its log file."""
    server = run(*TWO, under=stderr_to(tmp_path / "log"))
    wait_for_two_workers(server)
    return server, tmp_path / "log"


@pytest.fixture(scope="module")
def shared():
    """Server of two workers for tests that only send requests."""
    server = start_server(*TWO, under=stderr_to("/dev/null"))
    wait_for_two_workers(server)
    yield server
    server.stop()


def test_two_workers_serve_on_one_socket(shared):
    pids = wait_for_two_workers(shared)
    before = {pid: cpu_seconds(pid) for pid in pids}
    with LoadGenerator(shared, 10, 10, [LABEL_REQUEST, POOLED_REQUEST]):
        wait_until(lambda: all(cpu_seconds(pid) > before[pid] + 0.1 for pid in pids), "work of both")
    inodes = {os.stat(f"/proc/{pid}/fd/{fd.name}").st_ino for pid in pids for fd in listeners(pid, shared.port)}
    assert len(inodes) == 1


@pytest.mark.parametrize("at_once", [True, False])
def test_persistent_connections_are_distributed_among_the_workers(run, clock, at_once):
    # On a busy machine a worker may not run during the millisecond in which the other one leaves it the next connection. With
    # this clock the millisecond passes only when neither worker accepts.
    server = run(*TWO, under=stderr_to("/dev/null"), clock=clock)
    pids = wait_for_two_workers(server)
    before = [open_socket_count(pid) for pid in pids]

    def shares() -> list[int]:
        return [open_socket_count(pid) - earlier for pid, earlier in zip(pids, before, strict=True)]

    def advance_and_check(condition: Callable[[], bool]) -> bool:
        # A worker leaves the listener for an instant after each connection, so one check is not enough.
        if not any(listens(pid, server.port) for pid in pids * 2):
            clock.advance(0.001)
        return condition()

    with ExitStack() as stack:
        for count in range(1, 21):
            connection = stack.enter_context(RawConnection(server)).send(LIVEZ)
            if not at_once:
                wait_until(lambda connection=connection: advance_and_check(connection.readable), f"response {count}")
        wait_until(lambda: advance_and_check(lambda: sum(shares()) == 20), "all connections are accepted")
        assert min(shares()) >= 6, shares()


def listens(pid: int, port: int) -> bool:
    """Returns whether the process waits for connections on the port, according to its epoll."""
    waits = {listener.name for listener in listeners(pid, port)}
    with suppress(OSError):
        for path in Path(f"/proc/{pid}/fdinfo").iterdir():
            if any(line.split()[1] in waits for line in path.read_text().splitlines() if line.startswith("tfd:")):
                return True
    return False


@pytest.mark.long
@pytest.mark.parametrize("attempt", range(4))
def test_a_process_that_drains_while_it_leaves_connections_to_others_uses_no_cpu(pair, attempt):
    server, _ = pair
    leaving, staying = wait_for_two_workers(server)
    os.kill(staying, signal.SIGSTOP)
    try:
        with ExitStack() as stack:
            half = stack.enter_context(RawConnection(server)).send(LABEL_REQUEST[:40])
            # A new connection comes each millisecond, so the drain starts at a random point of the pause.
            for i in range(200):
                stack.enter_context(RawConnection(server))
                if i == 100:
                    # This is the parent's signal. SIGTERM would first start a replacement.
                    os.kill(leaving, RETIRE)
            assert not half.readable()
            wait_until(lambda: stays_asleep(leaving), "a process that waits for its last client without using the CPU")
    finally:
        os.kill(staying, signal.SIGCONT)


def listeners(pid: int, port: int) -> list[Path]:
    """Returns the file descriptors of a process that are a socket listening on the port."""
    expected = f":{port:04X} 00000000:0000 0A"
    inodes = {line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines() if expected in line}
    return [fd for fd in Path(f"/proc/{pid}/fd").iterdir() if os.readlink(fd)[8:-1] in inodes]


def test_the_parent_holds_neither_model_nor_numpy(shared):
    maps = Path(f"/proc/{shared.process.pid}/maps").read_text()
    assert "libpython" in maps or "python" in maps
    assert "onnxruntime" not in maps and "numpy" not in maps
    for pid in wait_for_two_workers(shared):
        assert "onnxruntime" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.long
def test_metrics_are_exact_whichever_worker_reports_them(run):
    server = run(*TWO, "--cache", "off", under=stderr_to("/dev/null"))
    wait_for_two_workers(server)
    with LoadGenerator(server, 4, 8, [LABEL_REQUEST, LABEL_REQUEST, LABEL_REQUEST, POOLED_REQUEST]) as load:
        wait_until(lambda: load.responses >= 600, "responses")
    with ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server)) for _ in range(40)]
        assert [connection.exchange(LIVEZ).status for connection in connections] == [200] * 40
    assert load.lost == []
    labels, batches, texts = set(), set(), []

    def scrape() -> str:
        texts.append(fetch(server, METRICS).body.decode())
        return texts[-1]

    # A worker counts its requests at the end of a turn of its loop, after the responses.
    wait_until(lambda: metric_sum(scrape(), "http_requests_total", route="/livez") == 40, "the counts of both workers")
    for _ in range(20):
        text = scrape()
        labels.add(metric_sum(text, "http_requests_total", route="/predict/label"))
        batches.add(metric_sum(text, "http_request_duration_seconds_count", route="/predict/batch"))
        assert metric_sum(text, "http_requests_total", route="/livez") == 40
        assert metric_sum(text, "http_requests_in_flight") == 1
    wait_until(
        lambda: metric_sum(scrape(), "http_requests_total", route="/metrics") == len(texts) - 1, "every scrape before the last"
    )
    assert len(labels) == len(batches) == 1
    assert labels.pop() + batches.pop() == load.responses
    rows = metric_sum(text, "http_requests_total", route="/predict/label") + 1000 * metric_sum(
        text, "http_requests_total", route="/predict/batch"
    )
    assert metric_sum(text, "model_rows_total") == rows


def test_memory_descriptors_and_cpu_time_are_those_of_all_processes(shared):
    text = fetch(shared, METRICS).body.decode()
    pids = [shared.process.pid, *wait_for_two_workers(shared)]
    resident = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * os.sysconf("SC_PAGE_SIZE")
    assert metric_sum(text, "process_resident_memory_bytes") == pytest.approx(resident, rel=0.2)
    assert metric_sum(text, "process_open_fds") >= sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids) - 3
    assert metric_sum(text, "process_cpu_seconds_total") == pytest.approx(sum(map(cpu_seconds, pids)), rel=0.5)


@pytest.mark.long
def test_counters_survive_the_kill_of_a_worker_and_never_decrease(pair):
    server, _ = pair
    with ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server)) for _ in range(40)]
        assert [connection.exchange(LABEL_REQUEST).status for connection in connections] == [200] * 40
    wait_until(
        lambda: metric_sum(fetch(server, METRICS).body.decode(), "http_requests_total", route="/predict/label") == 40,
        "the counts of both workers",
    )
    spent = metric_sum(fetch(server, METRICS).body.decode(), "process_cpu_seconds_total")
    for _ in range(2):
        pids = wait_for_two_workers(server)
        os.kill(pids[0], signal.SIGKILL)
        wait_until(lambda gone=pids[0]: gone not in wait_for_two_workers(server), "a replacement")
    for _ in range(20):
        text = fetch(server, METRICS).body.decode()
        assert metric_sum(text, "http_requests_total", route="/predict/label") == 40
        assert metric_sum(text, "process_cpu_seconds_total") >= spent


@pytest.mark.long
def test_requests_of_a_killed_worker_do_not_stay_in_flight(pair):
    server, _ = pair
    os.kill(server.process.pid, signal.SIGHUP)
    pids = wait_for_two_workers(server)
    wait_until(lambda: not set(serving_workers(server)) & set(pids) and len(serving_workers(server)) == 2, "two new workers")
    for pid in wait_for_two_workers(server):
        with ExitStack() as stack:
            connections = [stack.enter_context(RawConnection(server)).send(LARGEST_REQUEST) for _ in range(20)]
            wait_until(lambda: in_flight(server) >= 3, "busy workers")
            os.kill(pid, signal.SIGKILL)
            wait_until(
                lambda connections=connections: all(connection.readable() for connection in connections),
                "responses of one worker, and the end of the other",
            )
        wait_until(lambda gone=pid: gone not in wait_for_two_workers(server), "a replacement")
    wait_until(lambda: in_flight(server) == 1, "nothing in flight except this request")


def in_flight(server) -> float:
    return metric_sum(fetch(server, METRICS).body.decode(), "http_requests_in_flight")


@pytest.mark.parametrize(
    ("age", "pause"), [(YOUNG_SECONDS, 0.0), (YOUNG_SECONDS - 0.01, FIRST_DELAY_SECONDS)], ids=["old", "young"]
)
def test_a_dead_worker_is_replaced_at_once_unless_it_was_young(monkeypatch, log, age, pause):
    now, started = [1000.0], []
    monkeypatch.setattr(workers.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Supervisor, "start", lambda _: started.append(now[0]))
    supervisor = Supervisor(Settings(), None, 2)
    supervisor.log, supervisor.announced = log, True
    worker = WorkerProcess(11, 0, -1)
    worker.ready = True
    now[0] += age
    supervisor.on_worker_exit(worker, -signal.SIGKILL)
    for seconds in (0.0, pause - 0.01, pause):
        now[0] = 1000.0 + age + seconds
        supervisor.reconcile()
    assert started[0] == 1000.0 + age + pause


def test_a_dead_worker_is_replaced_and_logged(pair):
    server, log = pair
    dead, other = wait_for_two_workers(server)
    os.kill(dead, signal.SIGKILL)
    with LoadGenerator(server, 0, 4) as load:
        wait_until(lambda: len(serving_workers(server)) == 2 and dead not in serving_workers(server), "a replacement")
    assert other in wait_for_two_workers(server)
    # Only requests of the dead worker could be lost. These came later, and some had already connected to it.
    assert set(load.statuses) == {200} and len(load.lost) <= 4
    [event] = events_containing(log, "a worker died")
    assert (event["pid"], event["how"], event["level"]) == (dead, "signal SIGKILL", "error")


def age(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return float(Path("/proc/uptime").read_text().split()[0]) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def test_a_worker_that_gets_a_signal_is_replaced_and_the_service_continues(pair):
    server, _ = pair
    ended_one, other = wait_for_two_workers(server)
    os.kill(ended_one, signal.SIGTERM)
    wait_until(lambda: not is_alive(ended_one) and ended_one not in wait_for_two_workers(server), "a replacement")
    for _ in range(20):
        assert fetch(server, LABEL_REQUEST, timeout=120).status == 200
    assert other in wait_for_two_workers(server)
    assert fetch(server, READYZ).status == 200


def test_a_stopped_worker_does_not_stop_the_others(pair):
    server, _ = pair
    pids = wait_for_two_workers(server)
    os.kill(pids[0], signal.SIGSTOP)
    try:
        with ExitStack() as stack:
            connections = [stack.enter_context(RawConnection(server)).send(LABEL_REQUEST) for _ in range(20)]
            assert {connection.receive().status for connection in connections} == {200}
    finally:
        os.kill(pids[0], signal.SIGCONT)


def test_an_invalid_model_ends_the_start_with_one_line(model_copy):
    (model_copy / "label.json").write_text("{}")
    failed = run_failing_start(*TWO, "--port", "0", "--model-dir", str(model_copy))
    assert (failed.returncode, failed.stdout) == (1, "") and "label.json" in error_of(failed.stderr)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_to_the_parent_drains_all_workers_and_loses_nothing(pair, number):
    server, log = pair
    with LoadGenerator(server, 5, 3, [LABEL_REQUEST] * 9 + [POOLED_REQUEST]) as load:
        wait_until(lambda: load.responses > 200, "load")
        pids = wait_for_two_workers(server)
        server.process.send_signal(number)
        load.thread.join(60)
    assert (load.lost, set(load.statuses), load.refused) == ([], {200}, 8)
    assert wait_for_exit(server) == 0
    assert not any(map(is_alive, pids))
    assert log_events(log) == []


@pytest.mark.long
def test_ctrl_c_in_a_terminal_reaches_all_processes_and_loses_nothing(run, tmp_path):
    server = run(*TWO, under=("setsid", *stderr_to(tmp_path / "log")))
    wait_for_two_workers(server)
    with LoadGenerator(server, 5, 3, [LABEL_REQUEST] * 9 + [POOLED_REQUEST]) as load:
        wait_until(lambda: load.responses > 200, "load")
        os.killpg(server.process.pid, signal.SIGINT)
        load.thread.join(60)
    assert (load.lost, set(load.statuses), load.refused) == ([], {200}, 8)
    assert wait_for_exit(server) == 0
    assert log_events(tmp_path / "log") == []


@pytest.mark.long
def test_hang_up_replaces_all_workers_under_load_and_loses_nothing(pair):
    server, log = pair
    with LoadGenerator(server, 5, 3, [LABEL_REQUEST] * 9 + [POOLED_REQUEST]) as load:
        for _ in range(2):
            old = set(wait_for_two_workers(server))
            os.kill(server.process.pid, signal.SIGHUP)
            wait_until(
                lambda old=old: not old & set(child_pids(server.process.pid)) and len(wait_for_two_workers(server)) == 2,
                "two new workers",
            )
        answered = load.responses
        wait_until(lambda: load.responses > answered + 100, "the load continues")
    assert (load.lost, set(load.statuses), load.refused) == ([], {200}, 0)
    text = fetch(server, METRICS).body.decode()
    counted = sum(metric_sum(text, "http_requests_total", route=route) for route in ("/predict/label", "/predict/batch"))
    assert counted == load.responses
    assert [event for event in log_events(log) if event["level"] == "error"] == []


def test_there_is_always_a_ready_worker_during_a_replacement(pair):
    server, _ = pair
    old = set(wait_for_two_workers(server))
    os.kill(server.process.pid, signal.SIGHUP)

    def replaced() -> bool:
        assert fetch(server, READYZ, timeout=120).status == 200
        return not old & set(child_pids(server.process.pid))

    wait_until(replaced, "new workers")


def test_a_surplus_worker_is_retired_although_its_predecessor_is_gone(monkeypatch):
    result = []
    monkeypatch.setattr(os, "kill", lambda pid, number: result.append((pid, number)))
    supervisor = Supervisor(Settings(), None, 2)
    for pid in (11, 12, 13):
        supervisor.workers[pid] = WorkerProcess(pid, pid - 11, -1)
        supervisor.workers[pid].ready = True
    supervisor.announced = True
    supervisor.reconcile()
    assert result == [(11, RETIRE)] and supervisor.workers[11].retiring
    supervisor.reconcile()
    assert len(result) == 1


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_worker_that_died_before_its_parent_noticed_its_readiness_was_ready(monkeypatch):
    def work(supervisor, parent, slot, tells):
        os.write(tells, b'["127.0.0.1", 1, "model", "passed", "proven", "classifier", [1.0]]\n')
        os._exit(9)

    result = []
    monkeypatch.setattr(Supervisor, "work", work)
    monkeypatch.setattr(workers, "announce", lambda *started: result.append(started))
    supervisor = Supervisor(Settings(), None, 2)
    supervisor.start()
    (worker,) = supervisor.workers.values()
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    supervisor.reap()
    assert worker.ready and result and not supervisor.stopping and not supervisor.workers and worker.ready_fd == -1


@pytest.mark.long
def test_two_hang_ups_in_a_row_leave_two_workers(pair):
    server, _ = pair
    old = set(wait_for_two_workers(server))
    for _ in range(5):
        os.kill(server.process.pid, signal.SIGHUP)
    wait_until(lambda: not old & set(child_pids(server.process.pid)) and len(child_pids(server.process.pid)) == 2, "new workers")
    assert fetch(server, LABEL_REQUEST).status == 200
    assert len(wait_for_two_workers(server)) == 2


@pytest.mark.long
def test_a_hang_up_with_an_invalid_model_has_no_effect_and_is_logged(run, model_copy, tmp_path):
    log = tmp_path / "log"
    server = run(*TWO, "--model-dir", str(model_copy), under=stderr_to(log))
    old = wait_for_two_workers(server)
    good = (model_copy / "label.json").read_bytes()
    (model_copy / "label.json").write_text("{}")
    os.kill(server.process.pid, signal.SIGHUP)
    wait_until(lambda: events_containing(log, "the workers are not replaced"), "the message in the log")
    assert events_containing(log, "label.json")
    assert sorted(wait_for_two_workers(server)) == sorted(old)
    assert fetch(server, LABEL_REQUEST).status == 200
    (model_copy / "label.json").write_bytes(good)
    os.kill(server.process.pid, signal.SIGHUP)
    wait_until(
        lambda: not set(old) & set(child_pids(server.process.pid)) and len(wait_for_two_workers(server)) == 2, "new workers"
    )
    assert fetch(server, LABEL_REQUEST).status == 200


@pytest.mark.long
@pytest.mark.parametrize("when", ["serving", "starting", "starting together"])
def test_no_worker_outlives_a_killed_parent(run, when):
    server = run(*TWO, under=("setsid", *stderr_to("/dev/null")))
    parent = server.process.pid
    pids = wait_for_two_workers(server)
    if when == "starting":
        os.kill(parent, signal.SIGHUP)
        wait_until(lambda: len(child_pids(parent)) > 2, "a third worker")
    elif when == "starting together":
        wait_until(lambda: all(age(pid) > 1.1 for pid in pids), "workers that are replaced at once")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(set(child_pids(parent)) - set(pids)) == 2, "two replacements")
    server.process.kill()
    try:
        wait_until(lambda: refuses_connections(server), "the end of the last listener")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(parent, signal.SIGKILL)


@pytest.mark.long
def test_a_signal_while_workers_start_ends_all(run):
    for pause in range(8):
        server = run(*TWO, under=stderr_to("/dev/null"))
        # The second worker starts, and is at a later point each time.
        time.sleep(pause * 0.04)
        pids = child_pids(server.process.pid)
        server.process.terminate()
        assert wait_for_exit(server) == 0
        assert not any(map(is_alive, pids))


@pytest.mark.long
def test_a_log_with_a_slow_reader_blocks_no_worker(run):
    server = run(*TWO, **NO_COVERAGE)
    pids = wait_for_two_workers(server)
    with ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server, timeout=120)) for _ in range(24)]
        for connection in connections:
            connection.send(LIVEZ * 100)
            assert {connection.receive().status for _ in range(100)} == {200}
        # The pipe is full now. Each page that is read makes room for one of the two workers, and both are waiting.
        for _ in range(600):
            os.read(server.process.stderr.fileno(), 4096)
            for connection in connections:
                connection.send(LIVEZ)
            assert {connection.receive().status for connection in connections} == {200}
    assert set(serving_workers(server)) == set(pids)
