"""Dynamic batching: single rows of concurrent requests share one run of the model."""

import threading
from collections import deque
from math import inf
from time import monotonic

import numpy as np

from iris_wsgi.codec.rows import Array
from iris_wsgi.errors import DeadlineExceeded
from iris_wsgi.model.predictor import Predict, PredictContext, Prediction
from iris_wsgi.resilience.deadline import PARSED, RAN


class PendingRow:
    """A row that waits for its run, and its result."""

    def __init__(self, rows: Array, until: float) -> None:
        self.rows, self.until = rows, until
        self.done = threading.Event()
        self.answer: Array | None = None
        self.error: Exception | None = None

    def result(self) -> Array:
        """Waits for it, but not longer than it is wanted. Raises what the run raised, or DeadlineExceeded."""
        if not self.done.wait(None if self.until == inf else max(0.0, self.until - monotonic())):
            raise DeadlineExceeded(RAN)
        if self.answer is None:
            raise self.error or DeadlineExceeded(RAN)
        return self.answer


class DynamicBatcher:
    """Predicts single rows together: what comes while a run is under way is in the next one, `most` rows at most.

    The first of them waits `seconds` for others, unless they fill a run before. Rows in requests of several go their own way.
    One thread does the runs; each caller waits for its own answer, and no longer than it wants it.
    """

    def __init__(self, predict: Predict, most: int, seconds: float) -> None:
        self.predict, self.most, self.seconds = predict, most, seconds
        self.queue: deque[PendingRow] = deque()
        self.changed = threading.Condition()
        self.thread: threading.Thread | None = None

    def __call__(self, rows: Array, context: PredictContext) -> Prediction:
        if len(rows) != 1:
            return self.predict(rows, context)
        one = PendingRow(rows, context.deadline)
        with self.changed:
            self.queue.append(one)
            self.changed.notify()
            if self.thread is None:
                # Only now, because threads do not survive a fork.
                self.thread = threading.Thread(target=self.work, daemon=True, name="gatherer")
                self.thread.start()
        return Prediction(one.result())

    def work(self) -> None:
        while True:
            self.run(self.next())

    def next(self) -> list[PendingRow]:
        """Those whose turn it is, at least one."""
        with self.changed:
            self.changed.wait_for(lambda: self.queue)
            if self.seconds:
                self.changed.wait_for(lambda: len(self.queue) >= self.most, self.seconds)
            return [self.queue.popleft() for _ in range(min(self.most, len(self.queue)))]

    def run(self, batch: list[PendingRow]) -> None:
        """One run for those who still want an answer; it ends when none of them does."""
        now = monotonic()
        wanted = [one for one in batch if one.until > now]
        try:
            if wanted:
                context = PredictContext(max(one.until for one in wanted))
                answers = self.predict(np.concatenate([one.rows for one in wanted]), context).probabilities
                for i, one in enumerate(wanted):
                    one.answer = answers[i : i + 1]
        except Exception as error:
            for one in wanted:
                one.error = error
        for one in batch:
            if one.answer is None and one.error is None:
                one.error = DeadlineExceeded(PARSED)
            one.done.set()
