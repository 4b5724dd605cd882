"""The soak of .ci/soak in its shortest form, and that it sees what it looks for."""

import os
import random
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
from gauge import Sample, catches, growth, leaks, look, more, silent


class Looked:
    """What a gauge knows of one process of a web_single."""

    def __init__(self, samples: list[Sample], kind: str = "worker") -> None:
        self.samples, self.names = {7: samples}, {7: ("web_single", kind)}

    def kinds(self, found):
        return {self.names[pid]: [sample] for pid, sample in found.items()}


def samples(memory) -> list[Sample]:
    """One each five seconds for ten minutes; `memory` tells KB by the minute."""
    noise = random.Random(11)
    return [Sample(at, int(50_000 + memory(at / 60) + noise.gauss(0, 200)), 0, 10, 7) for at in range(0, 605, 5)]


def test_a_leak_is_told_from_noise_and_from_what_is_taken_once():
    assert leaks(Looked(samples(lambda minutes: 600 * minutes)), 0, 600)[1]
    assert not leaks(Looked(samples(lambda minutes: 0)), 0, 600)[1]
    for when in (1, 3, 5, 7, 9):
        assert not leaks(Looked(samples(lambda minutes, when=when: 8000 * (minutes > when))), 0, 600)[1]
    assert not leaks(Looked(samples(lambda minutes: 4000 * (1 - 2 ** (-minutes / 2)))), 0, 600)[1]
    assert growth(samples(lambda minutes: 600 * minutes)) == pytest.approx(600, abs=60)


def test_what_python_holds_is_told_from_what_requests_hold_for_a_moment():
    looks, chance = samples(lambda minutes: 0), random.Random(12)
    for leaked, faults in ((0, 0), (1, 1)):
        told = [one._replace(blocks=150_000 + int(leaked * one.at * 20) + chance.choice((0, 90, 50_000))) for one in looks]
        assert len(leaks(Looked(told), 0, 600)[1]) == faults


def test_a_leak_is_what_both_processes_of_a_server_do():
    gauge = Looked(samples(lambda minutes: 700 * minutes))
    for growth_of_other, faults in ((0, 0), (600, 1)):
        gauge.samples[8] = samples(lambda minutes, grows=growth_of_other: grows * minutes)
        gauge.names[8] = gauge.names[7]
        assert len(leaks(gauge, 0, 600)[1]) == faults


def test_a_process_that_did_not_live_all_the_time_is_not_measured():
    assert leaks(Looked(samples(lambda minutes: 100 * minutes)[:-2]), 0, 600) == ({}, [])


def test_descriptors_and_threads_may_be_more_by_one_for_each_client_and_a_parents_by_none():
    before, after = Sample(0, 0, 0, 10, 7), Sample(9, 0, 0, 13, 7)
    for kind, spare, faults in (("worker", 3, 0), ("worker", 2, 1), ("parent", 3, 1)):
        assert len(more(Looked([], kind), {7: before}, {7: after}, spare)) == faults
    assert len(more(Looked([]), {7: before}, {7: before._replace(threads=20)}, 3)) == 1


@pytest.fixture
def reporter(tmp_path):
    """A Python process that reports as the servers of a soak do."""
    environment = {**os.environ, **NO_COVERAGE, "PYTHONPATH": str(ROOT / "tests/soak/inside"), "SOAK_BLOCKS": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environment) as process:
        yield process
        process.kill()


def test_a_process_that_has_reported_is_never_seen_without_a_report(tmp_path, reporter):
    report = tmp_path / str(reporter.pid)
    wait_until(lambda: look(reporter.pid, report).blocks, "the process has reported")
    # However many signals come, and wherever the process stands still in the middle of a report.
    for _ in range(300):
        os.kill(reporter.pid, signal.SIGUSR1)
        os.kill(reporter.pid, signal.SIGSTOP)
        wait_until(lambda: is_asleep(reporter.pid), "the process stands still")
        assert look(reporter.pid, report).blocks
        os.kill(reporter.pid, signal.SIGCONT)


def test_a_process_that_stands_still_is_silent_until_it_goes_on(tmp_path, reporter):
    report, gauge = tmp_path / str(reporter.pid), Looked([])
    gauge.names[reporter.pid] = gauge.names[7]
    wait_until(lambda: catches(reporter.pid, signal.SIGUSR1), "the process handles the signal")
    os.kill(reporter.pid, signal.SIGSTOP)
    for _ in range(2):
        assert silent(gauge, {reporter.pid: look(reporter.pid, report)})
    os.kill(reporter.pid, signal.SIGCONT)
    wait_until(lambda: not silent(gauge, {reporter.pid: look(reporter.pid, report)}), "the process reports")


def stalled(tmp_path) -> Faults:
    """The faults of a soak on a machine that stood still for a moment at 100 s, and for long at 200 s."""
    faults = Faults(print, mock.Mock(servers={"data_cache": None, "prep": None}, folder=tmp_path))
    faults.stood_still(100, 0.2)
    faults.stood_still(200, 26)
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
def test_a_machine_that_stands_still_excuses_what_time_limits_cause(tmp_path, server, status, since, excused):
    faults = stalled(tmp_path)
    faults.measured = inf
    assert bool(faults.excused(server, "GET /items/{id}", status, since, since + 1)) == excused


def test_a_failure_is_judged_when_the_stall_around_it_is_measured(tmp_path):
    faults, found = stalled(tmp_path), []
    judge = threading.Thread(target=lambda: found.append(faults.excused("prep", "GET /readyz", 0, 300, 301)))
    judge.start()
    faults.stood_still(299, 10)
    faults.measured = 309
    judge.join()
    assert found == ["the machine stood still"]


@pytest.mark.long
def test_a_short_soak_is_all_well_and_draws_its_chart(tmp_path):
    require_program("redis-server")
    require_program(postgres_program("postgres"))
    command = [sys.executable, ROOT / "tests/soak", "0.5", "--clients", "2", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr
    assert (tmp_path / "soak.png").stat().st_size > 10_000
