"""Requests of the Open Inference Protocol v2: bodies to arrays, as pure functions of bytes and of what a model takes."""

from collections.abc import Container, Iterable, Mapping
from math import prod
from typing import Any, NamedTuple

from iris_wsgi.codec import v2_tensors
from iris_wsgi.codec.json_documents import MAX_LEVELS, decode_json, levels, too_deep
from iris_wsgi.codec.v2_fields import flag, number, parameters_of, string
from iris_wsgi.codec.v2_tensors import DTYPES, Shape, Tensor
from iris_wsgi.errors import NotDecodable

HEADER = "Inference-Header-Content-Length"


class TensorSpec(NamedTuple):
    """An input or output of a model as the protocol tells it; -1 in the shape is any size, and rows where it comes first."""

    name: str
    datatype: str
    shape: Shape


class ModelSignature(NamedTuple):
    """What the codec must know of a model; `labels` names the last dimension of those outputs that have as many classes."""

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...] = ()


class RequestedOutput(NamedTuple):
    """An output that is asked for: in binary or not, and how many classes as value:index:label (0: the tensor itself)."""

    spec: TensorSpec
    binary: bool
    classes: int = 0


class InferenceRequest(NamedTuple):
    """A decoded infer request: arrays by the names of inputs, outputs in the order wanted, the caller's timeout in µs if any."""

    id: str | None
    inputs: dict[str, Tensor]
    outputs: tuple[RequestedOutput, ...]
    timeout: int | None
    raw: bool = False


def decode_infer(body: bytes, header_length: str | None, served: ModelSignature, max_rows: int) -> InferenceRequest:
    """The body of `POST …/infer`; `header_length` is the field Inference-Header-Content-Length, None where there is none.

    Every input of the model is there once, in its datatype and shape, with 1 to `max_rows` rows and finite values. Arrays of
    binary inputs are read-only and may be the body's own memory. Claims are compared with the body before anything is made of
    them. Raises NotDecodable (400). Sources: kserve/open-inference-protocol; Triton's extensions for binary data,
    classification and parameters.
    """
    json_bytes = header_bytes(header_length, len(body))
    if json_bytes == 0:
        return decode_raw(body, served, max_rows)
    document = decode_json(body[:json_bytes])
    if type(document) is not dict:
        raise NotDecodable('# must be an object: {"inputs": [{"name": …, "datatype": …, "shape": […], "data": […]}]}.')
    tail = None if json_bytes is None else memoryview(body)[json_bytes:]
    inputs = decode_inputs(document, served, max_rows, tail)
    parameters = parameters_of(document, "#")
    outputs = decode_outputs(document, served, flag(parameters, "binary_data_output", "#/parameters"))
    timeout = number(parameters, "timeout", "#/parameters") or None
    # Tolerated members are nobody's to look at. The tensors' data were taken out of the document as they were read.
    if levels(document) > MAX_LEVELS:
        raise too_deep()
    return InferenceRequest(string(document, "id", "#"), inputs, outputs, timeout)


def header_bytes(told: str | None, body_bytes: int) -> int | None:
    """How many bytes of the body are JSON; None is all, with nothing behind them."""
    if told is None:
        return None
    if not (told.isascii() and told.isdigit()):
        raise NotDecodable(f"{HEADER} must be a number of bytes in the digits 0 to 9, with nothing around them.")
    # A number of more digits than the limit has is over it, and int() refuses thousands of them.
    digits = told.lstrip("0") or "0"
    if len(digits) > len(str(body_bytes)) or int(digits) > body_bytes:
        raise NotDecodable(f"{HEADER} is over the length of the body; it counts the bytes of the JSON part alone, uncompressed.")
    return int(digits)


