"""Dynamic batching: single rows of concurrent requests share one run of the model."""

import threading
from collections import deque
from collections.abc import Sequence
from math import inf
from time import monotonic

import numpy as np

from iris_wsgi.codec.model_schema import Array
from iris_wsgi.errors import PARSED_TOO_LATE, RAN_TOO_LONG, DeadlineExceeded
from iris_wsgi.model.predictor import Predict, PredictContext, Prediction


class PendingRow:
    """A row that waits for its run, and its result."""

    def __init__(self, row: Array, deadline: float) -> None:
        self.row, self.deadline = row, deadline
        self.done = threading.Event()
        self.output: Array | None = None
        self.error: Exception | None = None

    def result(self) -> Array:
        """Waits for the run, up to the deadline of the row. Raises the error of the run, or DeadlineExceeded."""
        if not self.done.wait(None if self.deadline == inf else max(0.0, self.deadline - monotonic())):
            raise DeadlineExceeded(RAN_TOO_LONG)
        if self.output is None:
            raise self.error or DeadlineExceeded(RAN_TOO_LONG)
        return self.output


class DynamicBatcher:
    """A predictor that joins single rows: those that arrive during a run share the next one, up to `max_rows`.

    The first row of a run waits `delay_seconds` for others, or until the run is full. Requests of several rows are not joined.
    One thread runs the model. Each caller waits for its own row only, up to its deadline.
    """

    def __init__(self, predict: Predict, max_rows: int, delay_seconds: float) -> None:
        self.predict, self.max_rows, self.delay_seconds = predict, max_rows, delay_seconds
        self.queue: deque[PendingRow] = deque()
        self.changed = threading.Condition()
        self.thread: threading.Thread | None = None

    def __call__(self, rows: Array, context: PredictContext) -> Prediction:
        if len(rows) != 1:
            return self.predict(rows, context)
        pending = PendingRow(rows, context.deadline)
        with self.changed:
            self.queue.append(pending)
            self.changed.notify()
            if self.thread is None:
                # Started here, because threads do not survive a fork.
                self.thread = threading.Thread(target=self.run_batches, daemon=True, name="batcher")
                self.thread.start()
        return Prediction(pending.result())

    def run_batches(self) -> None:
        while True:
            self.run(self.next_batch())

    def next_batch(self) -> list[PendingRow]:
        """Returns the rows of the next run, at least one."""
        with self.changed:
            self.changed.wait_for(lambda: self.queue)
            if self.delay_seconds:
                self.changed.wait_for(lambda: len(self.queue) >= self.max_rows, self.delay_seconds)
            return [self.queue.popleft() for _ in range(min(self.max_rows, len(self.queue)))]

    def run(self, batch: list[PendingRow]) -> None:
        """Runs the rows whose deadline has not passed. The run itself ends at the latest of their deadlines."""
        now = monotonic()
        open_rows = [pending for pending in batch if pending.deadline > now]
        try:
            if open_rows:
                context = PredictContext(max(pending.deadline for pending in open_rows))
                output = self.predict(np.concatenate([pending.row for pending in open_rows]), context).outputs
                for i, pending in enumerate(open_rows):
                    pending.output = output[i : i + 1]
        except Exception as error:
            self.fail(open_rows, error)
        for pending in batch:
            if pending.output is None and pending.error is None:
                pending.error = DeadlineExceeded(PARSED_TOO_LATE)
            pending.done.set()

    def fail(self, rows: Sequence[PendingRow], error: Exception) -> None:
        """Runs each row alone, because one row may make the model fail. After a deadline, or for one row, the error is final."""
        if len(rows) > 1 and not isinstance(error, DeadlineExceeded):
            for pending in rows:
                self.run([pending])
            return
        for pending in rows:
            pending.error = error
