"""Tests of the soak: its checks find leaks and excuse only stalls, and its shortest run passes."""

import os
import random
import runpy
import signal
import subprocess
import sys
import threading
from math import inf
from unittest import mock

import pytest
from http_clients import NO_COVERAGE, is_asleep, wait_until
from optional_programs import require_program
from postgres_server import postgres_program
from project import ROOT

sys.path.insert(0, str(ROOT / "tests/soak"))
from faults import Faults
from resource_sampler import Sample, find_leaks, has_handler, in_excess, memory_growth, sample_process, without_report


class OneProcessSampler:
    """Stand-in for a ResourceSampler with one process of a web_single server."""

    def __init__(self, samples: list[Sample], kind: str = "worker") -> None:
        self.samples, self.names = {7: samples}, {7: ("web_single", kind)}

    def by_kind(self, found):
        return {self.names[pid]: [sample] for pid, sample in found.items()}


def samples(memory) -> list[Sample]:
    """Returns a sample every five seconds for ten minutes; `memory` maps minutes to KB."""
    noise = random.Random(11)
    return [Sample(at, int(50_000 + memory(at / 60) + noise.gauss(0, 200)), 0, 10, 7) for at in range(0, 605, 5)]


def test_a_leak_is_distinguished_from_noise_and_from_memory_taken_once():
    assert find_leaks(OneProcessSampler(samples(lambda minutes: 600 * minutes)), 0, 600)[1]
    assert not find_leaks(OneProcessSampler(samples(lambda minutes: 0)), 0, 600)[1]
    for when in (1, 3, 5, 7, 9):
        assert not find_leaks(OneProcessSampler(samples(lambda minutes, when=when: 8000 * (minutes > when))), 0, 600)[1]
    assert not find_leaks(OneProcessSampler(samples(lambda minutes: 4000 * (1 - 2 ** (-minutes / 2)))), 0, 600)[1]
    assert memory_growth(samples(lambda minutes: 600 * minutes)) == pytest.approx(600, abs=60)


def test_leaked_blocks_are_distinguished_from_blocks_of_requests():
    steady, chance = samples(lambda minutes: 0), random.Random(12)
    for leaked, faults in ((0, 0), (1, 1)):
        found = [item._replace(blocks=150_000 + int(leaked * item.at * 20) + chance.choice((0, 90, 50_000))) for item in steady]
        assert len(find_leaks(OneProcessSampler(found), 0, 600)[1]) == faults


def test_a_leak_is_growth_of_both_processes_of_a_server():
    sampler = OneProcessSampler(samples(lambda minutes: 700 * minutes))
    for growth_of_other, faults in ((0, 0), (600, 1)):
        sampler.samples[8] = samples(lambda minutes, grows=growth_of_other: grows * minutes)
        sampler.names[8] = sampler.names[7]
        assert len(find_leaks(sampler, 0, 600)[1]) == faults


def test_a_process_that_did_not_live_all_the_time_is_not_measured():
    assert find_leaks(OneProcessSampler(samples(lambda minutes: 100 * minutes)[:-2]), 0, 600) == ({}, [])


def test_only_workers_may_have_spare_descriptors_and_threads():
    before, after = Sample(0, 0, 0, 10, 7), Sample(9, 0, 0, 13, 7)
    for kind, spare, faults in (("worker", 3, 0), ("worker", 2, 1), ("parent", 3, 1)):
        assert len(in_excess(OneProcessSampler([], kind), {7: before}, {7: after}, spare)) == faults
    assert len(in_excess(OneProcessSampler([]), {7: before}, {7: before._replace(threads=20)}, 3)) == 1


@pytest.fixture
def reporter(tmp_path):
    """Python process that reports its blocks like the servers of the soak test."""
    environment = {**os.environ, **NO_COVERAGE, "PYTHONPATH": str(ROOT / "tests/soak/inside"), "SOAK_REPORTS": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environment) as process:
        yield process
        process.kill()


