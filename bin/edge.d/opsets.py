"""Operator sets of an ONNX file, read from its protobuf, because onnxruntime does not expose them."""

from collections.abc import Iterator

# Fields of ModelProto and OperatorSetIdProto (onnx/onnx.proto), and the two wire types that are needed here.
OPSET_IMPORT, DOMAIN, VERSION = 8, 1, 2
VARINT, BYTES = 0, 2
# Skipped wire types of a fixed length.
FIXED = {1: 8, 5: 4}


def opsets(content: bytes) -> dict[str, int]:
    """Returns the version of each domain. ONNX's own domain is empty in the file."""
    found = {}
    for field, value in fields(content):
        if field == OPSET_IMPORT:
            told = dict(fields(value))
            found[told.get(DOMAIN, b"").decode() or "ai.onnx"] = told[VERSION]
    return dict(sorted(found.items()))


def fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields numbers and values of the fields of a message that onnxruntime has already read."""
    at = 0
    while at < len(content):
        key, at = varint(content, at)
        if key & 7 == VARINT:
            value, at = varint(content, at)
            yield key >> 3, value
            continue
        length, at = varint(content, at) if key & 7 == BYTES else (FIXED[key & 7], at)
        yield key >> 3, content[at : at + length]
        at += length


def varint(content: bytes, at: int) -> tuple[int, int]:
    """Returns a varint (seven bits per byte) and the position after it."""
    value = shift = 0
    while True:
        value |= (content[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if content[at - 1] < 0x80:
            return value, at
