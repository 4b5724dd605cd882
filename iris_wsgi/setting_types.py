"""Converters of settings from text, which raise ValueError with a description of valid values."""

import re
from collections.abc import Callable

# The shared memory has room for the metrics of this number.
MAX_MEMBERS = 100


def text(value: str) -> str:
    if not value or not value.isprintable():
        raise ValueError("must be text that is not empty")
    return value


def folder(value: str) -> str:
    return value and text(value)


def integer(minimum: int, maximum: int) -> Callable[[str], int]:
    def cast(value: str) -> int:
        # isdigit() alone accepts digits of other scripts, and int() accepts blanks and underscores.
        if not (value.isascii() and value.isdigit()) or len(value) > 15 or not minimum <= int(value) <= maximum:
            raise ValueError(f"must be a whole number from {minimum} to {maximum}")
        return int(value)

    return cast


def seconds(minimum: float, maximum: float) -> Callable[[str], float]:
    def cast(value: str) -> float:
        # float() accepts blanks, underscores, digits of other scripts, nan, and inf.
        if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value) or not minimum <= float(value) <= maximum:
            raise ValueError(f"must be seconds from {minimum:g} to {maximum:g}")
        return float(value)

    return cast


def matching(pattern: str, description: str) -> Callable[[str], str]:
    matches = re.compile(pattern).fullmatch

    def cast(value: str) -> str:
        if not matches(value):
            raise ValueError(f"must {description}")
        return value

    return cast


seal_text = matching(r"(sha256:[0-9a-f]{64})?", "be sha256: and 64 hexadecimal digits, or empty")
redis_address = matching(r"(rediss?://[!-~]+|unix:///[!-~]+)?", "begin with redis://, rediss:// or unix:///, or be empty")
species = matching(r"[A-Za-z0-9_-]{0,64}", "be at most 64 letters, digits, - and _")


FORWARDED = "forwarded"
# Clients would resolve the segments . and ...
is_prefix = re.compile(r"(?=.{0,200}\Z)(?:/(?!\.\.?(?:/|\Z))[A-Za-z0-9._~-]+)*").fullmatch


def fixed_prefix(value: str) -> str:
    if not is_prefix(value):
        raise ValueError(
            "must be a path such as /iris: segments of letters, digits and - . _ ~, at most 200 characters, or empty"
        )
    return value


def url_prefix(value: str) -> str:
    return value if value == FORWARDED else fixed_prefix(value)


def fraction(value: str) -> float:
    if not re.fullmatch(r"[01]|[01]?\.[0-9]{1,4}", value) or float(value) > 1:
        raise ValueError("must be a number from 0 to 1")
    return float(value)


SQLITE = "sqlite:///"
# The pattern is strict, so that no part of a password is taken for a host name and shown.
HOST = r"(\[[0-9A-Fa-f:.]+\]|[^/@?#:,\[\]]*)(:[0-9]*)?"
is_database = re.compile(
    SQLITE + r".+|postgres(ql)?://([^/@:?#]*(:[^/@:?#]*)?@)?HOST(,HOST)*(/[^/@?#]*)?(\?[^@#?]*)?".replace("HOST", HOST)
).fullmatch
is_escaped = re.compile(r"([^%]|%[0-9A-Fa-f]{2})*").fullmatch
# The password of a user, or as a query parameter.
has_password = re.compile(r"(?!sqlite:)\w+:(//.*:.*@|.*[?&]\w*password=)").match


def database_address(value: str) -> str:
    if value and not (value.isprintable() and is_database(value) and (value.startswith(SQLITE) or is_escaped(value))):
        raise ValueError(
            "must be sqlite:///file or postgresql://[user[:password]@][host[:port]]/[database], with characters other than "
            "letters, digits, - . _ ~ as %XX, or be empty"
        )
    return value


is_host_name = re.compile(r"\.?[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*|\[[0-9A-Fa-f:.]+\]|\*").fullmatch


def host_names(value: str) -> str:
    """Checks `host,.domain,…` or `*`, without ports."""
    if value and not all(map(is_host_name, value.split(","))):
        raise ValueError("must be host names without a port, as example.com,.example.org, or *, or be empty")
    return value


# Calls stay inside a cluster, without TLS. A label of a host name has 1 to 63 characters; others cannot be resolved.
server_parts = re.compile(
    r"http://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?)(?::([0-9]{1,5}))?/?"
).fullmatch


def is_server(value: str) -> bool:
    found = server_parts(value)
    return found is not None and int(found[2] or 80) <= 65535


def server_address(value: str) -> str:
    if value and not is_server(value):
        raise ValueError("must be http://host[:port], or be empty")
    return value


def registry(value: str) -> str:
    """Checks `name=http://host[:port],…` of all members."""
    pairs = [pair.partition("=") for pair in value.split(",")] if value else []
    for name, _, url in pairs:
        if not (name and url and is_server(url)):
            raise ValueError("must be name=http://host[:port],name=… for all members, or be empty")
        species(name)
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise ValueError("must name each member once")
    if len(pairs) > MAX_MEMBERS:
        raise ValueError(f"must name at most {MAX_MEMBERS} members")
    return value


def one_of(*names: str) -> Callable[[str], str]:
    def cast(value: str) -> str:
        if value not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return value

    return cast
