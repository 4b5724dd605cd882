"""A member that is late with some of its answers: what the second call gains, and what it adds to the member's load."""

import contextlib
import time

from bench import Bench
from callers import Asked, calling, share
from cluster import Running, calls, gateway_to, members_of
from outcome import Outcome
from proxy import DELAY, proxied
from report import shown, table

NAME = "hedging"
LATE, PERCENTILE = "setosa", 90
SHARES = {"10": 0.1, "20": 0.05}
CONNECTIONS, PAUSE, WINDOWS = 4, 0.004, 3
KINDS = {"plain": "0", "hedged": str(PERCENTILE)}


def trial(bench: Bench) -> tuple[dict[str, float], list[str]]:
    """A gateway that hedges and one that does not, in turns, before the same members. Raises Failed."""
    figures: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        members = members_of(stack, bench)
        for of, part in SHARES.items():
            figures |= {f"{of}_{name}": value for name, value in tried(part, members, bench).items()}
    return figures, []


def tried(part: float, members: dict[str, Running], bench: Bench) -> dict[str, float]:
    """Where that part of the answers is late; the gateways are new, and what is counted is counted from their start."""
    answers: dict[str, list[Asked]] = {kind: [] for kind in KINDS}
    with contextlib.ExitStack() as stack:
        proxies = {kind: stack.enter_context(proxied(members[LATE].port, members[LATE].port)) for kind in KINDS}
        gateways = {}
        for kind, percentile in KINDS.items():
            ports = {species: member.port for species, member in members.items()} | {LATE: proxies[kind].port}
            gateways[kind] = gateway_to(stack, bench, ports, IRIS_HEDGE_PERCENTILE=percentile)
            proxies[kind].turn("delay", part)
            asked_for(gateways[kind], bench.effort.seconds)
        for kind in list(KINDS) * WINDOWS:
            answers[kind] += asked_for(gateways[kind], bench.effort.seconds)
        told = calls(gateways["hedged"].port, LATE)
        came = proxies["hedged"].asked.value
    second = told["retries"] + told["hedges"]
    found = {"of_calls": second / told["made"], "extra": second / (came - second)}
    for kind, taken in answers.items():
        found |= {f"{kind}_p{p}": share(taken, p) * 1e3 for p in (50, 95, 99)}
        found[f"{kind}_late"] = sum(one.seconds >= DELAY for one in taken) / len(taken)
    return found


def asked_for(gateway: Running, seconds: float) -> list[Asked]:
    """The answers of one window."""
    with calling(gateway.port, CONNECTIONS, PAUSE) as callers:
        time.sleep(seconds)
    return callers.answers


def text(outcome: Outcome) -> str:
    lines = []
    for of in SHARES:
        for kind, title in {"plain": "no", "hedged": f"over {PERCENTILE} of 100"}.items():
            told = [shown(outcome.value(NAME, f"{of}_{kind}_p{part}"), "{:.1f}") for part in (50, 95, 99)]
            told.append(shown(outcome.value(NAME, f"{of}_{kind}_late"), "{:.1%}"))
            extra = [
                shown(outcome.value(NAME, f"{of}_{name}"), "{:.3f}") if kind == "hedged" else "" for name in ("of_calls", "extra")
            ]
            lines.append([f"one of {of}", title, *told, *extra])
    headings = ["late by 100 ms", "hedges", "p50 ms", "p95 ms", "p99 ms", "over 100 ms"]
    return table([*headings, "second calls, to all calls", "to first requests"], lines)
