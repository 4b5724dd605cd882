"""Calls the application without a server, with and without a cache; prints µs and CPU µs of a call, and bytes of an entry."""

import gc
import json
import os
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping
from statistics import median

import rows
from inprocess_app import call, make_environ

from iris_wsgi.factory import build
from iris_wsgi.observability.log import Log
from iris_wsgi.settings import Settings
from iris_wsgi.storage.lru import ENTRY_BYTES, LRUCache

BATCH_ROWS = 100
KEPT = 20_000


class RequestKind:
    """Requests to one application. Each window has new requests, or with `repeats` those of the first window."""

    def __init__(self, app, asked: Callable[[int], dict[str, object]], count: int, repeats: bool) -> None:
        self.app, self.asked, self.count, self.repeats = app, asked, count, repeats
        self.sent = 0
        self.spent: list[tuple[float, float]] = []

    def window(self) -> None:
        """Runs a window, and records the CPU µs and the µs of a call."""
        first = 0 if self.repeats else self.sent
        self.sent += self.count
        asked = [self.asked(i) for i in range(first, first + self.count)]
        began, cpu = time.perf_counter_ns(), time.process_time_ns()
        for one in asked:
            call(self.app, one)
        spent = time.process_time_ns() - cpu, time.perf_counter_ns() - began
        self.spent.append((spent[0] / 1e3 / self.count, spent[1] / 1e3 / self.count))


def measure(found: Mapping[str, RequestKind], windows: int) -> dict[str, float]:
    """Measures all kinds in turn, and returns the medians of the windows without the first one."""
    for _ in range(windows + 1):
        for kind in found.values():
            kind.window()
    return {
        f"{name}_{what}": median(one[i] for one in kind.spent[1:])
        for name, kind in found.items()
        for i, what in enumerate(("cpu", "time"))
    }


def main(model: str, windows: int, count: int, redis_url: str) -> None:
    json.dump(measure(make_kinds(model, count, redis_url), windows) | memory(), sys.stdout)


def make_kinds(model: str, count: int, redis_url: str) -> dict[str, RequestKind]:
    """Returns the kinds by name. Those of the second level have almost no memory, so that each row is looked up in Redis."""
    log, many = Log(os.open(os.devnull, os.O_WRONLY)), rows.random_rows(40_000, 2)
    batches = [rows.batch_body(many[i : i + BATCH_ROWS]) for i in range(0, len(many), BATCH_ROWS)]
    requests = {"/predict/label": (rows.single_row_bodies(), count), "/predict/batch": (batches, max(1, count // 50))}

    def kind(role: str, path: str, repeats: bool, **settings: object) -> RequestKind:
        app = build(Settings(role=role, model_dir=model, **settings), log).app
        bodies, calls = requests[path]
        return RequestKind(app, lambda i: make_environ(bodies[i % len(bodies)]) | {"PATH_INFO": path}, calls, repeats)

    found = {}
    for path, words in (("/predict/label", ""), ("/predict/batch", "_batch")):
        found[f"off{words}"] = kind("web_single", path, False)
        found[f"miss{words}"] = kind("prediction_cache", path, False, cache_bytes=100_000_000)
        found[f"hit{words}"] = kind("prediction_cache", path, True, cache_bytes=100_000_000)
    if redis_url:
        small = {"cache_redis_url": redis_url, "cache_bytes": 1024}
        found["shared_miss"] = kind("prediction_cache", "/predict/label", False, **small)
        found["shared_hit"] = kind("prediction_cache", "/predict/label", True, **small)
    return found


def memory() -> dict[str, float]:
    """Returns the memory of an entry in bytes, and its computed size."""
    keys = [rows.float32_bytes([row]) for row in rows.random_rows(KEPT, 7)]
    gc.collect()
    tracemalloc.start()
    cache = LRUCache(1 << 30)
    before = tracemalloc.get_traced_memory()[0]
    for key in keys:
        cache.put(bytes(bytearray(key)), bytes(bytearray(12)), time.monotonic())
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return {"entry": taken / KEPT, "computed": ENTRY_BYTES + len(keys[0]) + 12}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else "")
