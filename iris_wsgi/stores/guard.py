"""A store that is down is not asked again and again: a breaker in front of it."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from iris_wsgi.stores.jobs import Counts, Job, JobError, JobStore, Stop, StoreDown

T = TypeVar("T")

# One call may fail by chance, on a busy disk. So many in a row do not. A disk that stands still for a moment fails as many at
# once, so the next trial is soon.
FAILURES = 3
PAUSE_SECONDS = 0.1


class Breaker:
    """In front of a store: after FAILURES calls in a row that found it down nobody else waits for it.

    Every call is refused at once, but one each `pause` seconds tries. Requests that wait for a thread behind those would have
    no part in what is wrong.
    """

    def __init__(self, tell: Callable[[str, str], None], down: str, back: str, pause: float = PAUSE_SECONDS) -> None:
        """`tell` is given a level and a message, which begins with `down` or is `back`, at each turn."""
        self.tell, self.down, self.back, self.pause = tell, down, back, pause
        self.lock = threading.Lock()
        self.failures = 0
        self.try_at = 0.0
        self.why = ""

    @property
    def up(self) -> bool:
        return self.failures < FAILURES

    def call(self, ask: Callable[[], T]) -> T:
        """What `ask` gives. Raises StoreDown where it does, or where it is not asked."""
        with self.lock:
            now = time.monotonic()
            if not self.up and now < self.try_at:
                raise StoreDown(self.why)
            self.try_at = now + self.pause
        try:
            answer = ask()
        except StoreDown as down:
            self.failed(str(down))
            raise
        except JobError:
            self.worked()
            raise
        self.worked()
        return answer

    def failed(self, why: str) -> None:
        with self.lock:
            self.failures, self.why = self.failures + 1, why
            told = self.failures == FAILURES
        if told:
            self.tell("error", f"{self.down}: {why}")

    def worked(self) -> None:
        with self.lock:
            was_down, self.failures = not self.up, 0
        if was_down:
            self.tell("info", self.back)


class Guarded(Breaker):
    """The part of a JobStore that requests ask for."""

    def __init__(self, store: JobStore, tell: Callable[[str, str], None]) -> None:
        super().__init__(tell, "jobs are refused", "jobs are taken again: the store is back")
        self.store = store

    def submit(self, body: bytes, key: str | None = None, note: bytes | None = None) -> Job:
        return self.call(lambda: self.store.submit(body, key, note))

    def get(self, job_id: str) -> Job:
        return self.call(lambda: self.store.get(job_id))

    def wait(self, job_id: str, seconds: float, stop: Stop) -> Job:
        return self.call(lambda: self.store.wait(job_id, seconds, stop))

    def cancel(self, job_id: str) -> Job:
        return self.call(lambda: self.store.cancel(job_id))

    def counts(self) -> Counts:
        return self.call(self.store.counts)
