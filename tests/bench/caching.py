"""The prediction cache: what a request costs without it, as a miss, as a hit, and with the second level in Redis."""

import contextlib
import functools
import json
import socket
import subprocess
import tempfile
from collections.abc import Iterator

import environments
import processes
from bench import Bench, Failed, environ
from document import framed
from environments import Unavailable, python
from jobs import redis_server, until_up
from models import MODELS, folder_of
from outcome import Outcome
from report import shown, table
from rounds import attempt
from trial import free_port

HEADING = "The prediction cache"
USED = ("redis", "models")
WINDOWS, CALLS, LIMIT = 8, 300, 300
KINDS = ("off", "miss", "hit")
SHARED = ("shared_miss", "shared_hit")
METHOD = """\
* The application called without a server in one thread, as a WSGI server would: `POST /predict/label` with one row, and
  `POST /predict/batch` with 100. Off is the role `web_single`; the others are `prediction_cache`. In a miss every row is new, in
  a hit every row was asked before. With the second level there is room for three rows in memory, so each is looked up in Redis; a
  miss is put there as well.
* All kinds take turns in one process, in windows of {calls} requests ({batches} batches); the median of {windows} windows counts.
* CPU is that of the process, so without Redis's own; µs are by the clock. A request to a server costs more beside the
  application, the same in all kinds, but for one thing: with a second level no request is answered in the I/O loop.
* Pays from is the share of hits at which CPU with a cache is that without: (miss - off) / (miss - hit). With the second level
  it is by the clock, since a request waits for Redis.
* Redis is on the same machine, over TCP, without a disk. Over a network its hit takes as much longer as that takes.
* Memory of an answer is by tracemalloc over 20,000 of them with four features and three classes; reckoned is what counts against
  `IRIS_CACHE_BYTES`.
"""


def measure_round(number: int, bench: Bench, outcome: Outcome) -> None:
    for model in MODELS:
        attempt(model, number, outcome, functools.partial(trial, model, bench))


def trial(model: str, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """All kinds in turns. Raises Failed."""
    folder, windows = folder_of(model, bench), WINDOWS if bench.effort.requests > 5000 else 4
    script = str(environments.BENCH / "alone_cached.py")
    with redis(bench) as url:
        command = [python("redis"), "-B", script, folder, str(windows), str(CALLS), url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False, env=environ(bench.scratch))
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or ["it ended"])[-1])
    return json.loads(done.stdout), []


@contextlib.contextmanager
def redis(bench: Bench) -> Iterator[str]:
    """The URL of a Redis without a disk. Raises Failed."""
    try:
        environments.ensure("redis")
    except Unavailable as error:
        raise Failed(f"its package is {error}") from None
    port = free_port()
    with tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
        command = [redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        with processes.running(command, environ(folder), bench.cpus, folder) as process:
            until_up(process, lambda: socket.create_connection(("127.0.0.1", port), 1).close())
            yield f"redis://127.0.0.1:{port}"


def text(outcome: Outcome) -> str:
    def cells(model: str, figures: tuple[str, ...]) -> list[str]:
        return [shown(outcome.value(model, figure), "{:,.0f}") for figure in figures]

    singles, batches, shared = [], [], []
    for model, title in MODELS.items():
        pays = [pays_from(outcome, model, words) for words in ("", "_batch")]
        singles.append([title, *cells(model, tuple(f"{kind}_cpu" for kind in KINDS)), hit_to_off(outcome, model, ""), pays[0]])
        batches.append(
            [title, *cells(model, tuple(f"{kind}_batch_cpu" for kind in KINDS)), hit_to_off(outcome, model, "_batch"), pays[1]]
        )
        both = tuple(f"{kind}_{what}" for what in ("cpu", "time") for kind in ("off", *SHARED))
        shared.append([title, *cells(model, both), pays_from(outcome, model, "", "time", "shared_")])
    words = ["model", "off", "miss", "hit", "hit to off", "pays from"]
    tables = "In memory, CPU µs of a request of one row:\n\n" + table(words, singles)
    tables += "\nIn memory, CPU µs of a batch of 100 rows:\n\n" + table(words, batches)
    levels = ["off", "miss", "hit"]
    tables += "\nThe second level alone, CPU µs and µs of a request of one row:\n\n"
    tables += table(["model", *(f"{one} CPU" for one in levels), *(f"{one} µs" for one in levels), "pays from"], shared)
    entry, reckoned = (shown(outcome.value("svm", figure), "{:.0f}") for figure in ("entry", "reckoned"))
    tables += f"\nAn answer takes {entry} bytes of memory; {reckoned} are reckoned.\n"
    method = METHOD.format(calls=CALLS, batches=CALLS // 50, windows=WINDOWS)
    return framed(outcome, HEADING, tables, method, verdicts(outcome), USED)


def hit_to_off(outcome: Outcome, model: str, words: str) -> str:
    return shown(outcome.ratio((model, f"hit{words}_cpu"), (model, f"off{words}_cpu")), "{:.2f}")


def pays_from(outcome: Outcome, model: str, words: str, what: str = "cpu", level: str = "") -> str:
    """The share of hits from which on a cache costs less than none."""
    names = f"off{words}_{what}", f"{level}miss{words}_{what}", f"{level}hit{words}_{what}"
    off, miss, hit = (outcome.value(model, name) for name in names)
    if off is None or miss is None or hit is None:
        return ""
    if hit >= off:
        return "never"
    return f"{max(0.0, (miss - off) / (miss - hit)):.0%}"


def verdicts(outcome: Outcome) -> Iterator[str]:
    """A hit is to cost less than no cache: in memory for the project's own model, in Redis for a heavier one."""
    own = outcome.ratio(("svm", "hit_cpu"), ("svm", "off_cpu"))
    if own is not None:
        yield f"{'PASS' if own < 1 else 'FAIL'} {MODELS['svm']}: CPU of a hit in memory, of that without a cache: {own:.2f} times"
    for model in ("svm", "wide"):
        far = outcome.ratio((model, "shared_hit_time"), (model, "off_time"))
        if far is not None:
            word = "INFO" if model == "svm" else "PASS" if far < 1 else "FAIL"
            yield f"{word} {MODELS[model]}: time of a hit in Redis, of that without a cache: {far:.2f} times"
