"""Protection of browsers: allowed hosts against DNS rebinding, and the security headers of pages."""

import re
import socket
from base64 import b64encode
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any

from iris_wsgi.errors import MisdirectedRequest


def content_security_policy(**sources: str) -> str:
    """Returns the policy of a page that loads the given sources only, for example script="'self'"."""
    allowed = "; ".join(f"{name}-src {source}" for name, source in sources.items())
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def security_headers(policy: str) -> tuple[tuple[str, str], ...]:
    """Returns the headers of a page with this policy; frames of other pages cannot contain the page."""
    return (
        ("Content-Security-Policy", f"{policy}; frame-ancestors 'none'"),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
    )


def hash_sources(page: str, element: str) -> str:
    """Returns the sources of the inline elements of this name in a page, by their hashes (section 2.3.1)."""
    texts = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
    return " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in texts)


ANY = "*"
LOCALHOST = "localhost"
MAPPED, LOOPBACK = bytes(10) + b"\xff\xff", bytes(15) + b"\x01"
MISDIRECTED = "This server does not serve the host of this request; the setting IRIS_ALLOWED_HOSTS lists the hosts."
name_and_port = re.compile(r"(?:\[([^\]]*)\]|([^:]*))(?::[0-9]*)?").fullmatch


class AllowedHosts:
    """Checks the Host header of requests.

    A browser always sends the name of the host. A page that was loaded from an IP address cannot be rebound to another one.
    Therefore requests without a host pass, and loopback names and IP addresses pass in addition to the listed names.
    """

    def __init__(self, listed: str, bound: str | None) -> None:
        """`listed` is IRIS_ALLOWED_HOSTS, and `bound` is the name or address of the listening socket.

        `bound` is None under another WSGI server. Then SERVER_NAME of the environ counts (RFC 3875, section 4.1.14).
        """
        self.names = frozenset(listed.lower().replace("[", "").replace("]", "").split(",")) - {""}
        self.domains = tuple(name for name in self.names if name.startswith("."))
        self.own = (bound or "").lower()
        self.bound = LOCALHOST if bound and not self.names and resolves_to_loopback(bound) else bound
        self.any = ANY in self.names or (not self.names and bool(self.bound) and self.bound != LOCALHOST)
        # The limit bounds the memory for invented names.
        self.allows = lru_cache(1024)(self.decide)

    def check(self, environ: Mapping[str, Any]) -> MisdirectedRequest | None:
        """Returns the failure of a request to a host that is not allowed, or None."""
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
            return listed or is_loopback(name) or packed_address(name) is not None
        return not is_loopback(bound) or is_loopback(name) or name == self.own


def packed_address(host: str) -> bytes | None:
    """Returns the bytes of an IP address, or None for a name."""
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    except (OSError, ValueError):
        return None


def is_loopback(host: str) -> bool:
    """Returns whether the host is a loopback address, or localhost or a name below it (RFC 6761, section 6.3)."""
    address = packed_address(host)
    if address is None:
        return host == LOCALHOST or host.endswith("." + LOCALHOST)
    # IPv4-mapped IPv6 addresses (RFC 4291, section 2.5.5.2).
    if address.startswith(MAPPED):
        address = address[len(MAPPED) :]
    return address == LOOPBACK or (len(address) == 4 and address[0] == 127)


def resolves_to_loopback(host: str) -> bool:
    """Returns whether a server that binds to this name or address listens on a loopback address."""
    if packed_address(host) is not None:
        return is_loopback(host)
    try:
        return is_loopback(str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]))
    except (OSError, UnicodeError):
        return False
