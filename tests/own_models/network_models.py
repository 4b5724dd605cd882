"""Kinds of graphs that PyTorch, Keras, or hand-written code exports, and exports that cannot be served."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from exports import ML_OPSET, Network, changed, make_graph, sigmoid, sklearn_graph, softmax, with_external_data
from onnx import TensorProto, helper, numpy_helper
from own_model import OwnModel

FLOAT, DOUBLE, HALF = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16
NAMES = {"0": "red", "1": "green", "2": "blue"}
SOFTMAX = helper.make_node("Softmax", ["logits"], ["probabilities"])


def predicted(network: Network, values: np.ndarray, graph: bytes, **members: Any) -> OwnModel:
    """Returns a model whose label is the class of the highest value."""
    labels = values.argmax(axis=1).tolist()
    return OwnModel(
        network.rows,
        labels,
        values,
        **{"classes": list(range(values.shape[1])), "label_json": NAMES, "graph": graph, **members},
    )


def softmax_network() -> OwnModel:
    """Network with a softmax output and no label output."""
    network = Network()
    return predicted(network, softmax(network.logits()), network.graph(SOFTMAX))


def softmax_network_other_count() -> OwnModel:
    """Network of three classes with two names in label.json."""
    network = Network()
    return predicted(network, softmax(network.logits()), network.graph(SOFTMAX), label_json={"0": "red", "1": "green"})


def logits_network() -> OwnModel:
    """Network that was exported without its softmax."""
    network = Network()
    outputs = [("logits", FLOAT, ["batch", 3])]
    return predicted(network, network.logits(), network.graph(outputs=outputs))


def logits_with_label() -> OwnModel:
    """Network with its label and its logits as outputs."""
    network = Network()
    node = helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0)
    outputs = [("label", TensorProto.INT64, ["batch"]), ("logits", FLOAT, ["batch", 3])]
    return predicted(network, network.logits(), network.graph(node, outputs=outputs))


def two_float_outputs() -> OwnModel:
    """Network with logits and probabilities as outputs."""
    network = Network()
    outputs = [("logits", FLOAT, ["batch", 3]), ("probabilities", FLOAT, ["batch", 3])]
    return predicted(network, softmax(network.logits()), network.graph(SOFTMAX, outputs=outputs))


def sigmoid_model(shape: list[Any]) -> OwnModel:
    network = Network(width=1)
    node = helper.make_node("Sigmoid", ["logits"], ["probability"])
    second = sigmoid(network.logits())
    graph = network.graph(node, outputs=[("probability", FLOAT, shape)])
    return predicted(network, np.hstack([1 - second, second]), graph, label_json={"0": "no", "1": "yes"})


def sigmoid_of_one_column() -> OwnModel:
    """Network of two classes with one sigmoid output [N, 1]."""
    return sigmoid_model(["batch", 1])


def sigmoid_of_dynamic_columns() -> OwnModel:
    """Network of two classes with one sigmoid output whose width is symbolic."""
    return sigmoid_model(["batch", "columns"])


def softmax_of_dynamic_columns() -> OwnModel:
    """Network of three classes whose output has a symbolic width."""
    network = Network()
    return predicted(
        network, softmax(network.logits()), network.graph(SOFTMAX, outputs=[("probabilities", FLOAT, ["batch", "columns"])])
    )


def double_output() -> OwnModel:
    """Network with an input of float32 and probabilities of float64."""
    network = Network()
    cast = helper.make_node("Cast", ["probabilities"], ["double"], to=DOUBLE)
    return predicted(network, softmax(network.logits()), network.graph(SOFTMAX, cast, outputs=[("double", DOUBLE, ["batch", 3])]))


def half_precision() -> OwnModel:
    """Network with inputs and outputs of float16."""
    network = Network()
    nodes = [
        helper.make_node("Cast", ["half_input"], ["input"], to=FLOAT),
        *network.nodes(),
        SOFTMAX,
        helper.make_node("Cast", ["probabilities"], ["half"], to=HALF),
    ]
    graph = make_graph(nodes, 5, [("half", HALF, ["batch", 3])], [("half_input", HALF, ["batch", 5])], network.initializers())
    return predicted(network, softmax(network.logits()), graph)


def sequence_input() -> OwnModel:
    """Network with an input of rank 3."""
    network = Network(8)
    nodes = [helper.make_node("Flatten", ["sequence"], ["input"]), *network.nodes(), SOFTMAX]
    graph = make_graph(nodes, 8, inputs=[("sequence", FLOAT, ["batch", 4, 2])], initializers=network.initializers())
    return predicted(network, softmax(network.logits()), graph)


def one_row_input() -> OwnModel:
    """Network whose input is one row of rank 1."""
    network = Network()
    shape = numpy_helper.from_array(np.array([1, 5], np.int64), "shape")
    nodes = [helper.make_node("Reshape", ["row", "shape"], ["input"]), *network.nodes(), SOFTMAX]
    graph = make_graph(nodes, 5, [("probabilities", FLOAT, [1, 3])], [("row", FLOAT, [5])], [*network.initializers(), shape])
    return predicted(network, softmax(network.logits()), graph)


def one_input_for_each_column() -> OwnModel:
    """Network with five float inputs [N, 1]."""
    network = Network()
    names = ["age", "income", "visits", "distance", "score"]
    nodes = [helper.make_node("Concat", names, ["input"], axis=1), *network.nodes(), SOFTMAX]
    graph = make_graph(nodes, 5, inputs=[(name, FLOAT, ["batch", 1]) for name in names], initializers=network.initializers())
    own = predicted(network, softmax(network.logits()), graph)
    return own._replace(rows=pd.DataFrame(network.rows, columns=names))


def cast_network(rows: Callable[[np.ndarray], np.ndarray], element_type: int) -> OwnModel:
    network = Network()
    network.rows = rows(network.rows)
    nodes = [helper.make_node("Cast", ["typed"], ["input"], to=FLOAT), *network.nodes(), SOFTMAX]
    graph = make_graph(nodes, 5, inputs=[("typed", element_type, ["batch", 5])], initializers=network.initializers())
    return predicted(network, softmax(network.logits()), graph)


def int64_network() -> OwnModel:
    """Network with an input of int64."""
    return cast_network(lambda rows: np.round(rows * 3).astype(np.int64), TensorProto.INT64)


def int32_network() -> OwnModel:
    """Network with an input of int32."""
    return cast_network(lambda rows: np.round(rows * 3).astype(np.int32), TensorProto.INT32)


def truth_value_network() -> OwnModel:
    """Network with an input of bool."""
    return cast_network(lambda rows: rows > 0, TensorProto.BOOL)


def double_network() -> OwnModel:
    """Network with an input of float64."""
    return cast_network(lambda rows: rows.astype(np.float64), DOUBLE)


def new_ir_version() -> OwnModel:
    """Graph with IR version 99, as a newer onnx writes it."""
    network = Network()

    def newer(model: Any) -> None:
        model.ir_version = 99

    return predicted(network, softmax(network.logits()), changed(network.graph(SOFTMAX), newer))


def new_opset() -> OwnModel:
    """Graph with an operator set that onnxruntime does not have yet."""
    network = Network()

    def newer(model: Any) -> None:
        model.opset_import[0].version = 99

    return predicted(network, softmax(network.logits()), changed(network.graph(SOFTMAX), newer))


def external_data() -> OwnModel:
    """Graph with its weights in model.onnx.data."""
    network = Network()
    graph, weights = with_external_data(network.graph(SOFTMAX))
    return predicted(network, softmax(network.logits()), graph, files={"model.onnx.data": weights})


def external_data_missing() -> OwnModel:
    """Graph whose file of weights is missing."""
    network = Network()
    graph, _ = with_external_data(network.graph(SOFTMAX))
    return predicted(network, softmax(network.logits()), graph)


def initializers_as_inputs() -> OwnModel:
    """Graph of IR version 3, whose weights are also inputs."""
    network = Network()
    inputs = [("input", FLOAT, ["batch", 5]), ("first", FLOAT, [5, 8]), ("second", FLOAT, [8, 3])]
    nodes = [*network.nodes(), SOFTMAX]
    graph = make_graph(nodes, 5, inputs=inputs, initializers=network.initializers(), ir_version=3, opset=8)
    return predicted(network, softmax(network.logits()), graph)


def optional_input() -> OwnModel:
    """Graph with a second input that has a default: a temperature."""
    network = Network()
    temperature = numpy_helper.from_array(np.ones(1, np.float32), "temperature")
    divide = helper.make_node("Div", ["logits", "temperature"], ["cooled"])
    nodes = [*network.nodes(), divide, helper.make_node("Softmax", ["cooled"], ["probabilities"])]
    inputs = [("input", FLOAT, ["batch", 5]), ("temperature", FLOAT, [1])]
    graph = make_graph(nodes, 5, inputs=inputs, initializers=[*network.initializers(), temperature])
    return predicted(network, softmax(network.logits()), graph)


def custom_operator() -> OwnModel:
    """Graph with an operator of onnxruntime-extensions."""
    network = Network()
    node = helper.make_node("Inverse", ["logits"], ["probabilities"], domain="ai.onnx.contrib")
    graph = network.graph(node, domains=[("ai.onnx.contrib", 1)])
    return predicted(network, softmax(network.logits()), graph)


def label_that_is_not_argmax(**members: Any) -> OwnModel:
    """Returns a graph with a label output whose threshold for the second class is 0.2."""
    network = Network(width=2)
    threshold = numpy_helper.from_array(np.array(0.2, np.float32), "threshold")
    column = numpy_helper.from_array(np.array(1, np.int64), "column")
    nodes = [
        SOFTMAX,
        helper.make_node("Gather", ["probabilities", "column"], ["second_class"], axis=1),
        helper.make_node("Greater", ["second_class", "threshold"], ["over"]),
        helper.make_node("Cast", ["over"], ["label"], to=TensorProto.INT64),
    ]
    outputs = [("label", TensorProto.INT64, ["batch"]), ("probabilities", FLOAT, ["batch", 2])]
    graph = make_graph([*network.nodes(), *nodes], 5, outputs, initializers=[*network.initializers(), threshold, column])
    values = softmax(network.logits())
    labels = (values[:, 1] > 0.2).astype(int).tolist()
    members = {"classes": [0, 1], "label_json": {"0": "no", "1": "yes"}, "graph": graph, **members}
    return OwnModel(network.rows, labels, values, **members)


def graph_with_threshold() -> OwnModel:
    """Graph whose own label is not the class of the highest probability, with the expected labels."""
    return label_that_is_not_argmax()


def graph_with_threshold_undecided() -> OwnModel:
    """Graph whose own label is not the class of the highest probability, without expected labels and without --label."""
    return label_that_is_not_argmax(has_expected=False)


def regressor_of_rank_1() -> OwnModel:
    """Network of one value with an output [N]."""
    network = Network(width=1)
    axis = numpy_helper.from_array(np.array([1], np.int64), "axis")
    nodes = [*network.nodes(), helper.make_node("Squeeze", ["logits", "axis"], ["price"])]
    graph = make_graph(nodes, 5, [("price", FLOAT, ["batch"])], initializers=[*network.initializers(), axis])
    return OwnModel(network.rows, values=network.logits(), graph=graph)


def regressor_of_three_targets() -> OwnModel:
    """Graph of a regressor with three targets."""
    from sklearn.linear_model import LinearRegression
    from training_sets import regression

    data = regression(3)
    model = LinearRegression().fit(data.inputs, data.targets)
    return OwnModel(data.rows, values=np.asarray(model.predict(data.rows), float), graph=sklearn_graph(model, data.inputs))


def metadata_of_features() -> OwnModel:
    """Graph with the metadata name, version, and features."""
    import json

    network = Network()

    def described(model: Any) -> None:
        features = [{"name": name, "unit": "m", "min": -5.0, "max": 5.0} for name in "abcde"]
        helper.set_model_props(model, {"name": "colors", "version": "7", "features": json.dumps(features)})

    own = predicted(network, softmax(network.logits()), changed(network.graph(SOFTMAX), described))
    return own._replace(rows=pd.DataFrame(network.rows, columns=list("abcde")))


def zipmap_of_no_names() -> OwnModel:
    """Network with a ZipMap of the keys 5, 6, and 7."""
    network = Network()
    node = helper.make_node("ZipMap", ["probabilities"], ["mapped"], domain="ai.onnx.ml", classlabels_int64s=[5, 6, 7])

    def as_maps(model: Any) -> None:
        model.graph.output[0].CopyFrom(helper.make_value_info("mapped", helper.make_sequence_type_proto(map_type())))

    graph = changed(network.graph(SOFTMAX, node, domains=[("ai.onnx.ml", ML_OPSET)]), as_maps)
    own = predicted(network, softmax(network.logits()), graph, label_json=None, classes=[5, 6, 7])
    return own._replace(labels=[[5, 6, 7][place] for place in own.labels])


def map_type() -> Any:
    return helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))
