"""Best peer of each figure, among the servers without and with a log and metrics."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from results import Results
from servers import SERVERS, UVICORN_SERVER, Server

PEERS = [server for server in SERVERS if server.peer and server.workers == 1]
PLAIN = [server for server in PEERS if not server.logs]
FAIR = [server for server in PEERS if server.logs]


class Figure(NamedTuple):
    """Figure to compare: its name in the table and in the results, whether less or more is better, and its format."""

    title: str
    key: str
    better: Callable[[Iterable[float]], float]
    pattern: str = "{:,.0f}"


class Best(NamedTuple):
    """Best server of a figure."""

    server: Server
    value: float


FIGURES = (
    Figure("CPU µs of a request", "label_cpu_16", min),
    Figure("requests/s at 16", "label_rate_16", max),
    Figure("requests/s at 256", "label_rate_256", max),
    Figure("p99 ms at 256", "label_p99_256", min, "{:.2f}"),
    Figure("p99 ms at 2,000", "label_p99_2000", min, "{:.2f}"),
    Figure("first response s", "start", min, "{:.2f}"),
    Figure("idle MB", "memory_idle", min),
)
HEADINGS = [
    "figure",
    "iris_wsgi",
    *("best peer with log and metrics", "its figure", "ours to it"),
    *("best peer without log and metrics", "its figure", "ours to it"),
    UVICORN_SERVER.title,
]


def best(results: Results, peers: Sequence[Server], figure: Figure) -> Best | None:
    """Returns the best of these peers, or None if the figure was not measured."""
    values = {peer: results.value(peer.name, figure.key) for peer in peers if not starves(results, peer, figure)}
    known = {peer: value for peer, value in values.items() if value is not None}
    if not known:
        return None
    found = figure.better(known.values())
    return next(Best(peer, value) for peer, value in known.items() if value == found)


def starves(results: Results, server: Server, figure: Figure) -> bool:
    """Returns whether a percentile lacks connections that got no response, so that it cannot be compared."""
    unanswered = results.value(server.name, figure.key.replace("_p99_", "_unanswered_")) if "_p99_" in figure.key else 0
    return bool(unanswered)


def is_ahead(results: Results, figure: Figure, other: Best | None) -> bool:
    """Returns whether another server is better than ours."""
    ours = results.value("ours", figure.key)
    return ours is not None and other is not None and figure.better((ours, other.value)) != ours


def lines(results: Results) -> list[list[str]]:
    """Returns the cells of the table, a line for each measured figure."""
    return [line for figure in FIGURES if (line := cells(results, figure))]


def cells(results: Results, figure: Figure) -> list[str]:
    """Returns the cells of a figure, or nothing if it was not measured."""
    ours = results.value("ours", figure.key)
    if ours is None:
        return []
    line = [figure.title, figure.pattern.format(ours)]
    for peers in (FAIR, PLAIN):
        found = best(results, peers, figure)
        line += [found.server.title, figure.pattern.format(found.value), f"{ours / found.value:.2f}"] if found else ["", "", ""]
    fastapi = results.value(UVICORN_SERVER.name, figure.key)
    return [*line, "" if fastapi is None else figure.pattern.format(fastapi)]


def sentences(results: Results) -> Iterator[str]:
    """Yields a sentence for each best peer that is ahead of ours, or one that no peer is."""
    for peers, which in ((FAIR, "with"), (PLAIN, "without")):
        found = [(figure, one) for figure in FIGURES if (one := best(results, peers, figure))]
        ahead: dict[str, list[str]] = {}
        for figure, one in found:
            if is_ahead(results, figure, one):
                ahead.setdefault(one.server.title, []).append(figure.title)
        yield from (f"{title} is ahead of iris_wsgi: {', '.join(titles)}." for title, titles in ahead.items())
        if found and not ahead:
            yield f"No peer {which} log and metrics is ahead of iris_wsgi in these figures."
