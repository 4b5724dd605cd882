"""Number of examples of a property test."""

from http_clients import CI


def examples(count: int) -> int:
    """Returns `count` in CI, and a quarter of it on a laptop."""
    return count if CI else count // 4
