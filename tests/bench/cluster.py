"""Servers of several roles on this machine, some of which call others."""

import contextlib
import functools
import json
import re
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

import processes
from bench import Bench, TrialFailed, environ, environment_python
from jobs import fetch, wait_until_up
from server_trial import free_port

SPECIES = ("setosa", "versicolor", "virginica")
ENSEMBLE = "/ensemble/predict"

samples_of = re.compile(r'^(remote_\w+)\{target="(\w+)"(?:,outcome="(\w+)")?\} (\S+)$', re.MULTILINE).findall


class RunningServer(NamedTuple):
    """Server with a single process."""

    port: int
    process: subprocess.Popen

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def start_server(stack: contextlib.ExitStack, bench: Bench, role: str, at: int = 0, **settings: str) -> RunningServer:
    """Starts a server of one worker and waits until it is ready. It is stopped when the stack is closed. Raises TrialFailed."""
    port = at or free_port()
    command = [environment_python("ours"), "-m", "iris_wsgi", "serve", "--role", role, "--workers", "1", "--port", str(port)]
    environment = environ(bench.scratch) | {"IRIS_MODEL_DIR": bench.model} | settings
    process = stack.enter_context(processes.running(command, environment, bench.cpus, bench.scratch))
    wait_until_up(process, functools.partial(fetch, port, "GET", "/readyz"))
    return RunningServer(port, process)


def start_members(stack: contextlib.ExitStack, bench: Bench) -> dict[str, RunningServer]:
    return {species: start_server(stack, bench, "member", IRIS_MEMBER=species) for species in SPECIES}


def start_gateway(stack: contextlib.ExitStack, bench: Bench, ports: Mapping[str, int], **settings: str) -> RunningServer:
    """Starts a gateway and waits until it reaches all members at these ports. Raises TrialFailed."""
    members = ",".join(f"{species}=http://127.0.0.1:{port}" for species, port in ports.items())
    gateway = start_server(stack, bench, "gateway", IRIS_MEMBERS=members, **settings)
    wait_until_up(gateway.process, functools.partial(require_complete, gateway.port))
    return gateway


def require_complete(port: int) -> None:
    """Raises TrialFailed if the gateway lacks a member."""
    if json.loads(fetch(port, "GET", "/ensemble/health"))["status"] != "complete":
        raise TrialFailed("the gateway does not reach all members")


def call_counts(port: int, target: str) -> dict[str, float]:
    """Returns the numbers of calls to a target, of retries, and of open connections from the metrics."""
    found = {"made": 0.0}
    for name, of, outcome, value in samples_of(fetch(port, "GET", "/metrics").decode()):
        if of == target and name == "remote_calls_total" and outcome != "refused":
            found["made"] += float(value)
        elif of == target and not outcome:
            found[name.removeprefix("remote_").removesuffix("_total")] = float(value)
    return found
