"""Processes that each do their share of the work; the answers come back in the order of the questions."""

import gc
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO, NoReturn, TypeVar

from iris_wsgi.errors import BadModel, Stopped
from iris_wsgi.settings import BadSetting
from iris_wsgi.storage.files import write_all

T = TypeVar("T")
# What a process works with is made in it: a greeting that tells of it, and what answers questions.
Prepare = Callable[[], tuple[Any, Callable[..., Any]]]
# What a process says in place of an answer.
REFUSALS = (BadModel, BadSetting, Stopped)
# So many questions may be on their way to a process, the one that it works on among them.
AHEAD = 2
# So many objects more than before are looked through for garbage.
GARBAGE = 100_000


class Member:
    """A process, and what asks it in the one that made it; `others` were made before."""

    def __init__(self, prepare: Prepare, others: "list[Member]") -> None:
        hears, self.tells = os.pipe()
        listens, answers = os.pipe()
        self.listens = os.fdopen(listens, "rb")
        self.pid = os.fork()
        if not self.pid:
            # Or nobody would notice that the parent is gone.
            for one in (self, *others):
                os.close(one.tells)
                one.listens.close()
            live(prepare, os.fdopen(hears, "rb"), answers)
        os.close(hears)
        os.close(answers)
        self.questions: SimpleQueue[Any] = SimpleQueue()
        self.answers: SimpleQueue[Any] = SimpleQueue()

    def ask(self) -> None:
        """One thing after the other, in a thread; its greeting comes unasked."""
        with self.listens, suppress(BrokenPipeError, EOFError, pickle.UnpicklingError):
            self.answers.put(pickle.load(self.listens))
            while (question := self.questions.get()) is not None:
                write_all(self.tells, pickle.dumps(question))
                self.answers.put(pickle.load(self.listens))
        self.answers.put(Stopped("a process of this run was killed; run the same command again to go on"))
        os.close(self.tells)

    def answer(self) -> Any:
        """The next one. Raises what the process refused it with, and Stopped if there is no process any more."""
        found = self.answers.get()
        if isinstance(found, REFUSALS):
            raise found
        return found


class Team:
    """`count` processes. To be made before anything that does not survive a fork."""

    def __init__(self, count: int, prepare: Prepare) -> None:
        self.members: list[Member] = []
        for _ in range(count):
            self.members.append(Member(prepare, self.members))
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
            os.waitpid(member.pid, 0)
        self.members = []


def live(prepare: Prepare, hears: BinaryIO, answers: int) -> NoReturn:
    """The life of a process of the team, until nobody asks it anything any more."""
    try:
        # From the terminal they are for the parent.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        ready = refused_or(prepare)
        greeting, work = ready if isinstance(ready, tuple) else (ready, None)
        # What is loaded stays, and rows are no garbage: to look for any each time that there are 700 of them only takes time.
        gc.freeze()
        gc.set_threshold(GARBAGE)
        with suppress(BrokenPipeError, EOFError):
            write_all(answers, pickle.dumps(greeting))
            while work is not None:
                write_all(answers, pickle.dumps(refused_or(work, *pickle.load(hears))))
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)


def refused_or(work: Callable[..., Any], *question: Any) -> Any:
    try:
        return work(*question)
    except REFUSALS as error:
        return error
