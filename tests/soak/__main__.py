"""Soak test: every role at once under mixed traffic while faults occur; .ci/soak starts it."""

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
from http_clients import TIMEOUT_SECONDS, HttpResponse, fetch, http_request, wait_until  # noqa: E402
from processes import NAMES, Deployment  # noqa: E402
from resource_sampler import (  # noqa: E402
    MAX_KB_PER_MINUTE,
    ResourceSampler,
    Sample,
    find_leaks,
    in_excess,
    without_report,
)
from scenarios import SCENARIOS, get_next_path  # noqa: E402
from traffic import NOT_IMPLEMENTED, Traffic  # noqa: E402

# Fractions of the whole time: the end of the warm-up, and the end of the faults that replace processes.
WARM_UP_END, PROCESS_FAULTS_END = 0.15, 0.45
MAX_REASONS = 30
# Processes are at rest after this number of samples without a change of descriptors and threads.
STEADY_SAMPLES = 8
# Servers that probe each other open and close connections, so on a slow machine the numbers may never stop changing.
STEADY_SECONDS = 20.0

Log = Callable[[str], None]


def main() -> int:
    options = parse_options()
    began = time.monotonic()

    def log(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", flush=True)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 16_384)), hard))
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch, Deployment(Path(scratch)) as deployment:
        deployment.start()
        log(f"{len(deployment.servers)} servers are ready")
        failures = soak(deployment, options, log)
        log("stopping all servers")
        failures += deployment.stop()
        for path in sorted(Path(scratch).glob("*.log")):
            (options.out / path.name).write_bytes(path.read_bytes()[-1_000_000:])
    for reason, times in Counter(failures).most_common(MAX_REASONS):
        log(f"FAILED, {times} times: {reason}")
    log(f"{len(failures)} failures; the ends of the logs are in {options.out}" if failures else "passed")
    return 1 if failures else 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=".ci/soak", description="Run every role at once under mixed traffic while faults occur."
    )
    parser.add_argument("minutes", type=float, nargs="?", default=20.0, help="minutes of traffic (default 20)")
    parser.add_argument("--clients", type=int, default=4, help="number of clients of each server (default 4)")
    parser.add_argument(
        "--pause", type=float, default=0.1, help="mean pause of a client between requests, in seconds (default 0.1)"
    )
    parser.add_argument("--out", type=Path, default=HERE.parent.parent / "build/soak", help="folder for the chart and the logs")
    return parser.parse_args()


def soak(deployment: Deployment, options: argparse.Namespace, log: Log) -> list[str]:
    """Runs the traffic and the faults, and returns a line for each failure."""
    seconds = options.minutes * 60
    faults = Faults(log, deployment)
    hold, pause = min(4.0, seconds / 60), min(2.0, seconds / 60)
    stores, processes = list(store_faults(deployment)), list(process_faults(deployment))
    member = member_fault(deployment, NAMES[2])
    began = time.time()
    traffic = Traffic(deployment, faults, SCENARIOS, get_next_path, options.clients, options.pause)
    sampler = ResourceSampler(deployment, max(1.0, seconds / 300))
    with faults, traffic, sampler:
        time.sleep(seconds * WARM_UP_END)
        before = sample_at_rest(traffic, sampler, log)
        traffic.resume()
        faults.run([*processes, *stores, member], seconds * (PROCESS_FAULTS_END - WARM_UP_END), hold, pause)
        settled = time.time()
        log("no more faults that replace processes")
        faults.run([*stores, member], seconds * (1 - PROCESS_FAULTS_END), hold, pause)
        with suppress(AssertionError):
            wait_until(lambda: not unanswered_operations(traffic), "each operation has a successful response")
        ended = time.time()

        def resource_failures(found: dict[int, Sample]) -> list[str]:
            # A thread and a connection, or a connection to each of two stores, for each client and for two abusive clients.
            return in_excess(sampler, before, found, 2 * (options.clients + 2)) + without_report(sampler, found)

        after = sample_at_rest(traffic, sampler, log, resource_failures)
    # Processes that have just started still fill their heaps in the first quarter.
    since = settled + 0.25 * (ended - settled)
    slopes, failures = find_leaks(sampler, since, ended)
    failures += resource_failures(after)
    failures += [*faults.failures, *traffic.results.failures, *unfinished_jobs(traffic), *unanswered_operations(traffic)]
    failures += [line for server in deployment.servers.values() for line in log_failures(server.name, server.log, faults, began)]
    report(sampler, slopes, before, after, traffic, log)
    draw(sampler, faults.windows, began, since, ended, options.out / "soak.png")
    return failures


