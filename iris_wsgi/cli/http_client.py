"""HTTP client of the commands, over http.client."""

from collections.abc import Mapping
from contextlib import closing
from http.client import BadStatusLine, HTTPConnection, HTTPException, HTTPResponse, RemoteDisconnected
from types import MappingProxyType
from urllib.parse import urlsplit

from iris_wsgi.server.listener import WILDCARD_HOSTS, reason

CHECK_SECONDS = 4.0


def connect(url: str, seconds: float) -> HTTPConnection:
    parts = urlsplit(url)
    return HTTPConnection(parts.hostname or "", parts.port or 80, timeout=seconds)


def exchange(
    connection: HTTPConnection, method: str, path: str, body: str | None = None, headers: Mapping[str, str] = MappingProxyType({})
) -> tuple[HTTPResponse, str]:
    """Returns the response and its text."""
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response, response.read().decode("utf-8", "replace")
    except BaseException:
        connection.close()
        raise


def failure_of(
    request: str, host: str, port: int, seconds: float = CHECK_SECONDS, headers: Mapping[str, str] = MappingProxyType({})
) -> str | None:
    """Returns None if a request such as GET /readyz gets 200, else one line with the reason."""
    where = WILDCARD_HOSTS.get(host, host)
    method, path = request.split()
    try:
        with closing(HTTPConnection(where, port, timeout=seconds)) as connection:
            # Only the status counts, so the body is not read.
            connection.request(method, path, headers=dict(headers))
            response = connection.getresponse()
    except TimeoutError:
        return f"no response from {where} port {port} within {seconds:g} seconds"
    except RemoteDisconnected:
        return f"{where} port {port} answers: nothing"
    except BadStatusLine as error:
        line = str(error.args[0]).rstrip("\r\n").encode("latin-1").decode("ascii", "replace")
        return f"{where} port {port} answers: {line}"
    except (OSError, UnicodeError) as error:
        return f"no server at {where} port {port}: {reason(error)}"
    except HTTPException as error:
        return f"{where} port {port} answers: {type(error).__name__}"
    return None if response.status == 200 else f"{where} port {port} answers: HTTP/1.1 {response.status} {response.reason}"
