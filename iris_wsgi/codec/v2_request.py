"""Decoder of Open Inference Protocol v2 requests: bodies to arrays that match the signature of a model."""

from collections.abc import Container, Iterable, Mapping
from math import prod
from typing import Any, NamedTuple

from iris_wsgi.codec import v2_tensors
from iris_wsgi.codec.json_documents import MAX_LEVELS, decode_json, levels, too_deep
from iris_wsgi.codec.model_schema import is_text
from iris_wsgi.codec.v2_tensors import DTYPES, Shape, Tensor
from iris_wsgi.errors import BadRequest

# Sizes and times are unsigned integers of 64 bits.
MAX_NUMBER = 2**64 - 1
HEADER = "Inference-Header-Content-Length"


class TensorSpec(NamedTuple):
    """An input or output of a model. In the shape, -1 is any size; as the first dimension it is the number of rows.

    With `missing`, floats may be NaN in binary data and null in JSON.
    """

    name: str
    datatype: str
    shape: Shape
    missing: bool = False


class ModelSignature(NamedTuple):
    """The inputs and outputs of a model. `labels` names the classes of outputs whose last dimension has that many."""

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...] = ()


class RequestedOutput(NamedTuple):
    """A requested output. `classes` is the number of classes as value:index:label; 0 requests the tensor itself."""

    spec: TensorSpec
    binary: bool
    classes: int = 0


class InferenceRequest(NamedTuple):
    """A decoded inference request: arrays by input name, the requested outputs in order, and the client's timeout in µs."""

    id: str | None
    inputs: dict[str, Tensor]
    outputs: tuple[RequestedOutput, ...]
    timeout: int | None
    raw: bool = False


def decode_infer(body: bytes, header_length: str | None, served: ModelSignature, max_rows: int) -> InferenceRequest:
    """Decodes the body of `POST …/infer`. `header_length` is the value of Inference-Header-Content-Length, or None.

    Every input of the model must occur once, in its datatype and shape, with 1 to `max_rows` rows and finite values. Where the
    model takes missing values, NaN and null are also accepted. Arrays of binary inputs are read-only and may share the memory of
    the body. Claimed sizes are compared with the body before memory is allocated. Raises BadRequest (400). Sources:
    kserve/open-inference-protocol, and Triton's extensions for binary data, classification, and parameters.
    """
    json_bytes = header_bytes(header_length, len(body))
    if json_bytes == 0:
        return decode_raw(body, served, max_rows)
    document = decode_json(body[:json_bytes])
    if type(document) is not dict:
        raise BadRequest('# must be an object: {"inputs": [{"name": …, "datatype": …, "shape": […], "data": […]}]}.')
    tail = None if json_bytes is None else memoryview(body)[json_bytes:]
    inputs = decode_inputs(document, served, max_rows, tail)
    parameters = parameters_of(document, "#")
    outputs = decode_outputs(document, served, flag(parameters, "binary_data_output", "#/parameters"))
    timeout = number(parameters, "timeout", "#/parameters") or None
    # Only unknown members are left to check: the data of the tensors were removed from the document when they were decoded.
    if levels(document) > MAX_LEVELS:
        raise too_deep()
    return InferenceRequest(string(document, "id", "#"), inputs, outputs, timeout)


def header_bytes(header_length: str | None, body_bytes: int) -> int | None:
    """Returns the number of JSON bytes in the body. None means that the whole body is JSON."""
    if header_length is None:
        return None
    if not (header_length.isascii() and header_length.isdigit()):
        raise BadRequest(f"{HEADER} must be a number of bytes in the digits 0 to 9, with nothing around them.")
    # int() refuses a number of thousands of digits. A number with more digits than the limit is over the limit.
    digits = header_length.lstrip("0") or "0"
    if len(digits) > len(str(body_bytes)) or int(digits) > body_bytes:
        raise BadRequest(f"{HEADER} is over the length of the body; it counts the bytes of the JSON part alone, uncompressed.")
    return int(digits)


