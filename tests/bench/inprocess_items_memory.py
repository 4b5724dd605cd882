"""Prints the memory of an item with and without its prediction, and the computed size."""

import gc
import json
import sys
import tempfile
import tracemalloc

from inprocess_app import call
from inprocess_items import KEPT, PLACES, SQLITE, Items, filled, get, item_id, metric


def main(model: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        items = Items(model, f"{SQLITE}{folder}/items.db")
        filled(items.url)
        json.dump(taken(items, "_item", "item") | taken(items, "", "both"), sys.stdout)


def taken(items: Items, words: str, name: str) -> dict[str, float]:
    """Measures the memory while all items are loaded. The first item is loaded before, because it also creates other objects."""
    app, (path, _) = items.app(), PLACES[words]
    call(app, get(path.format(item_id(0))))
    gc.collect()
    tracemalloc.start()
    for i in range(1, KEPT):
        call(app, get(path.format(item_id(i))))
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return {f"{name}_bytes": grown / (KEPT - 1), f"{name}_computed": metric(app, "item_cache_bytes") / KEPT}


if __name__ == "__main__":
    main(sys.argv[1])
