"""A bar on a terminal, by tqdm."""

import time

from tqdm import tqdm


class Bar:
    """tqdm's bar, for a terminal."""

    def __init__(self, total: int | None, unit: str) -> None:
        self.bar = tqdm(total=total, unit=unit, unit_scale=True, dynamic_ncols=True, smoothing=0.1)
        self.first: int | None = None
        self.began = time.monotonic()

    def tell(self, done: int, rows: int, bad: int) -> None:
        self.first = rows if self.first is None else self.first
        rate = (rows - self.first) / max(time.monotonic() - self.began, 1e-9)
        self.bar.set_postfix_str(f"{rows} rows, {rate:.0f} rows/s, {bad} bad", refresh=False)
        self.bar.update(done - self.bar.n)

    def end(self) -> None:
        self.bar.close()
