"""The path prefix of clients: where a WSGI server mounts the application, and what a proxy strips before it forwards."""

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from iris_wsgi.errors import BadRequest
from iris_wsgi.setting_types import FORWARDED, fixed_prefix

Prefix = Callable[[Mapping[str, Any]], str]

INVALID = (
    "X-Forwarded-Prefix must be a path such as /iris: segments of letters, digits and - . _ ~, 200 characters at most. "
    "The proxy in front of this server sets it."
)
doubled = re.compile("//+").sub


def mounted(environ: Mapping[str, Any]) -> str:
    """SCRIPT_NAME (PEP 3333), encoded for a URI reference; empty, or with a slash at its start and none at its end."""
    name = environ.get("SCRIPT_NAME")
    if not name:
        return ""
    # Two slashes at the start would name another host.
    return doubled("/", "/" + quote(name.encode("latin-1", "replace"), safe="/-._~!$&'()*+,;=:@")).rstrip("/")


def prefix_of(setting: str) -> Prefix:
    """The prefix of a request as IRIS_URL_PREFIX has it: a fixed path, that of X-Forwarded-Prefix, or none before SCRIPT_NAME."""
    if setting == FORWARDED:
        return lambda environ: forwarded(environ) + mounted(environ)
    return lambda environ: setting + mounted(environ) if setting else mounted(environ)


def forwarded(environ: Mapping[str, Any]) -> str:
    """The path of X-Forwarded-Prefix. Raises BadRequest where the field is not one path: it goes into responses."""
    value = environ.get("HTTP_X_FORWARDED_PREFIX", "")
    # Proxies write it with and without a final slash.
    path = value.removesuffix("/")
    try:
        return fixed_prefix(path)
    except ValueError:
        raise BadRequest(INVALID) from None
