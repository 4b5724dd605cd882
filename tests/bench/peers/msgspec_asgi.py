"""ASGI application without a framework: `plain`, and `measured` with metrics."""

import time
from typing import Any

from msgspec_label import Label, RequestMetrics

label = Label()
HEADERS = (b"content-type", b"application/json")


async def plain(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await respond(scope, receive, send)


async def respond(scope: dict[str, Any], receive: Any, send: Any) -> int:
    message = await receive()
    body = message["body"]
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    status, content = label.by_path(scope["path"])(body)
    headers = [HEADERS, (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
    return status


class Measured:
    def __init__(self) -> None:
        self.metrics = RequestMetrics()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            began = time.perf_counter()
            status = await respond(scope, receive, send)
            self.metrics.count(scope["method"], scope["path"], status, began)


def measured() -> Measured:
    return Measured()
