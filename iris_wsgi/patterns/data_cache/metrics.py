"""What is counted of items."""

from iris_wsgi.observability.metrics import Counter, Gauge, Registry

# Where an answer about an item came from: memory (an item, or that there is none; in time, or beyond it), somebody else's look
# meanwhile, Redis, the database, nowhere.
ITEM_SOURCES = ("hit", "negative", "stale", "collapsed", "redis", "database", "unavailable")
# Of a prediction also: what was said before of the same row, and a run of the model.
PREDICTION_SOURCES = (*ITEM_SOURCES, "again", "run")
WRITES = ("created", "replaced", "unavailable")
CAUSES = ("put", "check")
LEVELS = ("redis", "database")


class ItemMetrics:
    """Families of one registry."""

    def __init__(self, registry: Registry) -> None:
        counter = registry.counter
        self.items = counter("item_lookups_total", "Looks for an item, by what answered.", "source", ITEM_SOURCES)
        self.predictions = counter(
            "item_predictions_total", "Looks for an item's prediction, by what answered.", "source", PREDICTION_SOURCES
        )
        self.writes = counter("item_writes_total", "Items written, by what became of that.", "outcome", WRITES)
        self.invalidated = counter(
            "item_invalidations_total", "Items told to have changed, by a PUT here or by a look at the database.", "by", CAUSES
        )
        self.failures = counter("item_store_failures_total", "Calls that got no answer, or one that is none.", "of", LEVELS)
        self.evicted = Counter(registry, "item_cache_evictions_total", "Entries that made room for others.")
        self.entries = Gauge(registry, "item_cache_entries", "Items and predictions that are kept in memory.")
        self.bytes = Gauge(registry, "item_cache_bytes", "Bytes that they take.")

    def holds(self, entries: int, size: int) -> None:
        """So many are kept now."""
        self.entries.set(entries)
        self.bytes.set(size)
