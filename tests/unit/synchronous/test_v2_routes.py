"""The routes of the Open Inference Protocol v2 and of KServe v1 in the whole application."""

import gzip
import json
import shutil
import struct
import warnings
import zlib

import numpy as np
import pytest
from applications import RecordingLog, call_wsgi
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from iris_data import IRIS_ROWS, training_rows
from metrics_text import sample_value
from project import MODEL
from property_tests import examples
from sealed_models import seal
from v2_vectors import (
    HEAD,
    IRIS,
    MALFORMED,
    MALFORMED_WORDS,
    MARKER,
    MAX_ROWS,
    ROW,
    ROW_BYTES,
    WORDS,
    InferRequest,
    binary_input,
    document,
    infer,
    inline,
    sized,
    with_tail,
)

from iris_wsgi.factory import build
from iris_wsgi.model.predictor import LatencyProfile
from iris_wsgi.observability.metrics import Registry
from iris_wsgi.observability.shared_memory import SharedMemory
from iris_wsgi.patterns.synchronous import v2_routes
from iris_wsgi.patterns.synchronous.served_model import ModelStatistics, ServedModel, StatisticsMetrics, version_of
from iris_wsgi.settings import Settings
from iris_wsgi.wsgi.application import App

INFER = "/v2/models/iris_svc/infer"
PREDICT = "/v1/models/iris_svc:predict"
BINARY_OUT = {"parameters": {"binary_data_output": True}}
PROBABILITIES = {"outputs": [{"name": "probabilities"}]}


class IgnoringObserver:
    """Observer that ignores all calls."""

    def __init__(self) -> None:
        self.failures = 0

    def started(self) -> None:
        pass

    def ended(self) -> None:
        pass

    def failed(self, _: str) -> None:
        self.failures += 1

    def answered(self, *_: object) -> None:
        pass


def post(app, path: str, body: bytes, header: str | None = None, **environ) -> tuple[int, dict[str, str], bytes]:
    result = {} if header is None else {"HTTP_INFERENCE_HEADER_CONTENT_LENGTH": header}
    return call_wsgi(app, "POST", path, body, CONTENT_TYPE="", **result, **environ)


def outputs_of(headers: dict[str, str], content: bytes) -> dict[str, np.ndarray]:
    """Returns the arrays of a response in JSON or in binary, by name."""
    length = headers.get("Inference-Header-Content-Length")
    assert headers["Content-Type"] == ("application/json" if length is None else "application/octet-stream")
    result, offset, found = json.loads(content[: length and int(length)]), int(length or 0), {}
    for output in result["outputs"]:
        dtype = {"FP32": "<f4", "INT64": "<i8", "BYTES": object}[output["datatype"]]
        if "data" in output:
            found[output["name"]] = np.array(output["data"], dtype).reshape(output["shape"])
            continue
        size = output["parameters"]["binary_data_size"]
        found[output["name"]] = np.frombuffer(content[offset : offset + size], dtype).reshape(output["shape"])
        offset += size
    assert offset == (int(length or 0) if length is None else len(content))
    return found


def never(*_: object):
    raise AssertionError("the model was run")


@pytest.fixture(scope="module")
def app(service) -> App:
    return service.app


def test_the_model_metadata_has_the_names_of_the_graph(app, service):
    tensors = {"features": ("FP32", [-1, 4]), "label": ("INT64", [-1]), "probabilities": ("FP32", [-1, 3])}
    result = json.loads(call_wsgi(app, "GET", "/v2/models/iris_svc")[2])
    assert (result["name"], result["versions"], result["platform"]) == ("iris_svc", ["1"], "onnx_onnxv1")
    assert {
        input_name["name"]: (input_name["datatype"], input_name["shape"]) for input_name in result["inputs"] + result["outputs"]
    } == tensors
    config = json.loads(call_wsgi(app, "GET", "/v2/models/iris_svc/versions/1/config")[2])
    assert config == {
        "name": "iris_svc",
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": 10_000,
        "input": [{"name": "features", "data_type": "TYPE_FP32", "dims": [4]}],
        "output": [
            {"name": "label", "data_type": "TYPE_INT64", "dims": [1], "reshape": {"shape": []}},
            {"name": "probabilities", "data_type": "TYPE_FP32", "dims": [3]},
        ],
        "parameters": {"digest": {"string_value": service.model.digest}},
    }


