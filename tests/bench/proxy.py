"""A proxy in a process of its own, in the place of a member: it passes on what comes, or answers as a broken server does."""

import asyncio
import contextlib
import multiprocessing
import re
import socket
import struct
from collections.abc import Iterator
from typing import Any

from server_trial import free_port

# What it does with a request; `wrong` passes it on to another server.
MODES = ("pass", "garbage", "nonsense", "half", "reset", "wrong", "drip")
DRIP = 0.02
GARBAGE = bytes(range(256))
NONSENSE = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{"answer": 42}'
SETTLE = 10.0

length_of = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE).search
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Proxy:
    """On a port of its own, before the server at the port `behind`; `other` is that of the wrong one."""

    def __init__(self, behind: int, other: int) -> None:
        fork = multiprocessing.get_context("fork")
        self.port, self.behind, self.other = free_port(), behind, other
        # asyncio itself does not hold the tasks of its connections.
        self.tasks: set[asyncio.Task[None] | None] = set()
        # Both processes see it.
        self.mode = fork.Value("i", 0)
        self.ready: Any = fork.Event()
        self.process = fork.Process(target=lambda: asyncio.run(self.serve()), daemon=True)

    def turn(self, mode: str) -> None:
        """Changes the mode from the next request on."""
        self.mode.value = MODES.index(mode)

    async def serve(self) -> None:
        server = await asyncio.start_server(self.meet, "127.0.0.1", self.port)
        self.ready.set()
        await server.serve_forever()

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either end of it is gone."""
        behind: dict[int, Ends] = {}
        self.tasks.add(task := asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                await self.answer(await message(reader), reader, writer, behind)
        for _, far in behind.values():
            far.close()
        writer.close()
        self.tasks.discard(task)

    async def answer(self, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, behind: dict) -> None:
        mode = MODES[self.mode.value]
        if mode in ("garbage", "nonsense"):
            writer.write(GARBAGE if mode == "garbage" else NONSENSE)
        elif mode == "reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            raise ConnectionResetError
        else:
            reply = await self.asked_behind(request, self.other if mode == "wrong" else self.behind, behind)
            await self.pass_back(reply, mode, reader, writer)
        await writer.drain()

    async def asked_behind(self, request: bytes, port: int, behind: dict[int, Ends]) -> bytes:
        if port not in behind:
            behind[port] = await asyncio.open_connection("127.0.0.1", port)
        reader, writer = behind[port]
        writer.write(request)
        return await message(reader)

    async def pass_back(self, reply: bytes, mode: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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


async def message(reader: asyncio.StreamReader) -> bytes:
    """A request or an answer, whose length is told or nothing."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = length_of(head)
    return head + (await reader.readexactly(int(length[1])) if length else b"")


@contextlib.contextmanager
def proxied(behind: int, other: int) -> Iterator[Proxy]:
    """One that passes everything on; it ends at exit."""
    proxy = Proxy(behind, other)
    proxy.process.start()
    try:
        proxy.ready.wait(SETTLE)
        yield proxy
    finally:
        proxy.process.kill()
        proxy.process.join()
