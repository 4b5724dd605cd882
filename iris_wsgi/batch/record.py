"""The record of a run, JSON beside its output: what it is a run of, how far it has come, how it ended."""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from iris_wsgi.batch.cutter import Position
from iris_wsgi.batch.output import put_in_place
from iris_wsgi.settings import BadSetting

EDGE_BYTES = 1 << 16


class Progress(NamedTuple):
    """How far a run has come: the next chunk, the bytes of output and of errors that are written for good, rows and labels."""

    next: Position
    output_bytes: int
    error_bytes: int
    ok: int
    bad: int
    labels: dict[str, int]


def identity(path: str) -> dict[str, Any]:
    """What tells one input from another: its size, when it was changed, and the SHA-256 of its first and last 64 KiB."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        digest = hashlib.sha256(file.read(EDGE_BYTES))
        file.seek(max(0, status.st_size - EDGE_BYTES))
        digest.update(file.read(EDGE_BYTES))
    return {"path": path, "bytes": status.st_size, "modified_ns": status.st_mtime_ns, "edges_sha256": digest.hexdigest()}


class Record:
    """One file, replaced whole each time, so that it is never half written."""

    def __init__(self, path: Path, told: dict[str, Any]) -> None:
        self.path, self.told = path, told

    def save(self, status: str, progress: Progress) -> None:
        """Durable when it returns; raises OSError."""
        now = stamp()
        self.told |= {
            "status": status,
            "updated": now,
            "finished": now if status in ("succeeded", "failed") else None,
            "rows": {"ok": progress.ok, "bad": progress.bad},
            "labels": progress.labels,
            "checkpoint": {
                **progress.next._asdict(),
                "output_bytes": progress.output_bytes,
                "error_bytes": progress.error_bytes,
            },
        }
        following = self.path.with_name(self.path.name + ".new")
        following.write_text(json.dumps(self.told, indent=1) + "\n", "utf-8")
        put_in_place(following, self.path)

    @property
    def status(self) -> str:
        return str(self.told["status"])

    def progress(self) -> Progress:
        at = self.told["checkpoint"]
        return Progress(
            Position(at["chunk"], at["offset"], at["line"]),
            at["output_bytes"],
            at["error_bytes"],
            self.told["rows"]["ok"],
            self.told["rows"]["bad"],
            self.told["labels"],
        )


def begun(path: Path, run_of: Mapping[str, Any], labels: list[str]) -> Record:
    """A new run; `run_of` is what another run must have in common with it to go on where it stopped."""
    record = Record(path, {"run": secrets.token_hex(8), "status": "running", "started": stamp(), "of": dict(run_of)})
    record.told |= {"rows": {"ok": 0, "bad": 0}, "labels": dict.fromkeys(labels, 0)}
    record.told["checkpoint"] = {**Position()._asdict(), "output_bytes": 0, "error_bytes": 0}
    return record


def read(path: Path) -> Record | None:
    """What is there of an earlier run. Raises BadSetting for a file that is something else."""
    try:
        told = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        told = None
    try:
        record = Record(path, told)
        record.progress()
        record.told["of"], record.told["run"], record.status
    except (TypeError, KeyError, AttributeError):
        raise BadSetting(f"{path} is no record of a run; --force begins anew") from None
    return record


def stamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
