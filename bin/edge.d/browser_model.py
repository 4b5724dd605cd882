"""Prepares a model for browsers: a graph without a ZipMap, and with its weights in the same file."""

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
        if original.is_map or external_names(golden):
            self.files = rewritten(self.files, original, golden, path)
        self.golden, _ = read_all(self.files.__getitem__, str(folder))
        self.model = Model(ModelFiles(self.files[golden.model], str(path)), original.description)
        self_test(self.model, golden.cases, golden.tolerance)


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
        what = "gives a ZipMap" if model.is_map else "has its weights in other files"
        raise BadModel(f"{path} {what}, and onnx is needed to rewrite it for browsers: run bin/setup pack") from None
    graph = load_model_from_string(files[golden.model])
    if external := external_names(golden):
        external_data_helper.load_external_data_for_model(graph, str(path.parent))
    if model.is_map:
        drop_map(graph.graph, model, path)
    document = json.loads(files[GOLDEN])
    content = graph.SerializeToString(deterministic=True)
    document["files"] = {name: digest for name, digest in document["files"].items() if name not in external}
    document["files"][golden.model] = sha256(content)
    kept = {name: data for name, data in files.items() if name not in external}
    return kept | {golden.model: content, GOLDEN: (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()}


def drop_map(graph: object, model: Model, path: Path) -> None:
    """Replaces the output of the ZipMap with its input, a tensor whose columns have the order of the labels. Raises BadModel."""
    from onnx import TensorProto, helper

    (node,) = [node for node in graph.node if model.output in node.output]
    keys = next((values for name in ("classlabels_strings", "classlabels_int64s") if (values := attribute(node, name))), ())
    classes = model.outputs.classes or class_order(keys, model.labels)
    if node.op_type != "ZipMap" or keys != classes:
        raise BadModel(f"{path} has a ZipMap of the classes {listed(keys)}; golden.json has the classes {listed(classes)}")
    graph.node.remove(node)
    tensor = helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, [None, len(keys)])
    at = [output.name for output in graph.output].index(model.output)
    outputs = [tensor if i == at else output for i, output in enumerate(graph.output)]
    del graph.output[:]
    graph.output.extend(outputs)


def attribute(node: object, name: str) -> tuple[str | int, ...]:
    """Returns the values of an attribute, or an empty tuple."""
    for one in node.attribute:
        if one.name == name:
            return tuple(value.decode() for value in one.strings) or tuple(one.ints)
    return ()
