"""The log: lines that no client can forge, and a server that no stream can stop."""

import json
import logging
import os
import select
import socket
import subprocess
import sys
import threading
import tty
from contextlib import suppress
from itertools import pairwise

import pytest
from http_clients import wait_until
from project import ROOT

from iris_wsgi.observability.log import MAX_WAITING_LINES, PIPE_BUF, LibraryLogHandler, Log, log_line


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    for descriptor in (reader, writer):
        with suppress(OSError):
            os.close(descriptor)


def lines(reader: int) -> list[dict]:
    pieces = []
    with suppress(BlockingIOError):
        while piece := os.read(reader, 1 << 20):
            pieces.append(piece)
    return [json.loads(line) for line in b"".join(pieces).splitlines()]


def test_an_event_is_one_line_of_json_with_time_level_and_fields(pipe):
    Log(pipe[1]).event("info", "hello\n\x1b[31m\xe9", pid=1)
    (line,) = lines(pipe[0])
    assert (line["level"], line["message"], line["pid"]) == ("info", "hello\n\x1b[31m\xe9", 1)


def test_an_event_is_in_the_style_of_the_lines_of_requests_and_in_ascii(pipe):
    Log(pipe[1]).event("info", "a b: \x9b, c", roles=["web"], port=8000)
    line = os.read(pipe[0], 65536)
    assert line.endswith(b'","level":"info","message":"a b: \\u009b, c","roles":["web"],"port":8000}\n')
    assert log_line("error", "stopped", port=1).endswith('Z","level":"error","message":"stopped","port":1}')


def test_a_buffered_log_writes_when_it_is_flushed(pipe):
    log = Log(pipe[1], buffered=True)
    for i in range(1000):
        log.event("info", "line", i=i)
    assert lines(pipe[0]) == []
    found = []
    while log.waiting:
        log.flush()
        found += lines(pipe[0])
    assert [line["i"] for line in found] == list(range(1000))


def test_a_reader_that_stops_never_blocks_the_log_and_later_gets_the_number_of_lost_lines(pipe):
    log = Log(pipe[1])
    for i in range(MAX_WAITING_LINES + 2000):
        log.event("info", "line", i=i)
    assert log.lost > 0
    lost_before, found = log.lost, []
    while log.waiting:
        found += lines(pipe[0])
        log.flush()
    found += lines(pipe[0])
    assert [line["i"] for line in found if "i" in line] == list(range(MAX_WAITING_LINES + 2000 - lost_before))
    assert [line["lines"] for line in found if "lines" in line] == [lost_before]


def test_a_line_longer_than_a_pipe_is_written_in_pieces(pipe):
    log = Log(pipe[1], buffered=True)
    log.event("error", "x" * (5 * PIPE_BUF))
    log.flush()
    assert lines(pipe[0])[0]["message"] == "x" * (5 * PIPE_BUF)


def test_a_closed_reader_and_a_full_disk_lose_lines_and_raise_nothing(pipe):
    os.close(pipe[0])
    log = Log(pipe[1])
    log.event("info", "without a reader")
    assert (log.lost, len(log.waiting)) == (1, 0)
    full = os.open("/dev/full", os.O_WRONLY)
    log = Log(full)
    for _ in range(3):
        log.event("info", "no room")
    os.close(full)
    assert log.lost == 3


def test_threads_write_whole_lines(pipe):
    log = Log(pipe[1])
    threads = [threading.Thread(target=lambda k=k: [log.event("info", "t", k=k) for _ in range(50)]) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines(pipe[0])) == 200


def test_messages_of_libraries_are_lines_like_the_others(pipe):
    logger = logging.Logger("some.library")
    logger.addHandler(LibraryLogHandler(Log(pipe[1])))
    logger.warning("careful: %s", "this")
    logger.info("not this")
    (line,) = lines(pipe[0])
    assert (line["level"], line["message"], line["logger"]) == ("warning", "careful: this", "some.library")


