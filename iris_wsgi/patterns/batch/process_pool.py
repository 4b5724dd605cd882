"""Pool of forked processes whose results arrive in the order of the requests."""

import gc
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO, NoReturn, TypeVar

from iris_wsgi.errors import BadModel, Stopped
from iris_wsgi.settings import BadSetting
from iris_wsgi.storage.files import write_all

T = TypeVar("T")
# Runs in the child; returns the function that handles its requests.
Prepare = Callable[[], Callable[[Any], Any]]
# Exceptions that a child sends in place of a result.
FAILURES = (BadModel, BadSetting, Stopped)
# Requests per process, including the one in progress.
MAX_PENDING = 2
# Number of new objects that starts a garbage collection.
GC_THRESHOLD = 100_000


class PoolProcess:
    """Child process, with its pipes and queues in the parent; `others` are the children forked before it."""

    def __init__(self, prepare: Prepare, others: "list[PoolProcess]") -> None:
        child_input, self.input = os.pipe()
        output, child_output = os.pipe()
        self.output = os.fdopen(output, "rb")
        self.pid = os.fork()
        if not self.pid:
            # With the parent's ends open, a child would not see the end of the parent.
            for process in (self, *others):
                os.close(process.input)
                process.output.close()
            child_main(prepare, os.fdopen(child_input, "rb"), child_output)
        os.close(child_input)
        os.close(child_output)
        self.requests: SimpleQueue[Any] = SimpleQueue()
        self.results: SimpleQueue[Any] = SimpleQueue()

    def exchange(self) -> None:
        """Sends requests one by one and receives their results, in a thread. The first result ends the preparation."""
        with self.output, suppress(BrokenPipeError, EOFError, pickle.UnpicklingError):
            self.results.put(pickle.load(self.output))
            while (request := self.requests.get()) is not None:
                write_all(self.input, pickle.dumps(request))
                self.results.put(pickle.load(self.output))
        self.results.put(Stopped("a process of this run was killed; run the same command again to continue"))
        os.close(self.input)

    def result(self) -> Any:
        """Returns the next result. Raises the exception that the child sent, and Stopped if the child is gone."""
        found = self.results.get()
        if isinstance(found, FAILURES):
            raise found
        return found


class ProcessPool:
    """Pool of `count` processes; must be created before threads and other state that a fork does not keep."""

    def __init__(self, count: int, prepare: Prepare) -> None:
        self.processes: list[PoolProcess] = []
        # A garbage collection in a child would copy the memory that the processes share.
        gc.collect()
        gc.freeze()
        for _ in range(count):
            self.processes.append(PoolProcess(prepare, self.processes))
        for process in self.processes:
            threading.Thread(target=process.exchange, daemon=True).start()

    def wait_ready(self) -> None:
        """Waits until all processes are prepared. Raises their exceptions."""
        for process in self.processes:
            process.result()

    def broadcast(self, request: Any) -> Any:
        """Sends a request to all processes and returns the result, which is the same for each. Raises their exceptions."""
        for process in self.processes:
            process.requests.put(request)
        return [process.result() for process in self.processes].pop()

    def map(self, items: Iterable[tuple[T, Any]]) -> Iterator[tuple[T, Any]]:
        """Takes items with their requests; yields each item with its result, in order."""
        pending: deque[tuple[T, PoolProcess]] = deque()
        for i, (item, request) in enumerate(items):
            if len(pending) == MAX_PENDING * len(self.processes):
                done, process = pending.popleft()
                yield done, process.result()
            process = self.processes[i % len(self.processes)]
            process.requests.put(request)
            pending.append((item, process))
        for done, process in pending:
            yield done, process.result()

    def close(self) -> None:
        """Drops waiting requests and waits for the processes to end. A second call has no effect."""
        for process in self.processes:
            with suppress(Empty):
                while True:
                    process.requests.get_nowait()
            process.requests.put(None)
        for process in self.processes:
            os.waitpid(process.pid, 0)
        self.processes = []


def child_main(prepare: Prepare, requests: BinaryIO, output: int) -> NoReturn:
    """Main function of a child; it ends when the parent closes the pipe of the requests."""
    try:
        # A terminal sends these signals to all processes; the parent handles them.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        work = call(prepare)
        failed = isinstance(work, FAILURES)
        # Rows have no cycles, so that frequent collections only cost time.
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        with suppress(BrokenPipeError, EOFError):
            write_all(output, pickle.dumps(work if failed else None))
            while not failed:
                write_all(output, pickle.dumps(call(work, pickle.load(requests))))
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)


def call(work: Callable[..., Any], *request: Any) -> Any:
    """Returns the result, or the exception if it is one of FAILURES."""
    try:
        return work(*request)
    except FAILURES as error:
        return error
