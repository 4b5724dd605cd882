"""Request Cache-Control (RFC 9111, section 5.2.1), read in one way for every cache of this server."""

import re
from collections.abc import Mapping
from functools import lru_cache
from math import inf
from typing import Any, NamedTuple

from iris_wsgi.errors import Problem

TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
BLANKS = r"[ \t]*+"
ARGUMENT = rf'={BLANKS}(?:"((?:[^"\\]|\\.)*+)"|({TOKEN})?+){BLANKS}'
# A directive, with its argument as a token or a quoted string. Whatever is not one is skipped, up to the next comma.
# Nothing is matched twice, or a field of 16 KiB of blanks would take seconds.
directives = re.compile(rf"(?:^|,){BLANKS}({TOKEN}){BLANKS}(?:{ARGUMENT})?+(?=,|$)").findall
is_seconds = re.compile(r"[0-9]+").fullmatch
# Larger numbers mean the same (RFC 9111, section 1.2.2).
MAX_SECONDS = 2**31
NOT_CACHED = "The request has Cache-Control: only-if-cached, and the cache has no response for it; leave that directive out."


class Wishes(NamedTuple):
    """What a request allows: a stored response, storing the new one, anything but a stored response.

    A stored response must be at most `max_age` seconds old, and stay fresh for at least `min_fresh` seconds more.
    """

    use: bool = True
    keep: bool = True
    only_cached: bool = False
    max_age: float = inf
    min_fresh: float = 0.0

    @property
    def bounded(self) -> bool:
        """Whether the age of a stored response matters."""
        return self.max_age != inf or self.min_fresh > 0

    def accept(self, age: float, left: float) -> bool:
        """Whether a stored response of this age may be used, which stays fresh for `left` seconds."""
        return self.use and age <= self.max_age and left >= self.min_fresh


ANYTHING = Wishes()


class NotCached(Problem):
    """The client wants a stored response alone, and there is none (RFC 9111, section 5.2.1.7)."""

    status = 504


def wishes_of(environ: Mapping[str, Any]) -> Wishes:
    control: str | None = environ.get("HTTP_CACHE_CONTROL")
    return ANYTHING if control is None else parse(control)


@lru_cache(maxsize=64)
def parse(control: str) -> Wishes:
    """Of a repeated directive the strictest counts. max-stale asks for nothing: what is stale is served in a failure alone."""
    names: set[str] = set()
    ages, freshness = [inf], [0.0]
    for name, quoted, token in directives(control):
        name = name.lower()
        names.add(name)
        if name == "max-age":
            ages.append(seconds(quoted or token, 0))
        elif name == "min-fresh":
            freshness.append(seconds(quoted or token, MAX_SECONDS))
    stored = not names & {"no-store", "no-cache"} and min(ages) > 0
    return Wishes(stored, "no-store" not in names, "only-if-cached" in names, min(ages), max(freshness))


def seconds(text: str, strict: int) -> float:
    """`strict` for an argument that is not a number of seconds: such a request gets a new response."""
    return min(int(text[:11]), MAX_SECONDS) if is_seconds(text) else strict
