"""The rounds: all servers in turn, again and again, so that what the machine does meanwhile meets them alike."""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import environments
from bench import MODEL, Bench, Failed, environ
from results import Outcome
from server_trial import trial
from servers import SERVERS

ALONE = "alone"
Trial = Callable[[], tuple[dict[str, float], list[str]]]
# What is said of a trial while it goes on, where it was measured.
SAID = (
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
    ("both_bytes", "{:.0f} bytes of an item and what is said of it"),
    ("row_in_1", "{:.1f} µs of a row"),
    ("binary_rate_1", "{:.1f} binary requests/s"),
    ("large_rate_1", "{:.1f} JSON requests/s"),
    ("p99_large", "p99 {:.1f} ms beside JSON"),
    ("writes", "{:.0f} durable writes/s"),
    ("accepted", "{:.0f} jobs/s accepted"),
    ("finished", "{:.0f} finished"),
    ("hop_p50_added_1", "{:+.2f} ms by a hop"),
    ("fan_p50_added_1", "{:+.2f} ms by a fan-out"),
    ("stopped_slowest", "slowest {:.0f} ms with a stopped member"),
    ("10_extra", "{:.3f} of the calls again"),
)


def say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


def measure_round(number: int, bench: Bench, outcome: Outcome) -> None:
    """Every server once, and the application alone. A server that fails is left out of the rounds to come."""
    for server in SERVERS:
        if server.name in bench.servers:
            attempt(server.name, number, outcome, functools.partial(trial, server, bench, number * 3_000))
    if ALONE in bench.servers:
        outcome.add(ALONE, alone(bench))
        say(f"round {number} of {outcome.rounds}: the application alone {outcome.results[ALONE][-1]['cpu']:.1f} CPU µs")


def attempt(name: str, number: int, outcome: Outcome, trial: Trial) -> None:
    """One start of a server, with what is found then. A server that fails is left out of the rounds to come."""
    if name in outcome.reasons:
        return
    began, where = time.perf_counter(), f"round {number} of {outcome.rounds}: {name}"
    try:
        figures, complaints = trial()
    except (Failed, OSError, ValueError, subprocess.SubprocessError) as error:
        outcome.reasons[name] = f"round {number}: {error}".splitlines()[0][:200]
        say(f"{where} failed: {error}")
        return
    outcome.add(name, figures)
    for complaint in complaints:
        outcome.notes.setdefault(name, f"round {number}: {complaint}")
        say(f"{where}: {complaint}")
    told = [pattern.format(figures[figure]) for figure, pattern in SAID if figure in figures]
    say(f"{where} {', '.join(told)} ({time.perf_counter() - began:.0f} s)")


def alone(bench: Bench) -> dict[str, float]:
    """The application without a server, on the servers' CPU; its log goes where theirs go."""
    count = min(bench.effort.requests, 15_000)
    command = [environments.python("ours"), "-B", str(environments.BENCH / "inprocess_app.py"), MODEL, str(count)]
    pin = {"env": environ(bench.scratch), "preexec_fn": lambda: os.sched_setaffinity(0, bench.cpus[:1])}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120, check=True, **pin)
    return json.loads(done.stdout)
