"""The health check that an image without curl runs."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from iris_wsgi.cli.http_client import failure_of
from iris_wsgi.cli.main import main


@contextmanager
def answering(response: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server of one connection; its port."""
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
def test_any_other_answer_is_quoted(status):
    with answering(lambda connection: connection.sendall(status + b"\r\n\r\n")) as port:
        result = failure_of("GET /readyz", "127.0.0.1", port)
    assert result == f"127.0.0.1 port {port} answers: {status.decode('ascii', 'replace')}"


def test_a_server_that_closes_without_a_word_says_nothing():
    with answering(lambda connection: connection.recv(1000)) as port:
        assert failure_of("GET /readyz", "127.0.0.1", port) == f"127.0.0.1 port {port} answers: nothing"


def test_a_server_that_hangs_is_given_up():
    done = threading.Event()
    with answering(lambda connection: done.wait(120)) as port:
        result = failure_of("GET /readyz", "127.0.0.1", port, 0.05)
        done.set()
    assert result == f"no response from 127.0.0.1 port {port} within 0.05 seconds"


def test_no_server_at_all_is_told_and_the_status_is_1(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert main(["healthcheck", "--port", str(port)]) == 1
    assert f"no server at 127.0.0.1 port {port}: Connection refused" in capsys.readouterr().err


def test_a_name_that_cannot_be_looked_up_is_told_too():
    assert failure_of("GET /readyz", "a..b", 8000) == "no server at a..b port 8000: it is not a host name"
