"""Models as the Open Inference Protocol serves them: named tensors in, named tensors out, and statistics of their requests."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import NamedTuple

import numpy as np

from iris_wsgi.codec.model_schema import EXACT_MAX, Array, OutputSchema, RowSchema
from iris_wsgi.codec.v2_request import ModelSignature, TensorSpec
from iris_wsgi.codec.v2_tensors import DTYPES, Tensor
from iris_wsgi.errors import BadRequest, NotFound
from iris_wsgi.model.predictor import Predict, PredictContext
from iris_wsgi.model.session import Model
from iris_wsgi.observability.metrics import Counter, NanosecondCounter, Registry
from iris_wsgi.wsgi.application import Request

# Inputs by name and a deadline (monotonic) to outputs by name.
Infer = Callable[[Mapping[str, Tensor], float], Mapping[str, Tensor]]
InferRows = Callable[[Array, float], Mapping[str, Tensor]]

LABEL_TYPES = {"tensor(int64)": "INT64", "tensor(int32)": "INT32", "tensor(bool)": "BOOL", "tensor(string)": "BYTES"}
DATATYPES = {
    "float32": "FP32",
    "float64": "FP64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "bool": "BOOL",
    "string": "BYTES",
}

# The stages of a request in the statistics extension, and those that StageTimer measures.
STAGES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
TIMED_STAGES = ("compute_input", "compute_infer", "compute_output")


class StatisticsMetrics:
    """Metrics of all models. The shared memory of the registry makes them exact over all processes."""

    def __init__(self, registry: Registry, models: Iterable[str]) -> None:
        self.registry = registry
        labels, values = ("model", "stage"), (list(models), STAGES)
        self.rows = registry.counter("inference_rows_total", "Rows predicted under /v2 and /v1.", "model", values[0])
        self.runs = registry.counter("inference_runs_total", "Model runs under /v2 and /v1.", "model", values[0])
        self.counts = Counter(
            registry, "inference_stages_total", "Completed stages of requests under /v2 and /v1.", labels, values, sparse=True
        )
        self.times = NanosecondCounter(
            registry, "inference_stage_seconds_total", "Total duration of these stages in seconds.", labels, values, sparse=True
        )


class ModelStatistics:
    """Statistics of one model."""

    def __init__(self, metrics: StatisticsMetrics, model: str) -> None:
        self.registry = metrics.registry
        self.rows, self.runs = metrics.rows.first[model,], metrics.runs.first[model,]
        self.stages = {stage: (metrics.counts.first[model, stage], metrics.times.first[model, stage]) for stage in STAGES}

    def count(self, stages: dict[str, int], rows: int) -> None:
        """Adds the stages of a request in nanoseconds, and its rows. A request without rows has no run."""
        cells = self.registry.cells
        with self.registry.lock:
            for stage, nanoseconds in stages.items():
                count, total = self.stages[stage]
                cells[count] += 1
                cells[total] += nanoseconds
            cells[self.rows] += rows
            cells[self.runs] += rows > 0

    def document(self) -> dict[str, object]:
        """Returns the totals of all processes with the names of Triton's statistics extension."""
        total = self.registry.total
        stages = {stage: {"count": total(count), "ns": total(ns)} for stage, (count, ns) in self.stages.items()}
        return {"inference_count": total(self.rows), "execution_count": total(self.runs), "inference_stats": stages}


