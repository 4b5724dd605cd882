"""Makes each server process of a soak report how many memory blocks Python has allocated, whenever it gets SIGUSR1."""

import os
import signal
import sys
from itertools import count
from pathlib import Path

numbers = count()


def report(*_: object) -> None:
    """Replaces the process's report in one step, so that a reader never sees half of a report.

    The next signal may come in the middle of this function, so each call writes a file of its own.
    """
    path = Path(os.environ["SOAK_BLOCKS"], str(os.getpid()))
    part = path.with_suffix(f".{next(numbers)}")
    part.write_text(str(sys.getallocatedblocks()))
    part.replace(path)


if "SOAK_BLOCKS" in os.environ:
    signal.signal(signal.SIGUSR1, report)
