"""Models as the Open Inference Protocol serves them: named tensors in, named tensors out."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from iris_wsgi.codec.v2_request import ModelSignature, TensorSpec
from iris_wsgi.codec.v2_tensors import DTYPES, Tensor
from iris_wsgi.errors import NotFound
from iris_wsgi.model.predictor import Predict, PredictContext
from iris_wsgi.model.session import Model
from iris_wsgi.patterns.synchronous.statistics import ModelStatistics
from iris_wsgi.wsgi.application import Request

# Inputs by name and a deadline (monotonic) to outputs by name.
Infer = Callable[[Mapping[str, Tensor], float], Mapping[str, Tensor]]

LABEL_TYPES = {"tensor(int64)": "INT64", "tensor(string)": "BYTES"}


class ServedModel(NamedTuple):
    """A model with its signature, its inference function, and the name of the output with the probabilities.

    `parameters` are those of its configuration.
    """

    signature: ModelSignature
    infer: Infer
    probabilities: str
    digest: str
    statistics: ModelStatistics
    parameters: Mapping[str, str] = MappingProxyType({})


def find(models: Mapping[str, ServedModel], request: Request) -> ServedModel:
    """Returns the model of the path. Raises NotFound (404) for an unknown model or version."""
    model = models.get(request.parameters["model"])
    if model is None:
        raise NotFound(f"Model not found; this server has {', '.join(models)}.")
    if request.parameters.get("version", model.signature.version) != model.signature.version:
        raise NotFound(f"Model version not found; there is version {model.signature.version}.")
    return model


def classifier(model: Model, predict: Predict, statistics: ModelStatistics) -> ServedModel:
    """Returns the served model with the inputs and outputs of the ONNX graph, in its order, as Triton shows them.

    There are two differences. A ZipMap becomes FP32 [rows, classes]. The label is that of the highest probability, so that both
    outputs agree: a number as in label.json for an int64 output, a name for a string output.
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

    def infer(tensors: Mapping[str, Tensor], deadline: float) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {model.output: predict(tensors[model.input], PredictContext(deadline)).probabilities}
        for spec in labels:
            numbers = found[model.output].argmax(axis=1)
            found[spec.name] = names[numbers] if spec.datatype == "BYTES" else numbers
        return found

    signature = ModelSignature(model.name, version_of(model.version), inputs, tuple(outputs), model.labels)
    return ServedModel(signature, infer, model.output, model.digest, statistics, model.identity)


def version_of(version: str) -> str:
    """Returns the version for the protocol, the first number: Triton's versions are integers, and clients compare them."""
    first = version.partition(".")[0]
    return first if first.isascii() and first.isdigit() else "1"
