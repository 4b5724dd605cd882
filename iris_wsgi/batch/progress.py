"""Tells people how far a run has come: a bar on a terminal, a line now and then in a log."""

import sys
import time
from contextlib import suppress
from typing import Any

LINE_SECONDS = 5.0


class Teller:
    """`total` is in the same unit as what is told as done, None where it is not known; a `quiet` one tells nothing."""

    def __init__(self, total: int | None, unit: str, quiet: bool) -> None:
        self.total, self.quiet = total, quiet
        self.bar: Any = None
        self.began = self.said = time.monotonic()
        self.first: tuple[int, int] | None = None
        if not quiet and sys.stderr.isatty():
            # Without tqdm, the extra `batch`, a terminal gets lines too.
            with suppress(ImportError):
                from iris_wsgi.batch.tqdm import bar

                self.bar = bar(total, unit)

    def tell(self, done: int, rows: int, bad: int) -> None:
        now = time.monotonic()
        self.first = self.first or (done, rows)
        rate = (rows - self.first[1]) / max(now - self.began, 1e-9)
        line = f"{rows} rows, {rate:.0f} rows/s, {bad} bad"
        if self.bar is not None:
            self.bar.set_postfix_str(line, refresh=False)
            self.bar.update(done - self.bar.n)
        elif not self.quiet and now - self.said >= LINE_SECONDS:
            self.said = now
            if self.total:
                moved = done - self.first[0]
                left = (now - self.began) * (self.total - done) / moved if moved else 0
                line = f"{done / self.total:.0%}, about {left:.0f} s to go, {line}"
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.bar is not None:
            self.bar.close()
