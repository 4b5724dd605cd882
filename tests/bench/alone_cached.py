"""The application without a server, without a cache and with one: CPU µs and µs of one call, in turns; and bytes of an entry."""

import gc
import json
import os
import sys
import time
import tracemalloc
from collections.abc import Sequence
from statistics import median

import rows
from alone import call, environ

from iris_wsgi.log import Log
from iris_wsgi.roles import build
from iris_wsgi.settings import Settings
from iris_wsgi.shelf import ENTRY_BYTES, Shelf

BATCH_ROWS = 100
KEPT = 20_000


class Kind:
    """Requests to one application: each different, or, if it `repeats`, those of the first window again and again."""

    def __init__(self, app, path: str, repeats: bool, of_many: bool) -> None:
        self.app, self.path, self.repeats, self.of_many = app, path, repeats, of_many
        self.given = 0
        self.spent: list[tuple[float, float]] = []

    def window(self, bodies: Sequence[bytes], count: int) -> None:
        """So many calls; what one took, in µs of CPU and in µs."""
        first = 0 if self.repeats else self.given
        self.given += count
        asked = [environ(bodies[i % len(bodies)]) | {"PATH_INFO": self.path} for i in range(first, first + count)]
        began, cpu = time.perf_counter_ns(), time.process_time_ns()
        for one in asked:
            call(self.app, one)
        self.spent.append(((time.process_time_ns() - cpu) / 1e3 / count, (time.perf_counter_ns() - began) / 1e3 / count))


def main(model: str, windows: int, count: int, redis_url: str) -> None:
    singles, many = rows.drawn(max(20_000, (windows + 1) * count), 1), rows.drawn(40_000, 2)
    bodies = {False: [rows.nested([row]) for row in singles]}
    bodies[True] = [rows.nested(many[i : i + BATCH_ROWS]) for i in range(0, len(many), BATCH_ROWS)]
    found = kinds(model, redis_url)
    for _ in range(windows + 1):
        for kind in found.values():
            kind.window(bodies[kind.of_many], max(1, count // 50) if kind.of_many else count)
    # The first window is to get warm.
    figures = {
        f"{name}_{what}": median(one[i] for one in kind.spent[1:])
        for name, kind in found.items()
        for i, what in enumerate(("cpu", "time"))
    }
    json.dump(figures | memory(), sys.stdout)


def kinds(model: str, redis_url: str) -> dict[str, Kind]:
    """By name; those of the second level keep next to nothing in memory, so that each row is looked up in Redis."""
    log = Log(os.open(os.devnull, os.O_WRONLY))

    def app(role: str, **settings: object):
        return build(Settings(role=role, model_dir=model, **settings), log).app

    found = {}
    for of_many, path, words in ((False, "/predict/label", ""), (True, "/predict/batch", "_batch")):
        found[f"off{words}"] = Kind(app("web_single"), path, False, of_many)
        found[f"miss{words}"] = Kind(app("prediction_cache", cache_bytes=100_000_000), path, False, of_many)
        found[f"hit{words}"] = Kind(app("prediction_cache", cache_bytes=100_000_000), path, True, of_many)
    if redis_url:
        told = {"cache_redis_url": redis_url, "cache_bytes": 1024}
        found["shared_miss"] = Kind(app("prediction_cache", **told), "/predict/label", False, False)
        found["shared_hit"] = Kind(app("prediction_cache", **told), "/predict/label", True, False)
    return found


def memory() -> dict[str, float]:
    """Bytes that an answer takes in memory, and what is reckoned for it."""
    keys = [rows.packed([row]) for row in rows.drawn(KEPT, 7)]
    gc.collect()
    tracemalloc.start()
    shelf = Shelf(1 << 30)
    before = tracemalloc.get_traced_memory()[0]
    for key in keys:
        shelf.put(bytes(bytearray(key)), bytes(bytearray(12)), time.monotonic())
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return {"entry": taken / KEPT, "reckoned": ENTRY_BYTES + len(keys[0]) + 12}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else "")
