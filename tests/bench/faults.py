"""What a gateway answers while a member of it is broken, one way after another, and how soon it answers in full afterwards."""

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import processes
from bench import Bench
from cluster import Running, calls, gateway_to, members_of, up
from gateway_clients import Asked, Callers, calling, share
from proxy import Proxy, proxied
from report import drawn, shown, table
from results import Outcome

NAME = "faults"
# Who is broken: the one is a process that is killed or stopped, the other has the proxy before it.
PROCESS, BEHIND = "versicolor", "setosa"
FAULTS = {
    "none": "nothing",
    "killed": "is killed (SIGKILL)",
    "stopped": "stands still (SIGSTOP)",
    "garbage": "sends bytes that are not HTTP",
    "nonsense": "sends 200 with nonsense",
    "half": "closes half its connection, in the middle",
    "reset": "resets the connection",
    "drip": "sends a byte each 20 ms",
    "wrong": "has another species' model",
}
DEADLINE_MS, ALLOWED_MS = 300, 50
CONNECTIONS, PAUSE = 4, 0.02
# A step is longer than the deadline, so that an answer begins in each.
BEFORE, AFTER, STEP = 1.0, 4.0, 0.5
HEADINGS = ("a member", "responses", "partial", "p50 ms", "slowest ms", "less the deadline", "verdict")
MORE = ("clients waited for s", "retries", "complete after s", "the machine ms")


def trial(bench: Bench) -> tuple[dict[str, float], list[str]]:
    """All faults, one after another, with the same gateway. Raises Failed."""
    figures: dict[str, float] = {}
    complaints = []
    with contextlib.ExitStack() as stack:
        members = members_of(stack, bench)
        proxy = stack.enter_context(proxied(members[BEHIND].port, members[PROCESS].port))
        ports = {species: member.port for species, member in members.items()} | {BEHIND: proxy.port}
        gateway = gateway_to(stack, bench, ports, IRIS_ENSEMBLE_MS=str(DEADLINE_MS))
        again = functools.partial(up, stack, bench, "member", members[PROCESS].port, IRIS_MEMBER=PROCESS)
        for fault in FAULTS:
            found, wrong = suffered(fault, gateway, breaker_of(fault, members, proxy, again), 4 * bench.effort.seconds)
            figures |= {f"{fault}_{name}": value for name, value in found.items()}
            complaints += [f"a member that {FAULTS[fault]}: {wrong}"] if wrong else []
    return figures, complaints


