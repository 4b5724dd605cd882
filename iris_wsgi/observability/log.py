"""One JSON line per request or event, on one stream, never with an input's values."""

import json
import logging
import os
import select
import stat
import threading
import time
import traceback
from collections import deque
from contextlib import suppress

MOST_WAITING = 10_000
# A pipe takes this much in one piece, and without blocking once poll() calls it writable.
PIPE_BUF = 4096


class Log:
    """Writes lines to a file descriptor; json.dumps escapes control characters, so nobody forges a line.

    A full disk or a reader that stands still never stops the server: then lines wait, and those that find no room are counted
    and told later. With `buffered`, somebody calls flush() often, and several lines go out in one piece.
    """

    def __init__(self, descriptor: int, buffered: bool = False) -> None:
        self.descriptor, self.buffered = unblocked(descriptor), buffered
        self.waiting: deque[bytes] = deque()
        self.lost = 0
        self.lock = threading.Lock()
        self.poller = select.poll()
        self.poller.register(self.descriptor, select.POLLOUT)
        self.second, self.stamp = 0, ""

    def event(self, level: str, message: str, **fields: object) -> None:
        self.write(self.line(level, message, **fields))

    def line(self, level: str, message: str, **fields: object) -> str:
        return json.dumps({"time": self.now(), "level": level, "message": message, **fields})

    def failure(self, message: str = "request failed", **ids: str) -> None:
        """The exception being handled, with its traceback."""
        self.event("error", message, **ids, traceback=traceback.format_exc())

    def write(self, line: str) -> None:
        """Takes one line of JSON, without its end."""
        if len(self.waiting) < MOST_WAITING:
            self.waiting.append(line.encode() + b"\n")
        else:
            self.lost += 1
        if not self.buffered:
            self.flush()

    def flush(self) -> None:
        """Writes what waits, as far as that can be done without blocking."""
        if not self.waiting:
            return
        with self.lock:
            while self.waiting and self.poller.poll(0):
                piece = self.piece()
                try:
                    os.write(self.descriptor, piece)
                except BlockingIOError:
                    # Another process has filled the pipe since it was polled.
                    self.waiting.appendleft(piece)
                    return
                except OSError:
                    self.lost += piece.count(b"\n")
                    continue
                if self.lost:
                    lost, self.lost = self.lost, 0
                    self.waiting.append(self.line("warning", "log lines were lost", lines=lost).encode() + b"\n")

    def finish(self, seconds: float = 1.0) -> None:
        """Writes all that waits, if somebody reads it within this time."""
        give_up = time.monotonic() + seconds
        while self.waiting and time.monotonic() < give_up:
            self.poller.poll(50)
            self.flush()

    def piece(self) -> bytes:
        """As many whole lines as can be written without blocking, or a part of one that is longer."""
        piece = self.waiting.popleft()
        if len(piece) > PIPE_BUF:
            self.waiting.appendleft(piece[PIPE_BUF:])
            return piece[:PIPE_BUF]
        while self.waiting and len(piece) + len(self.waiting[0]) <= PIPE_BUF:
            piece += self.waiting.popleft()
        return piece

    def now(self) -> str:
        """RFC 3339, UTC, milliseconds."""
        seconds = time.time()
        if int(seconds) != self.second:
            self.second = int(seconds)
            self.stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        return f"{self.stamp}.{int(seconds % 1 * 1000):03d}Z"


class LibraryLines(logging.Handler):
    """Puts what libraries log through the standard library's logging into the log."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        self.log.event(record.levelname.lower(), record.getMessage(), logger=record.name)


def unblocked(descriptor: int) -> int:
    """A descriptor of the same pipe that never blocks; other things as they are.

    Several processes may write to one pipe, so that it can be full although it was not when it was polled. The pipe is opened
    anew, because a flag on the descriptor itself would hold for everybody who has it.
    """
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        with suppress(OSError):
            return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return descriptor
