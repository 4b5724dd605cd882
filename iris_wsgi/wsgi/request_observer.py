"""Tells the log and the metrics of each request."""

import json
from collections.abc import Iterable

from iris_wsgi.errors import PHRASES
from iris_wsgi.observability.log import Log
from iris_wsgi.observability.metrics import Counter, Gauge, Histogram, Registry
from iris_wsgi.observability.trace_context import Ids
from iris_wsgi.wsgi.application import METHODS, UNMATCHED, Response

OTHER = "other"
MOST_PATH = 200


class RequestObserver:
    """Counts requests by method, route and status, and writes a log line for each.

    A path that is no route counts as one route, and a method that is none as one method: clients cannot add a series.
    """

    def __init__(self, log: Log, registry: Registry, paths: Iterable[str], model: str) -> None:
        self.log = log
        self.end = f'","model":{json.dumps(model)}}}'
        served = ((*METHODS, OTHER), (*dict.fromkeys(paths), UNMATCHED))
        names, axes = ("method", "route", "status"), (*served, map(str, PHRASES))
        self.requests = Counter(registry, "http_requests_total", "Requests answered.", names, axes, sparse=True)
        self.seconds = Histogram(
            registry, "http_request_duration_seconds", "Seconds from request to answer.", names[:2], served, sparse=True
        )
        in_flight = Gauge(registry, "http_requests_in_flight", "Requests being answered.")
        self.connections = Gauge(registry, "http_connections", "Connections that are open.")
        self.queued = Gauge(registry, "http_requests_queued", "Requests that wait for a thread.")
        self.bytes = Gauge(
            registry,
            "http_held_bytes",
            "Bytes of requests that are not answered, and of computed answers that their clients have not taken.",
            ("of",),
            [("requests", "answers")],
        )
        self.flying = in_flight.first[()]
        self.cells, self.lock = registry.cells, registry.lock
        self.places: dict[tuple[str, str, int], tuple[int, int]] = {}

    def started(self) -> None:
        with self.lock:
            self.cells[self.flying] += 1

    def failed(self, ids: Ids) -> None:
        self.log.failure(**ids.told())

    def answered(self, method: str, path: str, route: str, response: Response, seconds: float, ids: Ids) -> None:
        """One request is answered, after `seconds` in the application."""
        if method not in METHODS:
            method = OTHER
        requests, histogram = self.place(method, route, response.status)
        with self.lock:
            self.cells[requests] += 1
            self.seconds.record(seconds, histogram)
            self.cells[self.flying] -= 1
        # Method and route are of the table and all ids were checked, so nothing here has to be escaped but the path.
        where = route if route != UNMATCHED else f'{route}","path":{json.dumps(path[:MOST_PATH])[:-1]}'
        rows = "null" if response.rows is None else response.rows
        job = f'","job":"{response.job}' if response.job else ""
        traced = f'","trace_id":"{ids.trace}","span_id":"{ids.span}","parent_id":"{ids.parent}' if ids.trace else ""
        self.log.write(
            f'{{"time":"{self.log.now()}","level":"info","method":"{method}","route":"{where}","status":{response.status},'
            f'"ms":{seconds * 1000:.3f},"rows":{rows},"request_id":"{ids.request}{traced}{job}{self.end}'
        )

    def place(self, method: str, route: str, status: int) -> tuple[int, int]:
        """The first cells of the two series that a request counts in, looked up once for all requests like it."""
        found = self.places.get((method, route, status))
        if found is None:
            found = self.requests.first[method, route, str(status)], self.seconds.first[method, route]
            self.places[method, route, status] = found
        return found

    def record_load(self, connections: int, queued: int, requests: int, answers: int) -> None:
        """What the server has now: the last two in bytes."""
        self.connections.set(connections)
        self.queued.set(queued)
        self.bytes.set(requests, ("requests",))
        self.bytes.set(answers, ("answers",))

    def refused(self, status: int, ids: Ids) -> None:
        """A request that the server itself refused before it reached the application."""
        self.requests.add((OTHER, UNMATCHED, str(status)))
        self.log.event("info", "request refused", status=status, **ids.told())
