"""One JSON line per request or event, on one stream, never with an input's values."""

import json
import time
import traceback
from typing import IO


class Log:
    """Writes lines to `stream`; json.dumps escapes control characters and all that is not ASCII, so nobody forges a line."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def event(self, level: str, message: str, **fields: object) -> None:
        self.write({"level": level, "message": message, **fields})

    def failure(self, request_id: str) -> None:
        """The exception being handled, with its traceback."""
        self.event("error", "request failed", request_id=request_id, traceback=traceback.format_exc())

    def write(self, fields: dict[str, object]) -> None:
        self.stream.write(json.dumps({"time": now(), **fields}) + "\n")
        self.stream.flush()


def now() -> str:
    """RFC 3339, UTC, milliseconds."""
    seconds = time.time()
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1000):03d}Z"