def decode_raw(body: bytes, served: ModelSignature, max_rows: int) -> InferenceRequest:
    """A body that is nothing but the one input's binary tensor, of which size tells the shape; all outputs go out in binary."""
    spec = served.inputs[0]
    if len(served.inputs) != 1 or spec.datatype == "BYTES" or spec.shape.count(-1) > 1:
        raise NotDecodable(
            f"{HEADER} is 0, which this model cannot take: the size of a body does not tell the shapes of its inputs."
        )
    step = prod(size for size in spec.shape if size != -1) * DTYPES[spec.datatype].itemsize
    if not body or len(body) % step or (-1 not in spec.shape and len(body) != step):
        raise NotDecodable(f"The body of a raw request must be whole rows of {step} bytes, one at least.")
    shape = tuple(len(body) // step if size == -1 else size for size in spec.shape)
    check_rows(shape, spec, max_rows, "The body of a raw request")
    tensor = v2_tensors.from_binary(memoryview(body), spec.datatype, shape, "The body")
    return InferenceRequest(
        None, {spec.name: tensor}, tuple(RequestedOutput(one, True) for one in served.outputs), None, raw=True
    )


def decode_inputs(document: dict[str, Any], served: ModelSignature, max_rows: int, tail: memoryview | None) -> dict[str, Tensor]:
    """Arrays by name; `data` is taken out of the document, and binary tensors out of `tail`, to its last byte."""
    entries = document.get("inputs")
    if type(entries) is not list:
        raise NotDecodable("#/inputs must be a list of the model's inputs: objects with name, datatype, shape and data.")
    specs = {spec.name: spec for spec in served.inputs}
    found: dict[str, Tensor] = {}
    offset = 0
    for i, entry in enumerate(entries):
        place = f"#/inputs/{i}"
        spec = named(entry, specs, found, place)
        shape = shape_of(entry, spec, max_rows, place)
        size = binary_size(entry, place, None if tail is None else len(tail) - offset)
        data = entry.pop("data", None)
        if (data is None) == (size is None):
            raise NotDecodable(f'{place} must have either "data" or the parameter "binary_data_size", and not both.')
        if size is None or tail is None:
            found[spec.name] = v2_tensors.from_json(data, spec.datatype, shape, f"{place}/data")
        else:
            found[spec.name] = v2_tensors.from_binary(tail[offset : offset + size], spec.datatype, shape, place)
            offset += size
    if len(found) < len(specs):
        raise NotDecodable(f"#/inputs lacks {listed(name for name in specs if name not in found)}; all inputs are needed.")
    if tail is not None and offset < len(tail):
        raise NotDecodable("The body has bytes behind the JSON part that no binary_data_size counts; the sizes must add up.")
    rows = {found[spec.name].shape[0] for spec in served.inputs if spec.shape[:1] == (-1,)}
    if len(rows) > 1:
        raise NotDecodable("#/inputs have different numbers of rows; the first dimension of all must be the same.")
    return found


def named(entry: Any, specs: Mapping[str, TensorSpec], found: Container[str], place: str) -> TensorSpec:
    """Which of `specs` an object means; it must be none of those found before."""
    name = entry.get("name") if type(entry) is dict else None
    if type(name) is not str:
        raise NotDecodable(f'{place} must be an object whose "name" is a string.')
    if name not in specs:
        raise NotDecodable(f"{place}/name is not in this model, which has {listed(specs)}.")
    if name in found:
        raise NotDecodable(f"{place}/name is there twice; each may be given once.")
    return specs[name]


def listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def shape_of(entry: Mapping[str, Any], spec: TensorSpec, max_rows: int, place: str) -> Shape:
    """The shape that an input claims, which is one the model takes; its datatype is the model's too."""
    if entry.get("datatype") != spec.datatype:
        raise NotDecodable(f"{place}/datatype must be {spec.datatype}, which is what the model takes.")
    claimed = entry.get("shape")
    if (
        type(claimed) is not list
        or len(claimed) != len(spec.shape)
        or not set(map(type, claimed)) <= {int}
        or not all(one > 0 if size == -1 else one == size for one, size in zip(claimed, spec.shape, strict=True))
    ):
        wanted = ", ".join("n" if size == -1 else str(size) for size in spec.shape)
        raise NotDecodable(f"{place}/shape must be [{wanted}], in whole numbers{', n at least 1' if -1 in spec.shape else ''}.")
    shape = tuple(claimed)
    check_rows(shape, spec, max_rows, f"{place}/shape")
    return shape


def check_rows(shape: Shape, spec: TensorSpec, max_rows: int, place: str) -> None:
    if spec.shape[:1] == (-1,) and shape[0] > max_rows:
        raise NotDecodable(f"{place} has more rows than the limit of {max_rows} in a request; send them in several requests.")


def binary_size(entry: Mapping[str, Any], place: str, left: int | None) -> int | None:
    """How many bytes behind the JSON part are this input's, of the `left` that no input before it has taken; None is not any."""
    parameters = tensor_parameters(entry, place)
    size = number(parameters, "binary_data_size", f"{place}/parameters")
    if size is not None and left is None:
        raise NotDecodable(f"{place} is a binary tensor, and so the request must have the field {HEADER}.")
    if size is not None and left is not None and size > left:
        raise NotDecodable(f"{place}/parameters/binary_data_size is over what is left of the body behind the JSON part.")
    return size


def decode_outputs(
    document: Mapping[str, Any], served: ModelSignature, binary_default: bool | None
) -> tuple[RequestedOutput, ...]:
    """The outputs that the request names, in its order; all of the model's if it names none."""
    entries = document.get("outputs")
    if entries is None or entries == []:
        entries = [{"name": spec.name} for spec in served.outputs]
    if type(entries) is not list:
        raise NotDecodable("#/outputs must be a list of objects with name and parameters; without it all outputs are sent.")
    specs = {spec.name: spec for spec in served.outputs}
    found: dict[str, RequestedOutput] = {}
    for i, entry in enumerate(entries):
        place = f"#/outputs/{i}"
        spec = named(entry, specs, found, place)
        parameters = tensor_parameters(entry, place)
        binary = flag(parameters, "binary_data", f"{place}/parameters")
        classes = number(parameters, "classification", f"{place}/parameters") or 0
        if classes and not has_classes(spec):
            raise NotDecodable(f"{place}/parameters/classification needs an output of numbers in the shape [rows, classes].")
        wanted = RequestedOutput(spec, bool(binary_default if binary is None else binary), classes)
        if spec.datatype == "FP16" and not (wanted.binary or classes):
            raise NotDecodable(f"{place} is of datatype FP16, which is sent as binary data only: set binary_data to true.")
        found[spec.name] = wanted
    return tuple(found.values())


def tensor_parameters(entry: Mapping[str, Any], place: str) -> dict[str, Any]:
    found = parameters_of(entry, place)
    if "shared_memory_region" in found:
        raise NotDecodable(f"{place}/parameters name shared memory, which this server does not have; tensors go in the body.")
    return found


def has_classes(spec: TensorSpec) -> bool:
    return len(spec.shape) == 2 and spec.datatype not in ("BOOL", "BYTES")
