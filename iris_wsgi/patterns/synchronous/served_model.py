"""Models as the Open Inference Protocol serves them: arrays by name in, arrays by name out."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from iris_wsgi.codec.v2_request import ModelSignature, TensorSpec
from iris_wsgi.codec.v2_tensors import DTYPES, Tensor
from iris_wsgi.model.predictor import Predict, PredictContext
from iris_wsgi.model.session import Model
from iris_wsgi.patterns.synchronous.statistics import Tally

# Inputs by name, until when the answer is wanted, to outputs by name.
Infer = Callable[[Mapping[str, Tensor], float], Mapping[str, Tensor]]

LABEL_TYPES = {"tensor(int64)": "INT64", "tensor(string)": "BYTES"}


class Servable(NamedTuple):
    """A model under its name: what it takes and gives, the function that does it, which output holds the probabilities, and
    what else its configuration tells by name."""

    served: ModelSignature
    infer: Infer
    probabilities: str
    digest: str
    tally: Tally
    told: Mapping[str, str] = MappingProxyType({})


def classifier(model: Model, predict: Predict, tally: Tally) -> Servable:
    """The inputs and outputs are those of the ONNX graph, by their names and in its order, as Triton would show them.

    Two differences: a ZipMap is flattened to FP32 [rows, classes], and the label is that of the highest probability, not the
    graph's own, so that both agree in every answer: a number as in label.json where the graph has int64, a name for string.
    """
    probabilities = TensorSpec(model.output, "FP32", (-1, len(model.labels)))
    outputs = [
        probabilities if output.name == model.output else TensorSpec(output.name, LABEL_TYPES[output.type], (-1,))
        for output in model.session.get_outputs()
        if output.name == model.output or (output.type in LABEL_TYPES and len(output.shape) <= 1)
    ]
    inputs = (TensorSpec(model.input, "FP32", (-1, model.width)),)
    names = np.array([label.encode() for label in model.labels], DTYPES["BYTES"])
    labels = [spec for spec in outputs if spec is not probabilities]

    def infer(tensors: Mapping[str, Tensor], until: float) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {model.output: predict(tensors[model.input], PredictContext(until)).probabilities}
        for spec in labels:
            numbers = found[model.output].argmax(axis=1)
            found[spec.name] = names[numbers] if spec.datatype == "BYTES" else numbers
        return found

    served = ModelSignature(model.name, version_of(model.version), inputs, tuple(outputs), model.labels)
    return Servable(served, infer, model.output, model.digest, tally, model.identity)


def version_of(told: str) -> str:
    """The protocol's version of a model's own: its first number, for Triton's are whole numbers and clients compute with them."""
    first = told.partition(".")[0]
    return first if first.isascii() and first.isdigit() else "1"
