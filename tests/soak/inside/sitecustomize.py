"""Has each process of the servers of a soak tell how many blocks of memory Python holds in it, whenever it gets SIGUSR1."""

import os
import signal
import sys
from pathlib import Path


def tell(*_: object) -> None:
    Path(os.environ["SOAK_BLOCKS"], str(os.getpid())).write_text(str(sys.getallocatedblocks()))


if "SOAK_BLOCKS" in os.environ:
    signal.signal(signal.SIGUSR1, tell)
