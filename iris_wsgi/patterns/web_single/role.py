"""Pattern web single: one model behind its own routes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from iris_wsgi.codec.rows import Array, Encoder, decode_rows
from iris_wsgi.model.session import Graph
from iris_wsgi.patterns.web_single.training_routes import training_routes
from iris_wsgi.services import RoleContext, predict_context
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import Handler, Request, Response, Route, RouteDoc, Schedule
from iris_wsgi.wsgi.conditional import conditional

Encode = Callable[[Array], bytes]

INLINE_BYTES = 16384


def routes(context: RoleContext) -> list[Route]:
    model, max_rows = context.model, context.settings.max_rows
    encoder, sample_row = Encoder(model.labels), np.array([context.sample.row], np.float32)
    headers = (("X-Model-Digest", model.digest),)

    def respond(rows: Array, request: Request, encode: Encode) -> Response:
        prediction = context.predict(rows, predict_context(request))
        return Response(encode(prediction.probabilities), headers=headers + prediction.headers, rows=len(rows))

    def predict_sample(encode: Encode) -> Handler:
        return lambda request: respond(sample_row, request, encode)

    def predict_rows(encode: Encode, max_rows: int, advice: str) -> Handler:
        return lambda request: respond(decode_rows(request.body, model.width, max_rows, advice), request, encode)

    def predict_row(encode: Encode) -> Handler:
        return predict_rows(encode, 1, "send them to /predict/batch")

    def metadata(_: Request) -> Response:
        # Not a constant: the digest of an upstream model can change.
        return Response(json.dumps(metadata_of(model, sample_row, context.sample.probabilities)).encode(), headers=headers)

    def labels(_: Request) -> Response:
        return label_names

    label_names = Response(json.dumps({str(i): name for i, name in enumerate(model.labels)}).encode(), headers=headers)
    # The shortest JSON of a value is a digit and a comma, and that of a row has two brackets.
    predicting = Schedule(context.latency.inline_bytes(INLINE_BYTES, 2 * model.width + 2))
    label, probabilities = openapi.label(model), openapi.probabilities(model)

    def get(path: str, handler: Handler, doc: RouteDoc, schedule: Schedule = predicting) -> Route:
        return conditional(Route("GET", path, handler, doc, schedule=schedule))

    def post(path: str, handler: Handler, doc: RouteDoc, max_rows: int = 1) -> Route:
        return Route("POST", path, handler, doc, openapi.rows(model, max_rows), predicting)

    row = openapi.closed(prediction=probabilities)
    one_label = openapi.closed(prediction=label)
    pair = openapi.closed(label=label, probability={"type": "number"})
    proba = openapi.closed(prediction=openapi.listed(pair, len(model.labels), len(model.labels)))
    batch = predict_rows(encoder.batch, max_rows, f"send several requests of up to {max_rows} rows")
    return [
        get("/metadata", metadata, RouteDoc("Input and output of the model, with a sample", openapi.OBJECT), Schedule()),
        get("/label", labels, RouteDoc("Class numbers and names", openapi.OBJECT), Schedule()),
        get("/predict/test", predict_sample(encoder.row), RouteDoc("Probabilities of the sample row", row)),
        get("/predict/test/label", predict_sample(encoder.label), RouteDoc("Label of the sample row", one_label)),
        post("/predict", predict_row(encoder.row), RouteDoc("Probabilities of one row", row)),
        post("/predict/label", predict_row(encoder.label), RouteDoc("Label of one row", one_label)),
        post("/predict/proba", predict_row(encoder.proba), RouteDoc("Labels of one row with probabilities", proba)),
        post("/predict/batch", batch, RouteDoc("Labels and probabilities of many rows", batch_schema(model)), max_rows),
        *training_routes(model, Path(context.settings.model_dir), context.log.event),
    ]


def batch_schema(model: Graph) -> openapi.Schema:
    many = {"type": "array", "minItems": 1}
    return openapi.closed(
        classes=openapi.listed(openapi.label(model), len(model.labels), len(model.labels)),
        labels=many | {"items": openapi.label(model)},
        probabilities=many | {"items": openapi.probabilities(model)},
    )


def metadata_of(model: Graph, sample_row: Array, probabilities: list[float]) -> dict[str, object]:
    """Returns the document of GET /metadata: types and shapes with a sample, and the origin of the model."""
    return {
        "data_type": "float32",
        "data_structure": f"(1,{model.width})",
        "data_sample": [[float(str(value)) for value in sample_row[0]]],
        "prediction_type": "float32",
        "prediction_structure": f"(1,{len(model.labels)})",
        "prediction_sample": probabilities,
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