def test_every_listed_extension_exists(app):
    result = json.loads(call_wsgi(app, "GET", "/v2")[2])
    assert result["extensions"] == ["binary_tensor_data", "classification", "model_configuration", "statistics"]
    assert json.loads(call_wsgi(app, "GET", "/v2/")[2]) == result
    assert json.loads(call_wsgi(app, "GET", "/v2/models")[2]) == {"models": ["iris_svc", "iris_svc_pred"]}


def test_a_second_half_with_the_same_name_is_not_served_and_a_missing_one_is_no_error(make_app, log, model_copy):
    half = model_copy / "pred"
    shutil.rmtree(half)
    half.mkdir()
    for name in ("golden.json", "label.json", "training.csv", "iris_svc.onnx"):
        shutil.copy(model_copy / name, half)
    for why in ("has a model of the name iris_svc, which is also the name of the full model", "pred/golden.json cannot be read"):
        app = make_app(model_dir=str(model_copy)).service.app
        assert json.loads(call_wsgi(app, "GET", "/v2/models")[2]) == {"models": ["iris_svc"]}
        (result,) = [line for line in log.events() if "the second half for role prep is not served" in line.get("message", "")]
        assert result["level"] == "warning" and why in result["message"]
        log.raw_lines.clear()
        shutil.rmtree(half, ignore_errors=True)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"ready":true}', b"\xff"])
def test_the_index_accepts_any_body_or_none(app, body):
    status, _, content = post(app, "/v2/repository/index", body)
    assert status == 200
    assert json.loads(content) == [
        {"name": name, "version": "1", "state": "READY", "reason": ""} for name in ("iris_svc", "iris_svc_pred")
    ]


@pytest.mark.parametrize("path", ["/v2/models/{}", "/v2/models/{}/ready", "/v2/models/{}/config", "/v2/models/{}/stats",
                                  "/v1/models/{}"])  # fmt: skip
def test_a_model_or_version_that_is_not_served_gets_404_with_the_served_ones(app, path):
    for name, expected in (("nope", "iris_svc"), ("iris_svc/versions/2", "version 1"), ("iris_svc/versions/1.0.0", "version 1")):
        status, _, content = call_wsgi(app, "GET", path.format(name))
        assert (status, expected in json.loads(content)["error"]) == (404, True)
    assert call_wsgi(app, "GET", path.format("iris_svc/versions/1"))[0] == 200


def test_a_model_that_is_not_served_never_runs(app):
    for path in ("/v2/models/nope/infer", "/v2/models/iris_svc/versions/2/infer", "/v1/models/nope:predict"):
        status, _, content = post(app, path, b"not looked at")
        assert (status, list(json.loads(content))) == (404, ["error"])


@pytest.mark.parametrize(
    ("expected", "version"), [("1.0.0", "1"), ("12.3", "12"), ("7", "7"), ("v2", "1"), ("", "1"), ("\u0662.1", "1")]
)
def test_the_protocol_version_is_the_first_number_of_the_models_version(expected, version):
    assert version_of(expected) == version


