"""Proxy in front of an ensemble member, in a separate process: it forwards requests, or responds like a broken server."""

import asyncio
import contextlib
import multiprocessing
import re
import socket
import struct
from collections.abc import Iterator
from typing import Any

from server_trial import free_port

# Reactions to a request; `wrong` forwards it to another server.
MODES = ("pass", "garbage", "nonsense", "half", "reset", "wrong", "drip")
DRIP = 0.02
GARBAGE = bytes(range(256))
NONSENSE = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{"answer": 42}'
SETTLE = 10.0

length_of = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE).search
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Proxy:
    """Proxy for the server at port `upstream`; `other` is the port of a server with another model."""

    def __init__(self, upstream: int, other: int) -> None:
        fork = multiprocessing.get_context("fork")
        self.port, self.upstream, self.other = free_port(), upstream, other
        # asyncio keeps no strong references to the tasks of its connections.
        self.tasks: set[asyncio.Task[None] | None] = set()
        # Shared by both processes.
        self.mode = fork.Value("i", 0)
        self.ready: Any = fork.Event()
        self.process = fork.Process(target=lambda: asyncio.run(self.serve()), daemon=True)

    def set_mode(self, mode: str) -> None:
        """Changes the mode for the following requests."""
        self.mode.value = MODES.index(mode)

    async def serve(self) -> None:
        server = await asyncio.start_server(self.handle_connection, "127.0.0.1", self.port)
        self.ready.set()
        await server.serve_forever()

    async def handle_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection until one of its ends is closed."""
        upstream: dict[int, Streams] = {}
        self.tasks.add(task := asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                await self.respond(await read_message(reader), reader, writer, upstream)
        for _, far in upstream.values():
            far.close()
        writer.close()
        self.tasks.discard(task)

    async def respond(self, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upstream: dict) -> None:
        mode = MODES[self.mode.value]
        if mode in ("garbage", "nonsense"):
            writer.write(GARBAGE if mode == "garbage" else NONSENSE)
        elif mode == "reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            raise ConnectionResetError
        else:
            reply = await self.forward(request, self.other if mode == "wrong" else self.upstream, upstream)
            await self.send_back(reply, mode, reader, writer)
        await writer.drain()

    async def forward(self, request: bytes, port: int, upstream: dict[int, Streams]) -> bytes:
        if port not in upstream:
            upstream[port] = await asyncio.open_connection("127.0.0.1", port)
        reader, writer = upstream[port]
        writer.write(request)
        return await read_message(reader)

    async def send_back(self, reply: bytes, mode: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if mode == "half":
            writer.write(reply[: len(reply) // 2])
            writer.write_eof()
            await reader.read()
        elif mode == "drip":
            for i in range(len(reply)):
                writer.write(reply[i : i + 1])
                await writer.drain()
                await asyncio.sleep(DRIP)
        else:
            writer.write(reply)


async def read_message(reader: asyncio.StreamReader) -> bytes:
    """Returns a request or a response that has a Content-Length or no body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = length_of(head)
    return head + (await reader.readexactly(int(length[1])) if length else b"")


@contextlib.contextmanager
def running_proxy(upstream: int, other: int) -> Iterator[Proxy]:
    """Starts a proxy that forwards everything, and stops it at exit."""
    proxy = Proxy(upstream, other)
    proxy.process.start()
    try:
        proxy.ready.wait(SETTLE)
        yield proxy
    finally:
        proxy.process.kill()
        proxy.process.join()