@contextlib.contextmanager
def breaker_of(fault: str, members: dict[str, Running], proxy: Proxy, again: Callable[[], Running]) -> Iterator[None]:
    """Breaks a member and, at exit, mends it."""
    if fault in ("killed", "stopped"):
        member = members[PROCESS]
        tell_all(member, signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
        yield
        if fault == "killed":
            members[PROCESS] = again()
        else:
            tell_all(member, signal.SIGCONT)
    else:
        proxy.turn("pass" if fault == "none" else fault)
        yield
        proxy.turn("pass")


def tell_all(server: Running, number: signal.Signals) -> None:
    for pid in processes.tree(server.process.pid):
        os.kill(pid, number)


def suffered(
    fault: str, gateway: Running, breaker: contextlib.AbstractContextManager[None], seconds: float
) -> tuple[dict[str, float], str]:
    """What clients saw of a fault that lasts so long, and what must not be."""
    target = PROCESS if fault in ("killed", "stopped") else BEHIND
    before = calls(gateway.port, target)
    with calling(gateway.port, CONNECTIONS, PAUSE) as callers:
        time.sleep(BEFORE)
        began = time.perf_counter()
        with breaker:
            time.sleep(seconds)
        over = time.perf_counter()
        time.sleep(AFTER)
    after = calls(gateway.port, target)
    found = seen(callers, began, over) | {"again": after["retries"] - before["retries"]}
    strange = sum(one.missing not in ([], [target]) for one in callers.answers)
    late = found["complete"] >= AFTER - STEP
    return found, f"{strange} responses are neither complete nor partial without it" * bool(strange) or "no recovery" * late


def seen(callers: Callers, began: float, over: float) -> dict[str, float]:
    """The figures of one fault, which lasted from `began` till `over`, and the course of it in steps."""
    met = [one for one in callers.answers if one.ended > began]
    during = [one for one in met if one.began < over]
    partial = [one for one in met if one.missing]
    waited = [one.ended - began for one in met if one.seconds * 1e3 > DEADLINE_MS * 0.9]
    found = {
        "answers": len(during),
        "partial": sum(bool(one.missing) for one in during) / len(during),
        "p50": share(during, 50) * 1e3,
        "slowest": share(met, 100) * 1e3,
        "waited": max(waited, default=0.0),
        "complete": max(0.0, max((one.ended for one in partial), default=over) - over),
        "machine": max(stall for at, stall in callers.stalls if at > began) * 1e3,
        "lasted": over - began,
    }
    return found | course(callers.answers, began)


def course(answers: list[Asked], began: float) -> dict[str, float]:
    """By the time since `began`, in steps: the slowest answer in ms, and the share of partial ones."""
    steps: dict[int, list[Asked]] = {}
    for one in answers:
        steps.setdefault(int((one.began - began) // STEP), []).append(one)
    slowest = {f"slowest_at_{step}": share(found, 100) * 1e3 for step, found in steps.items()}
    return slowest | {f"partial_at_{step}": sum(bool(one.missing) for one in found) / len(found) for step, found in steps.items()}


def text(outcome: Outcome) -> str:
    lines = []
    for fault, title in FAULTS.items():
        value = functools.partial(outcome.value, NAME)
        over = beyond(outcome, fault)
        lines.append(
            [
                title,
                shown(value(f"{fault}_answers"), "{:,.0f}"),
                shown(value(f"{fault}_partial"), "{:.1%}"),
                shown(value(f"{fault}_p50"), "{:.1f}"),
                shown(value(f"{fault}_slowest"), "{:.0f}"),
                shown(over, "{:+.0f}"),
                "" if over is None or fault == "none" else verdict(over),
                shown(value(f"{fault}_waited"), "{:.1f}"),
                shown(value(f"{fault}_again"), "{:.0f}"),
                shown(value(f"{fault}_complete"), "{:.2f}"),
                shown(value(f"{fault}_machine"), "{:.0f}"),
            ]
        )
    return table([*HEADINGS, *MORE], lines)


def beyond(outcome: Outcome, fault: str) -> float | None:
    """Milliseconds by which the slowest answer is over the deadline."""
    slowest = outcome.value(NAME, f"{fault}_slowest")
    return None if slowest is None else slowest - DEADLINE_MS


def verdict(over: float) -> str:
    return "PASS" if over <= ALLOWED_MS else "FAIL"


def verdicts(outcome: Outcome) -> Iterator[str]:
    rounds = outcome.results.get(NAME, [])
    for fault, title in FAULTS.items():
        over = beyond(outcome, fault)
        if over is None or fault == "none":
            continue
        worst = max(rounds, key=lambda found: found[f"{fault}_slowest"])
        most, machine = worst[f"{fault}_slowest"] - DEADLINE_MS, worst[f"{fault}_machine"]
        told = f"{over:+.0f} ms; target: at most {ALLOWED_MS} (worst round {most:+.0f}, machine {machine:.0f})"
        yield f"{verdict(over)} a member {title}: the slowest response, less the deadline: {told}"
    last = max((found[f"{fault}_complete"] for found in rounds for fault in FAULTS), default=AFTER)
    good = "PASS" if last < AFTER - STEP else "FAIL"
    yield f"{good} responses are complete again after each fault, with no restart of the gateway: {last:.2f} s at the latest"


def draw(folder: Path, outcome: Outcome, python: str) -> None:
    """The course of each fault, by the medians of the rounds."""
    steps = range(int(-BEFORE / STEP), int(20 / STEP))
    rounds, panels = outcome.results[NAME], []
    for fault, title in FAULTS.items():
        points = []
        for step in steps:
            names = [f"{fault}_{what}_at_{step}" for what in ("slowest", "partial")]
            # The end of a start that was slower than the others says nothing of them.
            if sum(names[0] in found for found in rounds) > len(rounds) / 2:
                points.append((step * STEP, *(outcome.value(NAME, name) for name in names)))
        panels.append({"title": title, "points": points, "over": outcome.value(NAME, f"{fault}_lasted")})
    told = {"panels": panels, "deadline": DEADLINE_MS, "allowed": ALLOWED_MS, "step": STEP}
    drawn("chart_faults.py", folder / "remote.png", told, python)