def decode_raw(body: bytes, served: ModelSignature, max_rows: int) -> InferenceRequest:
    """Decodes a body that consists of the binary tensor of the only input. All outputs are returned in binary."""
    spec = served.inputs[0]
    if len(served.inputs) != 1 or spec.datatype == "BYTES" or spec.shape.count(-1) > 1:
        raise BadRequest(
            f"{HEADER} is 0, which this model cannot take: the size of a body does not determine the shapes of its inputs."
        )
    step = prod(size for size in spec.shape if size != -1) * DTYPES[spec.datatype].itemsize
    if not body or len(body) % step or (-1 not in spec.shape and len(body) != step):
        raise BadRequest(f"The body of a raw request must be whole rows of {step} bytes, one at least.")
    shape = tuple(len(body) // step if size == -1 else size for size in spec.shape)
    check_rows(shape, spec, max_rows, "The body of a raw request")
    tensor = v2_tensors.from_binary(memoryview(body), spec.datatype, shape, "The body", spec.missing)
    return InferenceRequest(
        None, {spec.name: tensor}, tuple(RequestedOutput(spec, True) for spec in served.outputs), None, raw=True
    )


def decode_inputs(document: dict[str, Any], served: ModelSignature, max_rows: int, tail: memoryview | None) -> dict[str, Tensor]:
    """Returns the arrays by name. Removes `data` from the document. Binary tensors must fill `tail` to its last byte."""
    entries = document.get("inputs")
    if type(entries) is not list:
        raise BadRequest("#/inputs must be a list of the model's inputs: objects with name, datatype, shape and data.")
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
            raise BadRequest(f'{place} must have either "data" or the parameter "binary_data_size", and not both.')
        if size is None or tail is None:
            found[spec.name] = v2_tensors.from_json(data, spec.datatype, shape, f"{place}/data", spec.missing)
        else:
            found[spec.name] = v2_tensors.from_binary(tail[offset : offset + size], spec.datatype, shape, place, spec.missing)
            offset += size
    if len(found) < len(specs):
        raise BadRequest(f"#/inputs lacks {listed(name for name in specs if name not in found)}; all inputs are needed.")
    if tail is not None and offset < len(tail):
        raise BadRequest("The body has more bytes after the JSON part than all binary_data_size together; the sizes must add up.")
    rows = {found[spec.name].shape[0] for spec in served.inputs if spec.shape[:1] == (-1,)}
    if len(rows) > 1:
        raise BadRequest("#/inputs have different numbers of rows; the first dimension of all must be the same.")
    return found


def named(entry: Any, specs: Mapping[str, TensorSpec], found: Container[str], place: str) -> TensorSpec:
    """Returns the spec that an entry names. Raises BadRequest for an unknown name, and for one in `found`."""
    name = entry.get("name") if type(entry) is dict else None
    if type(name) is not str:
        raise BadRequest(f'{place} must be an object whose "name" is a string.')
    if name not in specs:
        raise BadRequest(f"{place}/name is not in this model, which has {listed(specs)}.")
    if name in found:
        raise BadRequest(f"{place}/name is there twice; each may be given once.")
    return specs[name]


def listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def shape_of(entry: Mapping[str, Any], spec: TensorSpec, max_rows: int, place: str) -> Shape:
    """Returns the claimed shape of an input. Raises BadRequest if the model does not take its shape or datatype."""
    if entry.get("datatype") != spec.datatype:
        raise BadRequest(f"{place}/datatype must be {spec.datatype}, which is what the model takes.")
    claimed = entry.get("shape")
    if (
        type(claimed) is not list
        or len(claimed) != len(spec.shape)
        or not set(map(type, claimed)) <= {int}
        or not all(found > 0 if size == -1 else found == size for found, size in zip(claimed, spec.shape, strict=True))
    ):
        wanted = ", ".join("n" if size == -1 else str(size) for size in spec.shape)
        raise BadRequest(f"{place}/shape must be [{wanted}], in whole numbers{', n at least 1' if -1 in spec.shape else ''}.")
    shape = tuple(claimed)
    check_rows(shape, spec, max_rows, f"{place}/shape")
    return shape


def check_rows(shape: Shape, spec: TensorSpec, max_rows: int, place: str) -> None:
    if spec.shape[:1] == (-1,) and shape[0] > max_rows:
        raise BadRequest(f"{place} has more rows than the limit of {max_rows} in a request; send them in several requests.")


def binary_size(entry: Mapping[str, Any], place: str, left: int | None) -> int | None:
    """Returns the size of this input's binary tensor, or None if its data are in the JSON part.

    `left` is the number of bytes after the JSON part that no earlier input has used. It is None if there are none.
    """
    parameters = tensor_parameters(entry, place)
    size = number(parameters, "binary_data_size", f"{place}/parameters")
    if size is not None and left is None:
        raise BadRequest(f"{place} is a binary tensor, and so the request must have the field {HEADER}.")
    if size is not None and left is not None and size > left:
        raise BadRequest(f"{place}/parameters/binary_data_size is over the rest of the body after the JSON part.")
    return size


def decode_outputs(
    document: Mapping[str, Any], served: ModelSignature, binary_default: bool | None
) -> tuple[RequestedOutput, ...]:
    """Returns the outputs that the request names, in its order, or all outputs of the model if it names none."""
    entries = document.get("outputs")
    if entries is None or entries == []:
        entries = [{"name": spec.name} for spec in served.outputs]
    if type(entries) is not list:
        raise BadRequest("#/outputs must be a list of objects with name and parameters; without it all outputs are sent.")
    specs = {spec.name: spec for spec in served.outputs}
    found: dict[str, RequestedOutput] = {}
    for i, entry in enumerate(entries):
        place = f"#/outputs/{i}"
        spec = named(entry, specs, found, place)
        parameters = tensor_parameters(entry, place)
        binary = flag(parameters, "binary_data", f"{place}/parameters")
        classes = number(parameters, "classification", f"{place}/parameters") or 0
        if classes and not has_classes(spec):
            raise BadRequest(f"{place}/parameters/classification needs an output of numbers in the shape [rows, classes].")
        output = RequestedOutput(spec, bool(binary_default if binary is None else binary), classes)
        if spec.datatype == "FP16" and not (output.binary or classes):
            raise BadRequest(f"{place} is of datatype FP16, which is sent as binary data only: set binary_data to true.")
        found[spec.name] = output
    return tuple(found.values())


def tensor_parameters(entry: Mapping[str, Any], place: str) -> dict[str, Any]:
    found = parameters_of(entry, place)
    if "shared_memory_region" in found:
        raise BadRequest(f"{place}/parameters name shared memory, which this server does not have; tensors go in the body.")
    return found


def has_classes(spec: TensorSpec) -> bool:
    return len(spec.shape) == 2 and spec.datatype not in ("BOOL", "BYTES")


def parameters_of(owner: Mapping[str, Any], place: str) -> dict[str, Any]:
    found = owner.get("parameters")
    if found is None:
        return {}
    if type(found) is not dict:
        raise BadRequest(f"{place}/parameters must be an object.")
    return found


def flag(parameters: Mapping[str, Any], name: str, place: str) -> bool | None:
    found = parameters.get(name)
    if found is not None and type(found) is not bool:
        raise BadRequest(f"{place}/{name} must be true or false.")
    return found


def number(parameters: Mapping[str, Any], name: str, place: str) -> int | None:
    found = parameters.get(name)
    if found is not None and (type(found) is not int or not 0 <= found <= MAX_NUMBER):
        raise BadRequest(f"{place}/{name} must be a whole number from 0 to {MAX_NUMBER}.")
    return found


def string(owner: Mapping[str, Any], name: str, place: str) -> str | None:
    """Returns a string that can be sent back. Half of a surrogate pair cannot."""
    found = owner.get(name)
    if found is not None and (type(found) is not str or not is_text(found)):
        raise BadRequest(f"{place}/{name} must be a string of whole characters.")
    return found
