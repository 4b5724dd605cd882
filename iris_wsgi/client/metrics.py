"""What is counted of calls to other servers."""

from collections.abc import Sequence

from iris_wsgi.observability.metrics import Counter, Gauge, Histogram, Registry

OUTCOMES = ("ok", "unreachable", "late", "bad_answer", "refused")


class CallMetrics:
    """Series by target, of which all are known at the start."""

    def __init__(self, registry: Registry, targets: Sequence[str]) -> None:
        of_target, keys = ("target",), [targets]
        self.calls = Counter(
            registry,
            "remote_calls_total",
            "Calls to another server, by what came of them; refused: not made, as its breaker was open.",
            ("target", "outcome"),
            [targets, OUTCOMES],
        )
        self.seconds = Histogram(
            registry, "remote_call_duration_seconds", "Seconds until a call was answered well.", of_target, keys
        )
        self.retries = Counter(registry, "remote_retries_total", "Calls made again, as there was no connection.", of_target, keys)
        self.opened = Counter(registry, "remote_connections_opened_total", "Connections that were begun.", of_target, keys)
        self.connections = Gauge(registry, "remote_connections", "Connections that are open.", of_target, keys)
        self.down = Gauge(registry, "remote_breaker_open", "Processes that ask this target nothing now.", of_target, keys)
