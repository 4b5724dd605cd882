"""Rounds over all servers in turn, so that changes of the machine affect all servers alike."""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import environments
from bench import MODEL, Bench, TrialFailed, environ
from results import Results
from server_trial import trial
from servers import SERVERS

ALONE = "alone"
Trial = Callable[[], tuple[dict[str, float], list[str]]]
# Figures for the progress line of a trial.
PROGRESS = (
    ("label_cpu_16", "{:.0f} CPU µs"),
    ("label_rate_16", "{:.0f} requests/s"),
    ("rate", "{:.0f} runs/s"),
    ("rows_rate", "{:,.0f} rows/s"),
    ("cpu_row", "{:.2f} CPU µs"),
    ("memory", "{:.0f} MB"),
    ("memory_small", "{:.0f} MB"),
    ("memory_large", "{:.0f} MB of a large file"),
    ("off_cpu", "{:.0f} CPU µs without a cache"),
    ("hit_cpu", "{:.0f} as a hit"),
    ("off_time", "{:.0f} µs without"),
    ("shared_hit_time", "{:.0f} as a hit in Redis"),
    ("both_bytes", "{:.0f} bytes of an item and its prediction"),
    ("row_in_1", "{:.1f} µs of a row"),
    ("binary_rate_1", "{:.1f} binary requests/s"),
    ("large_rate_1", "{:.1f} JSON requests/s"),
    ("p99_large", "p99 {:.1f} ms during JSON"),
    ("writes", "{:.0f} durable writes/s"),
    ("accepted", "{:.0f} jobs/s accepted"),
    ("finished", "{:.0f} finished"),
    ("hop_p50_added_1", "{:+.2f} ms by a hop"),
    ("fan_p50_added_1", "{:+.2f} ms by a fan-out"),
    ("stopped_slowest", "slowest {:.0f} ms with a stopped member"),
    ("10_extra", "{:.3f} of the calls again"),
)


def log(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


def measure_round(number: int, bench: Bench, results: Results) -> None:
    """Measures every server once, and the application alone. A server that fails is skipped in the following rounds."""
    for server in SERVERS:
        if server.name in bench.servers:
            run_trial(server.name, number, results, functools.partial(trial, server, bench, number * 3_000))
    if ALONE in bench.servers:
        results.add(ALONE, alone(bench))
        log(f"round {number} of {results.rounds}: the application alone {results.by_server[ALONE][-1]['cpu']:.1f} CPU µs")


def run_trial(name: str, number: int, results: Results, trial: Trial) -> None:
    """Runs one trial and stores its figures. A server that fails is skipped in the following rounds."""
    if name in results.failures:
        return
    began, where = time.perf_counter(), f"round {number} of {results.rounds}: {name}"
    try:
        figures, complaints = trial()
    except (TrialFailed, OSError, ValueError, subprocess.SubprocessError) as error:
        results.failures[name] = f"round {number}: {error}".splitlines()[0][:200]
        log(f"{where} failed: {error}")
        return
    results.add(name, figures)
    for complaint in complaints:
        results.warnings.setdefault(name, f"round {number}: {complaint}")
        log(f"{where}: {complaint}")
    progress = [pattern.format(figures[figure]) for figure, pattern in PROGRESS if figure in figures]
    log(f"{where} {', '.join(progress)} ({time.perf_counter() - began:.0f} s)")


def alone(bench: Bench) -> dict[str, float]:
    """Measures the application without a server, on the CPU of the servers; its log goes to /dev/null like theirs."""
    count = min(bench.effort.requests, 15_000)
    command = [environments.python("ours"), "-B", str(environments.BENCH / "inprocess_app.py"), MODEL, str(count)]
    pin = {"env": environ(bench.scratch), "preexec_fn": lambda: os.sched_setaffinity(0, bench.cpus[:1])}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120, check=True, **pin)
    return json.loads(done.stdout)
