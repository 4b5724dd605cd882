"""The inputs and outputs of an ONNX graph, and the features and columns that they stand for."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from iris_wsgi.codec.model_schema import Array, Feature, RowSchema
from iris_wsgi.errors import BadModel

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

ELEMENT_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
    "tensor(string)": "string",
}
FLOAT_OUTPUTS = ("tensor(float)", "tensor(double)")
LABEL_OUTPUTS = ("tensor(int64)", "tensor(int32)", "tensor(string)", "tensor(bool)")
Feeds = Callable[[Array], dict[str, Array]]


class GraphInput(NamedTuple):
    """An input of the graph: float32 [N, width] for example. `rank` 1 is [N], a column without a second dimension."""

    name: str
    type: str
    width: int
    rank: int


class GraphOutputs(NamedTuple):
    """The output with the probabilities, scores, or values, whether it is a ZipMap, its width, and the output with the label.

    `width` is None if the graph does not say, and `label` is None if the graph gives no label.
    """

    values: str
    is_map: bool
    width: int | None
    label: str | None
    label_type: str = ""


def graph_inputs(session: "InferenceSession", features: int, file: str) -> tuple[GraphInput, ...]:
    """Returns the inputs in the order of the graph. `features` is the number of features that golden.json names, or 0.

    Raises BadModel for inputs that are not columns of rows.
    """
    found = session.get_inputs()
    inputs = tuple(graph_input(one, features if len(found) == 1 else 0) for one in found)
    usable = [one for one in inputs if one is not None]
    if not usable or len(usable) < len(inputs):
        shown = ", ".join(f"{i.name}: {i.type} {i.shape}" for i in found)
        if any(i.shape and isinstance(i.shape[0], int) for i in found):
            raise BadModel(
                f"{file} must take any number of rows; its inputs are {shown}."
                " Export with a free batch axis: `FloatTensorType([None, N])`, or `dynamic_axes` in PyTorch"
            )
        raise BadModel(
            f"{file} must have inputs of columns, such as tensor(float) [N, features], or one input [N, 1] per column;"
            f" its inputs are {shown}"
        )
    return tuple(usable)


def graph_input(one: Any, features: int) -> GraphInput | None:
    """Returns None for an input that is not columns of rows."""
    kind, shape = ELEMENT_TYPES.get(one.type), list(one.shape)
    if kind is None or not 1 <= len(shape) <= 2 or isinstance(shape[0], int):
        return None
    width = 1 if len(shape) == 1 else shape[1] if isinstance(shape[1], int) else features
    return GraphInput(one.name, kind, width, len(shape)) if width > 0 else None


def graph_outputs(session: "InferenceSession", file: str, classes: int | None) -> GraphOutputs:
    """Returns the outputs. Exporters use different names, so an output is recognized by its type and its shape.

    `classes` is the number of classes in label.json, for messages. Raises BadModel for several outputs of values, and for
    several labels per row.
    """
    outputs = session.get_outputs()
    maps = [o for o in outputs if o.type.startswith("seq(map(") and o.type.endswith((",tensor(float)))", ",tensor(double)))"))]
    tensors = [o for o in outputs if o.type in FLOAT_OUTPUTS and 1 <= len(o.shape) <= 2]
    shown = ", ".join(f"{o.name}: {o.type} {o.shape}" for o in outputs)
    labels = [o for o in outputs if o.type in LABEL_OUTPUTS and is_column(o.shape)]
    if any(o.type in LABEL_OUTPUTS and len(o.shape) == 2 and o.shape[1] != 1 for o in outputs):
        raise BadModel(f"{file} gives several labels per row, which is not supported; its outputs are {shown}")
    if len(maps) + len(tensors) != 1 or len(labels) > 1:
        needed = f"tensor(float) [N, {classes}] or a ZipMap, for the {classes} classes of label.json" if classes else ""
        raise BadModel(
            f"{file} must have one output of probabilities, scores, or values{', ' if needed else ''}{needed};"
            f" it has {shown}. Export one of them alone"
        )
    (found,) = maps or tensors
    width = None if maps else 1 if len(found.shape) == 1 else found.shape[1] if isinstance(found.shape[1], int) else None
    label = labels[0] if labels else None
    return GraphOutputs(found.name, bool(maps), width, label and label.name, label.type if label else "")


def is_column(shape: Sequence[Any]) -> bool:
    """Returns whether an output has one value per row. Some exporters write [1] where they mean [N]."""
    return (len(shape) == 1 and (not isinstance(shape[0], int) or shape[0] == 1)) or (len(shape) == 2 and shape[1] == 1)


def default_features(inputs: Sequence[GraphInput]) -> tuple[Feature, ...]:
    """Returns features with the names of the inputs, if there is one per column, and numbered ones otherwise."""
    if len(inputs) == 1:
        return tuple(Feature(f"feature_{i}", type=inputs[0].type) for i in range(inputs[0].width))
    names = [one.name if one.width == 1 else f"{one.name}_{i}" for one in inputs for i in range(one.width)]
    types = [one.type for one in inputs for _ in range(one.width)]
    return tuple(Feature(name, type=kind) for name, kind in zip(names, types, strict=True))


def check_features(features: Sequence[Feature], inputs: Sequence[GraphInput], file: str) -> None:
    """Raises BadModel if the features are not those of the inputs, or if two have one name."""
    types = [one.type for one in inputs for _ in range(one.width)]
    if len(features) != len(types) or len({feature.name for feature in features}) != len(types):
        raise BadModel(f"{file} takes {len(types)} features, and its metadata names {len(features)} that should differ")
    for feature, kind in zip(features, types, strict=True):
        if feature.type != kind:
            raise BadModel(f"{file} takes {feature.name} as {kind}, and golden.json says {feature.type}; run pack again")
        if feature.missing and not kind.startswith("float"):
            raise BadModel(f"{file} takes {feature.name} as {kind}, which has no missing values; golden.json says that it may")


def make_feeds(inputs: Sequence[GraphInput], schema: RowSchema) -> Feeds:
    """Returns the function from rows [n, features] to the inputs of the graph by name."""
    if len(inputs) == 1 and inputs[0].rank == 2 and schema.dtype in (np.dtype(inputs[0].type.replace("string", "object")),):
        name = inputs[0].name
        return lambda rows: {name: rows}
    ends = np.cumsum([one.width for one in inputs]).tolist()

    def feeds(rows: Array) -> dict[str, Array]:
        return {one.name: column_of(rows, one, end) for one, end in zip(inputs, ends, strict=True)}

    return feeds


def column_of(rows: Array, one: GraphInput, end: int) -> Array:
    part = rows[:, end - one.width : end] if one.rank == 2 else rows[:, end - 1]
    return part if one.type == "string" else part.astype(one.type)


def column_names(outputs: GraphOutputs, labels: Sequence[str], given: Sequence[str], word: str) -> tuple[str, ...]:
    """Returns the names of scores or values: the given ones, those of the classes, or numbered ones."""
    if given:
        return tuple(given)
    width = outputs.width or len(labels) or 1
    if width == len(labels):
        return tuple(labels)
    return (word,) if width == 1 else tuple(f"{word}_{i}" for i in range(width))


def metadata_of(session: "InferenceSession") -> Mapping[str, str]:
    found: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    return found
