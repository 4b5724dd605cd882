"""Proxy that forwards requests to a server, or injects a fault."""

import socket
import struct
import threading
from contextlib import suppress

LINGER = struct.pack("ii", 1, 0)


def read_message(connection: socket.socket) -> bytes:
    """Reads a message with a Content-Length. Raises EOFError if the connection ends before."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += receive_more(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        body += receive_more(connection)
    return head + b"\r\n\r\n" + body


def receive_more(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 20)
    if not data:
        raise EOFError
    return data


class FaultProxy:
    """Proxy with a fault mode for the next requests.

    The modes are pass, garbage, half, reset, hang, mute (closes without a byte), drip, and twice.
    """

    def __init__(self, server=None) -> None:
        self.server, self.mode = server, "pass"
        # Number of requests before the mode becomes "pass" again. None means no limit.
        self.remaining: int | None = None
        self.requests: list[bytes] = []
        self.stopped = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.host, self.port = self.listener.getsockname()
        self.url = f"http://{self.host}:{self.port}"
        self.connections: set[socket.socket] = set()
        threading.Thread(target=self.accept, daemon=True).start()

    def __enter__(self) -> "FaultProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.connections.add(connection)
                threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with suppress(OSError, EOFError), connection:
            while True:
                request = read_message(connection)
                self.requests.append(request)
                if not self.respond(connection, request):
                    break
        self.connections.discard(connection)

    def next_mode(self) -> str:
        mode = self.mode
        if self.remaining is not None:
            self.remaining -= 1
            if self.remaining <= 0:
                self.mode, self.remaining = "pass", None
        return mode

    def respond(self, connection: socket.socket, request: bytes) -> bool:
        """Sends a response according to the mode. Returns whether the connection stays open."""
        mode = self.next_mode()
        if mode == "hang":
            self.stopped.wait(60)
        elif mode == "garbage":
            connection.sendall(b"\x00\xff" * 500 + b"\r\n\r\n")
        elif mode == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        if mode in ("hang", "garbage", "reset", "mute"):
            return False
        response = self.forward(request)
        if mode == "drip":
            for byte in response:
                connection.sendall(bytes([byte]))
                if self.stopped.wait(0.05):
                    return False
        elif mode == "half":
            connection.sendall(response[: len(response) // 2])
            connection.shutdown(socket.SHUT_WR)
            self.stopped.wait(60)
            return False
        connection.sendall(response * 2 if mode == "twice" else response)
        return True

    def forward(self, request: bytes) -> bytes:
        with socket.create_connection((self.server.host, self.server.port), 30) as upstream:
            upstream.sendall(request)
            return read_message(upstream)
