"""Measures the latency of small requests on one connection while another connection sends large requests or none."""

import contextlib
import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import rows
from http_framing import surplus_bytes
from load import TIMEOUT, LoadGenerator

PAUSE = 0.001
SETTLE = 0.5
SHARES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))


def main(phases: list[dict[str, Any]]) -> None:
    small = rows.requests("label", "/predict/label")
    large = {(phase["kind"], phase["path"]): [] for phase in phases if phase["kind"]}
    for kind, path in large:
        large[kind, path] = rows.requests(kind, path)
    json.dump([measure(phase, small, large.get((phase["kind"], phase["path"]), [])) for phase in phases], sys.stdout)


def measure(phase: dict[str, Any], small: list[bytes], large: list[bytes]) -> dict[str, float]:
    """Returns the latencies of the small requests in ms, and the number of large responses per second."""
    with large_requests(phase["large_port"], large) as counts:
        time.sleep(SETTLE)
        before, began = counts[0], time.perf_counter()
        latencies, wrong = measure_latencies(phase["port"], small, phase["seconds"])
        found = {"large": (counts[0] - before) / (time.perf_counter() - began), "failures": wrong + counts[1]}
    latencies.sort()
    found |= {name: latencies[int(len(latencies) * share)] for name, share in SHARES}
    return found | {"max": latencies[-1], "asked": len(latencies)}


def measure_latencies(port: int, requests: list[bytes], seconds: float) -> tuple[list[float], int]:
    """Returns latencies in ms, and the number of responses other than 200."""
    latencies, wrong, end = [], 0, time.perf_counter() + seconds
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as one:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while (began := time.perf_counter()) < end:
            one.sendall(requests[len(latencies) % len(requests)])
            answer = b""
            while (left := surplus_bytes(answer)) is None or left < 0:
                data = one.recv(65_536)
                if not data:
                    raise SystemExit("the server closed the connection")
                answer += data
            latencies.append((time.perf_counter() - began) * 1e3)
            wrong += not answer.startswith(b"HTTP/1.1 200 ")
            time.sleep(PAUSE)
    return latencies, wrong


@contextlib.contextmanager
def large_requests(port: int, requests: list[bytes]) -> Iterator[Any]:
    """Context manager that sends large requests from another process, and counts responses and failures."""
    fork = multiprocessing.get_context("fork")
    counts, stop = fork.Array("q", 2, lock=False), fork.Event()
    if not requests:
        yield counts
        return
    sender = fork.Process(target=send_large, args=(port, requests, counts, stop))
    sender.start()
    try:
        yield counts
    finally:
        stop.set()
        sender.join(TIMEOUT)
        sender.kill()


def send_large(port: int, requests: list[bytes], counts: Any, stop: Any) -> None:
    load = LoadGenerator(port, requests, 0)
    load.connect()
    while not stop.is_set() and os.getppid() > 1:
        counts[0] += load.drive(1, TIMEOUT)
        counts[1] = load.failures
    load.close()


if __name__ == "__main__":
    main(json.load(sys.stdin))
