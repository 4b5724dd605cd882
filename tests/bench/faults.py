"""Responses of a gateway while one of its members has a fault, and the time until they are complete again."""

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import processes
from bench import Bench
from cluster import RunningServer, call_counts, start_gateway, start_members, start_server
from gateway_clients import GatewayClients, TimedResponse, percentile_seconds, running_clients
from proxy import Proxy, running_proxy
from report import draw_chart, format_value, markdown_table
from results import Results

NAME = "faults"
# Members with faults: the process of the first is killed or stopped, and the second is behind the proxy.
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
# A step is longer than the deadline, so that a request begins in each step.
BEFORE, AFTER, STEP = 1.0, 4.0, 0.5
HEADINGS = ("a member", "responses", "partial", "p50 ms", "slowest ms", "less the deadline", "verdict")
MORE = ("clients waited for s", "retries", "complete after s", "the machine ms")


def trial(bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Measures all faults in turn with the same gateway. Raises TrialFailed."""
    figures: dict[str, float] = {}
    complaints = []
    with contextlib.ExitStack() as stack:
        members = start_members(stack, bench)
        proxy = stack.enter_context(running_proxy(members[BEHIND].port, members[PROCESS].port))
        ports = {species: member.port for species, member in members.items()} | {BEHIND: proxy.port}
        gateway = start_gateway(stack, bench, ports, IRIS_ENSEMBLE_MS=str(DEADLINE_MS))
        restart = functools.partial(start_server, stack, bench, "member", members[PROCESS].port, IRIS_MEMBER=PROCESS)
        for fault in FAULTS:
            found, problem = measure_fault(
                fault, gateway, broken_member(fault, members, proxy, restart), 4 * bench.effort.seconds
            )
            figures |= {f"{fault}_{name}": value for name, value in found.items()}
            complaints += [f"a member that {FAULTS[fault]}: {problem}"] if problem else []
    return figures, complaints


@contextlib.contextmanager
def broken_member(
    fault: str, members: dict[str, RunningServer], proxy: Proxy, restart: Callable[[], RunningServer]
) -> Iterator[None]:
    """Context manager that injects a fault into a member and repairs it at exit."""
    if fault in ("killed", "stopped"):
        member = members[PROCESS]
        signal_tree(member, signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
        yield
        if fault == "killed":
            members[PROCESS] = restart()
        else:
            signal_tree(member, signal.SIGCONT)
    else:
        proxy.set_mode("pass" if fault == "none" else fault)
        yield
        proxy.set_mode("pass")


def signal_tree(server: RunningServer, number: signal.Signals) -> None:
    for pid in processes.tree(server.process.pid):
        os.kill(pid, number)


def measure_fault(
    fault: str, gateway: RunningServer, breaker: contextlib.AbstractContextManager[None], seconds: float
) -> tuple[dict[str, float], str]:
    """Returns the figures of a fault that lasts for `seconds`, and a complaint or an empty string."""
    target = PROCESS if fault in ("killed", "stopped") else BEHIND
    before = call_counts(gateway.port, target)
    with running_clients(gateway.port, CONNECTIONS, PAUSE) as clients:
        time.sleep(BEFORE)
        began = time.perf_counter()
        with breaker:
            time.sleep(seconds)
        over = time.perf_counter()
        time.sleep(AFTER)
    after = call_counts(gateway.port, target)
    found = fault_figures(clients, began, over) | {"again": after["retries"] - before["retries"]}
    strange = sum(one.missing not in ([], [target]) for one in clients.responses)
    late = found["complete"] >= AFTER - STEP
    return found, f"{strange} responses are neither complete nor partial without it" * bool(strange) or "no recovery" * late


def fault_figures(clients: GatewayClients, began: float, over: float) -> dict[str, float]:
    """Returns the figures of a fault that lasted from `began` to `over`, and its timeline."""
    met = [one for one in clients.responses if one.ended > began]
    during = [one for one in met if one.began < over]
    partial = [one for one in met if one.missing]
    waited = [one.ended - began for one in met if one.seconds * 1e3 > DEADLINE_MS * 0.9]
    found = {
        "answers": len(during),
        "partial": sum(bool(one.missing) for one in during) / len(during),
        "p50": percentile_seconds(during, 50) * 1e3,
        "slowest": percentile_seconds(met, 100) * 1e3,
        "waited": max(waited, default=0.0),
        "complete": max(0.0, max((one.ended for one in partial), default=over) - over),
        "machine": max(stall for at, stall in clients.stalls if at > began) * 1e3,
        "lasted": over - began,
    }
    return found | timeline(clients.responses, began)


def timeline(responses: list[TimedResponse], began: float) -> dict[str, float]:
    """Returns the slowest response in ms and the share of partial responses for each step of time since `began`."""
    steps: dict[int, list[TimedResponse]] = {}
    for one in responses:
        steps.setdefault(int((one.began - began) // STEP), []).append(one)
    slowest = {f"slowest_at_{step}": percentile_seconds(found, 100) * 1e3 for step, found in steps.items()}
    return slowest | {f"partial_at_{step}": sum(bool(one.missing) for one in found) / len(found) for step, found in steps.items()}


def text(results: Results) -> str:
    lines = []
    for fault, title in FAULTS.items():
        value = functools.partial(results.value, NAME)
        over = over_deadline(results, fault)
        lines.append(
            [
                title,
                format_value(value(f"{fault}_answers"), "{:,.0f}"),
                format_value(value(f"{fault}_partial"), "{:.1%}"),
                format_value(value(f"{fault}_p50"), "{:.1f}"),
                format_value(value(f"{fault}_slowest"), "{:.0f}"),
                format_value(over, "{:+.0f}"),
                "" if over is None or fault == "none" else verdict(over),
                format_value(value(f"{fault}_waited"), "{:.1f}"),
                format_value(value(f"{fault}_again"), "{:.0f}"),
                format_value(value(f"{fault}_complete"), "{:.2f}"),
                format_value(value(f"{fault}_machine"), "{:.0f}"),
            ]
        )
    return markdown_table([*HEADINGS, *MORE], lines)


def over_deadline(results: Results, fault: str) -> float | None:
    """Returns the milliseconds from the deadline to the slowest response."""
    slowest = results.value(NAME, f"{fault}_slowest")
    return None if slowest is None else slowest - DEADLINE_MS


def verdict(over: float) -> str:
    return "PASS" if over <= ALLOWED_MS else "FAIL"


def verdicts(results: Results) -> Iterator[str]:
    rounds = results.by_server.get(NAME, [])
    for fault, title in FAULTS.items():
        over = over_deadline(results, fault)
        if over is None or fault == "none":
            continue
        worst = max(rounds, key=lambda found: found[f"{fault}_slowest"])
        slowest, machine = worst[f"{fault}_slowest"] - DEADLINE_MS, worst[f"{fault}_machine"]
        figures = f"{over:+.0f} ms; target: at most {ALLOWED_MS} (worst round {slowest:+.0f}, machine {machine:.0f})"
        yield f"{verdict(over)} a member {title}: the slowest response, less the deadline: {figures}"
    last = max((found[f"{fault}_complete"] for found in rounds for fault in FAULTS), default=AFTER)
    good = "PASS" if last < AFTER - STEP else "FAIL"
    yield f"{good} responses are complete again after each fault, with no restart of the gateway: {last:.2f} s at the latest"


def draw(folder: Path, results: Results, python: str) -> None:
    """Draws the timeline of each fault, with the medians of the rounds."""
    steps = range(int(-BEFORE / STEP), int(20 / STEP))
    rounds, panels = results.by_server[NAME], []
    for fault, title in FAULTS.items():
        points = []
        for step in steps:
            names = [f"{fault}_{what}_at_{step}" for what in ("slowest", "partial")]
            # Steps that only a minority of the rounds has are omitted.
            if sum(names[0] in found for found in rounds) > len(rounds) / 2:
                points.append((step * STEP, *(results.value(NAME, name) for name in names)))
        panels.append({"title": title, "points": points, "over": results.value(NAME, f"{fault}_lasted")})
    data = {"panels": panels, "deadline": DEADLINE_MS, "allowed": ALLOWED_MS, "step": STEP}
    draw_chart("chart_faults.py", folder / "remote.png", data, python)
