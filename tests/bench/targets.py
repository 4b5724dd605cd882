"""Targets of this server relative to the others, for the medians of one run."""

from collections.abc import Iterator

from results import Results
from servers import SERVERS

PEERS = [server for server in SERVERS if server.peer and server.workers == 1]
CPU, OURS = "label_cpu_16", "ours"


def lines(results: Results) -> Iterator[str]:
    """Yields a line for each target: PASS, MISS, or OPEN if a figure is missing."""
    for limit, peer, name in (
        (0.40, "uvicorn", "FastAPI on uvicorn"),
        (0.50, "mosec", "mosec"),
        (0.35, "waitress", "stock waitress"),
    ):
        yield at_most(f"CPU of a request, relative to {name}", results.ratio((OURS, CPU), (peer, CPU)), limit)
    multiple = results.ratio((OURS, CPU), ("alone", "cpu"))
    yield "INFO CPU of a request, relative to the application alone: " + (
        "not measured" if multiple is None else f"{multiple:.2f}"
    )
    for at in (16, 256):
        yield from against_best(results, at)
    yield at_most(
        "CPU of a request at 256 connections, relative to 16", results.ratio((OURS, "label_cpu_256"), (OURS, CPU)), 1.25
    )
    idle = results.ratio((OURS, "idle_cpu_2000"), (OURS, "idle_cpu_0"))
    yield at_most("CPU of a request with 2,000 idle connections, relative to none", idle, 1.5)
    start = results.ratio((OURS, "start"), ("uvicorn", "start"))
    yield at_most("seconds to the first right response, relative to FastAPI on uvicorn", start, 0.5)
    memory = results.ratio((OURS, "memory_idle"), ("uvicorn", "memory_idle"))
    yield at_most("idle memory, relative to FastAPI on uvicorn", memory, 0.7)


def at_most(what: str, found: float | None, limit: float) -> str:
    if found is None:
        return f"OPEN {what}: not measured; target: at most {limit:.2f}"
    return f"{'PASS' if found <= limit else 'MISS'} {what}: {found:.2f}; target: at most {limit:.2f}"


def at_least(what: str, found: float | None, limit: float) -> str:
    if found is None:
        return f"OPEN {what}: not measured; target: at least {limit:.2f}"
    return f"{'PASS' if found >= limit else 'MISS'} {what}: {found:.2f}; target: at least {limit:.2f}"


def against_best(results: Results, at: int) -> Iterator[str]:
    """Yields the verdicts: more requests/s than every peer, and a p99 not above that of the best peer."""
    rates = {peer.title: results.value(peer.name, f"label_rate_{at}") for peer in PEERS}
    tails = {peer.title: results.value(peer.name, f"label_p99_{at}") for peer in PEERS}
    rate, tail = results.value(OURS, f"label_rate_{at}"), results.value(OURS, f"label_p99_{at}")
    known_rates = {title: value for title, value in rates.items() if value is not None}
    known_tails = {title: value for title, value in tails.items() if value is not None}
    if rate is None or tail is None or not known_rates:
        yield f"OPEN requests/s and p99 at {at} connections: not measured"
        return
    best = max(known_rates, key=known_rates.__getitem__)
    verdict = "PASS" if rate > known_rates[best] else "MISS"
    yield f"{verdict} requests/s at {at} connections: {rate:,.0f}; target: more than {known_rates[best]:,.0f} ({best})"
    best = min(known_tails, key=known_tails.__getitem__)
    verdict = "PASS" if tail <= known_tails[best] else "MISS"
    yield f"{verdict} p99 at {at} connections: {tail:.2f} ms; target: at most {known_tails[best]:.2f} ms ({best})"
