"""The soak: every role at once under mixed traffic while things go wrong; .ci/soak starts it."""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(1, str(HERE.parent / "support"))

from chart import draw  # noqa: E402
from faults import Faults, member_fault, process_faults, store_faults  # noqa: E402
from fleet import NAMES, Fleet  # noqa: E402
from gauge import MOST_KB_PER_MINUTE, Gauge, Sample, leaks, more, silent  # noqa: E402
from http_clients import TIMEOUT_SECONDS, HttpResponse, fetch, http_request, wait_until  # noqa: E402
from traffic import NO_FAULT_OF_OURS, Traffic  # noqa: E402
from turns import TURNS, reading  # noqa: E402

# Of the whole time: until all is loaded and full; until processes are left alone.
WARM, STORM = 0.15, 0.45
MOST_SHOWN = 30
# Samples in a row without a change of descriptors and threads, after which processes are at rest.
STEADY_LOOKS = 8
# With probes of one server by another under way they may change for ever.
STEADY_SECONDS = 20.0


def main() -> int:
    given = options()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", flush=True)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 16_384)), hard))
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch, Fleet(Path(scratch)) as fleet:
        fleet.start()
        say(f"{len(fleet.servers)} servers are ready")
        wrong = soak(fleet, given, say)
        say("all servers are ended")
        wrong += fleet.end()
        for path in sorted(Path(scratch).glob("*.log")):
            (given.out / path.name).write_bytes(path.read_bytes()[-1_000_000:])
    for reason, times in Counter(wrong).most_common(MOST_SHOWN):
        say(f"WRONG, {times} times: {reason}")
    say(f"{len(wrong)} things were wrong; the last of the logs are in {given.out}" if wrong else "all is well")
    return 1 if wrong else 0


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=".ci/soak", description="Every role at once under mixed traffic while things go wrong.")
    parser.add_argument("minutes", type=float, nargs="?", default=20.0, help="how long there is traffic (default 20)")
    parser.add_argument("--clients", type=int, default=4, help="how many each server has (default 4)")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds that each pauses between requests (default 0.1)")
    parser.add_argument("--out", type=Path, default=HERE.parent.parent / "build/soak", help="folder for the chart and the logs")
    return parser.parse_args()


def soak(fleet: Fleet, given: argparse.Namespace, say) -> list[str]:
    """What was wrong."""
    seconds = given.minutes * 60
    faults = Faults(say, fleet)
    hold, pause = min(4.0, seconds / 60), min(2.0, seconds / 60)
    stores, processes, member = list(store_faults(fleet)), list(process_faults(fleet)), member_fault(fleet, NAMES[2])
    began = time.time()
    traffic, gauge = Traffic(fleet, faults, TURNS, reading, given.clients, given.pause), Gauge(fleet, max(1.0, seconds / 300))
    with faults, traffic, gauge:
        time.sleep(seconds * WARM)
        before = resting(traffic, gauge, say)
        faults.run([*processes, *stores, member], seconds * (STORM - WARM), hold, pause)
        settled = time.time()
        say("from here on processes are left alone")
        faults.run([*stores, member], seconds * (1 - STORM), hold, pause)
        with suppress(AssertionError):
            wait_until(lambda: not unasked(traffic), "each operation is well answered")
        ended = time.time()
        # One thread and one connection, or a connection to each of two stores; two clients more are those that are rude.
        spare = 2 * (given.clients + 2)
        after = resting(traffic, gauge, say, lambda found: more(gauge, before, found, spare) + silent(gauge, found), go_on=False)
    # The first quarter of it is still of the processes that have just begun.
    since = settled + 0.25 * (ended - settled)
    slopes, wrong = leaks(gauge, since, ended)
    wrong += [
        *more(gauge, before, after, spare),
        *silent(gauge, after),
        *faults.wrong,
        *traffic.ledger.wrong,
        *unfinished(traffic),
        *unasked(traffic),
    ]
    wrong += [fault for server in fleet.servers.values() for fault in logged(server.name, server.log, faults, began)]
    table(gauge, slopes, before, after, traffic, say)
    draw(gauge, faults.windows, began, since, ended, given.out / "soak.png")
    return wrong


def resting(
    traffic: Traffic, gauge: Gauge, say, faults: Callable[[dict[int, Sample]], list[str]] = lambda _: [], go_on: bool = True
) -> dict[int, Sample]:
    """Samples all processes without load, once kept connections have ended and `faults` finds no fault in the samples.

    The bound only ends a soak that would hang: however slow a machine is, a fault that is still found then is one.
    """

    def waited() -> float:
        return time.monotonic() - began

    traffic.rest()
    say("rests")
    found, steady, began = gauge.look(), 0, time.monotonic()
    while waited() < TIMEOUT_SECONDS and (faults(found) or (steady < STEADY_LOOKS and waited() < STEADY_SECONDS)):
        time.sleep(1)
        last, found = found, gauge.look()
        steady = steady + 1 if total(found) == total(last) else 0
    if go_on:
        traffic.going.set()
    return found


