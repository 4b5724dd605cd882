"""What commands tell people: answers on standard output, all else on standard error."""

import os
import sys
from typing import TextIO


class StdoutFailed(Exception):
    """Standard output does not take an answer; the message is the reason."""


def open_streams() -> None:
    """Opens /dev/null as each standard stream that is closed. Otherwise the next socket becomes it, and gets what is printed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The system gives the lowest number that is free, which is this one.
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or silence()
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def silence() -> TextIO:
    """Returns a stream that takes all, in the place of one whose last bytes the interpreter would try to write at its end."""
    return open(os.devnull, "w")


def say(line: str) -> None:
    """Prints a line of an answer. Raises BrokenPipeError and StdoutFailed."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stdout = silence()
        raise StdoutFailed(f"standard output: {error.strerror}; the answer is lost") from None


def mention(line: str) -> None:
    """Prints a line that nobody needs: a full disk or a reader that is gone ends nothing."""
    try:
        print(line, flush=True)
    except OSError:
        sys.stdout = silence()


def tell(line: str) -> None:
    """Where standard output may be the answer itself."""
    try:
        print(f"iris_wsgi: {line}", file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = silence()


def failure(message: str, status: int) -> int:
    tell(message)
    return status
