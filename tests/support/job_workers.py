"""Processes that work on a store of jobs, among them such as are killed at any moment; run as a script, they import little."""

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

# The clock of the store moves on by as much after each death, so that the jobs of the dead are taken again.
LEASE_SECONDS = 60
TIMEOUT_SECONDS = 300
# A child is killed after so many acknowledgements at most.
MAX_LINES = 12


def open_job_store(place: str, limits: Limits = DEFAULT, clock: Clock | None = None) -> JobStore:
    """`place` is the URL of a Redis or the path of a file."""
    # Nothing hangs here, but a busy disk may be slow.
    if "://" not in place:
        return SqliteJobStore(Path(place), limits, clock or time.time, busy_seconds=60)
    from iris_wsgi.patterns.asynchronous.redis_store import RedisJobStore

    return RedisJobStore(place, limits, clock, timeout_seconds=60)


def claim_all(place: str) -> None:
    """Claims and finishes until nothing is left; the ids that it finished, as JSON. The second claim waits for a line."""
    store, done = open_job_store(place), []
    print("ready", flush=True)
    sys.stdin.readline()
    claims = store.claim(str(os.getpid()), 7, 600)
    print("claimed", flush=True)
    sys.stdin.readline()
    while claims:
        assert all(store.finish([(one, str(os.getpid()).encode()) for one in claims]))
        done += [one.job.id for one in claims]
        claims = store.claim(str(os.getpid()), 7, 600)
    print(json.dumps(done))


def submit_forever(store: JobStore, say: Callable[[str], None]) -> None:
    while True:
        say(f"submitted {store.submit(b'rows', note=b'{}').id} ")


def work_forever(store: JobStore, say: Callable[[str], None]) -> None:
    for i in range(10**9):
        claims = store.claim(f"worker {os.getpid()}", 5, LEASE_SECONDS)
        ours = store.heartbeat(claims, LEASE_SECONDS)
        results = [(one, f"{os.getpid()} {i}".encode()) for one, held in zip(claims, ours, strict=True) if held]
        for one, _ in results[:1] if i % 4 == 0 else []:
            store.fail(one, "to be tried again", 0.0)
        # Those that failed are no longer ours, and must not be written.
        for (one, result), there in zip(results, store.finish(results), strict=True):
            if there:
                say(f"finished {one.job.id} {result.decode()}")


def child(work: Callable[[JobStore, Callable[[str], None]], None], open_it: Callable[[], JobStore]) -> tuple[int, int]:
    """Forks one that works; its process id and where it says what was acknowledged to it."""
    ear, mouth = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ear)
            work(open_it(), lambda line: os.write(mouth, f"{line}\n".encode()))
        except Exception as error:
            os.write(mouth, f"stopped {error!r}\n".encode())
        finally:
            os._exit(1)
    os.close(mouth)
    return pid, ear


def listen(ears: dict[int, bytearray], wanted: dict[int, float]) -> None:
    """Reads what the children write until each of the wanted has written so many lines, or has closed its pipe."""
    open_ears = set(ears)
    while any(ear in open_ears and ears[ear].count(b"\n") < lines for ear, lines in wanted.items()):
        readable = select.select(open_ears, [], [], TIMEOUT_SECONDS)[0]
        assert readable, "no child wrote anything"
        for ear in readable:
            said = os.read(ear, 1 << 20)
            ears[ear] += said
            open_ears -= set() if said else {ear}


def kill(place: str, kills: str, seed: str) -> None:
    """Kills a submitting and a working process again and again; what was lost, done twice or damaged, as JSON."""
    chance, ahead, faults = random.Random(int(seed)), [0.0], []

    def open_it() -> JobStore:
        """Anew for each: nobody may have SQLite open and fork."""
        limits = Limits(queued=10**6, attempts=10**6, keep_seconds=10**9)
        return open_job_store(place, limits, lambda: time.time() + ahead[0])

    submitted, results = set(), {}

    def stock() -> None:
        """Submits until there are more than a worker finishes before it is killed, whatever the submitting process does."""
        store = open_it()
        left = len(submitted) - len(results)
        submitted.update(store.submit(b"rows", note=b"{}").id for _ in range(MAX_LINES * 3 - left))
        store.close()

    def saw(job_id: str, result: bytes) -> None:
        if results.setdefault(job_id, result) != result:
            faults.append(f"{job_id} has two results")

    def note(said: bytearray) -> None:
        for word, job_id, result in (line.split(b" ", 2) for line in said.splitlines()):
            if word == b"stopped":
                faults.append(f"a process stopped: {(job_id + b' ' + result).decode()}")
                continue
            submitted.add(job_id.decode())
            if word == b"finished":
                saw(job_id.decode(), result)

    def look(store: JobStore, jobs: set[str]) -> list[str]:
        """Those that have no result yet."""
        for job in map(store.get, jobs):
            if job.result is not None:
                saw(job.id, job.result)
        return [one for one in jobs if one not in results]

    for _ in range(int(kills) // 2):
        stock()
        children, ears = [], {}
        for work in (submit_forever, work_forever):
            children.append(child(work, open_it))
            ears[children[-1][1]] = bytearray()
        chance.shuffle(children)
        store = open_it()
        for pid, ear in children:
            # The child goes on while this process reads, so the kill comes at any moment of its work.
            listen(ears, {ear: chance.randint(0, MAX_LINES)})
            time.sleep(chance.uniform(0, 0.005))
            os.kill(pid, signal.SIGKILL)
            if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != -signal.SIGKILL:
                faults.append("a process ended before it was killed")
            faults += invariant_violations(store)
        listen(ears, dict.fromkeys(ears, inf))
        ahead[0] += LEASE_SECONDS
        for ear, said in ears.items():
            note(said)
            os.close(ear)
        look(store, submitted - set(results))
        store.close()
    store = open_it()
    before = len(results)
    while claims := store.claim("the last", 100, 600):
        store.finish([(one, b"late") for one in claims])
    faults += [f"{one} was lost" for one in look(store, submitted)] + invariant_violations(store)
    print(json.dumps({"faults": faults, "submitted": len(submitted), "finished": before}))


if __name__ == "__main__":
    {"claim_all": claim_all, "kill": kill}[sys.argv[1]](*sys.argv[2:])
