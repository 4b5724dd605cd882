"""Clock of an embedded store: seconds since the epoch that advance evenly when the system clock is changed."""

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

BOOT_ID = "/proc/sys/kernel/random/boot_id"
# Smaller differences are not a step of the system clock. A leap second is smaller too.
STEP_SECONDS = 1.5
ANCHORS = "CREATE TABLE IF NOT EXISTS boot (id TEXT PRIMARY KEY, epoch REAL NOT NULL) STRICT, WITHOUT ROWID"
STEPPED = "The system clock was moved by {:+d} s while the store was in use; ages of jobs and leases do not follow the change."

Seconds = Callable[[], float]


def uptime() -> float:
    """Returns the seconds since the boot, including suspension. A step of the system clock does not change them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot() -> str:
    """Returns an id of the boot and the time namespace, which has a separate uptime; empty if the system does not provide it."""
    try:
        return f"{Path(BOOT_ID).read_text().strip()} {os.readlink('/proc/self/ns/time')}"
    except OSError:
        return ""


class BootClock:
    """Time of the boot plus the uptime. The database stores the time of the boot for all processes.

    A new boot starts at the system time, or at the latest time in the database if that is later.
    """

    def __init__(self, latest: str, wall: Seconds = time.time, uptime: Seconds = uptime, boot: Callable[[], str] = boot) -> None:
        """`latest` is a query for the latest time in the database, or NULL."""
        self.latest, self.wall, self.uptime, self.boot = latest, wall, uptime, boot()
        self.epoch = self.wall() - self.uptime()

    def __call__(self) -> float:
        return self.epoch + self.uptime()

    def anchor(self, db: sqlite3.Connection) -> None:
        """Reads or writes the time of the boot. Callers call it for each opened database, also for a replacement."""
        db.execute(ANCHORS)
        found = db.execute("SELECT epoch FROM boot WHERE id = ?", (self.boot,)).fetchone()
        if found is None or not self.boot:
            (latest,) = db.execute(self.latest).fetchone()
            self.epoch = max(self.wall(), latest or 0.0) - self.uptime()
            db.execute("INSERT OR IGNORE INTO boot VALUES (?, ?)", (self.boot, self.epoch))
            # Another process may have been faster.
            found = db.execute("SELECT epoch FROM boot WHERE id = ?", (self.boot,)).fetchone() if self.boot else None
        self.epoch = found[0] if found else self.epoch

    def step_seconds(self) -> int:
        """Returns by how many seconds the system clock was moved; 0 if it was not."""
        seconds = self.wall() - self()
        return round(seconds) if abs(seconds) >= STEP_SECONDS else 0