FORMS = {
    "JSON": lambda rows: infer(inline(shape=list(rows.shape), data=rows.ravel().tolist())),
    "nested JSON": lambda rows: infer(inline(shape=list(rows.shape), data=rows.tolist())),
    "JSON, binary out": lambda rows: infer(inline(shape=list(rows.shape), data=rows.tolist()), **BINARY_OUT),
    "binary": lambda rows: with_tail(binary_input(shape=list(rows.shape), parameters=sized(rows.nbytes)), rows.tobytes()),
    "binary, binary out": lambda rows: with_tail(
        document(binary_input(shape=list(rows.shape), parameters=sized(rows.nbytes)), **BINARY_OUT), rows.tobytes()
    ),
    "raw": lambda rows: InferRequest(rows.tobytes(), "0"),
}
ROWS = {
    "training": np.array(training_rows(), np.float32),
    "random": np.random.default_rng(5).uniform(-2, 12, (1000, 4)).astype(np.float32),
    "one": np.array([ROW], np.float32),
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_every_form_agrees_bit_for_bit_with_the_web_single_routes(app, service, rows, form):
    batch = json.loads(call_wsgi(app, "POST", "/predict/batch", json.dumps({"data": rows.tolist()}).encode())[2])
    arguments = form(rows)
    status, headers, content = post(app, INFER, arguments.body, arguments.header)
    assert (status, headers["X-Model-Digest"]) == (200, service.model.digest)
    found = outputs_of(headers, content)
    assert found["probabilities"].tobytes() == np.array(batch["probabilities"], np.float32).tobytes()
    assert [batch["classes"][number] for number in found["label"]] == batch["labels"]


def test_v1_has_the_probabilities_of_predict_batch(app, service):
    rows = ROWS["training"].tolist()
    batch = json.loads(call_wsgi(app, "POST", "/predict/batch", json.dumps({"data": rows}).encode())[2])
    status, headers, content = post(app, PREDICT, json.dumps({"instances": rows}).encode())
    assert (status, headers["X-Model-Digest"]) == (200, service.model.digest)
    assert json.loads(content) == {"predictions": batch["probabilities"]}
    assert json.loads(call_wsgi(app, "GET", "/v1/models")[2]) == {"models": ["iris_svc", "iris_svc_pred"]}


def test_classes_are_written_like_tritons_with_all_digits(app):
    outputs = [{"name": "probabilities", "parameters": {"classification": 2}}]
    _, headers, content = post(app, INFER, document(inline(), outputs=outputs))
    (row,) = json.loads(call_wsgi(app, "POST", "/predict/batch", json.dumps({"data": [ROW]}).encode())[2])["probabilities"]
    expected = [f"{row[0]!r}:0:setosa", f"{row[1]!r}:1:versicolor"]
    assert outputs_of(headers, content)["probabilities"].tolist() == [expected]


@pytest.mark.parametrize(
    ("coding", "pack", "unpack"), [("gzip", gzip.compress, gzip.decompress), ("deflate", zlib.compress, zlib.decompress)]
)
def test_both_directions_may_be_compressed_and_lengths_count_decompressed_bytes(app, coding, pack, unpack):
    rows = ROWS["random"]
    plainly = FORMS["binary, binary out"](rows)
    _, headers, expected = post(app, INFER, plainly.body, plainly.header)
    assert "Content-Encoding" not in headers and headers["Vary"] == "Accept-Encoding"
    packed = {"HTTP_CONTENT_ENCODING": coding, "HTTP_ACCEPT_ENCODING": f"br, {coding}"}
    status, headers, content = post(app, INFER, pack(plainly.body), plainly.header, **packed)
    assert (status, headers["Content-Encoding"], headers["Vary"]) == (200, coding, "Accept-Encoding")
    assert unpack(content) == expected
    assert len(content) == int(headers["Content-Length"])


def test_a_bomb_an_unknown_coding_and_damage_are_refused(app):
    limit = 1_048_576
    cases = [("gzip", gzip.compress(bytes(limit + 1)), 413), ("deflate", zlib.compress(bytes(2 * limit)), 413), ("br", b"x", 415),
             ("zstd", b"x", 415), ("gzip", b"x", 400), ("gzip", gzip.compress(b"{}")[:-1], 400)]  # fmt: skip
    for path in (INFER, PREDICT):
        for coding, body, expected in cases:
            status, _, content = post(app, path, body, HTTP_CONTENT_ENCODING=coding)
            assert (status, list(json.loads(content))) == (expected, ["error"])


LIGHT = LatencyProfile(1e-5, 1e-6)


@pytest.fixture(scope="module")
def vectors_app() -> App:
    """Application with the limit of rows and the models of the vectors: the Iris model, and one with two inputs."""
    service = build(Settings(model_dir=str(MODEL), role="synchronous", max_rows=MAX_ROWS), RecordingLog())
    registry = Registry()
    tally = ModelStatistics(StatisticsMetrics(registry, ["words"]), "words")
    registry.join()

    words = ServedModel(WORDS, never, never, IRIS_ROWS, "half", "sha256:0", tally)
    table = v2_routes.routes({"words": words}, lambda: None, MAX_ROWS, LIGHT)
    return service.app, App(table, IgnoringObserver(), 1 << 20)


@pytest.mark.parametrize(("arguments", "word"), MALFORMED.values(), ids=MALFORMED.keys())
def test_an_invalid_request_gets_400_with_the_reason_and_without_its_values(vectors_app, arguments, word):
    refused(post(vectors_app[0], INFER, arguments.body, arguments.header), word)


@pytest.mark.parametrize(("arguments", "word"), MALFORMED_WORDS.values(), ids=MALFORMED_WORDS.keys())
def test_an_invalid_request_to_a_model_of_two_inputs_gets_400(vectors_app, arguments, word):
    refused(post(vectors_app[1], "/v2/models/words/infer", arguments.body, arguments.header), word)


def refused(response: tuple[int, dict[str, str], bytes], word: str) -> None:
    status, headers, content = response
    assert (status, headers["Content-Type"]) == (400, "application/json")
    assert "X-Model-Digest" not in headers
    ((name, result),) = json.loads(content).items()
    assert name == "error" and word in result and MARKER not in result


def test_a_result_of_the_model_that_is_not_finite_is_500_and_logged(make_app, log):
    app = make_app(role="synchronous")
    run = app.service.model.run
    app.service.model.run = lambda *arguments: [run(*arguments)[0] * np.nan]
    for path, body in ((INFER, document(inline())), (PREDICT, json.dumps({"instances": [ROW]}).encode())):
        status, _, content = post(app.service.app, path, body, HTTP_X_REQUEST_ID="nan")
        assert (status, "not a finite number" in json.loads(content)["error"]) == (500, True)
    assert sum(line["level"] == "error" and line["request_id"] == "nan" for line in log.events()) == 2
    for path in ("/v2/health/ready", "/v2/models/iris_svc/ready", "/v1/models/iris_svc"):
        assert "golden row" in app.get(path, status=503).json["error"]


def statistics(app, path: str = "/v2/models/iris_svc/stats") -> dict:
    (result,) = json.loads(call_wsgi(app, "GET", path)[2])["model_stats"]
    return result


def test_statistics_count_requests_rows_runs_and_times(make_app):
    app = make_app(role="synchronous").service.app
    result = statistics(app)
    stages = ["success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"]
    assert (result["name"], result["version"], result["inference_count"], result["execution_count"]) == ("iris_svc", "1", 0, 0)
    assert result["inference_stats"] == {stage: {"count": 0, "ns": 0} for stage in stages}
    arguments = FORMS["raw"](ROWS["training"])
    assert post(app, INFER, arguments.body, arguments.header)[0] == 200
    assert post(app, PREDICT, json.dumps({"instances": [ROW]}).encode())[0] == 200
    assert post(app, INFER, b"{}")[0] == 400
    result = statistics(app, "/v2/models/stats")
    assert (result["inference_count"], result["execution_count"]) == (151, 2)
    statistics_of_model = result["inference_stats"]
    assert {stage: statistics_of_model[stage]["count"] for stage in stages} == dict(
        zip(stages, (2, 1, 2, 2, 2, 2, 0, 0), strict=True)
    )
    parts = sum(statistics_of_model[stage]["ns"] for stage in stages if stage.startswith("compute_"))
    assert 0 < parts <= statistics_of_model["success"]["ns"] < 10**9 and statistics_of_model["fail"]["ns"] > 0
    assert all(type(item) is int for stage in statistics_of_model.values() for item in stage.values())
    text = call_wsgi(app, "GET", "/metrics")[2].decode()
    assert sample_value(text, "inference_rows_total", model="iris_svc") == 151
    assert sample_value(text, "inference_stages_total", model="iris_svc", stage="success") == 2
    assert (
        sample_value(text, "inference_stage_seconds_total", model="iris_svc", stage="success")
        == statistics_of_model["success"]["ns"] / 1e9
    )


def test_statistics_are_those_of_all_processes(tmp_path):
    memory, settings = SharedMemory(2), Settings(model_dir=str(MODEL), state_dir=str(tmp_path))
    apps = [build(settings, RecordingLog(), Registry(memory, slot)).app for slot in (0, 1)]
    for app, count in zip(apps, (3, 4), strict=True):
        for _ in range(count):
            assert post(app, INFER, ROW_BYTES, "0")[0] == 200
    first, second = map(statistics, apps)
    assert first == second and first["inference_count"] == first["inference_stats"]["success"]["count"] == 7


def test_times_stay_exact_up_to_a_hundred_days():
    registry = Registry()
    tally = ModelStatistics(StatisticsMetrics(registry, ["m"]), "m")
    registry.join()
    tally.count({"success": 2**53 - 2}, 1)
    tally.count({"success": 1}, 1)
    assert tally.document()["inference_stats"]["success"] == {"count": 2, "ns": 2**53 - 1}


def test_several_models_are_served_under_their_own_names():
    registry = Registry()
    tallies = StatisticsMetrics(registry, ["a", "\u00e9"])
    registry.join()
    models = {
        name: ServedModel(
            IRIS._replace(name=name, labels=(name,) * 3),
            lambda tensors, until, i=i: {"label": np.array([i]), "probabilities": np.array([[i, 0, until > 0]], np.float32)},
            never,
            IRIS_ROWS,
            "probabilities",
            f"sha256:{i}",
            ModelStatistics(tallies, name),
        )
        for i, name in enumerate(["a", "\u00e9"])
    }
    app = App(v2_routes.routes(models, lambda: None, 10, LIGHT), IgnoringObserver(), 1000)
    for i, (name, path) in enumerate((("a", "a"), ("\u00e9", "\u00c3\u00a9"))):
        _, headers, content = post(app, f"/v2/models/{path}/infer", document(inline(), parameters={"timeout": 5_000_000}))
        assert (headers["X-Model-Digest"], json.loads(content)["model_name"]) == (f"sha256:{i}", name)
        assert outputs_of(headers, content)["probabilities"].tolist() == [[i, 0, 1]]
    result = json.loads(call_wsgi(app, "GET", "/v2/models/stats")[2])["model_stats"]
    assert [(item["name"], item["execution_count"]) for item in result] == [("a", 1), ("\u00e9", 1)]


@pytest.fixture(scope="module")
def svms(tmp_path_factory) -> dict[str, tuple]:
    """scikit-learn SVM in the default export of skl2onnx with a ZipMap, by the ONNX type of its label, and the SVM itself."""
    from skl2onnx import to_onnx
    from sklearn.svm import SVC

    rows, found = ROWS["training"], {}
    numbers = np.repeat([0, 1, 2], 50)
    for datatype, target in (("INT64", numbers), ("BYTES", np.array(IRIS.labels)[numbers])):
        folder = tmp_path_factory.mktemp(datatype)
        # scikit-learn 1.9 announces the removal of SVC(probability=True), which many users have.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            svm = SVC(probability=True, random_state=0).fit(rows, target)
            (folder / "svm.onnx").write_bytes(to_onnx(svm, rows[:1]).SerializeToString())
        (folder / "label.json").write_text(json.dumps(dict(enumerate(IRIS.labels))))
        seal(folder, rows[::5].tolist())
        found[datatype] = folder, svm
    return found


@pytest.mark.long
@pytest.mark.parametrize("datatype", ["INT64", "BYTES"])
def test_a_support_vector_machine_with_a_zipmap_is_served(svms, datatype):
    folder, svm = svms[datatype]
    app = build(Settings(model_dir=str(folder), role="synchronous"), RecordingLog()).app
    result = json.loads(call_wsgi(app, "GET", "/v2/models/svm")[2])
    assert [(input_name["name"], input_name["datatype"], input_name["shape"]) for input_name in result["inputs"]] == [
        ("X", "FP32", [-1, 4])
    ]
    outputs = [("output_label", datatype, [-1]), ("output_probability", "FP32", [-1, 3])]
    assert [(output["name"], output["datatype"], output["shape"]) for output in result["outputs"]] == outputs
    rows = ROWS["training"]
    tensor = inline(name="X", shape=list(rows.shape), data=rows.ravel().tolist())
    _, headers, content = post(app, "/v2/models/svm/infer", document(tensor))
    found = outputs_of(headers, content)
    assert np.allclose(found["output_probability"], svm.predict_proba(rows), atol=1e-5)
    best = found["output_probability"].argmax(axis=1)
    assert found["output_label"].tolist() == (best.tolist() if datatype == "INT64" else [IRIS.labels[i] for i in best])


# No bytes get a 5xx. The tests of the codec try far more bytes; these tests include the application.
relaxed = settings(max_examples=examples(2000), deadline=None, suppress_health_check=list(HealthCheck))
bodies = st.binary(max_size=200) | st.just(HEAD + ROW_BYTES) | st.just(document(inline()))


@relaxed
@given(
    path=st.sampled_from([INFER, PREDICT, "/v2/models/iris_svc/versions/1/infer"]),
    body=bodies,
    position=st.integers(0, 120),
    noise=st.binary(max_size=4),
    header=st.none() | st.integers(0, 150).map(str) | st.text(max_size=4),
    coding=st.sampled_from([None, "gzip", "deflate", "identity", "x"]),
    accept=st.sampled_from([None, "gzip", "*", "deflate;q=0.1, br"]) | st.text(max_size=9),
)
def test_no_bytes_get_a_5xx(app, path, body, position, noise, header, coding, accept):
    environ = {"HTTP_CONTENT_ENCODING": coding, "HTTP_ACCEPT_ENCODING": accept}
    arguments = {name: text for name, text in environ.items() if text is not None}
    status, headers, content = post(app, path, body[:position] + noise + body[position:], header, **arguments)
    assert status in (200, 400, 415)
    if status != 200:
        assert (headers["Content-Type"], list(json.loads(content))) == ("application/json", ["error"])


def test_a_binary_label_has_eight_bytes(app):
    _, headers, content = post(app, INFER, ROW_BYTES * 2, "0")
    length = int(headers["Inference-Header-Content-Length"])
    assert struct.unpack("<2q", content[length : length + 16]) == (0, 0)
