"""Request deadlines, and the Prefer header that shortens them."""

import re
from math import inf

WAITED = "The deadline passed while the request waited; nothing was computed. Retry with a later deadline."
PARSED = "The deadline passed before the model ran. Send fewer rows, or a later deadline."
RAN = "The deadline passed while the model ran; the run was stopped. Send fewer rows, or a later deadline."

wait_preference = re.compile(r"[ \t]*wait[ \t]*=[ \t]*\"?([0-9]{1,9})\"?[ \t]*(?:;.*)?", re.IGNORECASE).fullmatch
quoted = re.compile(r'"(?:[^"\\]|\\.)*"')


def deadline_of(arrived: float, timeout_seconds: float, prefer: str | None) -> float:
    """Returns the monotonic deadline of a request: its timeout, or the shorter wait=N of its Prefer header (RFC 7240)."""
    return arrived + min(timeout_seconds, preferred_wait(prefer) or inf)


def preferred_wait(prefer: str | None) -> int | None:
    """Returns the N of wait=N in a Prefer header, or None."""
    if prefer is not None:
        for preference in quoted.sub(keep_number, prefer).split(","):
            if found := wait_preference(preference):
                return int(found[1])
    return None


def keep_number(found: re.Match[str]) -> str:
    """Removes a quoted string that is not a number: it may contain commas."""
    return found[0] if found[0][1:-1].isdigit() else ""
