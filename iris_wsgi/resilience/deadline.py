"""When the answer to a request is no longer wanted."""

import re
from math import inf

WAITED = "The deadline passed while the request waited; nothing was computed. Try again, with a later deadline."
PARSED = "The deadline passed before the model ran. Send fewer rows, or a later deadline."
RAN = "The deadline passed while the model ran; the run was ended. Send fewer rows, or a later deadline."

wait_preference = re.compile(r"[ \t]*wait[ \t]*=[ \t]*\"?([0-9]{1,9})\"?[ \t]*(?:;.*)?", re.IGNORECASE).fullmatch

quoted = re.compile(r'"(?:[^"\\]|\\.)*"')


def unquoted(found: re.Match[str]) -> str:
    """A quoted string is of interest where it is a number; in any other there may be commas that separate nothing."""
    return found[0] if found[0][1:-1].isdigit() else ""


def until(arrived: float, seconds: float, prefer: str | None) -> float:
    """The monotonic time at which a request that `arrived` then is no longer wanted: `seconds` later, or earlier if it says so.

    `prefer` is its Prefer field: with wait=N (RFC 7240, section 4.3) a client tells how many seconds it will wait.
    """
    return arrived + min(seconds, wait_told(prefer) or inf)


def wait_told(prefer: str | None) -> int | None:
    """The N of wait=N in a Prefer field; None where there is none."""
    if prefer is not None:
        for preference in quoted.sub(unquoted, prefer).split(","):
            if found := wait_preference(preference):
                return int(found[1])
    return None
