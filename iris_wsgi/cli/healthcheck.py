"""Asks the server of this machine whether it is ready, or to clear its cache, for images that have no curl."""

import socket
from collections.abc import Iterable

from iris_wsgi.server.listener import WILDCARD_HOSTS, reason

SECONDS = 4.0
REQUEST = "{} HTTP/1.1\r\nHost: localhost\r\n{}Connection: close\r\n\r\n"


def why_not(asked: str, host: str, port: int, seconds: float = SECONDS, fields: Iterable[tuple[str, str]] = ()) -> str | None:
    """None if what is asked, such as GET /readyz, is answered with 200 within `seconds`, else one line on what came instead."""
    where = WILDCARD_HOSTS.get(host, host)
    try:
        with socket.create_connection((where, port), seconds) as connection:
            connection.sendall(REQUEST.format(asked, "".join(f"{name}: {value}\r\n" for name, value in fields)).encode())
            answer = connection.recv(65536)
    except TimeoutError:
        return f"no response from {where} port {port} within {seconds:g} seconds"
    except (OSError, UnicodeError) as error:
        return f"no server at {where} port {port}: {reason(error)}"
    status = answer.partition(b"\r\n")[0].decode("ascii", "replace")
    return None if status.startswith("HTTP/1.1 200 ") else f"{where} port {port} answers: {status or 'nothing'}"
