"""Tells people how far a run has come: a bar on a terminal, a line now and then in a log."""

import sys
import time
from contextlib import suppress
from typing import Protocol

LINE_SECONDS = 5.0


class Teller(Protocol):
    def tell(self, done: int, rows: int, bad: int) -> None: ...
    def end(self) -> None: ...


class Silent:
    def tell(self, done: int, rows: int, bad: int) -> None: ...
    def end(self) -> None: ...


class Lines:
    """A line every few seconds; `total` is in the same unit as what is told as done, None where it is not known."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.began = self.said = time.monotonic()
        self.first: tuple[int, int] | None = None

    def tell(self, done: int, rows: int, bad: int) -> None:
        now = time.monotonic()
        self.first = self.first or (done, rows)
        if now - self.said < LINE_SECONDS:
            return
        self.said = now
        rate = (rows - self.first[1]) / (now - self.began)
        share = ""
        if self.total:
            moved = done - self.first[0]
            left = (now - self.began) * (self.total - done) / moved if moved else 0
            share = f"{done / self.total:.0%}, about {left:.0f} s to go, "
        print(f"{share}{rows} rows, {rate:.0f} rows/s, {bad} bad", file=sys.stderr, flush=True)

    def end(self) -> None: ...


def teller(total: int | None, unit: str, quiet: bool) -> Teller:
    """By where standard error goes; without tqdm (the extra `batch`) a terminal gets lines too."""
    if quiet:
        return Silent()
    if sys.stderr.isatty():
        with suppress(ImportError):
            from iris_wsgi.batch.tqdm import Bar

            return Bar(total, unit)
    return Lines(total)
