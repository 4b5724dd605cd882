"""Data cache: cost of a request without it, of a miss, of a hit, and of Redis between memory and database."""

import functools
from collections.abc import Iterator

import environments
import jobs
import postgresql
from bench import Bench, TrialFailed, environment_python
from caching import CALLS, COLUMNS, SHARED_COLUMNS, WINDOWS, alone, cells, redis, shared_cells
from document import section_text
from models import MODELS
from report import format_value, markdown_table
from results import Results
from runner import run_trial

HEADING = "The data cache"
STORES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
MEMORY = "memory"
ITEM, PREDICTION = "GET /items/{id}", "GET /items/{id}/prediction"
METHOD = """\
* A WSGI caller in one thread calls the application without a server, in the role `data_cache`, over a database of 20,000 items
  of four features. In a miss every item is new, and in a hit every item was requested before. The sources of all responses must
  match `/metrics`. The cost of an item does not depend on the model.
* Off has the same routes and headers. Instead of the cache it has a class of the benchmark. This class reads the database in
  each request, and then writes the item, or runs the model and writes the prediction. Requests with `Cache-Control: no-cache`
  would not be equivalent. Their items are stored, and the model does not run again for an unchanged row.
* All kinds take turns in one process, in windows of {calls} requests. The median of {windows} windows counts.
* CPU is that of the process, without that of Redis and PostgreSQL. µs are by the clock. In a server a hit gains more than here,
  because the I/O loop serves it, while a request that must read goes to a thread.
* The cache pays from the share of hits at which the CPU equals that without a cache: (miss - off) / (miss - hit). With Redis
  the share is by the clock, since a request waits for Redis.
* With Redis there is room for a few items in memory, so that each item is looked up in Redis. A miss is also stored there.
* SQLite {sqlite}, PostgreSQL {postgresql}, and Redis {redis} are on the same machine, the latter two over TCP, Redis without a
  disk. None of them has to read the disk for an item. Over a network, PostgreSQL and Redis take longer by the time of the
  network.
* A check for changes of other servers is in none of these. Each process makes one twice in a second.
* Memory is measured by tracemalloc, in an application that has loaded all items. The computed size counts against
  `IRIS_ITEMS_BYTES`.
"""


def measure_round(number: int, bench: Bench, results: Results) -> None:
    for model in MODELS:
        run_trial(model, number, results, functools.partial(trial, "inprocess_items.py", model, bench))
    run_trial(MEMORY, number, results, functools.partial(trial, "inprocess_items_memory.py", "svm", bench))
    for store in STORES:
        run_trial(store, number, results, functools.partial(shared_trial, store, bench))


def trial(script: str, model: str, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Measures the cache in memory over SQLite. Raises TrialFailed."""
    return alone(environment_python("ours"), script, model, bench), []


def shared_trial(store: str, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Measures Redis in front of a database. Raises TrialFailed."""
    if store == "sqlite":
        interpreter = environment_python("redis")
        with redis(bench) as cache:
            return alone(interpreter, "inprocess_items.py", "svm", bench, cache), []
    interpreter = environment_python("postgres")
    with postgresql.postgresql(bench) as database, redis(bench) as cache:
        return alone(interpreter, "inprocess_items.py", "svm", bench, cache, database), []


def text(results: Results) -> str:
    lines = [[f"`{ITEM}`", "any", *cells(results, "svm", "_item")]]
    lines += [[f"`{PREDICTION}`", title, *cells(results, model)] for model, title in MODELS.items()]
    tables = "In memory, CPU µs of a request, with the items in SQLite:\n\n" + markdown_table(["route", "model", *COLUMNS], lines)
    tables += f"\nRedis between memory and database, CPU µs and µs of `{ITEM}`:\n\n"
    tables += markdown_table(
        ["database", *SHARED_COLUMNS], [[title, *shared_cells(results, store)] for store, title in STORES.items()]
    )
    tables += "\n" + costs(results)
    used = [name for name in ("ours", "redis", "postgres", "models") if (environments.HOME / name / "installed").exists()]
    method = METHOD.format(calls=CALLS, windows=WINDOWS, **versions())
    return section_text(results, HEADING, tables, method, verdicts(results), used)


def costs(results: Results) -> str:
    """Returns the lines about the memory of an item and the CPU of a check for changes."""
    values = [
        format_value(results.value(MEMORY, f"{name}_{what}"), "{:.0f}")
        for what in ("bytes", "computed")
        for name in ("item", "both")
    ]
    checks = {title: format_value(results.value(store, "look"), "{:.0f}") for store, title in STORES.items()}
    times = " and ".join(f"{check} CPU µs in {title}" for title, check in checks.items() if check)
    return (
        f"An item takes {values[0]} bytes of memory, and {values[1]} with its prediction. "
        f"They count as {values[2]} and {values[3]}.\n"
        f"A check for changes of other servers takes {times or 'an unknown time'}.\n"
    )


def versions() -> dict[str, str]:
    try:
        return jobs.versions() | {"postgresql": postgresql.version()}
    except TrialFailed:
        return jobs.versions() | {"postgresql": "(which is not here)"}


def verdicts(results: Results) -> Iterator[str]:
    """Yields whether a hit in memory costs less than no cache, and the gain of Redis, which depends on the database."""
    for words, route in (("_item", ITEM), ("", PREDICTION)):
        ratio = results.ratio(("svm", f"hit{words}_cpu"), ("svm", f"off{words}_cpu"))
        if ratio is not None:
            yield f"{'PASS' if ratio < 1 else 'FAIL'} {route}: CPU of a hit in memory, relative to no cache: {ratio:.2f} times"
    for store, title in STORES.items():
        ratio = results.ratio((store, "shared_hit_time"), (store, "off_time"))
        if ratio is not None:
            pays = "" if ratio < 1 else ", which does not pay"
            yield f"INFO {title}: time of a hit in Redis, relative to no cache: {ratio:.2f} times{pays}"
