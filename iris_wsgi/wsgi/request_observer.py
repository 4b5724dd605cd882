"""Access log and request metrics."""

import json
from collections.abc import Iterable

from iris_wsgi.errors import PHRASES
from iris_wsgi.observability.log import Log
from iris_wsgi.observability.metrics import Counter, Gauge, Histogram, Registry
from iris_wsgi.observability.trace_context import RequestIds
from iris_wsgi.wsgi.application import METHODS, UNMATCHED, Response

OTHER = "other"
MAX_PATH = 200


class RequestObserver:
    """Counts requests by method, route, and status, and writes a log line for each.

    All unknown paths count as one route, and all unknown methods as one method: clients cannot add series.
    """

    def __init__(self, log: Log, registry: Registry, paths: Iterable[str], model_version: str) -> None:
        self.log = log
        self.end = f'","model":{json.dumps(model_version)}}}'
        routes = ((*METHODS, OTHER), (*dict.fromkeys(paths), UNMATCHED))
        names, axes = ("method", "route", "status"), (*routes, map(str, PHRASES))
        self.requests = Counter(registry, "http_requests_total", "HTTP requests.", names, axes, sparse=True)
        self.seconds = Histogram(
            registry, "http_request_duration_seconds", "Duration of HTTP requests in seconds.", names[:2], routes, sparse=True
        )
        in_flight = Gauge(registry, "http_requests_in_flight", "HTTP requests in progress.")
        self.connections = Gauge(registry, "http_connections", "Open HTTP connections.")
        self.queued = Gauge(registry, "http_requests_queued", "HTTP requests that wait for a thread.")
        self.bytes = Gauge(
            registry,
            "http_held_bytes",
            "Bytes of requests without a response, and of responses that clients have not read.",
            ("of",),
            [("requests", "answers")],
        )
        self.in_flight = in_flight.first[()]
        self.cells, self.lock = registry.cells, registry.lock
        self.offsets: dict[tuple[str, str, int], tuple[int, int]] = {}

    def started(self) -> None:
        with self.lock:
            self.cells[self.in_flight] += 1

    def failed(self, ids: RequestIds) -> None:
        self.log.failure(**ids.log_fields())

    def answered(self, method: str, path: str, route: str, response: Response, seconds: float, ids: RequestIds) -> None:
        if method not in METHODS:
            method = OTHER
        requests, histogram = self.series(method, route, response.status)
        with self.lock:
            self.cells[requests] += 1
            self.seconds.record(seconds, histogram)
            self.cells[self.in_flight] -= 1
        # Only the path needs escaping: method and route are of the table, and the ids are checked.
        where = route if route != UNMATCHED else f'{route}","path":{json.dumps(path[:MAX_PATH])[:-1]}'
        rows = "null" if response.rows is None else response.rows
        job = f'","job":"{response.job}' if response.job else ""
        traced = f'","trace_id":"{ids.trace}","span_id":"{ids.span}","parent_id":"{ids.parent}' if ids.trace else ""
        self.log.write(
            f'{{"time":"{self.log.now()}","level":"info","method":"{method}","route":"{where}","status":{response.status},'
            f'"ms":{seconds * 1000:.3f},"rows":{rows},"request_id":"{ids.request}{traced}{job}{self.end}'
        )

    def series(self, method: str, route: str, status: int) -> tuple[int, int]:
        """Returns the offsets of the counter and of the histogram, which it caches."""
        found = self.offsets.get((method, route, status))
        if found is None:
            found = self.requests.first[method, route, str(status)], self.seconds.first[method, route]
            self.offsets[method, route, status] = found
        return found

    def record_load(self, connections: int, queued: int, request_bytes: int, response_bytes: int) -> None:
        self.connections.set(connections)
        self.queued.set(queued)
        self.bytes.set(request_bytes, ("requests",))
        self.bytes.set(response_bytes, ("answers",))

    def rejected(self, status: int, ids: RequestIds) -> None:
        """Records a request that the server rejected before it reached the application."""
        self.requests.add((OTHER, UNMATCHED, str(status)))
        self.log.event("info", "request refused", status=status, **ids.log_fields())
