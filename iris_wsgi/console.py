"""What commands tell people: answers on standard output, all else on standard error."""

import sys


def say(line: str) -> None:
    print(line, flush=True)


def tell(line: str) -> None:
    """Where standard output may be the answer itself."""
    print(f"iris_wsgi: {line}", file=sys.stderr, flush=True)


def failure(message: str, status: int) -> int:
    tell(message)
    return status
