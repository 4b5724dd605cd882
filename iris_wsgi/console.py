"""The command line of people: arguments, output, progress, and the packages that a command needs."""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, NoReturn, TextIO
from urllib.parse import unquote

from iris_wsgi.setting_types import has_password

MODEL_PACKAGES = ("numpy", "onnxruntime")
SERVER_PACKAGES = (*MODEL_PACKAGES, "waitress")


def why_missing(needed: Sequence[str]) -> str | None:
    """One line that names the packages that are not installed and the way out; None where all are. Imports none of them."""
    missing = [name for name in needed if find_spec(name) is None]
    if not missing:
        return None
    what = f"the package {missing[0]} is" if len(missing) == 1 else f"the packages {', '.join(missing)} are"
    return (
        f"{what} not installed for {sys.executable}: use bin/serve, bin/batch or bin/edge, which set themselves up, "
        "or run `pip install .` in the folder of the project"
    )


class ArgumentParser(argparse.ArgumentParser):
    """Commands and options count only as they are spelled: an abbreviation would change its meaning with the next option."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **{"allow_abbrev": False, **named})
        self.commands: dict[str, Any] = {}
        # Commands that another program has, by their names, as a user types them.
        self.elsewhere: dict[str, str] = {}

    def add_subparsers(self, **named: Any) -> Any:
        added = super().add_subparsers(**named)
        self.commands = added.choices
        return added

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Ends the process with status 2 for a command or an option that is not known, and names the nearest one."""
        words = list(sys.argv[1:] if args is None else args)
        if self.commands:
            self.check_command(words)
        parsed, unknown = super().parse_known_args(words, namespace)
        if unknown:
            # What follows an unknown option may be its value.
            wrong = next((word for word in unknown if word.startswith("-")), unknown[0])
            options = {name: name for name in self._option_string_actions}
            hint = nearest(wrong.partition("=")[0], options) if wrong.startswith("-") else ""
            self.error(f"unrecognized arguments: {' '.join(map(without_password, unknown))}{hint}")
        return parsed, unknown

    def check_command(self, words: Sequence[str]) -> None:
        """The first word that is not an option must be a command: no option before it takes a value."""
        word = next((word for word in words if not word.startswith("-")), None)
        if word is not None and word not in self.commands:
            names = {name: name for name in self.commands} | self.elsewhere
            there = ", ".join(names.values())
            self.error(f"argument command: invalid choice: {word!r} (choose from {there}){nearest(word, names)}")

    def error(self, message: str) -> NoReturn:
        """One line: a usage of sixty options would hide what is wrong."""
        self.exit(2, f"{self.prog.split()[0]}: {message}{' See' if message.endswith('?') else '; see'} --help\n")


def without_password(word: str) -> str:
    """The word as typed, or its option alone where an address with a password follows."""
    option, sign, value = word.partition("=")
    if has_password(unquote(word)):
        return "…"
    return f"{option}{sign}…" if has_password(unquote(value)) else word


def nearest(word: str, names: Mapping[str, str]) -> str:
    """A question after the name that is most like the word, as a user types it; empty where none is like it."""
    # Imported only to complain.
    import difflib

    found = difflib.get_close_matches(word, names, 1)
    return f"; did you mean {names[found[0]]}?" if found else ""


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


LINE_SECONDS = 5.0


class Teller:
    """`total` is in the same unit as what is told as done, None where it is not known; a `quiet` one tells nothing."""

    def __init__(self, total: int | None, unit: str, quiet: bool) -> None:
        self.total, self.quiet = total, quiet
        self.bar: Any = None
        self.began = self.said = time.monotonic()
        self.first: tuple[int, int] | None = None
        if not quiet and sys.stderr.isatty():
            # Without tqdm, the extra `batch`, a terminal gets lines too.
            with suppress(ImportError):
                from tqdm import tqdm

                self.bar = tqdm(total=total, unit=unit, unit_scale=True, dynamic_ncols=True, smoothing=0.1)

    def tell(self, done: int, rows: int, bad: int) -> None:
        now = time.monotonic()
        self.first = self.first or (done, rows)
        rate = (rows - self.first[1]) / max(now - self.began, 1e-9)
        line = f"{rows} rows, {rate:.0f} rows/s, {bad} bad"
        if self.bar is not None:
            self.bar.set_postfix_str(line, refresh=False)
            self.bar.update(done - self.bar.n)
        elif not self.quiet and now - self.said >= LINE_SECONDS:
            self.said = now
            if self.total:
                moved = done - self.first[0]
                left = (now - self.began) * (self.total - done) / moved if moved else 0
                line = f"{done / self.total:.0%}, about {left:.0f} s to go, {line}"
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.bar is not None:
            self.bar.close()
