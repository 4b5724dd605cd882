"""The OpenAPI document: named schemas, examples, and its size for models with many features."""

import json

import pytest
from chosen_models import Feature, one_input_graph, pack_graph
from openapi_documents import example_in

from iris_wsgi.wsgi import openapi
from iris_wsgi.wsgi.application import Response, Route, RouteDoc
from iris_wsgi.wsgi.openapi import Component, closed

FEATURES = 5000


def documented(*schemas: openapi.Schema, values: dict | None = None, **doc) -> dict:
    """Returns the document of a route for each schema of a response."""
    routes = [Route("GET", f"/{i}", lambda _: Response(b""), RouteDoc("x", schema, **doc)) for i, schema in enumerate(schemas)]
    return openapi.document(routes, "1.0", examples=values)


def media_type(document: dict, path: str = "/0") -> dict:
    return document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]


def test_a_named_schema_is_stored_once_and_another_one_of_its_name_gets_a_number():
    number, text = Component("Value", {"type": "number"}), Component("Value", {"type": "string"})
    document = documented(number, Component("Value", {"type": "number"}), text, openapi.array_of(number))
    schemas = document["components"]["schemas"]
    assert schemas["Value"] == {"type": "number"} and schemas["Value2"] == {"type": "string"}
    assert [media_type(document, f"/{i}")["schema"].get("$ref") for i in range(3)] == [
        f"#/components/schemas/{name}" for name in ("Value", "Value", "Value2")
    ]
    assert media_type(document, "/3")["schema"]["items"] == {"$ref": "#/components/schemas/Value"}


def test_the_schema_of_an_object_without_a_name_gets_that_of_its_operation():
    document = documented(closed(a=openapi.TEXT))
    assert media_type(document)["schema"] == {"$ref": "#/components/schemas/Get0Response"}


@pytest.mark.parametrize(
    ("schema", "example"),
    [
        (closed(a=openapi.COUNT, b=openapi.TRUE, c=openapi.TIME), {"a": 0, "b": True, "c": openapi.EXAMPLE_TIME}),
        (openapi.array_of(openapi.nullable({"type": "number"}), 2), [0.5, 0.5]),
        (openapi.with_optional(openapi.required(a=openapi.TEXT), b=openapi.TEXT), {"a": "text"}),
        (closed(row=Component("Row", openapi.array_of(openapi.VALUE))), {"row": [1, "x"]}),
        (openapi.map_of(openapi.TEXT), {}),
    ],
)
def test_an_operation_without_an_example_shows_the_simplest_value_or_that_of_its_named_schemas(schema, example):
    assert media_type(documented(schema, values={"Row": [1, "x"]}))["example"] == example


def test_long_examples_are_stored_once_and_very_long_ones_are_left_out():
    long, longer = ["x" * openapi.MAX_INLINE_EXAMPLE], ["x" * openapi.MAX_EXAMPLE]
    texts = openapi.array_of(openapi.TEXT)
    document = documented(texts, texts, example=lambda: long)
    assert len(document["components"]["examples"]) == 1
    assert [example_in(document, media_type(document, path)) for path in ("/0", "/1")] == [long, long]
    assert example_in(document, media_type(documented(texts, example=lambda: longer))) is None


def test_the_document_of_a_model_with_thousands_of_features_is_short_and_written_at_the_first_request(make_app, tmp_path):
    features = [Feature(f"feature_{i:04d}", "cm", -2.0, 2.0) for i in range(FEATURES)]
    rows = [[0.125 * (i % 8 + j) for i in range(FEATURES)] for j in range(3)]
    graph = one_input_graph(FEATURES, 3, classes=[0, 1, 2], softmax=True, name="wide")
    folder = pack_graph(tmp_path / "model", graph, rows, ("x", "y", "z"), features=features, classes=(0, 1, 2))
    body = make_app(model_dir=str(folder)).get("/openapi.json").body
    assert len(body) < 700_000
    document = json.loads(body)
    example = example_in(document, document["paths"]["/predict/label"]["post"]["requestBody"]["content"]["application/json"])
    assert example == {"data": rows[:1]}
