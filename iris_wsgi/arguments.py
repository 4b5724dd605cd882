"""The argument parser of every command: no abbreviations, one line for a mistake, and the nearest name for a mistyped one."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import unquote

from iris_wsgi.casts import has_password


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
