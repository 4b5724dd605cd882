"""Processes that work on a store of jobs, among them such as are killed at any moment; run as a script, they import little."""

import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from checks import check

from iris_wsgi.stores.jobs import DEFAULT, Clock, JobStore, Limits
from iris_wsgi.stores.sqlite import SqliteJobs

# Short, so that jobs of the dead are taken again while others are killed.
LEASE_SECONDS = 0.03


def open_store(place: str, limits: Limits = DEFAULT, clock: Clock | None = None) -> JobStore:
    """`place` is the URL of a Redis or the path of a file."""
    # Nothing hangs here, but a busy disk may be slow.
    if "://" not in place:
        return SqliteJobs(Path(place), limits, clock or time.time, busy_seconds=10)
    from iris_wsgi.stores.redis import RedisJobs

    return RedisJobs(place, limits, clock, seconds=10)


def claim_all(place: str) -> None:
    """Claims and finishes until nothing is left; the ids that it finished, as JSON."""
    store, done = open_store(place), []
    print("ready", flush=True)
    sys.stdin.readline()
    while claims := store.claim(str(os.getpid()), 7, 600):
        assert all(store.finish([(one, str(os.getpid()).encode()) for one in claims]))
        done += [one.job.id for one in claims]
    print(json.dumps(done))


def submit_for_ever(store: JobStore, say: Callable[[str], None]) -> None:
    while True:
        say(f"submitted {store.submit(b'rows', note=b'{}').id} ")


def work_for_ever(store: JobStore, say: Callable[[str], None]) -> None:
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


def listen(ears: dict[int, bytearray], seconds: float) -> None:
    """Takes in what they say, for so long or until all have closed."""
    end, open_ears = time.monotonic() + seconds, set(ears)
    while open_ears and (left := end - time.monotonic()) > 0:
        for ear in select.select(open_ears, [], [], left)[0]:
            said = os.read(ear, 1 << 20)
            ears[ear] += said
            open_ears -= set() if said else {ear}


def kill(place: str, kills: str, seed: str) -> None:
    """Kills a submitting and a working process again and again; what was lost, done twice or damaged, as JSON."""
    chance, ahead, faults = random.Random(int(seed)), [0.0], []

    def open_it() -> JobStore:
        """Anew for each: nobody may have SQLite open and fork."""
        return open_store(place, Limits(queued=10**6, attempts=10**6), lambda: time.time() + ahead[0])

    submitted, results = set(), {}

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
        pids, ears = [], {}
        for work in (submit_for_ever, work_for_ever):
            pid, ear = child(work, open_it)
            pids.append(pid)
            ears[ear] = bytearray()
        chance.shuffle(pids)
        store = open_it()
        for pid in pids:
            listen(ears, chance.uniform(0, 0.05))
            os.kill(pid, signal.SIGKILL)
            if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != -signal.SIGKILL:
                faults.append("a process ended before it was killed")
            faults += check(store)
        listen(ears, 60)
        for ear, said in ears.items():
            note(said)
            os.close(ear)
        look(store, submitted - set(results))
        store.close()
    store = open_it()
    ahead[0], before = 1000.0, len(results)
    while claims := store.claim("the last", 100, 600):
        store.finish([(one, b"late") for one in claims])
    faults += [f"{one} was lost" for one in look(store, submitted)] + check(store)
    print(json.dumps({"faults": faults, "submitted": len(submitted), "finished": before}))


if __name__ == "__main__":
    {"claim_all": claim_all, "kill": kill}[sys.argv[1]](*sys.argv[2:])
