"""Early refusals: the client gets the response even if it, or nginx, sends the whole body first."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from http_clients import LIVEZ, HttpResponse, RawConnection, wait_until
from optional_programs import require_program
from server_process import free_ports

PIECE = b" " * 65536
# 32 MiB exceed the socket buffers, and the 4 MiB that an old version read before it closed the connection.
MANY = 512
JSON = "Content-Type: application/json"
FRAMINGS = {"length": f"Content-Length: {MANY * len(PIECE)}", "chunks": "Transfer-Encoding: chunked"}
# A server that accepts this body.
LARGE = ("--max-body-bytes", "67108864", "--pending-bytes", "67108864")


def send_all(connection: RawConnection, framing: str, *fields: str, host: str = "localhost") -> HttpResponse:
    """Sends a large body without reading in between, and then reads the response."""
    head = ["POST /predict/batch HTTP/1.1", f"Host: {host}", JSON, FRAMINGS[framing], *fields]
    connection.send("\r\n".join(head).encode() + b"\r\n\r\n")
    for _ in range(MANY):
        connection.send(b"%x\r\n%s\r\n" % (len(PIECE), PIECE) if framing == "chunks" else PIECE)
    if framing == "chunks":
        connection.send(b"0\r\n\r\n")
    return connection.receive()


@pytest.fixture
def tokens(tmp_path) -> str:
    (tmp_path / "tokens").write_text("a-token-of-this-test\n")
    return str(tmp_path / "tokens")


@pytest.mark.long
@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_client_that_sends_its_whole_body_before_it_reads_gets_its_refusal(run, tokens, framing):
    with RawConnection(run()) as connection:
        assert send_all(connection, framing).status == 413
    server = run(*LARGE, "--token-file", tokens)
    with RawConnection(server) as connection:
        assert send_all(connection, framing).status == 401
    with RawConnection(server) as connection:
        assert send_all(connection, framing, host="evil.example").status == 421
    crowded = run("--connections", "1")
    with RawConnection(crowded) as first, RawConnection(crowded) as connection:
        assert first.exchange(LIVEZ).status == 200
        assert send_all(connection, framing).status == 503


class Proxy(NamedTuple):
    """nginx with its default settings, except for the body size."""

    host: str
    port: int


@pytest.fixture
def nginx(tmp_path) -> Iterator[Callable[..., Proxy]]:
    program, started = require_program("nginx"), []

    def start(upstream: int, buffering: str) -> Proxy:
        (port,) = free_ports(1)
        folder = tmp_path / str(port)
        folder.mkdir()
        paths = "".join(f"{name}_temp_path {folder}/{name}; " for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        location = f"location / {{ proxy_pass http://127.0.0.1:{upstream}; proxy_request_buffering {buffering}; }}"
        server = f"server {{ listen 127.0.0.1:{port}; client_max_body_size 64m; {location} }}"
        head = f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/log; events {{ }}"
        (folder / "conf").write_text(f"{head} http {{ access_log off; {paths} {server} }}")
        started.append(subprocess.Popen([program, "-e", f"{folder}/log", "-c", f"{folder}/conf"]))
        wait_until(lambda: accepts_connections(port, started[-1], folder), "nginx listens")
        return Proxy("127.0.0.1", port)

    yield start
    for item in started:
        item.terminate()
        item.wait(120)


def accepts_connections(port: int, process: subprocess.Popen, folder: Path) -> bool:
    assert process.poll() is None, (folder / "log").read_text()
    try:
        RawConnection(Proxy("127.0.0.1", port)).socket.close()
    except ConnectionError:
        return False
    return True


@pytest.mark.long
@pytest.mark.parametrize("buffering", ["on", "off"])
def test_nginx_forwards_a_refusal_and_does_not_respond_with_502(run, tokens, nginx, buffering):
    server, guarded = run(), run(*LARGE, "--token-file", tokens)
    front, before_guarded = nginx(server.port, buffering), nginx(guarded.port, buffering)
    for framing in FRAMINGS:
        for _ in range(3):
            with RawConnection(front) as connection:
                assert forwarded_status(connection, framing) == 413
            with RawConnection(before_guarded) as connection:
                assert forwarded_status(connection, framing) == 401


def forwarded_status(connection: RawConnection, framing: str) -> int:
    """Returns the status that nginx forwards. nginx may close the connection after it, before it has the whole body."""
    try:
        return send_all(connection, framing).status
    except ConnectionError:
        return connection.receive().status
