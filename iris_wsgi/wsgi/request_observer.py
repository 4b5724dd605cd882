"""Access log and request metrics."""

import json
from collections import deque
from collections.abc import Iterable
from math import inf
from time import monotonic, time
from typing import NamedTuple

from iris_wsgi.errors import PHRASES
from iris_wsgi.observability.log import Log
from iris_wsgi.observability.metrics import Counter, Gauge, Histogram, Registry
from iris_wsgi.observability.trace_context import RequestIds, TraceContext
from iris_wsgi.wsgi.application import METHODS, UNMATCHED, Response

OTHER = "other"
MAX_PATH = 200
# The maximum time between the end of a request and its log line while requests end.
MAX_DELAY_SECONDS = 0.05


class RequestSeries(NamedTuple):
    """The first cells of a counter and of a histogram, and the text of a log line from its level to its milliseconds."""

    requests: int
    seconds: int
    text: str


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
        # Without a reference to the registry, whose sources refer to the whole service.
        self.cells, self.lock, self.collectors = registry.cells, registry.lock, registry.collectors
        self.known: dict[tuple[str, str, int], RequestSeries] = {}
        # The requests that are not counted yet, with the monotonic times of their beginning and end.
        self.answers: deque[tuple[RequestSeries, Response, str, TraceContext | None, float, float]] = deque()
        # No request may end later without a flush. The first request after a flush sets it.
        self.flush_at = -inf
        registry.collectors.append(self.write)
        log.write_requests = self.write

    def started(self) -> None:
        with self.lock:
            self.cells[self.in_flight] += 1

    def ended(self) -> None:
        with self.lock:
            self.cells[self.in_flight] -= 1

    def failed(self, ids: RequestIds) -> None:
        self.log.failure(**ids.log_fields())

    def answered(
        self,
        method: str,
        path: str,
        route: str,
        response: Response,
        began: float,
        request_id: str,
        context: TraceContext | None = None,
    ) -> None:
        """Collects a request. `began` is a monotonic time."""
        series = self.known.get((method, route, response.status)) or self.series(method, path, route, response.status)
        ended = monotonic()
        self.answers.append((series, response, request_id, context, began, ended))
        if ended > self.flush_at:
            self.limit_delay(ended)

    def limit_delay(self, ended: float) -> None:
        """Writes the collected requests after the maximum delay, or at once if the log is not buffered."""
        if self.log.buffered and self.flush_at == -inf:
            self.flush_at = ended + MAX_DELAY_SECONDS
            return
        self.write()
        self.log.flush()

    def flush(self) -> None:
        """Counts the collected requests and runs, and writes the log lines. The owner of a buffered log calls it at each turn."""
        for collector in self.collectors:
            collector()

    def write(self) -> None:
        """Counts the collected requests, under one lock, and writes their log lines in the order of their ends."""
        answers, cells, lines, time_of = self.answers, self.cells, [], self.log.time_of
        if not answers:
            return
        offset = time() - monotonic()
        with self.lock:
            self.flush_at = -inf
            for _ in range(len(answers)):
                (requests, histogram, start), response, request_id, context, began, ended = answers.popleft()
                seconds = ended - began
                cells[requests] += 1
                self.seconds.record(seconds, histogram)
                rows = "null" if response.rows is None else response.rows
                job = f'","job":"{response.job}' if response.job else ""
                traced = (
                    f'","trace_id":"{context.trace}","span_id":"{context.span}","parent_id":"{context.parent}' if context else ""
                )
                lines.append(
                    f'{{"time":"{time_of(ended + offset)}{start}{seconds * 1000:.3f},"rows":{rows},'
                    f'"request_id":"{request_id}{traced}{job}{self.end}'
                )
            self.log.write(*lines)

    def series(self, method: str, path: str, route: str, status: int) -> RequestSeries:
        """Returns the series of a request, and remembers those of the routes."""
        known = method if method in METHODS else OTHER
        # Only the path needs escaping: method and route are of the table.
        where = route if route != UNMATCHED else f'{route}","path":{json.dumps(path[:MAX_PATH])[:-1]}'
        found = RequestSeries(
            self.requests.first[known, route, str(status)],
            self.seconds.first[known, route],
            f'","level":"info","method":"{known}","route":"{where}","status":{status},"ms":',
        )
        # A client can invent any number of paths and methods.
        if route != UNMATCHED and known == method:
            self.known[method, route, status] = found
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
