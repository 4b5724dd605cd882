"""Servers of several roles on this machine, some of which ask others: how they are started, and what they tell."""

import contextlib
import functools
import json
import re
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

import processes
from bench import Bench, Failed, environ, needed
from jobs import fetch, until_up
from server_trial import free_port

SPECIES = ("setosa", "versicolor", "virginica")
ENSEMBLE = "/ensemble/predict"

samples_of = re.compile(r'^(remote_\w+)\{target="(\w+)"(?:,outcome="(\w+)")?\} (\S+)$', re.MULTILINE).findall


class Running(NamedTuple):
    """A server, which is one process."""

    port: int
    process: subprocess.Popen

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def up(stack: contextlib.ExitStack, bench: Bench, role: str, at: int = 0, **settings: str) -> Running:
    """A server of one worker that is ready; it ends with the stack. Raises Failed."""
    port = at or free_port()
    command = [needed("ours"), "-m", "iris_wsgi", "serve", "--role", role, "--workers", "1", "--port", str(port)]
    told = environ(bench.scratch) | {"IRIS_MODEL_DIR": bench.model} | settings
    process = stack.enter_context(processes.running(command, told, bench.cpus, bench.scratch))
    until_up(process, functools.partial(fetch, port, "GET", "/readyz"))
    return Running(port, process)


def members_of(stack: contextlib.ExitStack, bench: Bench) -> dict[str, Running]:
    return {species: up(stack, bench, "member", IRIS_MEMBER=species) for species in SPECIES}


def gateway_to(stack: contextlib.ExitStack, bench: Bench, ports: Mapping[str, int], **settings: str) -> Running:
    """A gateway that can ask all members at these ports. Raises Failed."""
    members = ",".join(f"{species}=http://127.0.0.1:{port}" for species, port in ports.items())
    gateway = up(stack, bench, "gateway", IRIS_MEMBERS=members, **settings)
    until_up(gateway.process, functools.partial(complete, gateway.port))
    return gateway


def complete(port: int) -> None:
    """Raises Failed where the gateway lacks a member."""
    if json.loads(fetch(port, "GET", "/ensemble/health"))["status"] != "complete":
        raise Failed("the gateway does not find all members")


def calls(port: int, target: str) -> dict[str, float]:
    """What the metrics tell of calls to a target: calls that were made, retries, connections that are open."""
    found = {"made": 0.0}
    for name, of, outcome, value in samples_of(fetch(port, "GET", "/metrics").decode()):
        if of == target and name == "remote_calls_total" and outcome != "refused":
            found["made"] += float(value)
        elif of == target and not outcome:
            found[name.removeprefix("remote_").removesuffix("_total")] = float(value)
    return found
