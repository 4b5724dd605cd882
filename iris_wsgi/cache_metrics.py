"""What is counted of the prediction cache."""

from iris_wsgi.metrics import Counter, Registry

RESULTS = ("hit", "waited", "shared", "run", "bypassed")


class CacheMetrics:
    """Families of one registry. Rows, and not requests: a request of several rows may find some of them."""

    def __init__(self, registry: Registry) -> None:
        self.rows = Counter(
            registry,
            "prediction_cache_rows_total",
            "Rows, by where their answers came from.",
            ("result",),
            [(result,) for result in RESULTS],
        )
        self.evicted = Counter(registry, "prediction_cache_evictions_total", "Answers that made room for others.")
