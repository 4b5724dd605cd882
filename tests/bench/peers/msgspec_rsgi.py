"""RSGI application without a framework, for granian: `plain`, and `measured` with metrics and a log line."""

import time
from typing import Any

from msgspec_label import Label, RequestMetrics, log_line

label = Label()
HEADERS = [("content-type", "application/json")]


async def plain(scope: Any, protocol: Any) -> None:
    await respond(scope, protocol)


async def respond(scope: Any, protocol: Any) -> int:
    status, content = label.by_path(scope.path)(await protocol())
    protocol.response_bytes(status, HEADERS, content)
    return status


def measured() -> Any:
    metrics = RequestMetrics()

    async def application(scope: Any, protocol: Any) -> None:
        began = time.perf_counter()
        found = scope.method, scope.path, await respond(scope, protocol), began
        metrics.count(*found)
        log_line(*found)

    return application