class StageTimer:
    """Context manager that times a request, and adds it to the statistics. A request that raises counts as a failure."""

    def __init__(self, statistics: ModelStatistics, arrived: float) -> None:
        """`arrived` is a monotonic time."""
        self.statistics, self.arrived, self.rows = statistics, arrived, 0
        self.durations: list[int] = []

    def __enter__(self) -> "StageTimer":
        self.began = self.last = time.perf_counter_ns()
        self.queued = max(0, int((time.monotonic() - self.arrived) * 1e9))
        return self

    def end_stage(self) -> None:
        """Ends the next of TIMED_STAGES."""
        now = time.perf_counter_ns()
        self.durations.append(now - self.last)
        self.last = now

    def __exit__(self, raised: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        total = self.queued + time.perf_counter_ns() - self.began
        if raised is not None:
            self.statistics.count({"fail": total}, 0)
        else:
            timed = dict(zip(TIMED_STAGES, self.durations, strict=True))
            self.statistics.count({"success": total, "queue": self.queued, **timed}, self.rows)


class ServedModel(NamedTuple):
    """A model with its signature, its inference functions, and the name of the output with the probabilities or values.

    `infer_rows` takes rows of `schema` [n, features]. `parameters` are those of its configuration.
    """

    signature: ModelSignature
    infer: Infer
    infer_rows: InferRows
    schema: RowSchema
    values: str
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


def serve(model: Model, predict: Predict, statistics: ModelStatistics) -> ServedModel:
    """Returns the served model with the inputs and outputs of the ONNX graph, in its order, as Triton shows them.

    A ZipMap becomes FP32 [rows, classes], and values [rows] become FP32 [rows, 1]. The label output has the graph's own values
    of the classes, and the label is the one that all routes give.
    """
    columns = TensorSpec(model.output, "FP32", (-1, len(model.outputs.columns)))
    graph, schema, outputs = model.graph_outputs, model.schema, model.outputs
    specs = {model.output: columns}
    if graph.label and outputs.labels:
        specs[graph.label] = TensorSpec(graph.label, LABEL_TYPES[graph.label_type], (-1,))
    # In the order of the graph.
    ordered = tuple(specs[output.name] for output in model.session.get_outputs() if output.name in specs)
    inputs = tuple(input_spec(model, i) for i in range(len(model.inputs)))
    classes = class_tensor(outputs, graph.label_type)
    label = graph.label if len(specs) > 1 else None
    join = rows_of_tensors(schema, inputs)

    def infer(tensors: Mapping[str, Tensor], deadline: float) -> Mapping[str, Tensor]:
        return infer_rows(join(tensors), deadline)

    def infer_rows(rows: Array, deadline: float) -> Mapping[str, Tensor]:
        predicted = predict(rows, PredictContext(deadline)).outputs
        found: dict[str, Tensor] = {model.output: outputs.values(predicted)}
        if label:
            found[label] = classes[outputs.best(predicted)]
        return found

    signature = ModelSignature(model.name, version_of(model.version), inputs, ordered, outputs.columns)
    return ServedModel(signature, infer, infer_rows, schema, model.output, model.digest, statistics, model.identity)


def input_spec(model: Model, i: int) -> TensorSpec:
    one = model.inputs[i]
    start = sum(other.width for other in model.inputs[:i])
    missing = any(feature.missing for feature in model.features[start : start + one.width])
    return TensorSpec(one.name, DATATYPES[one.type], (-1, one.width) if one.rank == 2 else (-1,), missing)


def class_tensor(outputs: OutputSchema, label_type: str) -> Tensor:
    """Returns the values of the classes for the label output. A golden.json of an older version does not name them."""
    if label_type == "tensor(string)":
        names = [str(value).encode() for value in outputs.classes or outputs.labels]
        return np.array(names, DTYPES["BYTES"])
    numbers = outputs.classes or range(len(outputs.labels))
    return np.array(list(numbers), DTYPES[LABEL_TYPES.get(label_type, "INT64")])


def rows_of_tensors(schema: RowSchema, inputs: Sequence[TensorSpec]) -> Callable[[Mapping[str, Tensor]], Array]:
    """Returns the function that joins the inputs to rows [n, features]. It raises BadRequest for values that rows cannot hold."""
    name, width = inputs[0].name, schema.width

    def matrix(tensors: Mapping[str, Tensor]) -> Array:
        return tensors[name].reshape(-1, width)

    def columns(tensors: Mapping[str, Tensor]) -> Array:
        parts = [column_values(tensors[one.name], one) for one in inputs]
        return np.concatenate(parts, axis=1).astype(schema.dtype)

    join = matrix if len(inputs) == 1 and inputs[0].datatype != "BYTES" else columns

    def checked(tensors: Mapping[str, Tensor]) -> Array:
        rows = join(tensors)
        if (wrong := schema.missing_error(rows)) is not None:
            raise BadRequest(
                f"#/inputs, row {wrong[0]}, {schema.features[wrong[1]].name}: the value is missing, and the model needs it."
            )
        return rows

    return checked if schema.has_missing else join


def column_values(tensor: Tensor, spec: TensorSpec) -> Array:
    """Returns a tensor as columns [n, width] of Python values or numbers."""
    columns = tensor.reshape(len(tensor), -1)
    if spec.datatype == "BYTES":
        found = np.empty(columns.shape, object)
        for index, value in np.ndenumerate(columns):
            found[index] = text_of(value, spec.name)
        return found
    # A comparison of integers: in float64, the next number is equal to the limit.
    if spec.datatype in ("INT64", "UINT64") and ((columns > EXACT_MAX).any() or (columns < -EXACT_MAX).any()):
        raise BadRequest(f"#/inputs: {spec.name} has a number over {EXACT_MAX} in size, which this model cannot take exactly.")
    return columns.astype(np.float64)


def text_of(value: bytes | str, name: str) -> str:
    try:
        return value if isinstance(value, str) else value.decode()
    except UnicodeDecodeError:
        raise BadRequest(f"#/inputs: {name} has a value that is not UTF-8.") from None


def version_of(version: str) -> str:
    """Returns the version for the protocol, the first number: Triton's versions are integers, and clients compare them."""
    first = version.partition(".")[0]
    return first if first.isascii() and first.isdigit() else "1"
