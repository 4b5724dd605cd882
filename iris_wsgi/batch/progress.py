"""Tells people how far a run has come: a bar on a terminal, a line now and then in a log."""

import sys
import time
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


class Bar:
    """tqdm's bar, for a terminal."""

    def __init__(self, total: int | None, unit: str) -> None:
        from tqdm import tqdm

        divisor = 1024 if unit == "B" else 1000
        self.bar = tqdm(total=total, unit=unit, unit_scale=True, unit_divisor=divisor, dynamic_ncols=True, smoothing=0.1)
        self.first: int | None = None
        self.began = time.monotonic()

    def tell(self, done: int, rows: int, bad: int) -> None:
        self.first = rows if self.first is None else self.first
        rate = (rows - self.first) / max(time.monotonic() - self.began, 1e-9)
        self.bar.set_postfix_str(f"{rows} rows, {rate:.0f} rows/s, {bad} bad", refresh=False)
        self.bar.update(done - self.bar.n)

    def end(self) -> None:
        self.bar.close()


def teller(total: int | None, quiet: bool, unit: str = "B") -> Teller:
    """By where standard error goes; without tqdm (the extra `batch`) a terminal gets lines too. `unit` is what `total` counts."""
    if quiet:
        return Silent()
    if sys.stderr.isatty():
        try:
            return Bar(total, unit)
        except ImportError:
            pass
    return Lines(total)
