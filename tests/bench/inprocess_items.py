"""Calls the item routes without a server, with and without a cache; prints µs and CPU µs of a call."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import rows
from inprocess_app import call, make_environ
from inprocess_cache import RequestKind, measure

from iris_wsgi.factory import build
from iris_wsgi.http.cache_headers import DEFAULT, CacheDirectives
from iris_wsgi.observability.log import Log
from iris_wsgi.patterns.data_cache import role
from iris_wsgi.patterns.data_cache.cache import Entry, ItemCache, ItemLookup
from iris_wsgi.patterns.data_cache.item_store import ItemStore
from iris_wsgi.patterns.data_cache.sqlite_store import open_item_store
from iris_wsgi.setting_types import SQLITE
from iris_wsgi.settings import Settings

KEPT, LOOKS = 20_000, 200
LOOK_SECONDS, MAX_SECONDS = 3600.0, 86400.0
ROOMY, NARROW = 100_000_000, 4096
PLACES = {"_item": ("/items/{}", "item_lookups_total"), "": ("/items/{}/prediction", "item_predictions_total")}


class Uncached(ItemCache):
    """Replacement for the cache that reads the database in each request, and runs the model for predictions."""

    def item(self, item_id: str, deadline: float, directives: CacheDirectives = DEFAULT) -> ItemLookup:
        self.metrics.items.add(("database",))
        return self.uncached(item_id, self.show_item)

    def prediction(self, item_id: str, deadline: float, directives: CacheDirectives = DEFAULT) -> ItemLookup:
        self.metrics.predictions.add(("run",))
        return self.uncached(item_id, partial(self.predict, deadline=deadline))

    def uncached(self, item_id: str, render: Callable[[str, int, bytes], bytes]) -> ItemLookup:
        item, read_at, source = self.reader.get(item_id, DEFAULT)
        body = render(item_id, item.version, item.row)
        return ItemLookup(Entry((0, 0), item.version, read_at, read_at, item.row, body), source)


class Items:
    """Builds request kinds over one database, and checks the sources of their responses."""

    def __init__(self, model: str, url: str, windows: int = 0, count: int = 0) -> None:
        self.model, self.url, self.windows, self.count = model, url, windows, count
        self.log = Log(os.open(os.devnull, os.O_WRONLY))
        self.found: dict[str, RequestKind] = {}
        self.sources: dict[str, str] = {}

    def app(self, cache: type[ItemCache] = ItemCache, size: int = ROOMY, redis_url: str = ""):
        """Builds an application whose entries do not expire. It checks the database for changes only at its start."""
        settings = {"database_url": self.url, "cache_redis_url": redis_url, "items_bytes": size}
        settings |= {"items_seconds": MAX_SECONDS}
        with patch.object(role, "ItemCache", cache), patch.object(role, "CHECK_SECONDS", LOOK_SECONDS):
            service = build(Settings(role="data_cache", model_dir=self.model, **settings), self.log)
        service.background.start()
        return service.app

    def add(self, name: str, app, words: str, source: str, repeats: bool = False) -> None:
        """Adds requests whose responses must come from this source."""
        path, family = PLACES[words]
        self.found[name] = RequestKind(app, lambda i: get(path.format(item_id(i))), self.count, repeats)
        self.sources[name] = f'{family}{{source="{source}"}}'

    def measure(self) -> dict[str, float]:
        figures = measure(self.found, self.windows)
        for name, source in self.sources.items():
            if metric(self.found[name].app, source) < self.windows * self.count:
                raise SystemExit(f"{name}: not all responses have the source {source}")
        return figures


def main(model: str, windows: int, count: int, redis_url: str = "", url: str = "") -> None:
    with tempfile.TemporaryDirectory() as folder:
        items = Items(model, url or f"{SQLITE}{folder}/items.db", windows, count)
        store = filled(items.url)
        add_levels(items, redis_url) if redis_url else add_routes(items)
        json.dump(items.measure() | {"look": look(store)}, sys.stdout)


def filled(url: str) -> ItemStore:
    """Returns a database with items."""
    drawn = {item_id(i): rows.float32_bytes([row]) for i, row in enumerate(rows.random_rows(KEPT, 7))}
    store = open_item_store(Settings(database_url=url), drawn, 60.0)
    store.identity()
    return store


def add_routes(items: Items) -> None:
    for words, source in (("_item", "database"), ("", "run")):
        items.add(f"off{words}", items.app(Uncached), words, source)
        items.add(f"miss{words}", items.app(), words, source)
        items.add(f"hit{words}", items.app(), words, "hit", repeats=True)


def add_levels(items: Items, redis_url: str) -> None:
    """Adds kinds with memory for a few items, so that each item is looked up in Redis."""
    items.add("off", items.app(Uncached), "_item", "database")
    for name, source in (("miss", "database"), ("hit", "redis")):
        app = items.app(ItemCache, NARROW, redis_url)
        until_looked(app)
        items.add(f"shared_{name}", app, "_item", source, repeats=name == "hit")


def until_looked(app) -> None:
    """Waits until the application has checked the database for changes; before that it does not use Redis."""
    while not metric(app, 'item_lookups_total{source="redis"}'):
        for i in range(KEPT - 50, KEPT):
            call(app, get(f"/items/{item_id(i)}"))


def look(store: ItemStore) -> float:
    """Returns the CPU µs of a check for changes in an unchanged database."""
    cursor = store.changes(None).cursor
    began = time.process_time_ns()
    for _ in range(LOOKS):
        store.changes(cursor)
    return (time.process_time_ns() - began) / 1e3 / LOOKS


def item_id(number: int) -> str:
    return f"{number:05d}"


def get(path: str) -> dict[str, object]:
    """Returns the WSGI environ of a GET request."""
    environ = {name: value for name, value in make_environ(b"").items() if not name.startswith("CONTENT_")}
    return environ | {"REQUEST_METHOD": "GET", "PATH_INFO": path}


def metric(app, name: str) -> float:
    """Returns the value of a metric of the application."""
    for line in call(app, get("/metrics")).decode().splitlines():
        if line.startswith(f"{name} "):
            return float(line.rpartition(" ")[2])
    raise SystemExit(f"{name} is not in the metrics")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
