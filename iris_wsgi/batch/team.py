"""Processes that each work on their share of a sequence of messages; the answers come back in its order."""

import gc
import os
import queue
import signal
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple, TypeVar

from iris_wsgi.batch.output import write_all

T = TypeVar("T")

length_of = struct.Struct("<Q")
# So many messages may be on their way to a process, the one that it works on among them.
AHEAD = 2
# So many objects more than before are looked through for garbage.
GARBAGE = 100_000
Work = Callable[[bytes], bytes]


LOST = "a process of this run was killed; run the same command again to go on"


class Lost(Exception):
    """A process of the run has died; the message is one line."""


class Member(NamedTuple):
    """A process, where it is told what to do, and where it answers."""

    pid: int
    told: BinaryIO
    answers: BinaryIO


class Team:
    """Forks `count` processes. Each first makes what it works with, and answers with a greeting of `prepare`.

    To be made before anything that does not survive a fork. Messages go to one after the other.
    """

    def __init__(self, count: int, prepare: Callable[[], tuple[bytes, Work]]) -> None:
        self.members: list[Member] = []
        for _ in range(count):
            self.members.append(self.start(prepare))
        self.greeting = [receive(member) for member in self.members].pop()

    def start(self, prepare: Callable[[], tuple[bytes, Work]]) -> Member:
        hears, tells = os.pipe()
        listens, answers = os.pipe()
        pid = os.fork()
        if pid:
            os.close(hears)
            os.close(answers)
            return Member(pid, os.fdopen(tells, "wb"), os.fdopen(listens, "rb"))
        status = 1
        try:
            for member in self.members:
                member.told.close()
                member.answers.close()
            os.close(tells)
            os.close(listens)
            # A signal from the terminal is for the parent, which ends this process by closing the pipe.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            live(prepare, os.fdopen(hears, "rb"), os.fdopen(answers, "wb"))
            status = 0
        except Lost:
            # The parent is gone, or wants no more.
            pass
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)

    def map(self, items: Iterable[tuple[T, bytes]]) -> Iterator[tuple[T, bytes]]:
        """For each item with its message the item with the answer, in order. Raises Lost."""
        under_way: deque[tuple[T, Member]] = deque()
        for i, (item, message) in enumerate(items):
            if len(under_way) == AHEAD * len(self.members):
                done, member = under_way.popleft()
                yield done, receive(member)
            member = self.members[i % len(self.members)]
            send(member.told, message)
            under_way.append((item, member))
        while under_way:
            done, member = under_way.popleft()
            yield done, receive(member)

    def end(self) -> None:
        """Can be called again."""
        for member in self.members:
            member.answers.close()
            member.told.close()
        for member in self.members:
            os.waitpid(member.pid, 0)
        self.members = []


def live(prepare: Callable[[], tuple[bytes, Work]], hears: BinaryIO, answers: BinaryIO) -> None:
    """The life of a process of the team, until nobody tells it anything any more."""
    greeting, work = prepare()
    # What is loaded stays, and rows are no garbage: to look for any each time that there are 700 of them only takes time.
    gc.freeze()
    gc.set_threshold(GARBAGE)
    send(answers, greeting)
    # Messages are taken in while others are worked on, or two would wait for each other to read.
    messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=hear, args=(hears, messages), daemon=True).start()
    while (message := messages.get()) is not None:
        send(answers, work(message))


def hear(hears: BinaryIO, messages: "queue.SimpleQueue[bytes | None]") -> None:
    while (message := read(hears)) is not None:
        messages.put(message)
    messages.put(None)


def send(pipe: BinaryIO, message: bytes) -> None:
    try:
        # Past its buffer, which would be written again when the pipe is closed, also one that is broken.
        write_all(pipe.fileno(), length_of.pack(len(message)))
        write_all(pipe.fileno(), message)
    except BrokenPipeError:
        raise Lost(LOST) from None


def receive(member: Member) -> bytes:
    message = read(member.answers)
    if message is None:
        raise Lost(LOST)
    return message


def read(pipe: BinaryIO) -> bytes | None:
    """A whole message; None if the other end is gone."""
    head = pipe.read(length_of.size)
    if len(head) < length_of.size:
        return None
    (length,) = length_of.unpack(head)
    message = pipe.read(length)
    return message if len(message) == length else None
