"""Processes that each do their share of the work; the answers come back in the order of the questions."""

import gc
import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from iris_wsgi.batch.ending import Stopped
from iris_wsgi.errors import BadModel
from iris_wsgi.settings import BadSetting

T = TypeVar("T")
# What a process works with is made in it: a greeting that tells of it, and what answers questions.
Prepare = Callable[[], tuple[Any, Callable[..., Any]]]
# What a process says in place of an answer.
REFUSALS = (BadModel, BadSetting, Stopped)
# So many questions may be on their way to a process, the one that it works on among them.
AHEAD = 2
# So many objects more than before are looked through for garbage.
GARBAGE = 100_000

fork = multiprocessing.get_context("fork")


class Member:
    """A process with a pipe of its own: those of a pool share one, which a process that is killed as it writes leaves in use."""

    def __init__(self, prepare: Prepare) -> None:
        self.pipe, other_end = fork.Pipe()
        self.process = fork.Process(target=live, args=(prepare, other_end, self.pipe), daemon=True)
        self.process.start()
        other_end.close()
        self.questions: SimpleQueue[Any] = SimpleQueue()
        self.answers: SimpleQueue[Any] = SimpleQueue()

    def ask(self) -> None:
        """One thing after the other, in a thread; its greeting comes unasked."""
        with self.pipe, suppress(OSError, EOFError):
            self.answers.put(self.pipe.recv())
            while (question := self.questions.get()) is not None:
                self.pipe.send(question)
                self.answers.put(self.pipe.recv())
        self.answers.put(Stopped("a process of this run was killed; run the same command again to go on"))

    def answer(self) -> Any:
        """The next one. Raises what the process refused it with, and Stopped if there is no process any more."""
        found = self.answers.get()
        if isinstance(found, REFUSALS):
            raise found
        return found


class Team:
    """`count` processes. To be made before anything that does not survive a fork."""

    def __init__(self, count: int, prepare: Prepare) -> None:
        self.members = [Member(prepare) for _ in range(count)]
        for member in self.members:
            threading.Thread(target=member.ask, daemon=True).start()

    def greeting(self) -> Any:
        """What all have prepared alike. Raises what that raises."""
        return [member.answer() for member in self.members].pop()

    def map(self, items: Iterable[tuple[T, Any]]) -> Iterator[tuple[T, Any]]:
        """For each item with the arguments of its question the item with the answer, in order."""
        under_way: deque[tuple[T, Member]] = deque()
        for i, (item, question) in enumerate(items):
            if len(under_way) == AHEAD * len(self.members):
                done, member = under_way.popleft()
                yield done, member.answer()
            member = self.members[i % len(self.members)]
            member.questions.put(question)
            under_way.append((item, member))
        for done, member in under_way:
            yield done, member.answer()

    def end(self) -> None:
        """Can be called again."""
        for member in self.members:
            with suppress(Empty):
                while True:
                    member.questions.get_nowait()
            member.questions.put(None)
        for member in self.members:
            member.process.join()


def live(prepare: Prepare, pipe: "Connection[Any, Any]", other_end: "Connection[Any, Any]") -> None:
    """The life of a process of the team, until nobody is at the other end of its pipe."""
    other_end.close()
    # From the terminal it is for the parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ready = refused_or(prepare)
    greeting, work = ready if isinstance(ready, tuple) else (ready, None)
    # What is loaded stays, and rows are no garbage: to look for any each time that there are 700 of them only takes time.
    gc.freeze()
    gc.set_threshold(GARBAGE)
    with suppress(OSError, EOFError):
        pipe.send(greeting)
        while work is not None:
            pipe.send(refused_or(work, *pipe.recv()))


def refused_or(work: Callable[..., Any], *question: Any) -> Any:
    try:
        return work(*question)
    except REFUSALS as error:
        return error
