"""What the text of a setting must be, and what it becomes: casts, each of which raises ValueError with what is wanted."""

import re
from collections.abc import Callable

# Each has its metrics, for which there is so much room.
MOST_MEMBERS = 100


def text(value: str) -> str:
    if not value or not value.isprintable():
        raise ValueError("must be text that is not empty")
    return value


def folder(value: str) -> str:
    return value and text(value)


def whole(least: int, most: int) -> Callable[[str], int]:
    def cast(value: str) -> int:
        # isdigit() alone admits other scripts' digits, and int() blanks and underscores.
        if not (value.isascii() and value.isdigit()) or len(value) > 15 or not least <= int(value) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(value)

    return cast


def seconds(least: float, most: float) -> Callable[[str], float]:
    def cast(value: str) -> float:
        # float() admits blanks, underscores, other scripts' digits, nan and inf.
        if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value) or not least <= float(value) <= most:
            raise ValueError(f"must be seconds from {least:g} to {most:g}")
        return float(value)

    return cast


def like(pattern: str, wanted: str) -> Callable[[str], str]:
    fits = re.compile(pattern).fullmatch

    def cast(value: str) -> str:
        if not fits(value):
            raise ValueError(f"must {wanted}")
        return value

    return cast


seal_text = like(r"(sha256:[0-9a-f]{64})?", "be sha256: and 64 hexadecimal digits, or empty")
redis_address = like(r"(rediss?://[!-~]+|unix:///[!-~]+)?", "begin with redis://, rediss:// or unix:///, or be empty")
species = like(r"[A-Za-z0-9_-]{0,64}", "be letters, digits, - and _, 64 at most")


FORWARDED = "forwarded"
# No segment is . or .., which clients would resolve.
is_prefix = re.compile(r"(?=.{0,200}\Z)(?:/(?!\.\.?(?:/|\Z))[A-Za-z0-9._~-]+)*").fullmatch


def fixed_prefix(value: str) -> str:
    if not is_prefix(value):
        raise ValueError(
            "must be a path such as /iris: segments of letters, digits and - . _ ~, 200 characters at most, or empty"
        )
    return value


def url_prefix(value: str) -> str:
    return value if value == FORWARDED else fixed_prefix(value)


def share(value: str) -> float:
    if not re.fullmatch(r"[01]|[01]?\.[0-9]{1,4}", value) or float(value) > 1:
        raise ValueError("must be a number from 0 to 1")
    return float(value)


SQLITE = "sqlite:///"
# Strictly, so that no part of a password can be taken for the name of a host and be shown.
HOST = r"(\[[0-9A-Fa-f:.]+\]|[^/@?#:,\[\]]*)(:[0-9]*)?"
is_database = re.compile(
    SQLITE + r".+|postgres(ql)?://([^/@:?#]*(:[^/@:?#]*)?@)?HOST(,HOST)*(/[^/@?#]*)?(\?[^@#?]*)?".replace("HOST", HOST)
).fullmatch
is_escaped = re.compile(r"([^%]|%[0-9A-Fa-f]{2})*").fullmatch
# Of a user, or as a parameter.
has_password = re.compile(r"(?!sqlite:)\w+:(//.*:.*@|.*[?&]\w*password=)").match


def database_address(value: str) -> str:
    if value and not (value.isprintable() and is_database(value) and (value.startswith(SQLITE) or is_escaped(value))):
        raise ValueError(
            "must be sqlite:///file or postgresql://[user[:password]@][host[:port]]/[database], other signs than letters, "
            "digits, - . _ ~ as %XX, or be empty"
        )
    return value


is_host_name = re.compile(r"\.?[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*|\[[0-9A-Fa-f:.]+\]|\*").fullmatch


def host_names(value: str) -> str:
    """host,.domain,… or *, without ports."""
    if value and not all(map(is_host_name, value.split(","))):
        raise ValueError("must be host names without a port, as example.com,.example.org, or *, or be empty")
    return value


# What goes over it is for the inside of a cluster; TLS is for what stands in front of it.
# Parts of a name are 1 to 63 letters: what has others cannot even be looked up.
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
    """name=http://host[:port], and as many more as there are members, with commas between them."""
    pairs = [pair.partition("=") for pair in value.split(",")] if value else []
    for name, _, url in pairs:
        if not (name and url and is_server(url)):
            raise ValueError("must be name=http://host[:port],name=… for all members, or be empty")
        species(name)
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise ValueError("must name each member once")
    if len(pairs) > MOST_MEMBERS:
        raise ValueError(f"must name {MOST_MEMBERS} members at most")
    return value


def one_of(*names: str) -> Callable[[str], str]:
    def cast(value: str) -> str:
        if value not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return value

    return cast
