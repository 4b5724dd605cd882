"""Request header Cache-Control (RFC 9111, section 5.2.1) and response header Cache-Status (RFC 9211) of every cache."""

import re
from functools import lru_cache
from math import inf
from typing import NamedTuple

TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
BLANKS = r"[ \t]*+"
ARGUMENT = rf'={BLANKS}(?:"((?:[^"\\]|\\.)*+)"|({TOKEN})?+){BLANKS}'
# A directive, with its argument as a token or a quoted string. The parser skips invalid members, up to the next comma.
# Possessive quantifiers prevent backtracking: with it, a header of 16 KiB of blanks would take seconds.
directives = re.compile(rf"(?:^|,){BLANKS}({TOKEN}){BLANKS}(?:{ARGUMENT})?+(?=,|$)").findall
is_seconds = re.compile(r"[0-9]+").fullmatch
# Larger numbers mean the same (RFC 9111, section 1.2.2).
MAX_SECONDS = 2**31
CACHE, SHARED_CACHE = "iris_wsgi", "iris_wsgi_shared"
STALE_STATUS = ("Cache-Status", f"{CACHE}; hit; detail=stale")
NOT_CACHED_STATUS = ("Cache-Status", f"{CACHE}; detail=only-if-cached")
NOT_CACHED = "The request has Cache-Control: only-if-cached, and the cache has no response for it; leave that directive out."


class CacheDirectives(NamedTuple):
    """Permissions of a request: to read a stored response, to store the new one, or to use a stored response only.

    A stored response must be at most `max_age` seconds old, and stay fresh for at least `min_fresh` seconds more.
    """

    read: bool = True
    store: bool = True
    only_cached: bool = False
    max_age: float = inf
    min_fresh: float = 0.0

    @property
    def bounded(self) -> bool:
        """Returns whether the request limits the age of a stored response."""
        return self.max_age != inf or self.min_fresh > 0

    def accept(self, age: float, left: float) -> bool:
        """Returns whether the request allows a stored response of this age that stays fresh for `left` seconds."""
        return self.read and age <= self.max_age and left >= self.min_fresh


DEFAULT = CacheDirectives()


@lru_cache(maxsize=64)
def cache_directives(control: str | None) -> CacheDirectives:
    """Parses Cache-Control; of repeated directives the strictest applies.

    The parser ignores max-stale: the caches serve stale responses in failures only.
    """
    if control is None:
        return DEFAULT
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
    return CacheDirectives(stored, "no-store" not in names, "only-if-cached" in names, min(ages), max(freshness))


def seconds(text: str, strict: int) -> float:
    """Returns the number of seconds, or `strict` for an invalid argument, so that the request gets a new response."""
    return min(int(text[:11]), MAX_SECONDS) if is_seconds(text) else strict


def hit_status(ttl: float) -> str:
    """Returns the Cache-Status of a stored response that stays fresh for `ttl` seconds."""
    return f"{CACHE}; hit; ttl={int(ttl)}"


def miss_status(reason: str, stored: bool = False, collapsed: bool = False, detail: str = "") -> str:
    """Returns the Cache-Status of a new response. `collapsed` marks the result of another request in progress."""
    outcome = ("; stored" if stored else "") + ("; collapsed" if collapsed else "")
    return f"{CACHE}; fwd={reason}{outcome}{f'; detail={detail}' if detail else ''}"
