"""Finds the end of an HTTP response by its Content-Length or its chunks."""

HEAD_END = b"\r\n\r\n"


def surplus_bytes(answer: bytes) -> int | None:
    """Returns the number of bytes after the first response, negative if some are missing, or None if its end is unknown."""
    end = answer.find(HEAD_END)
    if end < 0:
        return None
    head = answer[:end].lower()
    # The line break excludes Inference-Header-Content-Length.
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        return len(answer) - end - 4 - int(head[at + 17 :].split(b"\r", 1)[0])
    if b"transfer-encoding: chunked" not in head:
        return None
    at = end + 4
    while (line := answer.find(b"\r\n", at)) >= 0:
        size = int(answer[at:line].split(b";", 1)[0], 16)
        at = line + 2 + size + 2
        if at > len(answer):
            return None
        if size == 0:
            return len(answer) - at
    return None
