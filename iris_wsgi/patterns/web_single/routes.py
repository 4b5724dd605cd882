"""The web-single routes: one model, one row an answer, and a batch."""

import json
from collections.abc import Callable

import numpy as np

from iris_wsgi.codec.rows import Array, Encoder, decode_rows
from iris_wsgi.model.latency import LatencyProfile
from iris_wsgi.model.predictor import Predict
from iris_wsgi.model.session import Graph
from iris_wsgi.services import Sample, predict_context
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import Handler, Request, Response, Route, RouteDoc, Schedule
from iris_wsgi.wsgi.conditional import revalidated

Encode = Callable[[Array], bytes]

INLINE_BYTES = 16384


def routes(model: Graph, predict: Predict, sample: Sample, max_rows: int, pace: LatencyProfile) -> list[Route]:
    """All of them. By the model's `pace` small bodies are answered in the I/O loop."""
    encoder = Encoder(model.labels)
    sample_row = np.array([sample.row], np.float32)
    headers = (("X-Model-Digest", model.digest),)

    def fixed(document: object) -> Handler:
        response = Response(json.dumps(document).encode(), headers=headers)
        return lambda _: response

    def answered(rows: Array, request: Request, encode: Encode) -> Response:
        prediction = predict(rows, predict_context(request))
        return Response(encode(prediction.probabilities), headers=headers + prediction.headers, rows=len(rows))

    def of_sample(encode: Encode) -> Handler:
        return lambda request: answered(sample_row, request, encode)

    def of_rows(encode: Encode, most: int, more: str) -> Handler:
        return lambda request: answered(decode_rows(request.body, model.width, most, more), request, encode)

    def of_row(encode: Encode) -> Handler:
        return of_rows(encode, 1, "send them to /predict/batch")

    def metadata(_: Request) -> Response:
        # What it says of another half may become another.
        return Response(json.dumps(described(model, sample_row, sample.probabilities)).encode(), headers=headers)

    # A row is a digit for each feature and a comma or bracket beside it, at least.
    inline = pace.inline_bytes(INLINE_BYTES, 2 * model.width + 2)

    def get(path: str, handler: Handler, summary: str, answer: openapi.Schema, inline_bytes: int = inline) -> Route:
        return revalidated(Route("GET", path, handler, RouteDoc(summary, answer), schedule=Schedule(inline_bytes)))

    def post(path: str, handler: Handler, summary: str, answer: openapi.Schema, most: int = 1) -> Route:
        return Route("POST", path, handler, RouteDoc(summary, answer), openapi.rows(model, most), Schedule(inline))

    labels = fixed({str(i): label for i, label in enumerate(model.labels)})
    batch = of_rows(encoder.batch, max_rows, f"send them in several requests of up to {max_rows} rows")
    row, label, proba = openapi.row_answer(model), openapi.label_answer(model), openapi.proba_answer(model)
    return [
        get("/metadata", metadata, "What the model takes and gives, with a sample", openapi.OBJECT, INLINE_BYTES),
        get("/label", labels, "Class numbers and names", openapi.OBJECT, INLINE_BYTES),
        get("/predict/test", of_sample(encoder.row), "Probabilities of the sample row", row),
        get("/predict/test/label", of_sample(encoder.label), "Label of the sample row", label),
        post("/predict", of_row(encoder.row), "Probabilities of one row", row),
        post("/predict/label", of_row(encoder.label), "Label of one row", label),
        post("/predict/proba", of_row(encoder.proba), "Labels of one row with their probabilities", proba),
        post("/predict/batch", batch, "Labels and probabilities of many rows", openapi.batch_answer(model), max_rows),
    ]


def described(model: Graph, sample_row: Array, prediction: list[float]) -> dict[str, object]:
    """What GET /metadata answers: types and shapes with a sample, and where the model comes from."""
    return {
        "data_type": "float32",
        "data_structure": f"(1,{model.width})",
        "data_sample": [[float(str(value)) for value in sample_row[0]]],
        "prediction_type": "float32",
        "prediction_structure": f"(1,{len(model.labels)})",
        "prediction_sample": prediction,
        "model": {
            "name": model.name,
            "version": model.version,
            **model.identity,
            "digest": model.digest,
            "labels": model.labels,
            "features": [feature._asdict() for feature in model.features],
            "libraries": model.libraries,
        },
    }
