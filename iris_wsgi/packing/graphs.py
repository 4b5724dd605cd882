"""Facts of an .onnx file that only its nodes have: the classes of its label, and the files with its weights."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import read_file
from iris_wsgi.model.session import ModelFiles
from iris_wsgi.packing.reference import first_sentence

INSTALL = "run `bin/setup pack`, or `pip install 'iris_wsgi[pack]'`"
# The newest version of the format that onnxruntime 1.23 takes.
IR_VERSION = 11
# Probabilities are multiplied by this number and rounded, before their order is decided.
TIE_SCALE = 2**20
CLASS_ATTRIBUTES = ("classlabels_strings", "classlabels_int64s", "classlabels_ints")
# Operators that keep the values of their first input.
SAME_VALUES = ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Slice", "Transpose")
VALUE_ATTRIBUTES = ("values_strings", "values_int64s")
KEY_ATTRIBUTES = ("keys_int64s", "keys_strings")
Producers = dict[str, Any]


class LabelFacts(NamedTuple):
    """The classes of the label output, and the keys of the ZipMap, in the order of the nodes; empty if the graph has none."""

    classes: tuple[Any, ...]
    keys: tuple[Any, ...]


def onnx_package() -> Any:
    """Returns the package onnx. Raises BadModel without it."""
    try:
        import onnx
    except ImportError:
        raise BadModel(f"pack needs the package onnx, which is not installed: {INSTALL}") from None
    return onnx


def read_graph(content: bytes, path: str) -> Any:
    """Returns the parsed model without the weights in other files. Raises BadModel."""
    onnx = onnx_package()
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:
        raise BadModel(f"{path} is not an ONNX model: {first_sentence(error)}") from None
    if not model.graph.node:
        raise BadModel(f"{path} is not an ONNX model: it has no nodes")
    return model


def read_model_files(path: Path) -> tuple[ModelFiles, Any]:
    """Returns an .onnx file with the files of its weights, and its parsed model. Raises BadModel."""
    content = read_file(path)
    model = read_graph(content, str(path))
    names = sorted(external_files(model))
    if outside := [name for name in names if Path(name).name != name]:
        raise BadModel(f"{path} has weights in {outside[0]}; save them in a file next to the .onnx file")
    return ModelFiles(content, str(path), {name: read_file(path.parent / name) for name in names}), model


def external_files(model: Any) -> set[str]:
    """Returns the names of the files that hold weights of a model."""
    external = onnx_package().TensorProto.EXTERNAL
    return {
        entry.value
        for tensor in tensors_of(model.graph)
        if tensor.data_location == external
        for entry in tensor.external_data
        if entry.key == "location"
    }


def tensors_of(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from tensors_of(attribute.g)


def label_facts(model: Any, label: str | None, values: str) -> LabelFacts:
    """Returns the classes according to the nodes, for the outputs `label` and `values`."""
    producers = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    maker = producers.get(values)
    keys = class_attribute(maker) if maker is not None and maker.op_type == "ZipMap" else ()
    classes = traced_classes(label, producers, constants) if label else ()
    return LabelFacts(classes, keys)


def traced_classes(name: str, producers: Producers, constants: dict[str, Any]) -> tuple[Any, ...]:
    """Follows the label back to the node with the classes."""
    casts: list[Callable[[Any], Any]] = []
    while (node := producers.get(name)) is not None:
        found = class_attribute(node)
        if node.op_type == "LabelEncoder":
            found = encoder_values(node)
        elif node.op_type in ("ArrayFeatureExtractor", "Gather"):
            found = constant_values(node.input[0], producers, constants)
        if found:
            for cast in reversed(casts):
                found = tuple(map(cast, found))
            return found
        if node.op_type not in SAME_VALUES:
            return ()
        if node.op_type == "Cast":
            casts.append(cast_of(node))
        name = node.input[0]
    return ()


def cast_of(node: Any) -> Callable[[Any], Any]:
    types = onnx_package().TensorProto
    to = attribute_of(node, "to")
    return {types.BOOL: bool, types.STRING: str}.get(to, int if to in (types.INT64, types.INT32) else lambda value: value)


def attribute_of(node: Any, name: str) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            value = onnx_package().helper.get_attribute_value(attribute)
            return [one.decode() if isinstance(one, bytes) else one for one in value] if isinstance(value, list) else value
    return None


def class_attribute(node: Any) -> tuple[Any, ...]:
    return next((tuple(found) for name in CLASS_ATTRIBUTES if (found := attribute_of(node, name))), ())


def encoder_values(node: Any) -> tuple[Any, ...]:
    """Returns the values of a LabelEncoder in the order of its keys, if the keys count from 0."""
    keys: list[Any] = next((found for name in KEY_ATTRIBUTES if (found := attribute_of(node, name))), [])
    values: list[Any] = next((found for name in VALUE_ATTRIBUTES if (found := attribute_of(node, name))), [])
    pairs = sorted(zip(keys, values, strict=False), key=lambda pair: str(pair[0]).zfill(20))
    if [str(key) for key, _ in pairs] != [str(i) for i in range(len(values))]:
        return ()
    return tuple(value for _, value in pairs)


def constant_values(name: str, producers: Producers, constants: dict[str, Any]) -> tuple[Any, ...]:
    tensor = constants.get(name)
    node = producers.get(name)
    if tensor is None and node is not None and node.op_type == "Constant":
        tensor = attribute_of(node, "value")
    if tensor is None:
        return ()
    values = onnx_package().numpy_helper.to_array(tensor).ravel().tolist()
    return tuple(value.decode() if isinstance(value, bytes) else value for value in values)


def with_metadata(content: bytes, metadata: dict[str, str]) -> bytes:
    """Returns a graph with metadata, in a version of the format that onnxruntime 1.23 takes."""
    model = read_graph(content, "the export")
    model.ir_version = min(model.ir_version, IR_VERSION)
    known = {entry.key: entry for entry in model.metadata_props}
    for key, value in metadata.items():
        entry = known.get(key) or model.metadata_props.add()
        entry.key, entry.value = key, value
    result: bytes = model.SerializeToString()
    return result


def with_column(content: bytes, output: str, column: int) -> bytes:
    """Returns a graph whose output [N, columns] is replaced by one of its columns, [N, 1], as the output `score`."""
    onnx = onnx_package()
    model = read_graph(content, "the export")
    index = onnx.helper.make_tensor("score_column", onnx.TensorProto.INT64, [1], [column])
    model.graph.initializer.append(index)
    model.graph.node.append(onnx.helper.make_node("Gather", [output, "score_column"], ["score"], axis=1))
    kept = [one for one in model.graph.output if one.name != output]
    kind = next(one.type.tensor_type.elem_type for one in model.graph.output if one.name == output)
    del model.graph.output[:]
    model.graph.output.extend([*kept, onnx.helper.make_tensor_value_info("score", kind, [None, 1])])
    if not any(one.domain == "" for one in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("", 13))
    result: bytes = model.SerializeToString()
    return result


def with_first_of_ties(content: bytes, label: str, values: str, classes: Sequence[Any]) -> bytes:
    """Returns a graph whose label is the first of the classes whose probabilities are the highest, rounded to six digits.

    `label` and `values` are the names of the outputs, and `classes` the values of the label in the order of the columns.
    """
    onnx = onnx_package()
    model = read_graph(content, "the export")
    types = {one.name: one.type.tensor_type.elem_type for one in model.graph.output}
    strings = isinstance(classes[0], str)
    constants = {
        "tie_scale": np.array(TIE_SCALE, onnx.helper.tensor_dtype_to_np_dtype(types[values])),
        "tie_classes": np.array(classes, object if strings else np.int64),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    node = onnx.helper.make_node
    model.graph.node.extend(
        [
            node("Mul", [values, "tie_scale"], ["tie_scaled"]),
            node("Round", ["tie_scaled"], ["tie_rounded"]),
            node("ArgMax", ["tie_rounded"], ["tie_place"], axis=1, keepdims=0),
            node("Gather", ["tie_classes", "tie_place"], ["tie_label"]),
        ]
    )
    kind = onnx.TensorProto.STRING if strings else onnx.TensorProto.INT64
    for one in model.graph.output:
        if one.name == label:
            one.CopyFrom(onnx.helper.make_tensor_value_info("tie_label", kind, [None]))
    if not any(one.domain == "" for one in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("", 13))
    result: bytes = model.SerializeToString()
    return result


def with_width(content: bytes, output: str, width: int) -> bytes:
    """Returns a graph whose output is declared as [N, width]."""
    model = read_graph(content, "the export")
    for one in model.graph.output:
        if one.name == output and len(one.type.tensor_type.shape.dim) == 2:
            one.type.tensor_type.shape.dim[1].dim_value = width
    result: bytes = model.SerializeToString()
    return result


def input_names(content: bytes) -> Sequence[str]:
    """Returns the names of the inputs of a graph without those that have a default."""
    model = read_graph(content, "the export")
    constants = {tensor.name for tensor in model.graph.initializer}
    return [one.name for one in model.graph.input if one.name not in constants]
