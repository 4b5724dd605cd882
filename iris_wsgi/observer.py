"""Tells the log and the metrics of each request."""

from collections.abc import Iterable
from itertools import product

from iris_wsgi.log import Log
from iris_wsgi.metrics import Counter, Gauge, Histogram, Registry
from iris_wsgi.wsgi import METHODS, STATUS_LINES, UNMATCHED, Response

OTHER = "other"
MOST_PATH = 200


class RequestObserver:
    """Counts requests by method, route and status, and writes a log line for each.

    A path that is no route counts as one route, and a method that is none as one method: clients cannot add a series.
    """

    def __init__(self, log: Log, registry: Registry, paths: Iterable[str], model: str) -> None:
        self.log, self.model = log, model
        routes, methods = (*dict.fromkeys(paths), UNMATCHED), (*METHODS, OTHER)
        served = list(product(methods, routes))
        answered = [(method, route, str(status)) for method, route in served for status in STATUS_LINES]
        names = ("method", "route", "status")
        self.requests = Counter(registry, "http_requests_total", "Requests answered.", names, answered, sparse=True)
        self.seconds = Histogram(
            registry, "http_request_duration_seconds", "Seconds from request to answer.", names[:2], served, sparse=True
        )
        self.in_flight = Gauge(registry, "http_requests_in_flight", "Requests being answered.")

    def started(self) -> None:
        self.in_flight.add()

    def failed(self, request_id: str) -> None:
        self.log.failure(request_id)

    def answered(self, method: str, path: str, route: str, response: Response, seconds: float, request_id: str) -> None:
        method = method if method in METHODS else OTHER
        self.requests.add((method, route, str(response.status)))
        self.seconds.observe(seconds, (method, route))
        self.in_flight.add(amount=-1)
        line: dict[str, object] = {"level": "info", "method": method, "route": route}
        if route == UNMATCHED:
            line["path"] = path[:MOST_PATH]
        line |= {"status": response.status, "ms": round(seconds * 1000, 3), "rows": response.rows}
        self.log.write(line | {"request_id": request_id, "model": self.model})
