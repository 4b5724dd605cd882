"""Pattern web single: one model behind its own routes."""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from iris_wsgi.codec.json_documents import encode_json
from iris_wsgi.codec.model_schema import CLASSIFIER, REGRESSOR, SCORES, Array, OutputSchema
from iris_wsgi.codec.rows import Encoder, decode_row, decode_rows, finite
from iris_wsgi.errors import NotFound
from iris_wsgi.model.artifact import PROOF_TEXTS, TRAINING_FILE, read_training
from iris_wsgi.model.predictor import NEVER
from iris_wsgi.model.session import RUNTIME_VERSION, Graph
from iris_wsgi.services import RoleContext, Sample, predict_context
from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import Handler, InlineHandler, Request, Response, Route, RouteDoc, Schedule
from iris_wsgi.wsgi.conditional import conditional

# From the columns of one prediction, and from predictions [n, columns].
EncodeOne = Callable[[list[float]], bytes]
Encode = Callable[[Array], bytes]

INLINE_BYTES = 16384
# Limits of the training rows for the plot of the page.
MAX_TRAINING_ROWS = 1000
# Keeps the response below a megabyte for models with many features.
MAX_TRAINING_VALUES = 50_000
# What the routes return, in the words of their documentation.
WHAT = {CLASSIFIER: "Probabilities", SCORES: "Label and scores", REGRESSOR: "Values"}
BATCH = {CLASSIFIER: "Labels and probabilities", SCORES: "Labels and scores", REGRESSOR: "Values"}
TAG = "web single", "One model behind its own routes."
LINE: openapi.Schema = {"type": "array", "items": openapi.VALUE}
FEATURE = openapi.Component(
    "Feature",
    openapi.closed(
        name=openapi.TEXT,
        unit={"type": ["string", "null"]},
        min={"type": ["number", "null"]},
        max={"type": ["number", "null"]},
        type=openapi.TEXT,
        missing=openapi.FLAG,
    ),
)
SERVED_MODEL = openapi.with_optional(
    openapi.required(
        name=openapi.TEXT,
        version=openapi.TEXT,
        digest=openapi.TEXT,
        kind={"type": "string", "enum": list(WHAT)},
        labels=openapi.array_of(openapi.TEXT),
        features=openapi.array_of(FEATURE, 1),
        libraries=openapi.map_of(openapi.TEXT),
        proof=openapi.closed(answers=openapi.TEXT, detail=openapi.TEXT),
        runtime=openapi.closed(packed={"type": ["string", "null"]}, serving=openapi.TEXT),
    ),
    label=openapi.TEXT,
    scores=openapi.array_of(openapi.TEXT),
    values=openapi.array_of(openapi.TEXT),
)
METADATA = openapi.Component(
    "Metadata",
    openapi.closed(
        data_type=openapi.TEXT,
        data_structure=openapi.TEXT,
        data_sample=openapi.array_of(LINE, 1),
        prediction_type=openapi.TEXT,
        prediction_structure=openapi.TEXT,
        prediction_sample={"type": "array", "items": {"type": "number"}},
        model=SERVED_MODEL,
    ),
)
LABELS = openapi.Component("Labels", openapi.map_of(openapi.TEXT))
TRAINING = openapi.Component(
    "Training",
    openapi.closed(
        features=openapi.array_of(openapi.TEXT, 1),
        labels=openapi.array_of(openapi.TEXT),
        rows=openapi.array_of(LINE),
        classes=openapi.array_of(openapi.COUNT),
    ),
)


