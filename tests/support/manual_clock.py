"""A clock that a test moves, and the command line of iris_wsgi by such a clock; a script. It imports little."""

import mmap
import sys
import time
from pathlib import Path

CLOCK_SCRIPT = Path(__file__)


class ManualClock:
    """The monotonic time of the servers that were started with it: it stands still until the test moves it."""

    def __init__(self, path: Path) -> None:
        """Opens the clock in this file, and makes one that shows the present time if the file does not exist."""
        self.path = path
        if not path.exists():
            path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self.cell = memoryview(mmap.mmap(file.fileno(), 8)).cast("d")
        if not self.cell[0]:
            self.cell[0] = time.monotonic()

    def now(self) -> float:
        return self.cell[0]

    def advance(self, seconds: float) -> None:
        self.cell[0] += seconds


def main(path: str, *words: str) -> int:
    # Before anything of the server is imported.
    time.monotonic = ManualClock(Path(path)).now
    from iris_wsgi.cli import main as __main__

    sys.argv[1:] = words
    return __main__.main()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
