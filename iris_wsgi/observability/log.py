"""Structured log: one JSON line per request or event, without values of inputs."""

import json
import logging
import os
import select
import stat
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress

MAX_WAITING_LINES = 10_000
# A writable pipe accepts this size without blocking, and atomically.
PIPE_BUF = 4096
# Lines are ASCII, because a terminal interprets some control characters beyond ASCII.
encode = json.JSONEncoder(separators=(",", ":")).encode


class Log:
    """Writes lines to a file descriptor. The encoder escapes control characters, so no client can forge a line.

    A full disk or a slow reader never stops the server: lines wait, and a later line reports the number of lost ones. With
    `buffered`, the owner calls flush() often, and one write has several lines.
    """

    def __init__(self, descriptor: int, buffered: bool = False) -> None:
        self.descriptor, self.buffered = nonblocking(descriptor), buffered
        # A write of up to PIPE_BUF bytes to another kind of file could block.
        self.may_block = self.descriptor == descriptor
        self.waiting: deque[bytes] = deque()
        self.lost = 0
        self.lock = threading.Lock()
        self.poller = select.poll()
        self.poller.register(self.descriptor, select.POLLOUT)
        # A second, and its text. One object, because several threads replace it.
        self.stamp = 0, "1970-01-01T00:00:00"
        # Writes the lines of the requests that were answered before.
        self.write_requests: Callable[[], None] = lambda: None

    def event(self, level: str, message: str, **fields: object) -> None:
        self.write_requests()
        self.write(self.line(level, message, **fields))

    def line(self, level: str, message: str, **fields: object) -> str:
        return encode({"time": self.now(), "level": level, "message": message, **fields})

    def failure(self, message: str = "request failed", **ids: str) -> None:
        """Logs the current exception with its traceback."""
        self.event("error", message, **ids, traceback=traceback.format_exc())

    def write(self, *lines: str) -> None:
        """Queues JSON lines without their line ends."""
        kept = MAX_WAITING_LINES - len(self.waiting)
        self.waiting += [f"{line}\n".encode() for line in lines[: max(0, kept)]]
        if len(lines) > kept:
            with self.lock:
                self.lost += len(lines) - max(0, kept)
        if not self.buffered:
            self.flush()

    def flush(self) -> None:
        """Writes waiting lines as far as possible without blocking."""
        if not self.waiting:
            return
        with self.lock:
            while self.waiting and (not self.may_block or self.poller.poll(0)):
                chunk = self.next_chunk()
                try:
                    written = os.write(self.descriptor, chunk)
                except BlockingIOError:
                    # Another process has filled the pipe after the poll.
                    self.waiting.appendleft(chunk)
                    return
                except OSError:
                    self.lost += chunk.count(b"\n")
                    continue
                if written < len(chunk):
                    # Unlike a pipe, a terminal or a full disk takes a part.
                    self.waiting.appendleft(chunk[written:])
                elif self.lost:
                    lost, self.lost = self.lost, 0
                    self.waiting.append(self.line("warning", "log lines were lost", lines=lost).encode() + b"\n")

    def finish(self, seconds: float = 1.0) -> None:
        """Writes all waiting lines, and waits up to `seconds` for the reader."""
        deadline = time.monotonic() + seconds
        while self.waiting and time.monotonic() < deadline:
            self.poller.poll(50)
            self.flush()

    def next_chunk(self) -> bytes:
        """Returns whole lines up to PIPE_BUF bytes, or a part of a longer line."""
        waiting = self.waiting
        pieces = [waiting.popleft()]
        size = len(pieces[0])
        if size > PIPE_BUF:
            waiting.appendleft(pieces[0][PIPE_BUF:])
            return pieces[0][:PIPE_BUF]
        while waiting and (size := size + len(waiting[0])) <= PIPE_BUF:
            pieces.append(waiting.popleft())
        return b"".join(pieces)

    def now(self) -> str:
        return self.time_of(time.time())

    def time_of(self, seconds: float) -> str:
        """Returns a system time in RFC 3339, UTC, with milliseconds."""
        second, text = self.stamp
        if int(seconds) != second:
            second = int(seconds)
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self.stamp = second, text
        return f"{text}.{int((seconds - second) * 1000):03d}Z"


def log_line(level: str, message: str, **fields: object) -> str:
    """Returns a line for a process that has no Log, such as a command, or a server whose settings are invalid."""
    return encode({"time": rfc3339(time.time()), "level": level, "message": message, **fields})


def rfc3339(seconds: float) -> str:
    """Formats seconds since the epoch in UTC, with milliseconds."""
    thousandths = int(seconds * 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(thousandths // 1000))}.{thousandths % 1000:03d}Z"


class LibraryLogHandler(logging.Handler):
    """Handler that copies the log messages of libraries into the log."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        self.log.event(record.levelname.lower(), record.getMessage(), logger=record.name)


def nonblocking(descriptor: int) -> int:
    """Returns a non-blocking descriptor of the same pipe or terminal, or the given one if it is something else.

    Several processes may write to a pipe, and a terminal may have little room, so a write can block after a successful poll. The
    file is opened again, because a flag of the descriptor would apply to all processes that share it.
    """
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode) or os.isatty(descriptor):
        with suppress(OSError):
            return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return descriptor
