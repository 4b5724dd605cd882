"""The record of a run, JSON beside its output: what it is a run of, how far it has come, how it ended."""

import json
import os
import secrets
import time
from pathlib import Path
from typing import Any, NamedTuple

from iris_wsgi.settings import BadSetting
from iris_wsgi.storage.files import replace_file
from iris_wsgi.tabular.record_splitter import Position


class Progress(NamedTuple):
    """How far a run has come: the next chunk, the bytes of output and of errors that are written for good, rows and labels.

    `read` is the number of rows in, which `ok` and `bad` must add up to.
    """

    next: Position
    output_bytes: int
    error_bytes: int
    read: int
    bad: int
    labels: dict[str, int]

    @property
    def ok(self) -> int:
        return sum(self.labels.values())


def identity(path: str) -> dict[str, Any]:
    """What tells one input from another: its size and when it was changed."""
    status = os.stat(path)
    return {"path": path, "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


class Record:
    """One file, replaced whole each time, so that it is never half written. `told["of"]` is what makes two runs the same."""

    def __init__(self, path: Path, told: dict[str, Any]) -> None:
        self.path, self.told = path, told

    @property
    def status(self) -> str:
        return str(self.told["status"])

    def save(self, status: str, progress: Progress) -> None:
        """Durable when it returns; raises OSError."""
        now = stamp()
        lengths = {"output_bytes": progress.output_bytes, "error_bytes": progress.error_bytes}
        self.told |= {
            "status": status,
            "updated": now,
            "finished": now if status in ("succeeded", "failed") else None,
            "rows": {"ok": progress.ok, "bad": progress.bad},
            "labels": progress.labels,
            "checkpoint": progress.next._asdict() | lengths | {"rows": progress.read},
        }
        replace_file(self.path, (json.dumps(self.told, indent=1) + "\n").encode())

    def progress(self) -> Progress:
        at = self.told["checkpoint"]
        here = Position(at["chunk"], at["offset"], at["line"])
        bad, labels = self.told["rows"]["bad"], self.told["labels"]
        # A record of an earlier release has no number of rows in.
        return Progress(here, at["output_bytes"], at["error_bytes"], at.get("rows", sum(labels.values()) + bad), bad, labels)


def begun(path: Path, run_of: dict[str, Any]) -> Record:
    return Record(path, {"run": secrets.token_hex(8), "status": "running", "started": stamp(), "of": run_of})


def read(path: Path) -> Record | None:
    """What is there of an earlier run. Raises BadSetting for a file that is something else."""
    try:
        record = Record(path, json.loads(path.read_text()))
        record.progress(), record.told["of"], record.told["run"], record.status
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        raise BadSetting(f"{path} is no record of a run; --force begins anew") from None
    return record


def stamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
