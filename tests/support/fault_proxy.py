"""A server in front of a real one that passes on what comes, or does one of the things that go wrong."""

import socket
import struct
import threading
from contextlib import suppress

LINGER = struct.pack("ii", 1, 0)


def read_message(connection: socket.socket) -> bytes:
    """One whole message, by its Content-Length; EOFError where there is none."""
    held = b""
    while b"\r\n\r\n" not in held:
        held += receive_more(connection)
    head, _, body = held.partition(b"\r\n\r\n")
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
    """`mode` is what happens to the next request: pass, garbage, half, reset, hang, mute (closed without a byte), drip, twice."""

    def __init__(self, server=None) -> None:
        self.server, self.mode = server, "pass"
        # How often to do so before it passes on again; None is always.
        self.times: int | None = None
        self.asked: list[bytes] = []
        self.gone = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.host, self.port = self.listener.getsockname()
        self.url = f"http://{self.host}:{self.port}"
        self.open: set[socket.socket] = set()
        threading.Thread(target=self.accept, daemon=True).start()

    def __enter__(self) -> "FaultProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.gone.set()
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for one in list(self.open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.open.add(connection)
                threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with suppress(OSError, EOFError), connection:
            while True:
                request = read_message(connection)
                self.asked.append(request)
                if not self.answer(connection, request):
                    break
        self.open.discard(connection)

    def next_mode(self) -> str:
        mode = self.mode
        if self.times is not None:
            self.times -= 1
            if self.times <= 0:
                self.mode, self.times = "pass", None
        return mode

    def answer(self, connection: socket.socket, request: bytes) -> bool:
        """Whether the connection goes on."""
        mode = self.next_mode()
        if mode == "hang":
            self.gone.wait(60)
        elif mode == "garbage":
            connection.sendall(b"\x00\xff" * 500 + b"\r\n\r\n")
        elif mode == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        if mode in ("hang", "garbage", "reset", "mute"):
            return False
        answer = self.passed_on(request)
        if mode == "drip":
            for byte in answer:
                connection.sendall(bytes([byte]))
                if self.gone.wait(0.05):
                    return False
        elif mode == "half":
            connection.sendall(answer[: len(answer) // 2])
            connection.shutdown(socket.SHUT_WR)
            self.gone.wait(60)
            return False
        connection.sendall(answer * 2 if mode == "twice" else answer)
        return True

    def passed_on(self, request: bytes) -> bytes:
        with socket.create_connection((self.server.host, self.server.port), 30) as upstream:
            upstream.sendall(request)
            return read_message(upstream)
