"""Clock that a test advances. As a script, the command line of iris_wsgi with such a clock; it imports few modules."""

import mmap
import sys
import time
from pathlib import Path

CLOCK_SCRIPT = Path(__file__)


class ManualClock:
    """Monotonic time of the servers that use this clock. The time changes only when the test advances it."""

    def __init__(self, path: Path) -> None:
        """Opens the clock in this file. A new clock starts at the current time."""
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
    # The server imports time.monotonic, so it is replaced before the server's modules are imported.
    time.monotonic = ManualClock(Path(path)).now
    from iris_wsgi.cli import main as __main__

    sys.argv[1:] = words
    return __main__.main()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
