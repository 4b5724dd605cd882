"""The application without a server, without a cache and with one: CPU µs and µs of one call, in turns; and bytes of an entry."""

import gc
import json
import os
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping
from statistics import median

import rows
from inprocess_app import call, environ

from iris_wsgi.factory import build
from iris_wsgi.observability.log import Log
from iris_wsgi.settings import Settings
from iris_wsgi.storage.lru import ENTRY_BYTES, LRUCache

BATCH_ROWS = 100
KEPT = 20_000


class Kind:
    """Requests to one application, by number: each window others, or, if it `repeats`, those of the first again and again."""

    def __init__(self, app, asked: Callable[[int], dict[str, object]], count: int, repeats: bool) -> None:
        self.app, self.asked, self.count, self.repeats = app, asked, count, repeats
        self.given = 0
        self.spent: list[tuple[float, float]] = []

    def window(self) -> None:
        """So many calls; what one took, in µs of CPU and in µs."""
        first = 0 if self.repeats else self.given
        self.given += self.count
        asked = [self.asked(i) for i in range(first, first + self.count)]
        began, cpu = time.perf_counter_ns(), time.process_time_ns()
        for one in asked:
            call(self.app, one)
        spent = time.process_time_ns() - cpu, time.perf_counter_ns() - began
        self.spent.append((spent[0] / 1e3 / self.count, spent[1] / 1e3 / self.count))


def measured(found: Mapping[str, Kind], windows: int) -> dict[str, float]:
    """All kinds in turns, and the medians of the windows; the first window is to get warm."""
    for _ in range(windows + 1):
        for kind in found.values():
            kind.window()
    return {
        f"{name}_{what}": median(one[i] for one in kind.spent[1:])
        for name, kind in found.items()
        for i, what in enumerate(("cpu", "time"))
    }


def main(model: str, windows: int, count: int, redis_url: str) -> None:
    json.dump(measured(kinds(model, count, redis_url), windows) | memory(), sys.stdout)


def kinds(model: str, count: int, redis_url: str) -> dict[str, Kind]:
    """By name; those of the second level keep next to nothing in memory, so that each row is looked up in Redis."""
    log, many = Log(os.open(os.devnull, os.O_WRONLY)), rows.drawn(40_000, 2)
    batches = [rows.nested(many[i : i + BATCH_ROWS]) for i in range(0, len(many), BATCH_ROWS)]
    asked = {"/predict/label": (rows.singles(), count), "/predict/batch": (batches, max(1, count // 50))}

    def kind(role: str, path: str, repeats: bool, **settings: object) -> Kind:
        app = build(Settings(role=role, model_dir=model, **settings), log).app
        bodies, most = asked[path]
        return Kind(app, lambda i: environ(bodies[i % len(bodies)]) | {"PATH_INFO": path}, most, repeats)

    found = {}
    for path, words in (("/predict/label", ""), ("/predict/batch", "_batch")):
        found[f"off{words}"] = kind("web_single", path, False)
        found[f"miss{words}"] = kind("prediction_cache", path, False, cache_bytes=100_000_000)
        found[f"hit{words}"] = kind("prediction_cache", path, True, cache_bytes=100_000_000)
    if redis_url:
        told = {"cache_redis_url": redis_url, "cache_bytes": 1024}
        found["shared_miss"] = kind("prediction_cache", "/predict/label", False, **told)
        found["shared_hit"] = kind("prediction_cache", "/predict/label", True, **told)
    return found


def memory() -> dict[str, float]:
    """Bytes that an answer takes in memory, and what is reckoned for it."""
    keys = [rows.packed([row]) for row in rows.drawn(KEPT, 7)]
    gc.collect()
    tracemalloc.start()
    cache = LRUCache(1 << 30)
    before = tracemalloc.get_traced_memory()[0]
    for key in keys:
        cache.put(bytes(bytearray(key)), bytes(bytearray(12)), time.monotonic())
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return {"entry": taken / KEPT, "reckoned": ENTRY_BYTES + len(keys[0]) + 12}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else "")
