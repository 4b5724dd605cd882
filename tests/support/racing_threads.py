"""Functions that run in threads which the interpreter switches as often as it can."""

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

SWITCH_SECONDS = 1e-6


def race(*functions: Callable[[], object], meanwhile: Callable[[], object] | None = None) -> None:
    """Runs each function in a thread, and `meanwhile` in another one until all have returned. Raises the first error of a thread.

    The switch interval is short only after all threads have begun, so that none has ended before the last one starts.
    """
    before, ended = sys.getswitchinterval(), threading.Event()
    threads = len(functions) + (meanwhile is not None)
    started = threading.Barrier(threads, action=lambda: sys.setswitchinterval(SWITCH_SECONDS))

    def run(function: Callable[[], object]) -> None:
        started.wait()
        function()

    def repeat() -> None:
        started.wait()
        meanwhile()
        while not ended.is_set():
            meanwhile()

    with ThreadPoolExecutor(threads) as pool:
        runs = [pool.submit(run, function) for function in functions]
        repeated = [pool.submit(repeat)] if meanwhile else []
        try:
            wait(runs)
            ended.set()
            wait(repeated)
        finally:
            sys.setswitchinterval(before)
    for one in (*runs, *repeated):
        one.result()
