"""Processes that use a job store, including processes that are killed at random moments. As a script, it imports few modules."""

import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from math import inf
from pathlib import Path

from job_store_invariants import invariant_violations

from iris_wsgi.patterns.asynchronous.job import DEFAULT, Clock, JobStore, Limits
from iris_wsgi.patterns.asynchronous.sqlite_store import SqliteJobStore

# After each kill, the clock of the store advances by this time, so that the leases of the killed worker expire.
LEASE_SECONDS = 60
TIMEOUT_SECONDS = 300
# Maximum number of acknowledgments before a child is killed.
MAX_LINES = 12


def open_job_store(location: str, limits: Limits = DEFAULT, clock: Clock | None = None) -> JobStore:
    """Opens the store at a Redis URL or a file path. The long timeouts allow for a busy disk."""
    if "://" not in location:
        return SqliteJobStore(Path(location), limits, clock or time.time, busy_seconds=60)
    from iris_wsgi.patterns.asynchronous.redis_store import RedisJobStore

    return RedisJobStore(location, limits, clock, timeout_seconds=60)


def claim_all(location: str) -> None:
    """Claims and finishes jobs until the queue is empty, and prints their ids as JSON.

    The first claim and the results of its jobs each wait for a line on standard input.
    """
    store, done = open_job_store(location), []
    print("ready", flush=True)
    sys.stdin.readline()
    claims = store.claim(str(os.getpid()), 7, 600)
    print("claimed", flush=True)
    sys.stdin.readline()
    while claims:
        assert all(store.finish([(claim, str(os.getpid()).encode()) for claim in claims]))
        done += [claim.job.id for claim in claims]
        claims = store.claim(str(os.getpid()), 7, 600)
    print(json.dumps(done))


def submit_forever(store: JobStore, report: Callable[[str], None]) -> None:
    while True:
        report(f"submitted {store.submit(b'rows', note=b'{}').id} ")


def work_forever(store: JobStore, report: Callable[[str], None]) -> None:
    for i in range(10**9):
        claims = store.claim(f"worker {os.getpid()}", 5, LEASE_SECONDS)
        leased = store.heartbeat(claims, LEASE_SECONDS)
        results = [(claim, f"{os.getpid()} {i}".encode()) for claim, ours in zip(claims, leased, strict=True) if ours]
        for claim, _ in results[:1] if i % 4 == 0 else []:
            store.fail(claim, "to be tried again", 0.0)
        # The store must reject the result of the failed job.
        for (claim, result), stored in zip(results, store.finish(results), strict=True):
            if stored:
                report(f"finished {claim.job.id} {result.decode()}")


def start_child(work: Callable[[JobStore, Callable[[str], None]], None], open_store: Callable[[], JobStore]) -> tuple[int, int]:
    """Forks a process that works. Returns its id and a pipe on which it reports acknowledged operations."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            work(open_store(), lambda line: os.write(writer, f"{line}\n".encode()))
        except Exception as error:
            os.write(writer, f"stopped {error!r}\n".encode())
        finally:
            os._exit(1)
    os.close(writer)
    return pid, reader


def read_pipes(output: dict[int, bytearray], min_lines: dict[int, float]) -> None:
    """Reads the children's pipes until each has written the minimum number of lines or has closed its pipe."""
    open_pipes, poll = set(output), select.poll()
    for pipe in output:
        poll.register(pipe, select.POLLIN)
    while any(pipe in open_pipes and output[pipe].count(b"\n") < lines for pipe, lines in min_lines.items()):
        readable = poll.poll(1000 * TIMEOUT_SECONDS)
        assert readable, "no child wrote anything"
        for pipe, _ in readable:
            data = os.read(pipe, 1 << 20)
            output[pipe] += data
            if not data:
                open_pipes.remove(pipe)
                poll.unregister(pipe)


def kill(location: str, kills: str, seed: str) -> None:
    """Kills a submitting and a working process repeatedly. Prints lost, repeated, and damaged jobs as JSON."""
    chance, clock_offset, faults = random.Random(int(seed)), [0.0], []

    def open_store() -> JobStore:
        """Opens the store again for each process, because a process with an open SQLite database must not fork."""
        limits = Limits(queued=10**6, attempts=10**6, keep_seconds=10**9)
        return open_job_store(location, limits, lambda: time.time() + clock_offset[0])

    submitted, results = set(), {}

    def fill_queue() -> None:
        """Submits more jobs than the worker can finish before its kill, independently of the submitting process."""
        store = open_store()
        unfinished = len(submitted) - len(results)
        submitted.update(store.submit(b"rows", note=b"{}").id for _ in range(MAX_LINES * 3 - unfinished))
        store.close()

    def record_result(job_id: str, result: bytes) -> None:
        if results.setdefault(job_id, result) != result:
            faults.append(f"{job_id} has two results")

    def record_reports(reports: bytearray) -> None:
        for word, job_id, result in (line.split(b" ", 2) for line in reports.splitlines()):
            if word == b"stopped":
                faults.append(f"a process stopped: {(job_id + b' ' + result).decode()}")
                continue
            submitted.add(job_id.decode())
            if word == b"finished":
                record_result(job_id.decode(), result)

    def jobs_without_result(store: JobStore, jobs: set[str]) -> list[str]:
        for job in map(store.get, jobs):
            if job.result is not None:
                record_result(job.id, job.result)
        return [job_id for job_id in jobs if job_id not in results]

    for _ in range(int(kills) // 2):
        fill_queue()
        children, output = [], {}
        for work in (submit_forever, work_forever):
            children.append(start_child(work, open_store))
            output[children[-1][1]] = bytearray()
        chance.shuffle(children)
        store = open_store()
        for pid, pipe in children:
            # The child continues while this process reads, so the kill comes at a random moment of its work.
            read_pipes(output, {pipe: chance.randint(0, MAX_LINES)})
            time.sleep(chance.uniform(0, 0.005))
            os.kill(pid, signal.SIGKILL)
            if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != -signal.SIGKILL:
                faults.append("a process ended before it was killed")
            faults += invariant_violations(store)
        read_pipes(output, dict.fromkeys(output, inf))
        clock_offset[0] += LEASE_SECONDS
        for pipe, reports in output.items():
            record_reports(reports)
            os.close(pipe)
        jobs_without_result(store, submitted - set(results))
        store.close()
    store = open_store()
    finished = len(results)
    while claims := store.claim("the last", 100, 600):
        store.finish([(claim, b"late") for claim in claims])
    faults += [f"{job_id} was lost" for job_id in jobs_without_result(store, submitted)] + invariant_violations(store)
    print(json.dumps({"faults": faults, "submitted": len(submitted), "finished": finished}))


if __name__ == "__main__":
    {"claim_all": claim_all, "kill": kill}[sys.argv[1]](*sys.argv[2:])