def test_a_process_that_has_reported_is_never_seen_without_a_report(tmp_path, reporter):
    report = tmp_path / str(reporter.pid)
    wait_until(lambda: sample_process(reporter.pid, report).blocks, "the process has reported")
    # Signals come while the process writes a report, and stop it at different points.
    for _ in range(300):
        os.kill(reporter.pid, signal.SIGUSR1)
        os.kill(reporter.pid, signal.SIGSTOP)
        wait_until(lambda: is_asleep(reporter.pid), "the process is stopped")
        assert sample_process(reporter.pid, report).blocks
        os.kill(reporter.pid, signal.SIGCONT)


def test_a_stopped_process_has_no_report_until_it_continues(tmp_path, reporter):
    report, sampler = tmp_path / str(reporter.pid), OneProcessSampler([])
    sampler.names[reporter.pid] = sampler.names[7]
    wait_until(lambda: has_handler(reporter.pid, signal.SIGUSR1), "the process handles the signal")
    os.kill(reporter.pid, signal.SIGSTOP)
    for _ in range(2):
        assert without_report(sampler, {reporter.pid: sample_process(reporter.pid, report)})
    os.kill(reporter.pid, signal.SIGCONT)
    wait_until(lambda: not without_report(sampler, {reporter.pid: sample_process(reporter.pid, report)}), "the process reports")


def faults_with_stalls(tmp_path) -> Faults:
    """Returns the faults of a soak run on a machine with a short stall at 100 s and a long one at 200 s."""
    faults = Faults(print, mock.Mock(servers={"data_cache": None, "prep": None}, folder=tmp_path))
    faults.record_stall(100, 0.2)
    faults.record_stall(200, 26)
    return faults


@pytest.mark.parametrize(
    ("server", "status", "since", "excused"),
    [
        ("data_cache", 503, 101, True),
        ("data_cache", 503, 120, False),
        ("data_cache", 0, 101, False),
        ("prep", 504, 101, False),
        *[("prep", status, 227, status != 500) for status in (0, 408, 500, 502, 503, 504)],
        ("prep", 504, 240, False),
    ],
)
def test_a_stall_excuses_the_failures_that_time_limits_cause(tmp_path, server, status, since, excused):
    faults = faults_with_stalls(tmp_path)
    faults.measured_until = inf
    assert bool(faults.excused(server, "GET /items/{id}", status, since, since + 1)) == excused


def test_a_failure_is_judged_after_the_stall_around_it_is_recorded(tmp_path):
    faults, found = faults_with_stalls(tmp_path), []
    judge = threading.Thread(target=lambda: found.append(faults.excused("prep", "GET /readyz", 0, 300, 301)))
    judge.start()
    faults.record_stall(299, 10)
    faults.measured_until = 309
    judge.join()
    assert found == ["a long stall of the machine"]


def test_the_log_shows_each_failure_that_no_fault_excuses_also_of_refused_requests(tmp_path):
    soak = runpy.run_path(str(ROOT / "tests/soak/__main__.py"))
    request = '{"time":"2026-01-01T00:00:09Z","method":"GET","route":"/items/{id}","status":%d,"ms":1.5}\n'
    refused = '{"time":"2026-01-01T00:00:09Z","message":"request refused","status":%d}\n'
    log = tmp_path / "log"
    log.write_text(f"iris_wsgi listens\n{request % 503}{request % 200}{refused % 501}{refused % 400}{refused % 503}")
    faults = mock.Mock(excused=mock.Mock(return_value=""))
    found = list(soak["log_failures"]("data_cache", log, faults, 0.0))
    assert found == [f"data_cache logs {line % 503}" for line in (request, refused)]
    assert [call.args[1:3] for call in faults.excused.mock_calls] == [("GET /items/{id}", 503), ("", 503)]


@pytest.mark.repeats
@pytest.mark.long
def test_a_short_soak_passes_and_draws_its_chart(tmp_path):
    require_program("redis-server")
    require_program(postgres_program("postgres"))
    command = [sys.executable, ROOT / "tests/soak", "0.5", "--clients", "2", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr
    assert (tmp_path / "soak.png").stat().st_size > 10_000
