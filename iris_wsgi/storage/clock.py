"""The clock of an embedded store: seconds since the epoch, which go on evenly while the time of the machine is moved."""

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

BOOT_ID = "/proc/sys/kernel/random/boot_id"
# Clocks that differ by less were not moved. A leap second is as much.
STEP_SECONDS = 1.5
ANCHORS = "CREATE TABLE IF NOT EXISTS boot (id TEXT PRIMARY KEY, epoch REAL NOT NULL) STRICT, WITHOUT ROWID"
STEPPED = "The time of this machine was moved by {:+d} s while the store was in use; ages of jobs and leases do not follow it."

Seconds = Callable[[], float]


def uptime() -> float:
    """Seconds since the boot, those in suspension included. No step of the time changes it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot() -> str:
    """Another text for each boot; empty where that cannot be told. A namespace of times has an uptime of its own."""
    try:
        return f"{Path(BOOT_ID).read_text().strip()} {os.readlink('/proc/self/ns/time')}"
    except OSError:
        return ""


class BootClock:
    """The time at the boot, which the database keeps for all processes of this boot, and the uptime.

    A new boot begins with the time of the machine, or with the latest time in the database if that is later.
    """

    def __init__(self, latest: str, wall: Seconds = time.time, uptime: Seconds = uptime, boot: Callable[[], str] = boot) -> None:
        """`latest` is a query for the latest time in the database, or NULL."""
        self.latest, self.wall, self.uptime, self.boot = latest, wall, uptime, boot()
        self.epoch = self.wall() - self.uptime()

    def __call__(self) -> float:
        return self.epoch + self.uptime()

    def anchor(self, db: sqlite3.Connection) -> None:
        """Reads the time at the boot, or writes it; to be called for each database, also for one that replaces another."""
        db.execute(ANCHORS)
        found = db.execute("SELECT epoch FROM boot WHERE id = ?", (self.boot,)).fetchone()
        if found is None or not self.boot:
            (latest,) = db.execute(self.latest).fetchone()
            self.epoch = max(self.wall(), latest or 0.0) - self.uptime()
            db.execute("INSERT OR IGNORE INTO boot VALUES (?, ?)", (self.boot, self.epoch))
            # Another process may have been first.
            found = db.execute("SELECT epoch FROM boot WHERE id = ?", (self.boot,)).fetchone() if self.boot else None
        self.epoch = found[0] if found else self.epoch

    def moved(self) -> int:
        """By how many seconds the time of the machine differs, which is none unless it was moved."""
        seconds = self.wall() - self()
        return round(seconds) if abs(seconds) >= STEP_SECONDS else 0
