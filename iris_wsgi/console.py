"""CLI helpers: argument parser, output streams, progress, and checks for missing packages."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, NoReturn, TextIO
from urllib.parse import unquote

from iris_wsgi.setting_types import has_password

# Returns the log line of a message, or is None for lines for people. The first argument is the level: "info" or "error".
log_formatter: Callable[..., str] | None = None

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODEL_PACKAGES = ("numpy", "onnxruntime")
SERVER_PACKAGES = (*MODEL_PACKAGES, "waitress")


def missing_packages(needed: Sequence[str]) -> str | None:
    """Returns a message that names the missing packages and the remedy, or None. Imports no package."""
    missing = [name for name in needed if find_spec(name) is None]
    if not missing:
        return None
    what = f"the package {missing[0]} is" if len(missing) == 1 else f"the packages {', '.join(missing)} are"
    if project_folder():
        remedy = (
            "use bin/serve, bin/batch, bin/edge, or bin/pack, which set themselves up, or run `pip install .` in the folder of "
            "the project"
        )
    else:
        remedy = f"run `{sys.executable} -m pip install {' '.join(missing)}`"
    return f"{what} not installed for {sys.executable}: {remedy}"


def project_folder() -> str | None:
    """Returns the folder of the project if the package is used from there, or None for an installed package."""
    return PROJECT if os.path.isfile(os.path.join(PROJECT, "bin/setup")) else None


def script(name: str) -> str:
    """Returns the command line of a script of the project, or of the command of an installed package."""
    return f"bin/{name}" if project_folder() else f"iris-wsgi {name}"


def remedy_for_extra(extra: str) -> str:
    """Returns the commands that install the packages of an extra. The package itself is not on PyPI."""
    return f"run `bin/setup {extra}`, or `pip install '.[{extra}]'` in the folder of the project"


class ArgumentParser(argparse.ArgumentParser):
    """Parser without abbreviations, whose meaning would change with the next option. It suggests similar names."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **{"allow_abbrev": False, **named})
        self.commands: dict[str, Any] = {}
        # Commands of other programs by name, as a user types them.
        self.elsewhere: dict[str, str] = {}

    def add_subparsers(self, **named: Any) -> Any:
        added = super().add_subparsers(**named)
        self.commands = added.choices
        return added

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Exits with status 2 for an unknown command or option, and suggests the most similar one."""
        words = list(sys.argv[1:] if args is None else args)
        if self.commands:
            self.check_command(words)
        parsed, unknown = super().parse_known_args(words, namespace)
        if unknown:
            # The words after an unknown option may be its value.
            wrong = next((word for word in unknown if word.startswith("-")), unknown[0])
            options = {name: name for name in self._option_string_actions}
            hint = nearest(wrong.partition("=")[0], options) if wrong.startswith("-") else ""
            self.error(f"unrecognized arguments: {' '.join(map(without_password, unknown))}{hint}")
        return parsed, unknown

    def check_command(self, words: Sequence[str]) -> None:
        """Checks that the first word without a dash is a command. No option before it takes a value."""
        word = next((word for word in words if not word.startswith("-")), None)
        if word is not None and word not in self.commands:
            names = {name: name for name in self.commands} | self.elsewhere
            there = ", ".join(names.values())
            self.error(f"argument command: invalid choice: {word!r} (choose from {there}){nearest(word, names)}")

    def error(self, message: str) -> NoReturn:
        """Exits with one line. A usage of forty options would hide the error."""
        program = self.prog.split()[0].replace("iris-wsgi", "iris_wsgi")
        print_error(f"{message}{' See' if message.endswith('?') else '; see'} --help", program)
        self.exit(2)


def without_password(word: str) -> str:
    """Returns the word, with an ellipsis in place of an address with a password."""
    option, sign, value = word.partition("=")
    if has_password(unquote(word)):
        return "…"
    return f"{option}{sign}…" if has_password(unquote(value)) else word


def nearest(word: str, names: Mapping[str, str]) -> str:
    """Returns a question with the most similar name, or an empty text."""
    # Imported only for this message.
    import difflib

    found = difflib.get_close_matches(word, names, 1)
    return f"; did you mean {names[found[0]]}?" if found else ""


class StdoutFailed(Exception):
    """Raised if a result cannot be written to standard output; the message is the reason."""


def open_streams() -> None:
    """Opens /dev/null as each closed standard stream. Otherwise a socket could get its number, and receive printed lines."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The system assigns the lowest free number, which is this one.
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or null_stream()
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def null_stream() -> TextIO:
    """Returns a stream that replaces a failed one, whose buffer the interpreter would flush at its end."""
    return open(os.devnull, "w")


def print_result(line: str) -> None:
    """Prints a line of the result to standard output. Raises BrokenPipeError and StdoutFailed."""
    try:
        print(log_formatter("info", line) if log_formatter else line, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stdout = null_stream()
        raise StdoutFailed(f"standard output: {error.strerror}; the result is lost") from None


def print_status(line: str, stream: TextIO) -> None:
    """Prints an optional line to a terminal. A terminal that was closed is ignored."""
    with suppress(OSError):
        print(line, file=stream, flush=True)


def set_log_formatter(formatter: Callable[..., str] | None) -> None:
    """Makes all messages log lines that `formatter` returns for level, message, and fields. None restores lines for people."""
    global log_formatter
    log_formatter = formatter


def print_error(line: str, program: str = "iris_wsgi", level: str = "error", **fields: object) -> None:
    """Prints a message to standard error. `program` is its prefix for people; level and fields are only in a log line."""
    try:
        print(log_formatter(level, line, **fields) if log_formatter else f"{program}: {line}", file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = null_stream()


def print_notice(line: str) -> None:
    """Prints a message that does not report an error to standard error."""
    print_error(line, level="info")


def report_failure(message: str, status: int) -> int:
    print_error(message)
    return status


LINE_SECONDS = 5.0


class ProgressReporter:
    """Progress on standard error, as a bar or as lines. `total` is None if unknown. A `quiet` reporter prints nothing."""

    def __init__(self, total: int | None, unit: str, quiet: bool) -> None:
        self.total, self.quiet = total, quiet
        self.bar: Any = None
        self.began = self.printed = time.monotonic()
        self.first: tuple[float, int] | None = None
        if not quiet and sys.stderr.isatty():
            # Without tqdm (the extra `batch`) a terminal gets lines.
            with suppress(ImportError):
                from tqdm import tqdm

                self.bar = tqdm(total=total, unit=unit, unit_scale=True, dynamic_ncols=True, smoothing=0.1)

    def update(self, done: float, rows: int, bad: int) -> None:
        now = time.monotonic()
        self.first = self.first or (done, rows)
        rate = (rows - self.first[1]) / max(now - self.began, 1e-9)
        line = f"{rows} rows, {rate:.0f} rows/s, {bad} bad"
        if self.bar is not None:
            self.bar.set_postfix_str(line, refresh=False)
            self.bar.update(done - self.bar.n)
        elif not self.quiet and now - self.printed >= LINE_SECONDS:
            self.printed = now
            if self.total and (moved := done - self.first[0]):
                left = (now - self.began) * (self.total - done) / moved
                line = f"{done / self.total:.0%}, about {left:.0f} s to go, {line}"
            if log_formatter:
                line = log_formatter("info", line, rows=rows, bad=bad)
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.bar is not None:
            self.bar.close()
