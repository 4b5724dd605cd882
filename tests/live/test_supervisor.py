"""The supervisor of the workers: no signal loses a request, and no failure ends a server that works, also with one worker."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from http_clients import (
    LABEL_REQUEST,
    LIVEZ,
    METRICS,
    POOLED_REQUEST,
    READYZ,
    LoadGenerator,
    RawConnection,
    child_pids,
    fetch,
    is_alive,
    kill_tree,
    metric_sum,
    stderr_to,
    wait_until,
)
from optional_programs import require_program
from project import MODEL
from server_process import ServerProcess, error_of, refuses_connections, start_as_pid_1, wait_for_exit
from terminal_process import TerminalProcess
from worker_processes import events_containing, serving_workers, wait_for_two_workers

from iris_wsgi.server.supervisor import FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS, Supervisor
from iris_wsgi.settings import Settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
MIXED = [LABEL_REQUEST] * 9 + [POOLED_REQUEST]


@pytest.fixture
def single_worker(run, tmp_path):
    """Server of one worker, with its log file."""
    return run(under=stderr_to(tmp_path / "log")), tmp_path / "log"


def hang_up(server: ServerProcess) -> None:
    os.kill(server.process.pid, signal.SIGHUP)


def wait_for_replacement(server: ServerProcess, old: list[int], count: int = 1) -> None:
    """Waits until new workers serve and the old ones are gone."""

    def done() -> bool:
        return len(serving_workers(server)) == count and not set(old) & set(child_pids(server.process.pid))

    wait_until(done, "new workers")


def damage_model(model: Path) -> bytes:
    """Damages the model. Returns a function that repairs it."""
    good = (model / "label.json").read_bytes()
    (model / "label.json").write_text("{}")
    return good


@pytest.fixture
def starting_server(tmp_path) -> Iterator[subprocess.Popen]:
    """Server of one worker that is still starting."""
    command = [sys.executable, "-m", "iris_wsgi", "serve", "--port", "0", "--workers", "1", "--model-dir", str(MODEL)]
    command += ["--state-dir", str(tmp_path / "state")]
    server = TerminalProcess(command, stderr=subprocess.PIPE)
    wait_until(lambda: child_pids(server.pid), "a worker that starts")
    yield server
    kill_tree(server)
    server.communicate()


# SIGHUP with one worker


@pytest.mark.long
def test_hang_ups_replace_a_single_worker_under_load_and_lose_nothing(single_worker):
    server, log = single_worker
    with LoadGenerator(server, 5, 3, MIXED) as load:
        for _ in range(4):
            old, answered = [server.worker_pid], load.responses
            wait_until(lambda answered=answered: load.responses > answered + 50, "load")
            hang_up(server)
            wait_for_replacement(server, old)
        answered = load.responses
        wait_until(lambda: load.responses > answered + 50, "the load continues")
    assert (load.lost, set(load.statuses), load.refused) == ([], {200}, 0)
    text = fetch(server, METRICS).body.decode()
    counted = sum(metric_sum(text, "http_requests_total", route=route) for route in ("/predict/label", "/predict/batch"))
    assert counted == load.responses
    assert not events_containing(log, "")
    server.process.terminate()
    assert wait_for_exit(server) == 0


@pytest.mark.long
@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_single_worker_serves_until_a_replacement_with_a_valid_model_is_ready(run, model_copy, tmp_path, command):
    log = tmp_path / "log"
    server = run("--model-dir", str(model_copy), command=command, under=stderr_to(log))
    old, good = [server.worker_pid], damage_model(model_copy)
    with LoadGenerator(server, 2, 2, [READYZ]) as load:
        hang_up(server)
        wait_until(lambda: events_containing(log, "the workers are not replaced"), "the message in the log")
        assert events_containing(log, "label.json")
        assert child_pids(server.process.pid) == old
        (model_copy / "label.json").write_bytes(good)
        hang_up(server)
        wait_for_replacement(server, old)
    assert (load.lost, set(load.statuses), load.refused) == ([], {200}, 0)


@pytest.mark.long
def test_a_hang_up_during_a_replacement_causes_another_replacement(single_worker):
    """The first replacement may have read the model before the file changed again."""
    server, _ = single_worker
    old = server.worker_pid
    hang_up(server)
    wait_until(lambda: len(child_pids(server.process.pid)) == 2, "a replacement")
    (first,) = set(child_pids(server.process.pid)) - {old}
    os.kill(first, signal.SIGSTOP)
    hang_up(server)
    os.kill(first, signal.SIGCONT)
    wait_for_replacement(server, [old, first])


def test_a_hang_up_before_the_server_is_ready_does_not_end_it(starting_server):
    os.kill(starting_server.pid, signal.SIGHUP)
    server = ServerProcess(starting_server)
    assert fetch(server, LIVEZ).status == 200
    server.process.terminate()
    assert wait_for_exit(server) == 0


def test_a_hang_up_during_the_drain_has_no_effect(run):
    server = run("--drain-seconds", "60")
    with RawConnection(server) as connection:
        connection.send(LABEL_REQUEST[:40])
        assert fetch(server, LIVEZ).status == 200
        pids = child_pids(server.process.pid)
        server.process.terminate()
        for _ in range(3):
            hang_up(server)
        assert connection.exchange(LABEL_REQUEST[40:]).status == 200
        assert child_pids(server.process.pid) in (pids, [])
    assert wait_for_exit(server) == 0


# SIGTERM and SIGINT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_before_the_server_is_ready_ends_it_without_output(starting_server, number):
    (worker,) = child_pids(starting_server.pid)
    # The server must not be ready before the signal.
    os.kill(worker, signal.SIGSTOP)
    starting_server.send_signal(number)
    # The server may have ended it already.
    with suppress(ProcessLookupError):
        os.kill(worker, signal.SIGCONT)
    assert starting_server.communicate(timeout=120) == ("", "") and starting_server.returncode == 0
    assert not is_alive(worker)


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_during_a_replacement_ends_all_and_interrupts_nothing(run, workers):
    server = run("--workers", str(workers), "--drain-seconds", "60", under=stderr_to("/dev/null"))
    wait_until(lambda: len(serving_workers(server)) == workers, "the workers")
    old = serving_workers(server)
    with RawConnection(server) as connection:
        connection.send(LABEL_REQUEST[:40])
        assert fetch(server, LIVEZ).status == 200
        hang_up(server)
        # The worker with half of a request is retiring, or waits for its replacement.
        wait_until(lambda: set(serving_workers(server)) - set(old), "a replacement that serves")
        server.process.terminate()
        wait_until(lambda: refuses_connections(server), "the end of the last listener")
        assert connection.exchange(LABEL_REQUEST[40:]).status == 200
    assert wait_for_exit(server) == 0


def test_sigterm_while_a_replacement_starts_ends_both(single_worker):
    server, _ = single_worker
    hang_up(server)
    wait_until(lambda: len(child_pids(server.process.pid)) == 2, "a replacement")
    pids = child_pids(server.process.pid)
    server.process.terminate()
    assert wait_for_exit(server) == 0
    assert not any(map(is_alive, pids))


@pytest.mark.long
@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_to_all_processes_at_once_drains_and_loses_nothing(run, workers):
    """An init system sends the signal to each process of a service, and a shell to a process group."""
    server = run("--workers", workers, under=("setsid", *stderr_to("/dev/null")))
    wait_until(lambda: len(serving_workers(server)) == int(workers), "the workers")
    with LoadGenerator(server, 5, 3, MIXED) as load:
        wait_until(lambda: load.responses > 100, "load")
        os.killpg(server.process.pid, signal.SIGTERM)
        load.thread.join(60)
    assert (load.lost, set(load.statuses), load.refused) == ([], {200}, 8)
    assert wait_for_exit(server) == 0


def test_a_single_worker_that_gets_a_signal_serves_until_its_replacement_does(single_worker):
    server, log = single_worker
    worker = server.worker_pid
    with LoadGenerator(server, 3, 3) as load:
        wait_until(lambda: load.responses > 50, "load")
        os.kill(worker, signal.SIGTERM)
        wait_for_replacement(server, [worker])
    assert (load.lost, set(load.statuses), load.refused) == ([], {200}, 0)
    assert not events_containing(log, "")


# Deaths


def test_a_killed_single_worker_is_replaced_and_new_clients_wait_for_the_replacement(single_worker):
    server, log = single_worker
    worker = server.worker_pid
    os.kill(worker, signal.SIGKILL)
    assert fetch(server, LABEL_REQUEST).status == 200
    assert server.worker_pid != worker
    (event,) = events_containing(log, "a worker died")
    assert (event["pid"], event["how"], event["was_ready"]) == (worker, "signal SIGKILL", True)


def test_a_single_worker_does_not_outlive_a_killed_parent(single_worker):
    server, _ = single_worker
    worker = server.worker_pid
    server.process.kill()
    wait_until(lambda: not is_alive(worker), "the end of the worker")


@pytest.mark.long
def test_a_healthy_worker_serves_although_its_sibling_does_not_start_again(run, model_copy, tmp_path):
    log = tmp_path / "log"
    server = run("--workers", "2", "--model-dir", str(model_copy), under=stderr_to(log))
    dies, lives = wait_for_two_workers(server)
    good = damage_model(model_copy)
    hang_up(server)
    wait_until(lambda: events_containing(log, "the workers are not replaced"), "the message in the log")
    os.kill(dies, signal.SIGKILL)
    # An earlier version gave up after three attempts in two seconds.
    wait_until(lambda: len(events_containing(log, "a worker does not start")) >= 3, "failed starts")
    tries = events_containing(log, "a worker does not start")
    assert [item["delay_seconds"] for item in tries[:3]] == [0.5, 1.0, 2.0]
    assert [(event["failed_starts"], event["workers_serving"], event["level"]) for event in tries[:2]] == [
        (1, 1, "error"),
        (2, 1, "error"),
    ]
    assert lives in child_pids(server.process.pid) and fetch(server, READYZ).status == 200
    (model_copy / "label.json").write_bytes(good)
    hang_up(server)
    wait_for_replacement(server, [lives], 2)
    assert fetch(server, LABEL_REQUEST).status == 200


@pytest.mark.long
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_without_workers_tries_until_the_model_is_valid_again(run, model_copy, tmp_path, workers):
    log = tmp_path / "log"
    server = run("--workers", workers, "--model-dir", str(model_copy), under=stderr_to(log))
    wait_until(lambda: len(serving_workers(server)) == int(workers), "the workers")
    good = damage_model(model_copy)
    for pid in serving_workers(server):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(events_containing(log, "a worker does not start")) >= 3, "failed starts")
    assert server.process.poll() is None
    assert [event["workers_serving"] for event in events_containing(log, "a worker does not start")[-2:]] == [0, 0]
    (model_copy / "label.json").write_bytes(good)
    wait_until(lambda: len(serving_workers(server)) == int(workers), "workers without a SIGHUP")
    assert fetch(server, LABEL_REQUEST).status == 200
    server.process.terminate()
    assert wait_for_exit(server) == 0


@pytest.mark.long
def test_sigterm_ends_a_server_that_waits_for_its_next_attempt(run, model_copy, tmp_path):
    log = tmp_path / "log"
    server = run("--model-dir", str(model_copy), under=stderr_to(log))
    damage_model(model_copy)
    os.kill(server.worker_pid, signal.SIGKILL)
    wait_until(
        lambda: events_containing(log, "a worker does not start") and not child_pids(server.process.pid),
        "a pause between attempts",
    )
    server.process.terminate()
    assert wait_for_exit(server) == 0


def test_delays_between_starts_double_up_to_a_maximum_and_start_over_after_a_hang_up(capfd):
    supervisor = Supervisor(Settings(), None, 1)
    for _ in range(10):
        supervisor.back_off()
    assert supervisor.start_at > 0
    supervisor.replace_all(signal.SIGHUP, None)
    assert supervisor.start_at == 0
    supervisor.back_off()
    delays = [json.loads(line)["delay_seconds"] for line in capfd.readouterr().err.splitlines()]
    assert delays[:7] == [FIRST_DELAY_SECONDS * 2**i for i in range(6)] + [MAX_DELAY_SECONDS]
    assert set(delays[6:10]) == {MAX_DELAY_SECONDS} and delays[10] == FIRST_DELAY_SECONDS


def test_a_first_worker_that_is_killed_before_it_is_ready_ends_the_start_with_one_line(starting_server):
    (worker,) = child_pids(starting_server.pid)
    os.kill(worker, signal.SIGKILL)
    out, err = starting_server.communicate(timeout=120)
    assert (starting_server.returncode, out) == (1, "")
    assert "SIGKILL" in error_of(err) and "memory" in error_of(err)


@pytest.mark.long
@pytest.mark.parametrize("missing_resource", [False, True], ids=["hang-up", "death"])
def test_a_system_without_free_processes_ends_nothing_and_the_server_tries_again(single_worker, missing_resource):
    server, log = single_worker
    old, parent = server.worker_pid, server.process.pid
    used = [int(name) for name in os.listdir(f"/proc/{parent}/fd")]
    before = resource.prlimit(parent, resource.RLIMIT_NOFILE)
    # Without descriptors the supervisor cannot create the pipe to a new worker.
    resource.prlimit(parent, resource.RLIMIT_NOFILE, (min(set(range(1000)) - set(used)), before[1]))
    if missing_resource:
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: len(events_containing(log, "a worker does not start")) >= 2, "failed attempts")
    else:
        hang_up(server)
        wait_until(lambda: events_containing(log, "the workers are not replaced"), "the message in the log")
        assert fetch(server, LABEL_REQUEST).status == 200
    assert {event["reason"] for event in events_containing(log, "the system starts no worker")} == {"Too many open files"}
    resource.prlimit(parent, resource.RLIMIT_NOFILE, before)
    hang_up(server)
    wait_for_replacement(server, [old])
    assert fetch(server, LABEL_REQUEST).status == 200


# The parent and its descendants


def zombies(pid: int) -> list[int]:
    def state(item: int) -> str:
        return Path(f"/proc/{item}/stat").read_text().rpartition(")")[2].split()[0]

    return [item for item in child_pids(pid) if state(item) == "Z"]


ORPHAN = ("sh", "-c", 'sh -c "exit 3" & exec "$@"', "sh")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_inherited_children_are_reaped(run, workers):
    server = run("--workers", workers, under=ORPHAN)
    wait_until(
        lambda: not zombies(server.process.pid) and len(child_pids(server.process.pid)) == int(workers), "only the workers"
    )
    assert fetch(server, LIVEZ).status == 200


def test_pid_1_reaps_orphans_with_one_worker():
    server = start_as_pid_1("--role", "web_single")
    try:
        (first,) = child_pids(server.process.pid)
        # A process of the namespace whose parent ends first. PID 1 becomes its parent and must reap it.
        inside = (require_program("nsenter"), "--target", str(first), "--pid", "sh", "-c", "sh -c 'sleep 0.2; exit 3' & exit 0")
        subprocess.run(inside, check=True)
        wait_until(lambda: len(child_pids(first)) == 2, "an orphan")
        wait_until(lambda: len(child_pids(first)) == 1, "the orphan is reaped")
        assert fetch(server, LIVEZ).status == 200
    finally:
        kill_tree(server.process)
        server.process.communicate()


def test_the_parent_of_a_single_worker_has_no_part_of_the_model(single_worker):
    server, _ = single_worker
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "onnxruntime" not in maps and "numpy" not in maps
    assert "onnxruntime" in Path(f"/proc/{server.worker_pid}/maps").read_text()
