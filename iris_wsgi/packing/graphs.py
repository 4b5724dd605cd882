"""Facts of an .onnx file that only its nodes have: the classes of its label, and the files with its weights."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iris_wsgi.console import remedy_for_extra
from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import read_file
from iris_wsgi.model.session import ModelFiles
from iris_wsgi.packing.reference import first_sentence

# The newest version of the format that onnxruntime 1.23 takes.
IR_VERSION = 11
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
        raise BadModel(f"pack needs the package onnx, which is not installed: {remedy_for_extra('pack')}") from None
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
            if isinstance(value, bytes):
                return value.decode()
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
    add_opset(model)
    result: bytes = model.SerializeToString()
    return result


def add_opset(model: Any) -> None:
    """Adds the operators of ONNX to a graph that has those of ai.onnx.ml only."""
    if not any(one.domain == "" for one in model.opset_import):
        model.opset_import.append(onnx_package().helper.make_opsetid("", 13))


def with_width(content: bytes, output: str, width: int) -> bytes:
    """Returns a graph whose output is declared as [N, width]."""
    model = read_graph(content, "the export")
    for one in model.graph.output:
        if one.name == output and len(one.type.tensor_type.shape.dim) == 2:
            one.type.tensor_type.shape.dim[1].dim_value = width
    result: bytes = model.SerializeToString()
    return result


def with_exact_votes(content: bytes) -> bytes:
    """Returns a graph whose forests add the probabilities of the leaves, and divide the sum by the number of trees.

    The converter divides each leaf. Then equal votes, such as 50 of 100 trees for each class, differ in the last bit, and the
    label is not that of scikit-learn.
    """
    onnx = onnx_package()
    model = read_graph(content, "the export")
    changed = False
    nodes: list[Any] = []
    for node in model.graph.node:
        nodes.append(node)
        trees = len(set(attribute_of(node, "class_treeids") or ())) if node.op_type == "TreeEnsembleClassifier" else 0
        if trees < 2 or attribute_of(node, "post_transform") not in (None, "NONE") or not multiply_leaves(node, trees):
            continue
        changed, scores = True, node.output[1]
        node.output[1] = f"{scores}_sum"
        count = onnx.helper.make_tensor(f"{scores}_trees", onnx.TensorProto.FLOAT, [1], [float(trees)])
        model.graph.initializer.append(count)
        nodes.append(onnx.helper.make_node("Div", [node.output[1], count.name], [scores]))
    if not changed:
        return content
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    add_opset(model)
    result: bytes = model.SerializeToString()
    return result


def multiply_leaves(node: Any, trees: int) -> bool:
    """Multiplies the weights of the leaves by the number of trees. Returns False if they are not probabilities divided by it.

    The converter writes the second of two classes alone. Then the first one is added, because the sum would be no probability.
    """
    found = {attribute.name: attribute for attribute in node.attribute}
    doubles = found.get("class_weights_as_tensor")
    given = onnx_package().numpy_helper.to_array(doubles.t) if doubles else np.array(found["class_weights"].floats)
    names = ("class_treeids", "class_nodeids", "class_ids")
    trees_of, nodes_of, classes = (np.array(found[name].ints, np.int64) for name in names)
    weights = given.astype(np.float64) * trees
    count = len(class_attribute(node))
    if count == 2 and len(set(classes.tolist())) == 1:
        # onnxruntime takes them as those of the second class, with either number.
        trees_of, nodes_of = np.repeat(trees_of, 2), np.repeat(nodes_of, 2)
        classes = np.tile([0, 1], len(weights))
        weights = np.column_stack([1 - weights, weights]).ravel()
    _, leaves = np.unique(np.column_stack([trees_of, nodes_of]), axis=0, return_inverse=True)
    if not np.allclose(np.bincount(leaves.ravel(), weights), 1, atol=1e-5) or weights.min() < -1e-5:
        return False
    whole = np.round(weights)
    weights = np.where(np.abs(weights - whole) < 1e-6, whole, weights)
    for name, values in zip(names, (trees_of, nodes_of, classes), strict=True):
        del found[name].ints[:]
        found[name].ints.extend(values.tolist())
    if doubles:
        doubles.t.CopyFrom(onnx_package().numpy_helper.from_array(weights, doubles.t.name))
    else:
        del found["class_weights"].floats[:]
        found["class_weights"].floats.extend(weights.tolist())
    return True


def input_names(content: bytes) -> Sequence[str]:
    """Returns the names of the inputs of a graph without those that have a default."""
    model = read_graph(content, "the export")
    constants = {tensor.name for tensor in model.graph.initializer}
    return [one.name for one in model.graph.input if one.name not in constants]
