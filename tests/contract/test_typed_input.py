"""Invalid values, missing values, and wrong outputs on every route of models of every kind."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webtest
from applications import RecordingLog, call_wsgi
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from iris_data import IRIS_ROWS
from item_stores import open_item_store
from job_requests import run_worker, worker_of
from metrics_text import sample_value
from packed_models import BROKEN, CITIES, INTEGERS, KINDS, LIMIT, ML, answers_of, feeds_of, node, seal, write, write_model
from project import MODEL
from property_tests import examples

from iris_wsgi.factory import build
from iris_wsgi.http.cache_headers import SHARED_CACHE
from iris_wsgi.model.session import load_model
from iris_wsgi.packing.folder import training_csv
from iris_wsgi.patterns.asynchronous.worker import OTHER_FEATURES
from iris_wsgi.settings import Settings

DATATYPES = {"float32": "FP32", "float64": "FP64", "bool": "BOOL", "string": "BYTES"} | {name: name.upper() for name in INTEGERS}
MIXED = "columns of several types"
MIXED_MISSING = "columns of several types with missing values"
MIXED_ROW = [31.5, "Tokyo", 3, True]
PARTLY = "float columns with missing values, and strings"
NUMERIC = "columns of several numeric types"
TREE = "tree regressor of several types with missing values"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Callable[[str], str]:
    """Function that returns the folder of a kind, written once."""
    root, written = tmp_path_factory.mktemp("kinds"), {}

    def folder(kind: str) -> str:
        if kind not in written:
            written[kind] = str(write_model(root / str(len(written)), kind))
        return written[kind]

    return folder


@pytest.fixture
def serve(make_app, folders) -> Callable[..., webtest.TestApp]:
    """Function that builds an application of the role `all` for a kind. It has no job worker."""
    return lambda kind, **options: make_app(model_dir=folders(kind), **{"role": "all", **options})


@pytest.fixture(scope="module")
def shared(folders, tmp_path_factory) -> Callable[[str], Any]:
    """Function that returns the WSGI application of a kind, for tests that only read."""
    apps: dict[str, Any] = {}

    def app(kind: str) -> Any:
        if kind not in apps:
            state = str(tmp_path_factory.mktemp("state"))
            apps[kind] = build(Settings(model_dir=folders(kind), state_dir=state), RecordingLog()).app
        return apps[kind]

    return app


def answers_of_rows(folder: str, kind: str, rows: list[list[Any]]) -> list[list[float]]:
    """Returns the values of the graph of a kind for rows."""
    return answers_of(Path(folder), KINDS[kind], rows).values


# Values that a model cannot take, and the place of the fault after "#/data".
REFUSED = {
    "a string for a number": (MIXED, ["31", "Tokyo", 3, True], "/0/0", "must be a number"),
    "a bool for a number": ("missing values", [True, 1, 1, 1], "/0/0", "must be a number or null"),
    "a number for a string": (MIXED, [31.5, 5, 3, True], "/0/1", "must be a string"),
    "half a surrogate pair": (MIXED, [31.5, "\ud800", 3, True], "/0/1", "must be a string"),
    "a fraction for an integer": (MIXED, [31.5, "Tokyo", 3.5, True], "/0/2", "must be a whole number from -"),
    "an integer over 2**53 next to floats": (MIXED, [31.5, "Tokyo", 2**53 + 1, True], "/0/2", f"from {-(2**53)} to {2**53}"),
    "an integer over 64 bits": ("int64 input", [1, 2, 3, 2**63], "/0/3", f"from {-(2**63)} to {2**63 - 1}"),
    "an integer over 32 bits": ("int32 input", [1, 2, 3, 2**31], "/0/3", f"from {-(2**31)} to {2**31 - 1}"),
    "an integer over 32 bits next to floats": (NUMERIC, [1, -(2**31) - 1, 1, 1], "/0/1", "must be a whole number from"),
    "a number over float32": ("missing values", [1, 1e39, 1, 1], "/0/1", "must be finite as a 32-bit float"),
    "a number over float32 next to float64": (NUMERIC, [1, 1, 1e39, 1e39], "/0/2", "must be finite as a 32-bit float"),
    "a number over float64": ("float64 input", [1, 10**309, 1, 1], "/0/1", "must be finite as a 64-bit float"),
    "two for a bool": (MIXED, [31.5, "Tokyo", 3, 2], "/0/3", "must be true or false"),
    "null for a number that is needed": (MIXED, [None, "Tokyo", 3, True], "/0/0", "must be a number"),
    "null for another number": ("missing values", [None, None, None, 1], "/0/1", "must be a number"),
    "null for a string": (MIXED_MISSING, [None, None, 3, True], "/0/1", "must be a string"),
    "null for an integer": (MIXED_MISSING, [None, "a", None, True], "/0/2", "must be a number"),
    "null for an integer of 64 bits": ("int64 input", [1, 2, 3, None], "/0/3", "must be a number"),
    "null for a bool": ("bool input", [True, True, True, None], "/0/3", "must be true or false"),
    "a list": (MIXED, [[31.5], "Tokyo", 3, True], "/0/0", "must be a number"),
    "an object": (MIXED, [31.5, {"a": 1}, 3, True], "/0/1", "must be a string"),
    "a short row": (MIXED, [31.5, "Tokyo", 3], "/0", "has 3 values; a row has 4"),
    "a name that is unknown": (MIXED, {**dict(zip("abcd", MIXED_ROW, strict=True))}, "/0", "has an unknown feature"),
    "a name that is absent": (MIXED, {"age": 1, "city": "a", "Member": True}, "/0", "lacks the feature visits"),
    "a name twice": (MIXED, {"age": 1, "AGE": 2, "city": "a", "visits": 1, "member": True}, "/0/age", "occurs twice"),
}


@pytest.mark.parametrize(("kind", "row", "place", "words"), REFUSED.values(), ids=REFUSED)
def test_a_value_that_the_model_cannot_take_is_refused_on_every_route(shared, kind, row, place, words):
    app, body = shared(kind), json.dumps({"data": [row]}).encode()
    for method, path in (("POST", "/predict"), ("POST", "/predict/batch"), ("POST", "/jobs"), ("PUT", "/items/a")):
        status, _, content = call_wsgi(app, method, path, body)
        faults = json.loads(content)["errors"]
        assert status == 422
        assert any(fault["pointer"] == f"#/data{place}" and words in fault["detail"] for fault in faults)
    status, _, content = call_wsgi(app, "POST", "/v1/models/packed:predict", json.dumps({"instances": [row]}).encode())
    message = json.loads(content)["error"]
    assert status == 400 and message.startswith("#/instances/0") and message.endswith(".")


def infer(app, inputs: list[dict[str, Any]], tail: bytes = b"") -> tuple[int, Any]:
    """Returns the status and the document of an inference request."""
    head = json.dumps({"inputs": inputs}).encode()
    headers = {"HTTP_INFERENCE_HEADER_CONTENT_LENGTH": str(len(head))} if tail else {}
    status, _, content = call_wsgi(app, "POST", "/v2/models/packed/infer", head + tail, **headers)
    return status, json.loads(content)


def tensor(name: str, datatype: str, *data: Any, width: int = 1) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(data) // width, width], "data": list(data)}


def mixed_tensors(**changes: Any) -> list[dict[str, Any]]:
    types = {"age": "FP32", "city": "BYTES", "visits": "INT64", "member": "BOOL"}
    values = dict(zip(types, MIXED_ROW, strict=True)) | changes
    return [tensor(name, datatype, values[name]) for name, datatype in types.items()]


REFUSED_TENSORS = {
    "null where a value is needed": (MIXED, mixed_tensors(age=None), "must be a number that is finite"),
    "null for a string": (MIXED, mixed_tensors(city=None), "must be a string"),
    "half a surrogate pair": (MIXED, mixed_tensors(city="\ud800"), "half of a surrogate pair"),
    "an integer over 2**53": (MIXED, mixed_tensors(visits=2**53 + 1), f"visits has a number over {2**53} in size"),
    "an integer under -2**53": (MIXED, mixed_tensors(visits=-(2**53) - 1), f"visits has a number over {2**53} in size"),
    "a float for an integer": (MIXED, mixed_tensors(visits=3.0), "must be a whole number"),
    "a number for a bool": (MIXED, mixed_tensors(member=1), "must be true or false"),
    "a number over float32": (MIXED, mixed_tensors(age=1e39), "finite as a 32-bit float"),
    "another datatype": (MIXED, [tensor("age", "FP64", 1.0), *mixed_tensors()[1:]], "FP32"),
    "an input less": (MIXED, mixed_tensors()[1:], 'lacks "age"'),
    "other numbers of rows": (MIXED, [tensor("age", "FP32", 1, 2), *mixed_tensors()[1:]], "different numbers of rows"),
    "null for a feature of an input that is needed": (
        "missing values",
        [tensor("input", "FP32", None, None, None, 1.0, width=4)],
        "row 0, x1: the value is missing",
    ),
    "null for a feature of an input that is needed, next to strings": (
        PARTLY,
        [tensor("numbers", "FP32", 1.0, 2.0, None, None, width=2), tensor("city", "BYTES", "a", "b")],
        "row 1, height: the value is missing",
    ),
    "null for a float64 that is needed": (
        "missing values in float64",
        [tensor("input", "FP64", None, 1.0, None, None, width=4)],
        "row 0, x3: the value is missing",
    ),
    "null for an integer": ("int64 input", [tensor("input", "INT64", 1, 2, 3, None, width=4)], "must be a whole number"),
}


@pytest.mark.parametrize(("kind", "inputs", "words"), REFUSED_TENSORS.values(), ids=REFUSED_TENSORS)
def test_a_tensor_with_a_value_that_the_model_cannot_take_is_refused(shared, kind, inputs, words):
    status, document = infer(shared(kind), inputs)
    assert status == 400 and words in document["error"]


def test_nan_in_a_binary_tensor_is_a_missing_value_where_the_model_takes_it(shared, folders):
    kind = "missing values"
    app, packed = shared(kind), KINDS[kind]
    rows = np.array([[1, 2, 3, 4], [np.nan, 2, np.nan, 4]], "<f4")
    # Other bits of NaN.
    rows.view("<u4")[1, 2] = 0xFFC12345
    entry = {"name": "input", "datatype": "FP32", "shape": [2, 4], "parameters": {"binary_data_size": rows.nbytes}}
    status, document = infer(app, [entry], rows.tobytes())
    expected = answers_of_rows(folders(kind), kind, [[1.0, 2.0, 3.0, 4.0], [None, 2.0, None, 4.0]])
    assert status == 200 and value_output(document, packed) == expected
    for place, name in (((0, 1), "x1"), ((1, 3), "x3")):
        bad = rows.copy()
        bad[place] = np.nan
        status, document = infer(app, [entry], bad.tobytes())
        assert status == 400 and f"row {place[0]}, {name}: the value is missing" in document["error"]
        bad[place] = np.inf
        status, document = infer(app, [entry], bad.tobytes())
        assert status == 400 and "must be finite, no infinity" in document["error"]
    status, _, _ = call_wsgi(app, "POST", "/v2/models/packed/infer", rows.tobytes(), HTTP_INFERENCE_HEADER_CONTENT_LENGTH="0")
    assert status == 200


def test_nan_beside_strings_is_refused_where_the_model_needs_the_value(shared):
    app = shared(PARTLY)
    rows = np.array([[np.nan, 2], [1, np.nan]], "<f4")
    city = tensor("city", "BYTES", "a", "b")
    entry = {"name": "numbers", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": rows.nbytes}}
    status, document = infer(app, [entry, city], rows.tobytes())
    assert status == 400 and "row 1, height: the value is missing" in document["error"]
    rows[1, 1] = 0
    assert infer(app, [entry, city], rows.tobytes())[0] == 200


def test_strings_of_a_binary_tensor_must_be_utf_8(shared):
    inputs = mixed_tensors()
    part = b"\x02\0\0\0\xff\xfe"
    inputs[1] = {"name": "city", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": len(part)}}
    status, document = infer(shared(MIXED), inputs, part)
    assert status == 400 and "city has a value that is not UTF-8" in document["error"]


def value_output(document: dict[str, Any], packed) -> list[list[float]]:
    (found,) = [one for one in document["outputs"] if one["name"] == packed.values]
    return np.reshape(found["data"], found["shape"]).tolist()


STRINGS = [
    "",
    " ",
    "a\0b",
    "Tokyo\0",
    "é",
    "\U0001f600",
    '"',
    "\\",
    "\u2028",
    "NaN",
    "null",
    "1",
    "x" * 300_000,
    "Tokyo",
    "tokyo",
]


def test_any_text_is_a_value_of_a_string_on_every_route(serve, folders):
    """A text that differs from a category in any character is an unknown category of the model."""
    app, packed = serve(MIXED), KINDS[MIXED]
    rows = [[1.0, text, 1, False] for text in STRINGS]
    expected = answers_of_rows(folders(MIXED), MIXED, rows)
    assert expected[STRINGS.index("Tokyo")] != expected[STRINGS.index("Tokyo\0")] == expected[0]
    for _ in range(2):
        assert app.post_json("/predict/batch", {"data": rows}).json["probabilities"] == expected
    for row, values in zip(rows, expected, strict=True):
        for _ in range(2):
            assert app.post_json("/predict", {"data": [row]}).json == {"prediction": values}
        assert app.put_json("/items/a", {"data": [row]}, status="*").json["data"] == [row]
        assert app.get("/items/a/prediction").json["probabilities"] == values
    inputs = [
        tensor("age", "FP32", *[1.0] * len(rows)),
        tensor("city", "BYTES", *STRINGS),
        tensor("visits", "INT64", *[1] * len(rows)),
        tensor("member", "BOOL", *[False] * len(rows)),
    ]
    assert value_output(app.post_json("/v2/models/packed/infer", {"inputs": inputs}).json, packed) == expected
    job = app.post_json("/jobs", {"data": rows}).json["href"]
    run_worker(app)
    assert app.get(job).json["result"]["probabilities"] == expected


@pytest.mark.parametrize("kind", ["missing values", "missing values in float64", MIXED_MISSING, NUMERIC, TREE])
def test_a_large_body_with_missing_values_and_strings_has_the_same_predictions(shared, kind):
    packed = KINDS[kind]
    rows = [packed.rows[i % len(packed.rows)] for i in range(3000)]
    names = [name for name, _, _ in packed.features]
    member = packed.values if packed.labels else "values"
    one = json.loads(call_wsgi(shared(kind), "POST", "/predict/batch", json.dumps({"data": packed.rows}).encode())[2])
    for sent in (rows, [dict(zip(names, row, strict=True)) for row in rows]):
        status, _, content = call_wsgi(shared(kind), "POST", "/predict/batch", json.dumps({"data": sent}).encode())
        assert status == 200 and json.loads(content)[member] == [one[member][i % len(packed.rows)] for i in range(3000)]


@pytest.mark.parametrize("kind", ["missing values", MIXED_MISSING])
def test_only_values_out_of_range_are_counted_and_no_missing_ones(serve, kind):
    app, packed = serve(kind, cache="off"), KINDS[kind]
    name = packed.features[0][0]
    high = max(row[0] for row in packed.rows if row[0] is not None)
    base = packed.rows[0][1:]
    for value in (None, high, high + 1):
        app.post_json("/predict", {"data": [[value, *base]]})
    app.post_json("/predict/batch", {"data": [[value, *base] for value in (None, high, high + 1, high + 2)]})
    text = app.get("/metrics").text
    assert sample_value(text, "model_input_out_of_range_total", feature=name) == 3
    if kind == MIXED_MISSING:
        assert {"age", "visits"} == {
            line.split('"')[1] for line in text.splitlines() if line.startswith("model_input_out_of_range_total{")
        }


def test_a_rounded_maximum_of_a_float32_feature_is_in_range_also_beside_other_types(make_app, tmp_path):
    folder = write_model(tmp_path / "model", MIXED)
    document = json.loads((folder / "golden.json").read_text())
    document["features"][0] |= {"min": -1.1, "max": 0.1}
    document["rows"] = document["rows"][-1:]
    (folder / "golden.json").write_text(json.dumps(document))
    app = make_app(role="all", model_dir=str(folder), cache="off")
    for value in (0.1, float(np.float32(0.1)), -1.1, float(np.float32(-1.1))):
        app.post_json("/predict", {"data": [[value, "a", 1, True]]})
        inputs = mixed_tensors(age=value)
        app.post_json("/v2/models/packed/infer", {"inputs": inputs})
    app.post_json("/predict", {"data": [[0.10001, "a", 1, True]]})
    assert sample_value(app.get("/metrics").text, "model_input_out_of_range_total", feature="age") == 1


@pytest.mark.parametrize(
    "spell", [str, str.upper, lambda name: name.replace(" ", "_"), lambda name: name.partition(" (")[0].title()]
)
def test_a_feature_may_be_spelled_without_case_unit_blanks_dots_and_underscores_on_every_route(shared, spell):
    app, packed = shared("columns of floats"), KINDS["columns of floats"]
    names = [spell(name) for name, _, _ in packed.features]
    objects = [dict(zip(names, row, strict=True)) for row in packed.rows]
    for member, path in (("data", "/predict/batch"), ("instances", "/v1/models/packed:predict"), ("data", "/jobs")):
        content = [call_wsgi(app, "POST", path, json.dumps({member: rows}).encode()) for rows in (packed.rows, objects)]
        assert content[0][0] == content[1][0] < 300 and (path == "/jobs" or content[0][2] == content[1][2])
    for rows in (packed.rows[:1], objects[:1]):
        status, _, content = call_wsgi(app, "PUT", "/items/spelled", json.dumps({"data": rows}).encode())
        assert status < 300 and json.loads(content)["data"] == packed.rows[:1]


# Outputs that are wrong for some rows.

GOOD, BAD = [0.5, -3.0, 2.5, -0.0], [LIMIT + 1, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", BROKEN)
def test_a_wrong_output_fails_the_request_and_is_not_cached(serve, kind):
    app = serve(kind)
    good = app.post_json("/predict", {"data": [GOOD]}).json
    for _ in range(2):
        for body in ({"data": [BAD]}, {"data": [BAD, GOOD]}, {"data": [GOOD, BAD]}):
            document = app.post_json("/predict/batch", body, status=500).json
            assert document["detail"].startswith("The model") and document["status"] == 500
        for path in ("/predict", "/predict/label", "/predict/proba"):
            app.post_json(path, {"data": [BAD]}, status=500)
        entry = tensor("input", "FP32", *BAD, width=4)
        assert "The model" in app.post_json("/v2/models/packed/infer", {"inputs": [entry]}, status=500).json["error"]
        app.post_json("/v1/models/packed:predict", {"instances": [BAD]}, status=500)
        app.put_json("/items/bad", {"data": [BAD]}, status="*")
        app.get("/items/bad/prediction", status=500)
    assert app.post_json("/predict", {"data": [GOOD]}).json == good


@pytest.mark.parametrize("kind", BROKEN)
def test_a_wrong_output_fails_its_job_and_no_other(serve, kind):
    app = serve(kind)
    paths = [app.post_json("/jobs", {"data": rows}).json["href"] for rows in ([GOOD], [GOOD, BAD], [GOOD, GOOD])]
    run_worker(app)
    good, bad, two = (app.get(path).json for path in paths)
    assert (good["status"], bad["status"], two["status"]) == ("succeeded", "failed", "succeeded")
    assert bad["error"].startswith("The model") and two["result"]["probabilities"] == good["result"]["probabilities"] * 2


def test_a_row_with_a_wrong_output_affects_no_row_of_the_same_run(serve):
    app = serve("fewer rows", batch_rows=16, cache="off")
    expected = app.post_json("/predict", {"data": [GOOD]}).body

    def send(i: int) -> tuple[int, bytes]:
        row = BAD if i % 4 == 0 else GOOD
        status, _, content = call_wsgi(app.service.app, "POST", "/predict", json.dumps({"data": [row]}).encode())
        return status, content

    with ThreadPoolExecutor(16) as pool:
        for i, (status, content) in enumerate(pool.map(send, range(64))):
            assert status == 500 if i % 4 == 0 else (status, content) == (200, expected)


def test_a_category_that_the_model_did_not_learn_affects_no_other_request_or_job(make_app, tmp_path):
    packed = KINDS["one input of strings"]
    encoder = node("OneHotEncoder", "input", "cities", ML, cats_strings=CITIES, zeros=0)
    folder = write(tmp_path / "model", packed._replace(nodes=[encoder, *packed.nodes[1:]], rows=packed.rows[:2]))
    app = make_app(role="all", model_dir=str(folder), batch_rows=16, cache="off")
    good, bad = packed.rows[0], ["Tokyo", "Paris"]
    expected = app.post_json("/predict", {"data": [good]}).body
    app.post_json("/predict/batch", {"data": [good, bad]}, status=400)
    entry = tensor("input", "BYTES", *bad, width=2)
    assert "categories" in app.post_json("/v2/models/packed/infer", {"inputs": [entry]}, status=400).json["error"]

    def send(i: int) -> tuple[int, bytes]:
        body = json.dumps({"data": [bad if i % 4 == 0 else good]}).encode()
        status, _, content = call_wsgi(app.service.app, "POST", "/predict", body)
        return status, content

    with ThreadPoolExecutor(16) as pool:
        for i, (status, content) in enumerate(pool.map(send, range(64))):
            assert status == 400 if i % 4 == 0 else (status, content) == (200, expected)
    jobs = [app.post_json("/jobs", {"data": [row]}).json["href"] for row in (good, bad, good)]
    run_worker(app)
    assert [app.get(job).json["status"] for job in jobs] == ["succeeded", "failed", "succeeded"]
    assert "categories" in app.get(jobs[1]).json["error"]
    app.put_json("/items/a", {"data": [bad]})
    assert app.get("/items/a/prediction", status=409).json["detail"].endswith("PUT the item again.")


# Options that change how rows reach the model.

EVERY_SCHEMA = [
    "float64 input",
    "int64 input",
    "bool input",
    MIXED_MISSING,
    NUMERIC,
    "one input of strings",
    PARTLY,
    "missing values",
    "the label of the graph",
    "one score",
    "regressor of three targets",
    TREE,
    "map of strings",
]


@pytest.mark.parametrize("kind", EVERY_SCHEMA)
@pytest.mark.parametrize(
    "options",
    [{"role": "web_single", "batch_rows": 8, "deadline_ms": 60_000}, {"role": "prediction_cache", "batch_rows": 8}],
    ids=["deadline", "cache"],
)
def test_every_schema_has_the_same_predictions_in_batches_with_deadlines_and_from_the_cache(serve, shared, kind, options):
    app, packed = serve(kind, **options).service.app, KINDS[kind]
    bodies = [json.dumps({"data": [row]}).encode() for row in packed.rows]
    expected = [call_wsgi(shared(kind), "POST", "/predict", body)[2] for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda body: call_wsgi(app, "POST", "/predict", body)[2], bodies * 4))
    assert found == expected * 4
    # More rows than a run has with a deadline.
    rows = [packed.rows[i % len(packed.rows)] for i in range(2500)]
    status, _, content = call_wsgi(app, "POST", "/predict/batch", json.dumps({"data": rows}).encode())
    values = json.loads(content).popitem()[1]
    assert status == 200 and values == [values[i % len(packed.rows)] for i in range(2500)]


# Rows of another model in the stores.

STORED = ["missing values", "float64 input", "int64 input", MIXED, "one input of strings", "regressor", TREE]


def fits_iris(rows: list[list[Any]], kind: str) -> bool:
    """Returns whether the shipped model takes rows of a kind: four float32 values, and none missing."""
    kinds = [(kind, missing) for _, kind, missing in KINDS[kind].features]
    return [name for name, _ in kinds] == ["float32"] * 4 and not any(None in row for row in rows)


@pytest.mark.parametrize("kind", STORED)
def test_items_and_jobs_of_one_model_are_refused_by_another_and_kept(folders, make_app, tmp_path, kind):
    def start(folder: str) -> webtest.TestApp:
        return make_app(role="all", model_dir=folder, state_dir=str(tmp_path / "state"))

    rows, ours = KINDS[kind].rows, [5.1, 3.5, 1.4, 0.2]
    app = start(folders(kind))
    app.put_json("/items/theirs", {"data": rows[-1:]})
    job = app.post_json("/jobs", {"data": rows}).json["href"]
    iris = start(str(MODEL))
    assert iris.get("/items/theirs").json["data"] == rows[-1:]
    response = iris.get("/items/theirs/prediction", status=200 if fits_iris(rows[-1:], kind) else 409)
    if response.status_int == 409:
        is_narrow = len(rows[-1]) < 4
        reason = "2 features, and the model requires 4" if is_narrow else "values that do not fit the features of the model"
        assert response.json["detail"] == f"The item has {reason}; PUT the item again."
    run_worker(iris)
    assert iris.get(job).json.get("error") == (None if fits_iris(rows, kind) else OTHER_FEATURES)
    iris.put_json("/items/ours", {"data": [ours]})
    job = iris.post_json("/jobs", {"data": [ours]}).json["href"]
    app = start(folders(kind))
    fits = fits_iris([], kind)
    assert app.get("/items/ours").json["data"] == [ours]
    app.get("/items/ours/prediction", status=200 if fits else 409)
    run_worker(app)
    assert app.get(job).json.get("error") == (None if fits else OTHER_FEATURES)
    app.get("/items/theirs/prediction")


def test_items_and_jobs_of_an_older_version_still_work(make_app, tmp_path):
    """An older version stores a job as the width and float32 values, and an item as float32 values."""
    row = np.array([5.1, 3.5, 1.4, 0.2], "<f4").tobytes()
    app = make_app(role="all")
    job = worker_of(app).store.submit(b"\x04\0\0\0" + row)
    with closing(open_item_store(str(tmp_path / "state/items.db"))) as store:
        store.put("old", row)
    run_worker(app)
    assert app.get(f"/jobs/{job.id}").json["result"]["labels"] == ["setosa"]
    assert app.get("/items/old").json["data"] == [[5.1, 3.5, 1.4, 0.2]]
    assert app.get("/items/old/prediction").json["label"] == "setosa"
    # The bytes of new rows are the same.
    assert IRIS_ROWS.pack(np.frombuffer(row, "<f4").reshape(1, 4)) == row


@pytest.mark.parametrize("kind", [MIXED_MISSING, "missing values", "one input of strings", TREE, "scores"])
def test_the_second_level_of_the_caches_holds_the_rows_of_every_schema(serve, kind, shared_redis):
    shared_redis.execute("FLUSHALL")
    packed = KINDS[kind]
    options = {"cache_redis_url": shared_redis.url, "cache": "on", "redis_url": shared_redis.url}
    first, second = serve(kind, **options), serve(kind, **options)
    member = {"regressor": "values", "scores": "scores"}.get(packed.members.get("kind"), "probabilities")
    expected = first.post_json("/predict/batch", {"data": packed.rows}).json
    for i, row in enumerate(packed.rows):
        response = second.post_json("/predict", {"data": [row]})
        found = response.json.get("prediction", response.json.get(member))
        assert found == expected[member][i] and f"{SHARED_CACHE}; hit" in response.headers["Cache-Status"]
        first.put_json(f"/items/i{i}", {"data": [row]})
        assert first.get(f"/items/i{i}/prediction").json[member] == expected[member][i]
        assert second.get(f"/items/i{i}").json["data"] == [row]
        assert second.get(f"/items/i{i}/prediction").json[member] == expected[member][i]
    job = first.post_json("/jobs", {"data": packed.rows}, headers={"Idempotency-Key": "k"}).json["href"]
    run_worker(second)
    assert first.get(job).json["result"] == expected
    assert second.post_json("/jobs", {"data": packed.rows}, headers={"Idempotency-Key": "k"}).json["href"] == job


@pytest.mark.parametrize("kind", [MIXED_MISSING, "one input of strings", "scores", "regressor of three targets"])
def test_a_separate_worker_executes_jobs_of_every_schema(serve, kind):
    packed, roles = KINDS[kind], ("asynchronous", "worker")
    app, worker = (serve(kind, role=role) for role in roles)
    job = app.post_json("/jobs", {"data": packed.rows}).json["href"]
    run_worker(worker)
    expected = serve(kind).post_json("/predict/batch", {"data": packed.rows}).json
    assert app.get(job).json["result"] == expected


def test_two_folders_of_one_graph_with_other_labels_do_not_share_entries(make_app, tmp_path, shared_redis):
    """The digest of a model is that of its graph. golden.json says which label is served, and the order of the classes."""
    shared_redis.execute("FLUSHALL")
    kinds = ("the label of the graph", "the label of the highest probability")
    row = KINDS[kinds[0]].rows[2]
    options = {"role": "all", "cache_redis_url": shared_redis.url, "cache": "on"}
    apps = [make_app(model_dir=str(write_model(tmp_path / str(i), kind)), **options) for i, kind in enumerate(kinds)]
    assert apps[0].service.model.digest == apps[1].service.model.digest
    for _ in range(2):
        assert [app.post_json("/predict/label", {"data": [row]}).json["prediction"] for app in apps] == ["yes", "no"]


# Training rows.


@pytest.mark.parametrize("kind", KINDS)
def test_the_training_rows_of_every_schema_are_served_and_are_the_first_items(make_app, tmp_path, kind):
    packed, folder = KINDS[kind], write_model(tmp_path / "model", kind)
    features = load_model(folder)[0].features
    labels = answers_of(folder, packed, packed.rows).labels
    (folder / "training.csv").write_bytes(training_csv(features, packed.rows, labels if packed.labels else None))
    document = json.loads((folder / "golden.json").read_text())
    del document["files"]
    seal(folder, document)
    app = make_app(role="all", model_dir=str(folder))
    document = app.get("/training").json
    assert document["features"] == [name for name, _, _ in packed.features] and document["rows"] == packed.rows
    assert [document["labels"][i] for i in document["classes"]] == (labels if packed.labels else [])
    for i, row in enumerate(packed.rows):
        assert app.get(f"/items/{i:04d}").json["data"] == [row]
        app.get(f"/items/{i:04d}/prediction")


BAD_TRAINING = {
    "empty": ("", "it has other columns than the model has features"),
    "no rows": ("age,city,visits,member,label\n", "it has no rows"),
    "another order of columns": ("city,age,visits,member,label\nTokyo,1,1,true,a\n", "it has other columns"),
    "a fraction for an integer": ("age,city,visits,member,label\n1,Tokyo,1.5,true,a\n", "do not fit the features"),
    "a text for a number": ("age,city,visits,member,label\nx,Tokyo,1,true,a\n", "do not fit the features"),
    "NaN for a number": ("age,city,visits,member,label\n1,a,1,true,a\nnan,Tokyo,1,true,a\n", "do not fit the features"),
    "an empty cell": ("age,city,visits,member,label\n,Tokyo,1,true,a\n", "do not fit the features"),
    "a short line": ("age,city,visits,member,label\n1,Tokyo\n", "do not fit the features"),
    "two for a bool": ("age,city,visits,member,label\n1,Tokyo,1,2,a\n", "do not fit the features"),
    "another label": ("age,city,visits,member,label\n1,Tokyo,1,true,z\n", "classes that are not labels"),
    "no label": ("age,city,visits,member\n1,Tokyo,1,true\n", "no column for the label"),
    "Latin-1": ("age,city,visits,member,label\n1,Zürich,1,true,a\n", "not a CSV in UTF-8"),
}


@pytest.mark.parametrize(("text", "words"), BAD_TRAINING.values(), ids=BAD_TRAINING)
def test_training_rows_that_do_not_fit_the_model_are_not_served_and_the_log_names_the_reason(
    make_app, tmp_path, log, text, words
):
    folder = write_model(tmp_path / "model", MIXED)
    (folder / "training.csv").write_text(text, encoding="latin-1")
    document = json.loads((folder / "golden.json").read_text())
    del document["files"]
    seal(folder, document)
    app = make_app(role="all", model_dir=str(folder))
    app.get("/training", status=404)
    (message,) = [
        event["message"] for event in log.events() if event.get("message", "").startswith("GET /training is not served")
    ]
    assert words in message
    app.post_json("/predict", {"data": [MIXED_ROW]})


# Any document.

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([2**53 + 1, 2**63, 1e39])
)
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)
relaxed = settings(max_examples=examples(300), deadline=None, suppress_health_check=list(HealthCheck))


def almost_rows(kind: str) -> st.SearchStrategy:
    """Returns rows with values of the right types, as lists or by name, of which some are damaged."""
    packed = KINDS[kind]
    values = [st.sampled_from([row[j] for row in packed.rows]) | scalars for j in range(len(packed.features))]
    names = [name for name, _, _ in packed.features]
    spelled = st.sampled_from(names) | st.sampled_from(names).map(str.upper) | st.text(max_size=3)
    by_name = st.fixed_dictionaries(dict(zip(names, values, strict=True))) | st.dictionaries(spelled, scalars, max_size=5)
    return st.lists(st.tuples(*values).map(list) | by_name | documents, max_size=4)


@relaxed
@given(data=st.data())
@pytest.mark.parametrize("kind", [TREE, "one input of strings"])
def test_no_rows_of_any_form_get_a_5xx(shared, kind, data):
    rows = data.draw(almost_rows(kind) | documents)
    for method, path in (("POST", "/predict/batch"), ("POST", "/jobs"), ("PUT", "/items/a")):
        status, _, content = call_wsgi(shared(kind), method, path, json.dumps({"data": rows}).encode())
        assert status in (200, 201, 202, 400, 422)
        if status == 422:
            assert json.loads(content)["errors"]
    status, _, content = call_wsgi(shared(kind), "POST", "/v1/models/packed:predict", json.dumps({"instances": rows}).encode())
    assert status in (200, 400)


@relaxed
@given(data=st.data())
@pytest.mark.parametrize("kind", [TREE, PARTLY, "missing values", "columns of rank one", "columns of every integer type"])
def test_no_tensors_of_any_form_get_a_5xx(shared, kind, data):
    packed = KINDS[kind]
    inputs = [
        {
            "name": name,
            "datatype": DATATYPES[next(one.type for one in packed.inputs if one.name == name)],
            "shape": list(array.shape),
            "data": [None if value != value else value for value in array.ravel().tolist()],
        }
        for name, array in feeds_of(packed, packed.rows).items()
    ]
    assert infer(shared(kind), json.loads(json.dumps(inputs)))[0] == 200
    for _ in range(data.draw(st.integers(1, 3))):
        entry = data.draw(st.sampled_from(inputs))
        if data.draw(st.booleans()) and isinstance(entry.get("data"), list) and entry["data"]:
            entry["data"][data.draw(st.integers(0, len(entry["data"]) - 1))] = data.draw(scalars)
        else:
            entry[data.draw(st.sampled_from(["name", "datatype", "shape", "data", "parameters"]))] = data.draw(
                documents | st.sampled_from(["FP64", "BYTES", "INT64", [1, 1], [2, 2], [0, 1]])
            )
    assert infer(shared(kind), inputs)[0] in (200, 400)
