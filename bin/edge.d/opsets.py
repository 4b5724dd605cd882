"""Reads the operator sets of an ONNX file from its protobuf, because onnxruntime does not expose them."""

from collections.abc import Iterator

# Field numbers of ModelProto and OperatorSetIdProto (onnx/onnx.proto), and the wire types of these fields.
OPSET_IMPORT, DOMAIN, VERSION = 8, 1, 2
VARINT, BYTES = 0, 2
# Lengths of the wire types of a fixed length, which are skipped.
FIXED_LENGTHS = {1: 8, 5: 4}


def opsets(content: bytes) -> dict[str, int]:
    """Returns the version of each domain. The name of ONNX's default domain is empty in the file."""
    found = {}
    for field, value in fields(content):
        if field == OPSET_IMPORT:
            opset = dict(fields(value))
            found[opset.get(DOMAIN, b"").decode() or "ai.onnx"] = opset[VERSION]
    return dict(sorted(found.items()))


def fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields the numbers and the values of the fields of a message, which onnxruntime has already validated."""
    at = 0
    while at < len(content):
        key, at = varint(content, at)
        if key & 7 == VARINT:
            value, at = varint(content, at)
            yield key >> 3, value
            continue
        length, at = varint(content, at) if key & 7 == BYTES else (FIXED_LENGTHS[key & 7], at)
        yield key >> 3, content[at : at + length]
        at += length


def varint(content: bytes, at: int) -> tuple[int, int]:
    """Returns the value of a varint (seven bits in each byte) and the offset of its end."""
    value = shift = 0
    while True:
        value |= (content[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if content[at - 1] < 0x80:
            return value, at
