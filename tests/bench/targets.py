"""Targets of this server relative to the others, for the medians of one run."""

from collections.abc import Iterator, Sequence

from best_peers import FAIR, Figure, best, is_ahead
from results import Results
from servers import SERVERS, Server

OURS = "ours"
CPU = Figure("CPU of a request", "label_cpu_16", min)
ASGI = ("asgi", "asgi_old")
GRANIAN = ("asgi_granian", "rsgi_granian", "wsgi_granian")
FRAMEWORKS = ("uvicorn", "gunicorn", "mosec", "litserve", "bentoml")
# Maximum CPU of a request relative to peers. The best of several rows counts.
CPU_LIMITS = (
    (0.60, ("earlier",)),
    (1.00, ASGI),
    (1.10, ("wsgi_granian",)),
    (1.45, ("bjoern",)),
    (0.30, ("uvicorn",)),
    (0.50, ("mosec",)),
    (0.35, ("waitress",)),
)


def lines(results: Results) -> Iterator[str]:
    """Yields a line for each target: PASS, MISS, or OPEN if a figure is missing."""
    for limit, names in CPU_LIMITS:
        # Only --against adds the row of an earlier commit.
        if peers := rows(names):
            yield at_most(f"CPU of a request, relative to {peers[0].title}", relative_to_best(results, CPU, peers), limit)
    multiple = results.ratio((OURS, CPU.key), ("alone", "cpu"))
    yield "INFO CPU of a request, relative to the application alone: " + (
        "not measured" if multiple is None else f"{multiple:.2f}"
    )
    yield from against_peers(results)
    for at in (256, 2_000):
        wait = results.value(OURS, f"label_turns_{at}")
        yield at_most(f"longest wait of a connection for its turn at {at:,} connections, in turns", wait, 2.0)
    over_16 = results.ratio((OURS, "label_cpu_256"), (OURS, CPU.key))
    yield at_most("CPU of a request at 256 connections, relative to 16", over_16, 1.25)
    idle = results.ratio((OURS, "idle_cpu_2000"), (OURS, "idle_cpu_0"))
    yield at_most("CPU of a request with 2,000 idle connections, relative to none", idle, 1.5)
    start = results.ratio((OURS, "start"), ("uvicorn", "start"))
    yield at_most("seconds to the first right response, relative to FastAPI on uvicorn", start, 0.5)
    memory = results.ratio((OURS, "memory_idle"), ("uvicorn", "memory_idle"))
    yield at_most("idle memory, relative to FastAPI on uvicorn", memory, 0.7)


def against_peers(results: Results) -> Iterator[str]:
    """Yields the verdicts on figures that must not be worse than those of the best peer of a group."""
    for at in (16, 256):
        yield against_best(results, Figure(f"requests/s at {at} connections", f"label_rate_{at}", max), rows(ASGI))
    # granian has threads in addition to its worker, so its requests/s take more than one CPU.
    for at in (16, 256):
        cpu = relative_to_best(results, Figure("", f"label_cpu_{at}", min), rows(GRANIAN))
        per_second = None if cpu is None else 1 / cpu
        yield at_least(f"requests per CPU second at {at} connections, relative to msgspec on granian", per_second, 1 / 1.1)
    for at, names in ((16, FRAMEWORKS), (256, GRANIAN)):
        yield against_best(results, Figure(f"p99 at {at} connections", f"label_p99_{at}", min, "{:.2f} ms"), rows(names))
    for figure in (
        CPU._replace(pattern="{:,.0f} µs"),
        *(Figure(f"requests/s at {at} connections", f"label_rate_{at}", max) for at in (16, 256)),
    ):
        yield against_best(results, figure._replace(title=f"{figure.title}, everyone with log and metrics"), FAIR)


def rows(names: Sequence[str]) -> list[Server]:
    return [server for server in SERVERS if server.name in names]


def relative_to_best(results: Results, figure: Figure, peers: Sequence[Server]) -> float | None:
    """Returns the ratio of our figure to that of the best peer, or None if one was not measured."""
    found = best(results, peers, figure)
    return found and results.ratio((OURS, figure.key), (found.server.name, figure.key))


def against_best(results: Results, figure: Figure, peers: Sequence[Server]) -> str:
    """Returns the verdict: our figure is not worse than that of the best peer."""
    ours, found = results.value(OURS, figure.key), best(results, peers, figure)
    if ours is None or found is None:
        return f"OPEN {figure.title}: not measured"
    verdict = "MISS" if is_ahead(results, figure, found) else "PASS"
    limit = "at most" if figure.better is min else "at least"
    values = figure.pattern.format(ours), figure.pattern.format(found.value)
    return f"{verdict} {figure.title}: {values[0]}; target: {limit} {values[1]} ({found.server.title})"


def at_most(what: str, found: float | None, limit: float) -> str:
    if found is None:
        return f"OPEN {what}: not measured; target: at most {limit:.2f}"
    return f"{'PASS' if found <= limit else 'MISS'} {what}: {found:.2f}; target: at most {limit:.2f}"


def at_least(what: str, found: float | None, limit: float) -> str:
    if found is None:
        return f"OPEN {what}: not measured; target: at least {limit:.2f}"
    return f"{'PASS' if found >= limit else 'MISS'} {what}: {found:.2f}; target: at least {limit:.2f}"
