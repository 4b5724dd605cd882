"""What commands tell people: lines on standard output, failures on standard error."""

import sys


def say(line: str) -> None:
    print(line, flush=True)


def failure(message: str, status: int) -> int:
    print(f"iris_wsgi: {message}", file=sys.stderr)
    return status
