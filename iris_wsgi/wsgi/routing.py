"""Paths to what is found at them: literal ones in a dictionary, and templates like /models/{model}/infer in one expression."""

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Generic, TypeVar

T = TypeVar("T")
Parameters = Mapping[str, str]

NO_PARAMETERS: Parameters = MappingProxyType({})
parameter = re.compile(r"\{(\w+)\}")


class Router(Generic[T]):
    """What is found at a path. A parameter is a part of one segment, not empty; a literal path wins over a template."""

    def __init__(self, at: Mapping[str, T], nowhere: T) -> None:
        """`nowhere` is what every other path finds. Two templates that differ only in names of parameters are a ValueError."""
        self.nowhere = (nowhere, NO_PARAMETERS)
        self.literal = {path: (what, NO_PARAMETERS) for path, what in at.items() if not names_of(path)}
        templates = sorted((path for path in at if names_of(path)), key=specificity)
        for one, next_one in pairwise(templates):
            if parameter.sub("{}", one) == parameter.sub("{}", next_one):
                raise ValueError(f"no path tells {one} from {next_one}")
        # Each template is a group around the groups of its parameters: the group that ends last tells which one matched.
        self.match = re.compile("|".join(f"({''.join(expression(path))})" for path in templates) or r"(?!)").fullmatch
        self.templates: dict[int, tuple[T, list[str]]] = {}
        group = 1
        for path in templates:
            names = names_of(path)
            self.templates[group] = at[path], names
            group += 1 + len(names)

    def find(self, path: str) -> tuple[T, Parameters]:
        """What is at this path, which is latin-1 as PEP 3333 has it, and the values of its parameters, which are UTF-8."""
        return self.literal.get(path) or self.matching(path)

    def matching(self, path: str) -> tuple[T, Parameters]:
        found = self.match(path)
        if found is None or found.lastindex is None:
            return self.nowhere
        what, names = self.templates[found.lastindex]
        return what, {name: decoded(found[found.lastindex + i]) for i, name in enumerate(names, 1)}


def names_of(path: str) -> list[str]:
    """The names of a template's parameters; none for a literal path."""
    return parameter.findall(path)


def specificity(path: str) -> tuple[list[int], str]:
    """Sorts what says more before what says less: segment by segment a literal, a parameter within one, a whole one."""
    segments = [0 if not names_of(s) else 2 if parameter.fullmatch(s) else 1 for s in path.split("/")]
    return segments, parameter.sub("{}", path)


def expression(path: str) -> Iterator[str]:
    for i, part in enumerate(parameter.split(path)):
        yield "([^/]+)" if i % 2 else re.escape(part)


def decoded(value: str) -> str:
    return value if value.isascii() else value.encode("latin-1", "replace").decode("utf-8", "replace")
