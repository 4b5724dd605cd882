"""Prediction cache: cost of a request without it, of a miss, of a hit, and of the second level in Redis."""

import contextlib
import functools
import json
import socket
import subprocess
import tempfile
from collections.abc import Iterator

import environments
import processes
from bench import Bench, TrialFailed, environ, environment_python
from document import section_text
from jobs import redis_server, wait_until_up
from models import MODELS, folder_of
from report import format_value, markdown_table
from results import Results
from runner import run_trial
from server_trial import free_port

HEADING = "The prediction cache"
USED = ("redis", "models")
WINDOWS, CALLS, LIMIT = 8, 300, 300
KINDS = ("off", "miss", "hit")
SHARED = ("shared_miss", "shared_hit")
COLUMNS = [*KINDS, "hit to off", "pays from"]
SHARED_COLUMNS = [*(f"{kind} CPU" for kind in KINDS), *(f"{kind} µs" for kind in KINDS), "pays from"]
METHOD = """\
* A WSGI caller in one thread calls the application without a server: `POST /predict/label` with one row, and
  `POST /predict/batch` with 100. Off is the role `web_single`, and the other kinds are `prediction_cache`. In a miss every row
  is new. In a hit every row was requested before. With the second level there is room for three rows in memory, so each row is
  looked up in Redis. A miss is also stored there.
* All kinds take turns in one process, in windows of {calls} requests ({batches} batches). The median of {windows} windows
  counts.
* CPU is that of the process, without Redis's own. µs are by the clock. A request to a server costs more than a call of the
  application. The difference is the same in all kinds, except that with a second level the I/O loop serves no request.
* The cache pays from the share of hits at which the CPU equals that without a cache: (miss - off) / (miss - hit). With the
  second level the share is by the clock, since a request waits for Redis.
* Redis is on the same machine, over TCP, without a disk. Over a network, a hit takes longer by the time of the network.
* The memory of an entry is measured by tracemalloc over 20,000 entries with four features and three classes. The computed size
  counts against `IRIS_CACHE_BYTES`.
"""


def measure_round(number: int, bench: Bench, results: Results) -> None:
    for model in MODELS:
        run_trial(model, number, results, functools.partial(trial, model, bench))


def trial(model: str, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Measures all kinds in turn. Raises TrialFailed."""
    interpreter = environment_python("redis")
    with redis(bench) as url:
        return alone(interpreter, "inprocess_cache.py", model, bench, url), []


def alone(interpreter: str, script: str, model: str, bench: Bench, *words: str) -> dict[str, float]:
    """Runs a script that calls the application without a server, and returns its figures. Raises TrialFailed."""
    windows = WINDOWS if bench.effort.requests > 5000 else 4
    command = [interpreter, "-B", str(environments.BENCH / script), folder_of(model, bench), str(windows), str(CALLS), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False, env=environ(bench.scratch))
    if done.returncode:
        raise TrialFailed((done.stderr.strip().splitlines() or ["it ended"])[-1])
    return json.loads(done.stdout)


@contextlib.contextmanager
def redis(bench: Bench) -> Iterator[str]:
    """Starts a Redis without a disk and yields its URL. Raises TrialFailed."""
    port = free_port()
    with tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
        command = [redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        with processes.running(command, environ(folder), bench.cpus, folder) as process:
            wait_until_up(process, lambda: socket.create_connection(("127.0.0.1", port), 1).close())
            yield f"redis://127.0.0.1:{port}"


def text(results: Results) -> str:
    tables = ""
    for words, what in (("", "request of one row"), ("_batch", "batch of 100 rows")):
        lines = [[title, *cells(results, model, words)] for model, title in MODELS.items()]
        tables += f"In memory, CPU µs of a {what}:\n\n{markdown_table(['model', *COLUMNS], lines)}\n"
    lines = [[title, *shared_cells(results, model)] for model, title in MODELS.items()]
    tables += "The second level alone, CPU µs and µs of a request of one row:\n\n" + markdown_table(
        ["model", *SHARED_COLUMNS], lines
    )
    entry, computed = (format_value(results.value("svm", figure), "{:.0f}") for figure in ("entry", "computed"))
    tables += f"\nAn entry takes {entry} bytes of memory, and counts as {computed}.\n"
    method = METHOD.format(calls=CALLS, batches=CALLS // 50, windows=WINDOWS)
    return section_text(results, HEADING, tables, method, verdicts(results), USED)


def cells(results: Results, name: str, words: str = "") -> list[str]:
    """Returns the cells of COLUMNS."""
    values = [format_value(results.value(name, f"{kind}{words}_cpu"), "{:,.0f}") for kind in KINDS]
    ratio = format_value(results.ratio((name, f"hit{words}_cpu"), (name, f"off{words}_cpu")), "{:.2f}")
    return [*values, ratio, pays_from(results, name, words)]


def shared_cells(results: Results, name: str) -> list[str]:
    """Returns the cells of SHARED_COLUMNS."""
    figures = [f"{kind}_{what}" for what in ("cpu", "time") for kind in ("off", *SHARED)]
    return [
        *(format_value(results.value(name, figure), "{:,.0f}") for figure in figures),
        pays_from(results, name, "", "time", "shared_"),
    ]


def pays_from(results: Results, model: str, words: str, what: str = "cpu", level: str = "") -> str:
    """Returns the share of hits above which the cache costs less than no cache."""
    names = f"off{words}_{what}", f"{level}miss{words}_{what}", f"{level}hit{words}_{what}"
    off, miss, hit = (results.value(model, name) for name in names)
    if off is None or miss is None or hit is None:
        return ""
    if hit >= off:
        return "never"
    return f"{max(0.0, (miss - off) / (miss - hit)):.0%}"


def verdicts(results: Results) -> Iterator[str]:
    """Yields whether a hit costs less than no cache: in memory for this project's model, in Redis for a heavier one."""
    own = results.ratio(("svm", "hit_cpu"), ("svm", "off_cpu"))
    if own is not None:
        yield f"{'PASS' if own < 1 else 'FAIL'} {MODELS['svm']}: CPU of a hit in memory, relative to no cache: {own:.2f} times"
    for model in ("svm", "wide"):
        far = results.ratio((model, "shared_hit_time"), (model, "off_time"))
        if far is not None:
            word = "INFO" if model == "svm" else "PASS" if far < 1 else "FAIL"
            yield f"{word} {MODELS[model]}: time of a hit in Redis, relative to no cache: {far:.2f} times"