def routes(context: RoleContext) -> list[Route]:
    model, outputs, max_rows = context.model, context.outputs, context.settings.max_rows
    encoder, sample, kind = Encoder(outputs), context.sample, outputs.kind
    headers = (("X-Model-Digest", model.digest),)
    described = partial(with_headers, has_cache=context.settings.has_cache)

    def respond(rows: Array, request: Request, encode: Encode) -> Response:
        prediction = context.predict(rows, predict_context(request))
        return Response(encode(prediction.outputs), headers=headers + prediction.headers, rows=len(rows))

    def predict_sample(encode: EncodeOne) -> Handler:
        return lambda request: respond(sample.rows, request, one(encode))

    def predict_rows(encode: Encode, max_rows: int, advice: str) -> Handler:
        return lambda request: respond(decode_rows(request.body, model.schema, max_rows, advice), request, encode)

    def predict_one(encode: EncodeOne) -> Handler:
        return predict_rows(one(encode), 1, "send them to /predict/batch")

    def predict_inline(encode: EncodeOne) -> InlineHandler | None:
        predict_row, schema = context.predict_row, model.schema
        if predict_row is None:
            return None
        # A label has few different responses.
        response_of = lru_cache(len(outputs.labels) + 1)(lambda body: Response(body, headers=headers, rows=1))

        def respond_inline(body: bytes, deadline: float) -> Response | None:
            row = decode_row(body, schema)
            prediction = None if row is None else predict_row(row, deadline)
            return None if prediction is None else response_of(encode(prediction))

        return respond_inline

    # Not a constant: the digest of an upstream model can change.
    description = partial(metadata_of, model, outputs, sample)

    def metadata(_: Request) -> Response:
        return Response(encode_json(description()), headers=headers)

    def labels(_: Request) -> Response:
        return label_names

    def no_probabilities(_: Request) -> Response:
        raise NotFound("This model gives scores, not probabilities: POST /predict returns its label and its scores.")

    numbered = {str(i): name for i, name in enumerate(model.labels)}
    label_names = Response(encode_json(numbered), headers=headers)
    # The shortest JSON of a value is a digit and a comma, and that of a row has two brackets. A row by name may lack values.
    needed = model.width - sum(model.schema.optional)
    predicting = Schedule(context.latency.inline_bytes(INLINE_BYTES, 2 * needed + 2))

    def get(path: str, handler: Handler, doc: RouteDoc, schedule: Schedule = predicting) -> Route:
        return conditional(Route("GET", path, handler, described(path, doc), schedule=schedule))

    def post(path: str, handler: Handler, doc: RouteDoc, max_rows: int = 1) -> Route:
        return Route("POST", path, handler, described(path, doc), openapi.rows(model, max_rows), predicting)

    def post_row(path: str, encode: EncodeOne, doc: RouteDoc) -> Route:
        return post(path, predict_one(encode), doc)._replace(inline=predict_inline(encode))

    what, row = WHAT[kind], row_schema(outputs)
    batch = predict_rows(encoder.batch, max_rows, f"send several requests of up to {max_rows} rows")
    table = [
        get(
            "/metadata",
            metadata,
            RouteDoc("Input and output of the model, with a sample", METADATA, example=description),
            Schedule(),
        ),
        get("/predict/test", predict_sample(encoder.row), RouteDoc(f"{what} of the sample row", row)),
        post_row("/predict", encoder.row, RouteDoc(f"{what} of one row", row)),
        post("/predict/batch", batch, RouteDoc(f"{BATCH[kind]} of many rows", openapi.batch(outputs)), max_rows),
        *training_routes(model, Path(context.settings.model_dir), context.log.event),
    ]
    if kind != REGRESSOR:
        label = openapi.Component("LabelPrediction", openapi.closed(prediction=openapi.label(outputs)))
        table += [
            get("/label", labels, RouteDoc("Class numbers and names", LABELS, example=lambda: numbered), Schedule()),
            get("/predict/test/label", predict_sample(encoder.label), RouteDoc("Label of the sample row", label)),
            post_row("/predict/label", encoder.label, RouteDoc("Label of one row", label)),
        ]
    if kind == CLASSIFIER:
        best = sample.outputs[0].tolist()
        doc = RouteDoc(
            "Labels of one row with probabilities", proba_schema(outputs), example=lambda: json.loads(encoder.proba(best))
        )
        table.append(post_row("/predict/proba", encoder.proba, doc))
    if kind == SCORES:
        doc = RouteDoc("Not served: the model gives scores", openapi.DOCUMENT, success=(), failures=(404,))
        table.append(post("/predict/proba", no_probabilities, doc))
    return openapi.tagged(*TAG, table)


