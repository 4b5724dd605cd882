"""The rounds: all servers in turn, again and again, so that what the machine does meanwhile meets them alike."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Collection
from math import nan

import environments
from bench import MODEL, Bench, Failed, environ
from outcome import Outcome
from servers import SERVERS, Server
from trial import trial

ALONE = "alone"


def say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


def measure_round(number: int, names: Collection[str], bench: Bench, outcome: Outcome) -> None:
    """Every server once, and the application alone. A server that fails is left out of the rounds to come."""
    for server in SERVERS:
        if server.name in names and server.name not in outcome.reasons:
            measure_server(server, number, bench, outcome)
    if ALONE in names:
        outcome.add(ALONE, alone(bench))
        say(f"round {number} of {outcome.rounds}: the application alone {outcome.results[ALONE][-1]['cpu']:.1f} CPU µs")


def measure_server(server: Server, number: int, bench: Bench, outcome: Outcome) -> None:
    began, where = time.perf_counter(), f"round {number} of {outcome.rounds}: {server.name}"
    try:
        figures, complaints = trial(server, bench, number * 3_000)
    except (Failed, OSError, ValueError, subprocess.SubprocessError) as error:
        outcome.reasons[server.name] = f"round {number}: {error}".splitlines()[0][:200]
        say(f"{where} failed: {error}")
        return
    outcome.add(server.name, figures)
    for complaint in complaints:
        outcome.notes.setdefault(server.name, f"round {number}: {complaint}")
        say(f"{where}: {complaint}")
    cpu, rate = figures.get("label_cpu_16", nan), figures.get("label_rate_16", nan)
    say(f"{where} {cpu:.0f} CPU µs, {rate:.0f} requests/s ({time.perf_counter() - began:.0f} s)")


def alone(bench: Bench) -> dict[str, float]:
    """The application without a server, on the servers' CPU; its log goes where theirs go."""
    count = min(bench.effort.requests, 15_000)
    command = [environments.python("ours"), "-B", str(environments.BENCH / "alone.py"), MODEL, str(count)]
    pin = {"env": environ(bench.scratch), "preexec_fn": lambda: os.sched_setaffinity(0, bench.cpus[:1])}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120, check=True, **pin)
    return json.loads(done.stdout)