def fill(writer: int) -> int:
    """Fills a pipe with newlines. Returns their number."""
    os.set_blocking(writer, False)
    count = 0
    with suppress(BlockingIOError):
        while True:
            count += os.write(writer, b"\n" * PIPE_BUF)
    os.set_blocking(writer, True)
    return count


def test_a_pipe_is_written_without_a_poll(pipe):
    log = Log(pipe[1], buffered=True)
    log.poller = None
    log.event("info", "line")
    log.flush()
    assert [line["message"] for line in lines(pipe[0])] == ["line"]
    # The descriptor that other processes share still blocks.
    assert os.get_blocking(pipe[1]) and not os.get_blocking(log.descriptor)


def test_a_full_pipe_keeps_whole_lines_in_order_until_there_is_room(pipe):
    fill(pipe[1])
    log = Log(pipe[1], buffered=True)
    for i in range(500):
        log.event("info", "line", i=i, text="x" * (i % 7 * 100))
        log.flush()
    pieces, wrong = [], 0
    while log.waiting:
        # Less than one chunk, so that most flushes find room for none.
        pieces.append(os.read(pipe[0], PIPE_BUF // 2))
        log.flush()
        wrong += b"".join(log.waiting).count(b"\n") != len(b"".join(log.waiting).splitlines())
    with suppress(BlockingIOError):
        while True:
            pieces.append(os.read(pipe[0], 1 << 20))
    content = b"".join(pieces)
    assert [json.loads(line)["i"] for line in content.splitlines() if line] == list(range(500))
    assert (wrong, log.lost) == (0, 0)


@pytest.mark.parametrize("sizes", [[10], [100, 4000, 5, 2000], [4095, 1], [4095, 2], [4094, 1, 1]])
def test_a_chunk_has_as_many_whole_lines_as_a_pipe_takes_at_once(monkeypatch, pipe, sizes):
    log, chunks = Log(pipe[1], buffered=True), []
    monkeypatch.setattr(os, "write", lambda _, chunk: chunks.append(chunk) or len(chunk))
    written = ["x" * (sizes[i % len(sizes)] - 1) for i in range(200)]
    log.write(*written)
    log.flush()
    assert b"".join(chunks) == "".join(f"{line}\n" for line in written).encode()
    assert all(chunk.endswith(b"\n") and len(chunk) <= PIPE_BUF <= select.PIPE_BUF for chunk in chunks)
    # The first line of the next chunk would not have fitted.
    assert all(len(one) + next_one.index(b"\n") + 1 > PIPE_BUF for one, next_one in pairwise(chunks))


def test_several_processes_write_whole_lines_to_one_pipe(pipe):
    program = """if True:
        import sys
        from iris_wsgi.observability.log import Log
        log = Log(2, buffered=True)
        for i in range(2000):
            log.event("info", "line", who=sys.argv[1], i=i, text="x" * (i % 300))
            if i % 13 == 0:
                log.flush()
        log.finish(60)
    """
    os.set_blocking(pipe[0], True)
    writers = [subprocess.Popen([sys.executable, "-c", program, str(k)], stderr=pipe[1], cwd=ROOT) for k in range(3)]
    os.close(pipe[1])
    with open(pipe[0], "rb", closefd=False) as file:
        found = [json.loads(line) for line in file]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    for k in range(3):
        assert [line["i"] for line in found if line["who"] == str(k)] == list(range(2000))


def test_lines_are_taken_written_and_lost_under_one_lock(pipe, monkeypatch):
    held, write = [], os.write

    class Watched(Log):
        def __setattr__(self, name, value):
            if name == "lost" and hasattr(self, "lock"):
                held.append(self.lock.locked())
            super().__setattr__(name, value)

    log = Watched(pipe[1], buffered=True)
    log.write(*["line"] * (MAX_WAITING_LINES + 1))
    monkeypatch.setattr(os, "write", lambda *arguments: held.append(log.lock.locked()) or write(*arguments))
    log.flush()
    # The lost line is counted, chunks are written, and the count is reported.
    assert len(held) > 3 and all(held)


def test_only_the_lines_that_find_no_room_are_lost(pipe):
    log = Log(pipe[1], buffered=True)
    # A report of lost lines, and the rest of a line, need no room.
    log.waiting += [b"line\n"] * (MAX_WAITING_LINES + 2)
    log.write("line", "line", "line")
    assert (len(log.waiting), log.lost) == (MAX_WAITING_LINES + 2, 3)
    for _ in range(3):
        log.waiting.pop()
    log.write("line", "line", "line")
    assert (len(log.waiting), log.lost) == (MAX_WAITING_LINES, 5)


def descriptors(kind: str, path) -> tuple[int, int]:
    """Returns the end to read, or -1, and the end to write."""
    if kind == "file":
        writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        return os.open(path, os.O_RDONLY), writer
    if kind == "null device":
        return -1, os.open(os.devnull, os.O_WRONLY)
    if kind == "terminal":
        reader, writer = os.openpty()
        tty.setraw(writer)
        return reader, writer
    reader, writer = socket.socketpair()
    return reader.detach(), writer.detach()


@pytest.mark.parametrize("kind", ["file", "null device", "socket", "terminal"])
def test_every_kind_of_stream_gets_all_lines(tmp_path, kind):
    reader, writer = descriptors(kind, tmp_path / "log")
    log, content = Log(writer, buffered=True), b""
    for i in range(300):
        log.event("info", "line", i=i, text="x" * i)
    if reader != -1:
        os.set_blocking(reader, False)

    def is_complete() -> bool:
        nonlocal content
        log.flush()
        with suppress(BlockingIOError, OSError):
            content += os.read(reader, 1 << 16)
        return not log.waiting and (reader == -1 or content.count(b"\n") == 300)

    wait_until(is_complete, "all lines")
    assert reader == -1 or [json.loads(line)["i"] for line in content.splitlines()] == list(range(300))
    assert log.lost == 0 and os.get_blocking(writer)
    for descriptor in {reader, writer} - {-1}:
        os.close(descriptor)


@pytest.mark.parametrize("kind", ["socket", "terminal"])
def test_a_stream_that_nobody_reads_never_blocks_the_log(tmp_path, kind):
    reader, writer = descriptors(kind, tmp_path)
    log = Log(writer)
    # It ends with the process, if the log blocks.
    thread = threading.Thread(target=lambda: [log.event("info", "line", i=i) for i in range(5000)], daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive() and log.waiting and log.lost == 0
    os.close(reader), os.close(writer)


def test_the_rest_of_a_chunk_that_a_stream_takes_in_part_is_written_next(monkeypatch, tmp_path):
    writer = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    log, write = Log(writer, buffered=True), os.write
    monkeypatch.setattr(os, "write", lambda descriptor, chunk: write(descriptor, chunk[:7]))
    for i in range(50):
        log.event("info", "line", i=i)
    log.flush()
    assert [json.loads(line)["i"] for line in (tmp_path / "log").read_text().splitlines()] == list(range(50))
    os.close(writer)


def test_the_text_of_a_second_and_the_second_are_replaced_together(pipe, monkeypatch):
    """Another thread writes a line of another hour at each moment at which the text could be older than its second."""
    log, hours, inside = Log(pipe[1]), [0.5, 3600.5, 7200.5, 10800.5], []

    class Racing(type(log)):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if not inside:
                inside.append(name)
                for hour in hours:
                    assert self.time_of(hour) == f"1970-01-01T{int(hour) // 3600:02d}:00:00.500Z"
                inside.clear()

    log.__class__ = Racing
    for hour in hours * 2:
        assert log.time_of(hour) == f"1970-01-01T{int(hour) // 3600:02d}:00:00.500Z"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "00:00:00.000"), (0.9996, "00:00:00.999"), (59.5, "00:00:59.500"), (86399.0004, "23:59:59.000")],
)
def test_a_time_is_cut_to_milliseconds(pipe, seconds, text):
    assert Log(pipe[1]).time_of(seconds) == f"1970-01-01T{text}Z"
