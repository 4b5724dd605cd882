"""What this server is to reach against the others, judged by the medians of one run."""

from collections.abc import Iterator

from results import Outcome
from servers import SERVERS

PEERS = [server for server in SERVERS if server.peer and server.workers == 1]
CPU, OURS = "label_cpu_16", "ours"


def lines(outcome: Outcome) -> Iterator[str]:
    """One line per target: PASS, MISS, or OPEN where a figure is missing."""
    for most, peer, name in (
        (0.40, "uvicorn", "FastAPI on uvicorn"),
        (0.50, "mosec", "mosec"),
        (0.35, "waitress", "stock waitress"),
    ):
        yield at_most(f"CPU of a request, relative to {name}", outcome.ratio((OURS, CPU), (peer, CPU)), most)
    multiple = outcome.ratio((OURS, CPU), ("alone", "cpu"))
    yield "INFO CPU of a request, relative to the application alone: " + (
        "not measured" if multiple is None else f"{multiple:.2f}"
    )
    for at in (16, 256):
        yield from against_best(outcome, at)
    yield at_most(
        "CPU of a request at 256 connections, relative to 16", outcome.ratio((OURS, "label_cpu_256"), (OURS, CPU)), 1.25
    )
    idle = outcome.ratio((OURS, "idle_cpu_2000"), (OURS, "idle_cpu_0"))
    yield at_most("CPU of a request with 2,000 idle connections, relative to none", idle, 1.5)
    start = outcome.ratio((OURS, "start"), ("uvicorn", "start"))
    yield at_most("seconds to the first right response, relative to FastAPI on uvicorn", start, 0.5)
    memory = outcome.ratio((OURS, "memory_idle"), ("uvicorn", "memory_idle"))
    yield at_most("idle memory, relative to FastAPI on uvicorn", memory, 0.7)


def at_most(what: str, found: float | None, most: float) -> str:
    if found is None:
        return f"OPEN {what}: not measured; target: at most {most:.2f}"
    return f"{'PASS' if found <= most else 'MISS'} {what}: {found:.2f}; target: at most {most:.2f}"


def at_least(what: str, found: float | None, least: float) -> str:
    if found is None:
        return f"OPEN {what}: not measured; target: at least {least:.2f}"
    return f"{'PASS' if found >= least else 'MISS'} {what}: {found:.2f}; target: at least {least:.2f}"


def against_best(outcome: Outcome, at: int) -> Iterator[str]:
    """Requests/s above every peer's, p99 no worse than the best peer's."""
    rates = {peer.title: outcome.value(peer.name, f"label_rate_{at}") for peer in PEERS}
    tails = {peer.title: outcome.value(peer.name, f"label_p99_{at}") for peer in PEERS}
    rate, tail = outcome.value(OURS, f"label_rate_{at}"), outcome.value(OURS, f"label_p99_{at}")
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
