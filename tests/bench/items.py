"""The data cache: what a request for an item costs without it, as a miss, as a hit, and with Redis before the database."""

import functools
from collections.abc import Iterator

import environments
import jobs
import postgresql
from bench import Bench, Failed, needed
from caching import CALLS, COLUMNS, SHARED_COLUMNS, WINDOWS, alone, cells, redis, shared_cells
from document import framed
from models import MODELS
from report import shown, table
from results import Outcome
from runner import attempt

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


def measure_round(number: int, bench: Bench, outcome: Outcome) -> None:
    for model in MODELS:
        attempt(model, number, outcome, functools.partial(trial, "inprocess_items.py", model, bench))
    attempt(MEMORY, number, outcome, functools.partial(trial, "inprocess_items_memory.py", "svm", bench))
    for store in STORES:
        attempt(store, number, outcome, functools.partial(shared_trial, store, bench))


def trial(script: str, model: str, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """In memory, over SQLite. Raises Failed."""
    return alone(needed("ours"), script, model, bench), []


def shared_trial(store: str, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Redis before a database. Raises Failed."""
    if store == "sqlite":
        interpreter = needed("redis")
        with redis(bench) as cache:
            return alone(interpreter, "inprocess_items.py", "svm", bench, cache), []
    interpreter = needed("postgres")
    with postgresql.postgresql(bench) as database, redis(bench) as cache:
        return alone(interpreter, "inprocess_items.py", "svm", bench, cache, database), []


def text(outcome: Outcome) -> str:
    lines = [[f"`{ITEM}`", "any", *cells(outcome, "svm", "_item")]]
    lines += [[f"`{PREDICTION}`", title, *cells(outcome, model)] for model, title in MODELS.items()]
    tables = "In memory, CPU µs of a request, with the items in SQLite:\n\n" + table(["route", "model", *COLUMNS], lines)
    tables += f"\nRedis between memory and database, CPU µs and µs of `{ITEM}`:\n\n"
    tables += table(["database", *SHARED_COLUMNS], [[title, *shared_cells(outcome, store)] for store, title in STORES.items()])
    tables += "\n" + costs(outcome)
    used = [name for name in ("ours", "redis", "postgres", "models") if (environments.HOME / name / "installed").exists()]
    method = METHOD.format(calls=CALLS, windows=WINDOWS, **versions())
    return framed(outcome, HEADING, tables, method, verdicts(outcome), used)


def costs(outcome: Outcome) -> str:
    """What an item takes of memory, and a look of CPU."""
    told = [
        shown(outcome.value(MEMORY, f"{name}_{what}"), "{:.0f}") for what in ("bytes", "reckoned") for name in ("item", "both")
    ]
    looks = {title: shown(outcome.value(store, "look"), "{:.0f}") for store, title in STORES.items()}
    taken = " and ".join(f"{look} CPU µs in {title}" for title, look in looks.items() if look)
    return (
        f"An item takes {told[0]} bytes of memory, and {told[1]} with its prediction. They count as {told[2]} and {told[3]}.\n"
        f"A check for changes of other servers takes {taken or 'an unknown time'}.\n"
    )


def versions() -> dict[str, str]:
    try:
        return jobs.versions() | {"postgresql": postgresql.version()}
    except Failed:
        return jobs.versions() | {"postgresql": "(which is not here)"}


def verdicts(outcome: Outcome) -> Iterator[str]:
    """A hit in memory is to cost less than no cache; what Redis gives depends on the database."""
    for words, route in (("_item", ITEM), ("", PREDICTION)):
        ratio = outcome.ratio(("svm", f"hit{words}_cpu"), ("svm", f"off{words}_cpu"))
        if ratio is not None:
            yield f"{'PASS' if ratio < 1 else 'FAIL'} {route}: CPU of a hit in memory, relative to no cache: {ratio:.2f} times"
    for store, title in STORES.items():
        ratio = outcome.ratio((store, "shared_hit_time"), (store, "off_time"))
        if ratio is not None:
            pays = "" if ratio < 1 else ", which does not pay"
            yield f"INFO {title}: time of a hit in Redis, relative to no cache: {ratio:.2f} times{pays}"
