"""Prepares a model for browsers: a graph with one float32 tensor of probabilities, and with its weights in the same file."""

import json
from pathlib import Path

from iris_wsgi.codec.model_schema import CLASSIFIER
from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import GOLDEN, ArtifactManifest, external_names, read_all, read_file, sha256
from iris_wsgi.model.golden import load_verified_model, self_test
from iris_wsgi.model.session import Model, ModelFiles, class_order, listed

Files = dict[str, bytes]


class BrowserModel:
    """A model folder for browsers. `source` is the digest of the model that the server has."""

    def __init__(self, folder: Path) -> None:
        """Raises BadModel for a model that browsers cannot run, and for one that fails its golden rows."""
        original, golden, _ = load_verified_model(folder)
        self.source, path = original.digest, folder / golden.model
        check_suitable(original, path)
        _, self.files = read_all(lambda name: read_file(folder / name), str(folder))
        if original.is_map or is_double(original) or external_names(golden):
            self.files = rewritten(self.files, original, golden, path)
        self.golden, _ = read_all(self.files.__getitem__, str(folder))
        self.model = Model(ModelFiles(self.files[golden.model], str(path)), original.description)
        self_test(self.model, golden.cases, golden.tolerance)


def is_double(model: Model) -> bool:
    """Returns whether the graph gives float64. The page of the bundle reads float32 only."""
    return any(one.name == model.output and one.type == "tensor(double)" for one in model.session.get_outputs())


def check_suitable(model: Model, path: Path) -> None:
    """Raises BadModel for a model that the page of the bundle cannot run."""
    if model.outputs.kind != CLASSIFIER:
        raise BadModel(f"{path} gives {model.outputs.name}; edge is for classifiers with probabilities")
    if len(model.inputs) != 1 or model.inputs[0].rank != 2 or model.inputs[0].type != "float32":
        inputs = ", ".join(f"{one.name} ({one.type})" for one in model.inputs[:20])
        raise BadModel(f"{path} takes {inputs}; edge is for models with one float32 input [N, features]")
    if model.gives_second:
        raise BadModel(f"{path} gives the probability of one class alone; edge is for models with a probability per class")


def rewritten(files: Files, model: Model, golden: ArtifactManifest, path: Path) -> Files:
    """Returns the files with another graph, and a golden.json that names it. Raises BadModel."""
    try:
        from onnx import external_data_helper, load_model_from_string
    except ImportError:
        what = "gives a ZipMap" if model.is_map else "gives float64" if is_double(model) else "has its weights in other files"
        raise BadModel(f"{path} {what}, and onnx is needed to rewrite it for browsers: run bin/setup pack") from None
    graph = load_model_from_string(files[golden.model])
    if external := external_names(golden):
        external_data_helper.load_external_data_for_model(graph, str(path.parent))
    if model.is_map:
        drop_map(graph.graph, model, path)
    elif is_double(model):
        cast(graph.graph, model)
    document = json.loads(files[GOLDEN])
    content = graph.SerializeToString(deterministic=True)
    document["files"] = {name: digest for name, digest in document["files"].items() if name not in external}
    document["files"][golden.model] = sha256(content)
    kept = {name: data for name, data in files.items() if name not in external}
    return kept | {golden.model: content, GOLDEN: (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()}


def drop_map(graph: object, model: Model, path: Path) -> None:
    """Replaces the output of the ZipMap with its input, a tensor whose columns have the order of the labels. Raises BadModel."""
    (node,) = [node for node in graph.node if model.output in node.output]
    keys = next((values for name in ("classlabels_strings", "classlabels_int64s") if (values := attribute(node, name))), ())
    classes = model.outputs.classes or class_order(keys, model.labels)
    if node.op_type != "ZipMap" or keys != classes:
        raise BadModel(f"{path} has a ZipMap of the classes {listed(keys)}; golden.json has the classes {listed(classes)}")
    graph.node.remove(node)
    replace_output(graph, model, node.input[0])


def cast(graph: object, model: Model) -> None:
    """Adds an output float32 in place of float64."""
    from onnx import TensorProto, helper

    name = f"{model.output}_float32"
    graph.node.append(helper.make_node("Cast", [model.output], [name], to=TensorProto.FLOAT))
    replace_output(graph, model, name)


def replace_output(graph: object, model: Model, name: str) -> None:
    """Replaces the output of the probabilities with the float32 tensor `name` [N, classes]."""
    from onnx import TensorProto, helper

    tensor = helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, len(model.labels)])
    outputs = [tensor if output.name == model.output else output for output in graph.output]
    del graph.output[:]
    graph.output.extend(outputs)


def attribute(node: object, name: str) -> tuple[str | int, ...]:
    """Returns the values of an attribute, or an empty tuple."""
    for one in node.attribute:
        if one.name == name:
            return tuple(value.decode() for value in one.strings) or tuple(one.ints)
    return ()