def total(found: dict) -> int:
    return sum(one.descriptors + one.threads for one in found.values())


def unfinished(traffic: Traffic) -> Iterator[str]:
    """Names the jobs that were acknowledged and are never done, among those that no client followed to the end."""
    give_up = time.monotonic() + TIMEOUT_SECONDS
    for job_id, server in traffic.ledger.unfinished.items():
        answer = None
        while not is_done(answer):
            if time.monotonic() > give_up or (answer and answer.status == 200 and answer.json()["status"] == "failed"):
                yield f"{server.name} {job_id} was acknowledged, and is not done: {answer}"
                break
            with suppress(OSError, EOFError):
                answer = fetch(server, http_request("GET", f"/jobs/{job_id}", None, "Prefer: wait=2"))


def is_done(answer: HttpResponse | None) -> bool:
    """Returns whether a job has ended well; the record of a job that ended long ago is gone (410)."""
    if answer is None or answer.status not in (200, 410):
        return False
    return answer.status == 410 or answer.json()["status"] in ("succeeded", "cancelled")


def unasked(traffic: Traffic) -> list[str]:
    """Names the operations of a description that no client got a good answer for; 409 means that a job is done already."""
    statuses = traffic.ledger.seen()
    well = {(server, operation) for server, operation, status in statuses if 200 <= status < 400 or status == 409}
    return [f"{server} {operation} was never well answered" for server, operation in sorted(traffic.operations - well)]


def logged(name: str, log: Path, faults: Faults, since: float) -> Iterator[str]:
    """Tracebacks, and failures in the log, clients that went away included, that no fault excuses."""
    for text in log.open():
        if "Traceback" in text or "Warning" in text or '"traceback"' in text:
            yield f"{name} logs {text[:2000]}"
        if not text.startswith("{") or '"status":5' not in text:
            continue
        line = json.loads(text)
        at = datetime.fromisoformat(line["time"]).timestamp()
        status, operation = line["status"], f"{line['method']} {line['route']}"
        # Before there was traffic the servers asked each other whether they are there.
        if at > since and status != NO_FAULT_OF_OURS:
            begin = at - line["ms"] / 1000 - 1
            if not faults.excused(name, operation, status, begin, at):
                yield f"{name} logs {text[:300]}"


def table(gauge: Gauge, slopes: dict[int, float], before: dict, after: dict, traffic: Traffic, say) -> None:
    ledger = traffic.ledger
    faults = traffic.faults
    say(f"{sum(ledger.statuses.values())} requests, {ledger.finished} jobs, {len(faults.windows)} faults")
    say(f"the machine stood still for up to {faults.longest_stall:.2f} s, which excuses")
    for windows, what in ((faults.stalls[faults.short_stall], "stores"), (faults.stalls[faults.long_stall], "all servers")):
        excused = sum(window.end - window.begin for window in windows)
        say(f"{what} that are slow, for {excused:.0f} s at {len(windows)} times")
    statuses = Counter[int]()
    for (_, _, status), count in ledger.statuses.items():
        statuses[status] += count
    say(f"statuses (0: the connection broke): {dict(sorted(statuses.items()))}")
    for (server, operation, status, fault), count in sorted(ledger.excused.items()):
        say(f"excused: {count} times {status} of {server} {operation}, as {fault}")
    say(
        f"KB a minute over the steady part (most allowed: {MOST_KB_PER_MINUTE:g}); at the end MB of its own, blocks that Python"
        " holds, descriptors, threads"
    )
    first = gauge.kinds(before)
    for pid, sample in sorted(after.items(), key=lambda item: gauge.names[item[0]]):
        grows = f"{slopes[pid]:7.1f}" if pid in slopes else "      -"
        most = max(one.descriptors for one in first[gauge.names[pid]]), max(one.threads for one in first[gauge.names[pid]])
        name = " ".join(gauge.names[pid])
        held = f"{sample.own / 1024:6.1f} MB  {sample.blocks:9,}"
        say(f"{name:28} {grows} {held}  {sample.descriptors} of {most[0]}, {sample.threads} of {most[1]}")


if __name__ == "__main__":
    os.environ.pop("IRIS_STATE_DIR", None)
    sys.exit(main())
