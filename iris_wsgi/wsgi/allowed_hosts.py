"""Allowed host names of requests, so that no page of another site reads a response by DNS rebinding."""

import re
import socket
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from iris_wsgi.errors import MisdirectedRequest

ANY = "*"
LOCALHOST = "localhost"
MAPPED, LOOPBACK = bytes(10) + b"\xff\xff", bytes(15) + b"\x01"
MISDIRECTED = "This server does not answer for the host of this request; its setting IRIS_ALLOWED_HOSTS names those that it does."
name_and_port = re.compile(r"(?:\[([^\]]*)\]|([^:]*))(?::[0-9]*)?").fullmatch


class AllowedHosts:
    """Decides by the field Host whether a request is answered.

    A browser always names the host, and by its name: a page that is read from an IP address cannot be rebound to another.
    So requests without a host are answered, and where names are listed also those for loopback names and IP addresses.
    """

    def __init__(self, listed: str, bound: str | None) -> None:
        """`listed` is IRIS_ALLOWED_HOSTS. `bound` is the name or address that this process listens on.

        It is None where another WSGI server listens: then SERVER_NAME of the environ counts (RFC 3875, section 4.1.14).
        """
        self.names = frozenset(listed.lower().replace("[", "").replace("]", "").split(",")) - {""}
        self.domains = tuple(name for name in self.names if name.startswith("."))
        self.own = (bound or "").lower()
        self.bound = LOCALHOST if bound and not self.names and resolves_to_loopback(bound) else bound
        self.any = ANY in self.names or (not self.names and bool(self.bound) and self.bound != LOCALHOST)
        # Clients repeat few hosts; the bound keeps those that make up names from taking memory.
        self.allows = lru_cache(1024)(self.decide)

    def check(self, environ: Mapping[str, Any]) -> MisdirectedRequest | None:
        """Returns the failure to answer to a request with this environ, None if its host is allowed."""
        if self.any:
            return None
        host = environ.get("HTTP_HOST")
        if not host or self.allows(host, self.bound or environ.get("SERVER_NAME", "")):
            return None
        return MisdirectedRequest(MISDIRECTED)

    def decide(self, host: str, bound: str) -> bool:
        found = name_and_port(host)
        if found is None:
            return False
        name = (found[1] or found[2] or "").lower().removesuffix(".")
        if self.names:
            listed = name in self.names or f".{name}".endswith(self.domains)
            return listed or is_loopback(name) or packed(name) is not None
        return not is_loopback(bound) or is_loopback(name) or name == self.own


def packed(host: str) -> bytes | None:
    """Returns the bytes of an IP address, None for anything else."""
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    except (OSError, ValueError):
        return None


def is_loopback(host: str) -> bool:
    """Returns whether this is a loopback address, or localhost or a name below it (RFC 6761, section 6.3)."""
    address = packed(host)
    if address is None:
        return host == LOCALHOST or host.endswith("." + LOCALHOST)
    # An IPv4 address may be written as an IPv6 address (RFC 4291, section 2.5.5.2).
    if address.startswith(MAPPED):
        address = address[len(MAPPED) :]
    return address == LOOPBACK or (len(address) == 4 and address[0] == 127)


def resolves_to_loopback(host: str) -> bool:
    """Returns whether a server that binds to this name or address listens on a loopback address."""
    if packed(host) is not None:
        return is_loopback(host)
    try:
        return is_loopback(str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]))
    except (OSError, UnicodeError):
        return False