def with_headers(path: str, doc: RouteDoc, has_cache: bool) -> RouteDoc:
    """Adds the headers of the route to its description."""
    if not path.startswith("/predict"):
        return doc._replace(returns=("X-Model-Digest",))
    if not has_cache:
        return doc._replace(accepts=("Prefer",), returns=("X-Model-Digest",))
    return doc._replace(accepts=("Prefer", "Cache-Control"), returns=("X-Model-Digest", "Cache-Status"))


def one(encode: EncodeOne) -> Encode:
    """Returns the encoder of the first of the predictions [n, columns]. It raises PredictionFailed."""
    return lambda predictions: encode(finite(predictions)[0])


def row_schema(outputs: OutputSchema) -> openapi.Schema:
    if outputs.kind == CLASSIFIER:
        return openapi.Component("Prediction", openapi.closed(prediction=openapi.values(outputs)))
    fields = openapi.prediction(outputs)
    fields.pop("classes", None)
    return openapi.Component("Prediction", openapi.closed(**fields))


def proba_schema(outputs: OutputSchema) -> openapi.Schema:
    pair = openapi.Component("LabelProbability", openapi.closed(label=openapi.label(outputs), probability={"type": "number"}))
    pairs = openapi.listed(pair, len(outputs.labels), len(outputs.labels))
    return openapi.Component("LabelProbabilities", openapi.closed(prediction=pairs))


def metadata_of(model: Graph, outputs: OutputSchema, sample: Sample) -> dict[str, object]:
    """Returns the document of GET /metadata: types and shapes with a sample, and the origin of the model."""
    description = model.description
    return {
        "data_type": str(model.schema.dtype),
        "data_structure": f"(1,{model.width})",
        "data_sample": model.schema.to_values(sample.rows),
        "prediction_type": "float32",
        "prediction_structure": f"(1,{len(outputs.columns)})",
        "prediction_sample": outputs.values(sample.outputs)[0].tolist(),
        "model": {
            "name": model.name,
            "version": model.version,
            **model.identity,
            "digest": model.digest,
            "kind": outputs.kind,
            "labels": model.labels,
            **({} if outputs.kind == REGRESSOR else {"label": outputs.label}),
            **({} if outputs.kind == CLASSIFIER else {outputs.name: outputs.columns}),
            "features": [feature._asdict() for feature in model.features],
            "libraries": model.libraries,
            "proof": {"answers": description.proof, "detail": PROOF_TEXTS[description.proof]},
            "runtime": {"packed": description.runtime or None, "serving": f"onnxruntime {RUNTIME_VERSION}"},
        },
    }


def training_routes(model: Graph, folder: Path, log_event: Callable[[str, str], None]) -> list[Route]:
    """Returns the route of the training rows. There is none without the file, or if it belongs to another model."""
    try:
        document = training_document(model, folder)
        response = Response(encode_json(document))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        log_event("warning", f"GET /training is not served: {folder / TRAINING_FILE} is invalid: {reason}")
        return []
    doc = RouteDoc("Training rows, with their classes if the model has any", TRAINING, example=lambda: shortened(document))
    # The pool computes the ETag of this large response.
    return [conditional(Route("GET", "/training", lambda _: response, doc, schedule=Schedule(NEVER)))]


def shortened(document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the training rows without those after the third."""
    return {**document, "rows": document["rows"][:3], "classes": document["classes"][:3]}


def training_document(model: Graph, folder: Path) -> dict[str, object]:
    """Raises OSError and ValueError."""
    rows, names = read_training(model.schema, folder, min(MAX_TRAINING_ROWS, MAX_TRAINING_VALUES // model.width + 1))
    if model.description.kind == REGRESSOR:
        names = []
    elif not names:
        raise ValueError("it has no column for the label")
    if set(names) - set(model.labels):
        raise ValueError("it has classes that are not labels of the model")
    return {
        "features": [feature.name for feature in model.features],
        "labels": model.labels,
        # The shortest decimal numbers of the float32 values, as the file has them.
        "rows": model.schema.to_values(rows),
        "classes": [model.labels.index(name) for name in names],
    }
