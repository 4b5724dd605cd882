"""Makes each server process of a soak report how many memory blocks Python has allocated, whenever it gets SIGUSR1."""

import os
import signal
import sys
from itertools import count
from pathlib import Path

numbers = count()


def report(*_: object) -> None:
    """Replaces the report of the process in one step, so that a reader never sees half of a report.

    The next signal may come in the middle of this function, so each call writes another temporary file.
    """
    path = Path(os.environ["SOAK_REPORTS"], str(os.getpid()))
    temporary = path.with_suffix(f".{next(numbers)}")
    temporary.write_text(str(sys.getallocatedblocks()))
    temporary.replace(path)


if "CHANGED_CONSTANTS" in os.environ:
    sys.path.append(str(Path(__file__).parents[2] / "support"))
    import changed_constants

    changed_constants.install()
    sys.path.pop()
if "SOAK_REPORTS" in os.environ:
    signal.signal(signal.SIGUSR1, report)
