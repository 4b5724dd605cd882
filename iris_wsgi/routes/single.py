"""The web-single routes: one model, one row an answer, and a batch."""

import json
from collections.abc import Callable

import numpy as np

from iris_wsgi import openapi
from iris_wsgi.model import Model
from iris_wsgi.payload import Array, Encoder, decode_rows
from iris_wsgi.predictors import Predict
from iris_wsgi.wsgi import Request, Response, Route

Handler = Callable[[Request], Response]
Encode = Callable[[Array], bytes]


def routes(model: Model, predict: Predict, sample: list[float], max_rows: int) -> list[Route]:
    """All of them, over `predict`; `sample` is the row that /metadata shows and /predict/test answers."""
    encoder = Encoder(model.labels)
    sample_row = np.array([sample], np.float32)
    headers = (("X-Model-Digest", model.digest),)

    def fixed(document: object) -> Handler:
        response = Response(json.dumps(document).encode(), headers=headers)
        return lambda _: response

    def of_sample(encode: Encode) -> Handler:
        return lambda request: Response(encode(predict(sample_row, request.until)), headers=headers, rows=1)

    def of_rows(encode: Encode, most: int, more: str) -> Handler:
        def answer(request: Request) -> Response:
            rows = decode_rows(request.body, model.width, most, more)
            return Response(encode(predict(rows, request.until)), headers=headers, rows=len(rows))

        return answer

    def of_row(encode: Encode) -> Handler:
        return of_rows(encode, 1, "send them to /predict/batch")

    metadata = fixed(described(model, sample_row))
    labels = fixed({str(i): label for i, label in enumerate(model.labels)})
    batch = of_rows(encoder.batch, max_rows, f"send them in several requests of up to {max_rows} rows")
    one, many = openapi.rows(model, 1), openapi.rows(model, max_rows)
    row, label, proba = openapi.row_answer(model), openapi.label_answer(model), openapi.proba_answer(model)
    return [
        Route("GET", "/metadata", metadata, "What the model takes and gives, with a sample", openapi.OBJECT),
        Route("GET", "/label", labels, "Class numbers and names", openapi.OBJECT),
        Route("GET", "/predict/test", of_sample(encoder.row), "Probabilities of the sample row", row),
        Route("GET", "/predict/test/label", of_sample(encoder.label), "Label of the sample row", label),
        Route("POST", "/predict", of_row(encoder.row), "Probabilities of one row", row, one),
        Route("POST", "/predict/label", of_row(encoder.label), "Label of one row", label, one),
        Route("POST", "/predict/proba", of_row(encoder.proba), "Labels of one row with their probabilities", proba, one),
        Route("POST", "/predict/batch", batch, "Labels and probabilities of many rows", openapi.batch_answer(model), many),
    ]


def described(model: Model, sample_row: Array) -> dict[str, object]:
    """What GET /metadata answers: types and shapes with a sample, and where the model comes from."""
    prediction = model.predict(sample_row)[0].tolist()
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
            "digest": model.digest,
            "labels": model.labels,
            "features": [feature._asdict() for feature in model.features],
            "libraries": model.libraries,
        },
    }
