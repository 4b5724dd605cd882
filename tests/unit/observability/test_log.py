"""The log: lines that no client can forge, and a server that no stream can stop."""

import json
import logging
import os
import threading
from contextlib import suppress

import pytest

from iris_wsgi.observability.log import MAX_WAITING_LINES, PIPE_BUF, LibraryLogHandler, Log


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
