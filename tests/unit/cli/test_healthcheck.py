"""The healthcheck command, for an image without curl."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from iris_wsgi.cli.main import failure_of, main


@contextmanager
def responding_server(response: Callable[[socket.socket], None]) -> Iterator[int]:
    """Runs a server for one connection, and yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                response(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_a_server_that_is_ready_is_healthy(live_server, capsys):
    assert failure_of("GET /readyz", live_server.host, live_server.port) is None
    assert failure_of("GET /readyz", "0.0.0.0", live_server.port) is None
    assert main(["healthcheck", "--port", str(live_server.port)]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("status", [b"HTTP/1.1 503 Service Unavailable", b"HTTP/1.1 2000 ", b"nonsense", b"\xff\xfe"])
def test_any_other_response_is_quoted(status):
    with responding_server(lambda connection: connection.sendall(status + b"\r\n\r\n")) as port:
        result = failure_of("GET /readyz", "127.0.0.1", port)
    assert result == f"127.0.0.1 port {port} answers: {status.decode('ascii', 'replace')}"


def test_a_server_that_closes_without_a_response_is_reported():
    with responding_server(lambda connection: connection.recv(1000)) as port:
        assert failure_of("GET /readyz", "127.0.0.1", port) == f"127.0.0.1 port {port} answers: nothing"


def test_a_server_that_hangs_causes_a_timeout():
    done = threading.Event()
    with responding_server(lambda connection: done.wait(120)) as port:
        result = failure_of("GET /readyz", "127.0.0.1", port, 0.05)
        done.set()
    assert result == f"no response from 127.0.0.1 port {port} within 0.05 seconds"


def test_a_missing_server_is_reported_and_the_status_is_1(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert main(["healthcheck", "--port", str(port)]) == 1
    assert f"no server at 127.0.0.1 port {port}: Connection refused" in capsys.readouterr().err


def test_an_unknown_host_name_is_reported():
    assert failure_of("GET /readyz", "a..b", 8000) == "no server at a..b port 8000: it is not a host name"