def sample_at_rest(
    traffic: Traffic, sampler: ResourceSampler, log: Log, failures: Callable[[dict[int, Sample]], list[str]] = lambda _: []
) -> dict[int, Sample]:
    """Samples all processes without load, once kept connections are closed and `failures` returns nothing for the samples.

    TIMEOUT_SECONDS only ends a soak that would hang. A failure that remains for so long does not depend on the machine's speed.
    """

    def waited() -> float:
        return time.monotonic() - began

    traffic.rest()
    log("no traffic")
    found, steady, began = sampler.sample_all(), 0, time.monotonic()
    while waited() < TIMEOUT_SECONDS and (failures(found) or (steady < STEADY_SAMPLES and waited() < STEADY_SECONDS)):
        time.sleep(1)
        last, found = found, sampler.sample_all()
        steady = steady + 1 if total(found) == total(last) else 0
    return found


def total(found: dict[int, Sample]) -> int:
    return sum(sample.descriptors + sample.threads for sample in found.values())


def unfinished_jobs(traffic: Traffic) -> Iterator[str]:
    """Yields a line for each acknowledged job that never finishes, among those that no client followed to the end."""
    give_up = time.monotonic() + TIMEOUT_SECONDS
    for job_id, server in traffic.results.unfinished.items():
        response = None
        while not is_finished(response):
            if time.monotonic() > give_up or (response and response.status == 200 and response.json()["status"] == "failed"):
                yield f"{server.name} acknowledged {job_id}, and it does not finish: {response}"
                break
            with suppress(OSError, EOFError):
                response = fetch(server, http_request("GET", f"/jobs/{job_id}", None, "Prefer: wait=2"))


def is_finished(response: HttpResponse | None) -> bool:
    """Returns whether a job has succeeded or was canceled. The server deletes the record after a while (410)."""
    if response is None or response.status not in (200, 410):
        return False
    return response.status == 410 or response.json()["status"] in ("succeeded", "cancelled")


def unanswered_operations(traffic: Traffic) -> list[str]:
    """Returns a line for each OpenAPI operation without a successful response; 409 means that a job is already done."""
    statuses = traffic.results.seen()
    successful = {(server, operation) for server, operation, status in statuses if 200 <= status < 400 or status == 409}
    return [
        f"{server} {operation} never had a successful response" for server, operation in sorted(traffic.operations - successful)
    ]


def log_failures(name: str, log: Path, faults: Faults, since: float) -> Iterator[str]:
    """Yields the tracebacks of a log, and the failed requests that no fault excuses, including those of clients that left."""
    with log.open() as lines:
        for text in lines:
            if "Traceback" in text or "Warning" in text or '"traceback"' in text:
                yield f"{name} logs {text[:2000]}"
            if not text.startswith("{") or '"status":5' not in text:
                continue
            line = json.loads(text)
            at = datetime.fromisoformat(line["time"]).timestamp()
            # A request that the server refused before it read the route has neither a method nor a duration.
            status, operation = line["status"], f"{line['method']} {line['route']}" if "method" in line else ""
            # Before that time the servers only probed each other.
            if at > since and status != NOT_IMPLEMENTED:
                began = at - line.get("ms", 0) / 1000 - 1
                if not faults.excused(name, operation, status, began, at):
                    yield f"{name} logs {text[:300]}"


def report(sampler: ResourceSampler, slopes: dict[int, float], before: dict, after: dict, traffic: Traffic, log: Log) -> None:
    """Logs the counts of the soak and a table of all processes."""
    results, faults = traffic.results, traffic.faults
    log(f"{sum(results.statuses.values())} requests, {results.finished} jobs, {len(faults.windows)} faults")
    log(f"the longest stall of this machine was {faults.longest_stall:.2f} s")
    for fault, windows in faults.stalls.items():
        excused = sum(window.end - window.begin for window in windows)
        log(f"{fault.name}: {len(windows)} windows, {excused:.0f} s in total")
    statuses = Counter[int]()
    for (_, _, status), count in results.statuses.items():
        statuses[status] += count
    log(f"statuses (0: broken connection): {dict(sorted(statuses.items()))}")
    for (server, operation, status, fault), count in sorted(results.excused.items()):
        log(f"excused: {count} times {status} of {server} {operation}, because of: {fault}")
    log(f"growth in KB a minute in the steady time (limit {MAX_KB_PER_MINUTE:g}); at the end:")
    log("private memory in MB, Python blocks, descriptors, threads")
    first = sampler.by_kind(before)
    for pid, sample in sorted(after.items(), key=lambda item: sampler.names[item[0]]):
        growth = f"{slopes[pid]:7.1f}" if pid in slopes else "      -"
        same_kind = first[sampler.names[pid]]
        descriptors, threads = max(other.descriptors for other in same_kind), max(other.threads for other in same_kind)
        name = " ".join(sampler.names[pid])
        memory = f"{sample.private_kb / 1024:6.1f} MB  {sample.blocks:9,}"
        log(f"{name:28} {growth} {memory}  {sample.descriptors} of {descriptors}, {sample.threads} of {threads}")


if __name__ == "__main__":
    os.environ.pop("IRIS_STATE_DIR", None)
    sys.exit(main())
