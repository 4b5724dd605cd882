"""Clients of the Open Inference Protocol with a server of two processes: tritonclient, and the requests of kserve."""

import asyncio
import json
import struct
import subprocess
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from http_clients import ROW, HttpResponse, RawConnection
from iris_data import training_rows
from optional_programs import require_program
from server_process import start_server
from tritonclient.utils import InferenceServerException

TRAINING = np.array(training_rows(), np.float32)
MANY = np.random.default_rng(9).uniform(-2, 12, (10_000, 4)).astype(np.float32)
LABELS = ["setosa", "versicolor", "virginica"]


@pytest.fixture(scope="module")
def server() -> Iterator:
    running = start_server("--role", "synchronous", "--workers", "2")
    yield running
    running.stop()


@pytest.fixture(scope="module", params=["sync", "aio"])
def call_client(request, server) -> Iterator[Callable]:
    """Function that calls a method of tritonclient's clients, which both have."""
    url = f"{server.host}:{server.port}"
    if request.param == "sync":
        with triton.InferenceServerClient(url) as client:
            yield lambda name, *arguments, **options: getattr(client, name)(*arguments, **options)
        return
    with asyncio.Runner() as runner:

        async def made() -> triton_aio.InferenceServerClient:
            return triton_aio.InferenceServerClient(url)

        client = runner.run(made())
        yield lambda name, *arguments, **options: runner.run(getattr(client, name)(*arguments, **options))
        runner.run(client.close())


def features(rows: np.ndarray, binary: bool = True) -> list[triton.InferInput]:
    return [triton.InferInput("features", list(rows.shape), "FP32").set_data_from_numpy(rows, binary_data=binary)]


def probabilities(**options) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput("probabilities", **options)]


def test_health_metadata_configuration_and_index(call_client):
    assert call_client("is_server_live") is call_client("is_server_ready") is True
    assert call_client("is_model_ready", "iris_svc") is call_client("is_model_ready", "iris_svc", "1") is True
    assert call_client("is_model_ready", "nope") is call_client("is_model_ready", "iris_svc", "2") is False
    assert {"binary_tensor_data", "classification", "statistics"} <= set(call_client("get_server_metadata")["extensions"])
    metadata, config = call_client("get_model_metadata", "iris_svc"), call_client("get_model_config", "iris_svc", "1")
    assert [input_name["name"] for input_name in metadata["inputs"]] == [item["name"] for item in config["input"]] == ["features"]
    assert (
        [output["name"] for output in metadata["outputs"]]
        == [item["name"] for item in config["output"]]
        == ["label", "probabilities"]
    )
    assert call_client("get_model_repository_index") == [{"name": "iris_svc", "version": "1", "state": "READY", "reason": ""}]


@pytest.mark.parametrize("version", ["", "1"])
@pytest.mark.parametrize("into", [True, False], ids=["binary-in", "json-in"])
@pytest.mark.parametrize("out", [None, True, False], ids=["default-out", "binary-out", "json-out"])
def test_the_150_rows_come_back_bit_for_bit(call_client, service, into, out, version):
    outputs = (
        None if out is None else [*probabilities(binary_data=out), triton.InferRequestedOutput("label", binary_data=not out)]
    )
    result = call_client("infer", "iris_svc", features(TRAINING, into), version, outputs, request_id="7")
    expected = service.model.predict(TRAINING)
    assert result.as_numpy("probabilities").tobytes() == expected.tobytes()
    assert result.as_numpy("label").tolist() == expected.argmax(axis=1).tolist()
    output = result.get_response()
    assert (output["model_name"], output["model_version"], output["id"]) == ("iris_svc", "1", "7")
    assert result.get_output("probabilities")["shape"] == [150, 3]


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("answer_coding", [None, "gzip", "deflate"])
def test_ten_thousand_rows_in_every_coding(call_client, service, request_coding, answer_coding):
    codings = {"request_compression_algorithm": request_coding, "response_compression_algorithm": answer_coding}
    result = call_client("infer", "iris_svc", features(MANY), outputs=probabilities(), **codings)
    assert result.as_numpy("probabilities").tobytes() == service.model.predict(MANY).tobytes()


def test_classes_come_with_their_labels_in_order(call_client, service):
    (row,) = service.model.predict(np.array([ROW], np.float32)).tolist()
    for count in (1, 3, 9):
        result = call_client("infer", "iris_svc", features(np.array([ROW], np.float32)), outputs=probabilities(class_count=count))
        expected = [f"{row[i]!r}:{i}:{LABELS[i]}".encode() for i in sorted(range(3), key=lambda i: -row[i])[:count]]
        assert result.as_numpy("probabilities").tolist() == [expected]


def test_reserved_and_custom_parameters_are_accepted(call_client):
    tolerated = {"priority": 1, "sequence_id": 3, "sequence_start": True, "timeout": 5_000_000, "parameters": {"own": "x"}}
    assert call_client("infer", "iris_svc", features(TRAINING), **tolerated).as_numpy("label").shape == (150,)


FAILURES = {
    "no such model": (("infer", "nope", features(TRAINING)), "404", "Model not found; this server has iris_svc."),
    "no such version": (("infer", "iris_svc", features(TRAINING), "2"), "404", "there is version 1."),
    "no such version's metadata": (("get_model_metadata", "iris_svc", "2"), "404", "there is version 1."),
    "wrong width": (("infer", "iris_svc", features(TRAINING[:, :3])), "400", "#/inputs/0/shape must be [n, 4]"),
    "not finite": (("infer", "iris_svc", features(TRAINING * np.nan)), "400", "row 0, column 0"),
    "too many rows": (("infer", "iris_svc", features(np.repeat(MANY, 2, axis=0))), "400", "limit of 10000"),
    "too large": (("infer", "iris_svc", features(np.repeat(MANY, 8, axis=0))), "413", "over the limit of 1048576 bytes"),
    "what there is not": (("load_model", "iris_svc"), "404", "This path is not served"),
}


# aiohttp warns of a body of this size.
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
@pytest.mark.parametrize(("call", "status", "words"), FAILURES.values(), ids=FAILURES.keys())
def test_failures_arrive_as_exceptions_of_the_client_with_our_message(call_client, call, status, words):
    with pytest.raises(InferenceServerException) as failed:
        call_client(*call)
    assert failed.value.status() == status
    assert words in failed.value.message()


def test_statistics_are_exact_whichever_process_responds(call_client):
    def counts() -> tuple[int, int, int]:
        (result,) = call_client("get_inference_statistics", "iris_svc")["model_stats"]
        assert call_client("get_inference_statistics")["model_stats"] == [result]
        return result["inference_count"], result["execution_count"], result["inference_stats"]["success"]["count"]

    before = counts()
    for _ in range(20):
        call_client("infer", "iris_svc", features(TRAINING))
    assert counts() == tuple(count + more for count, more in zip(before, (3000, 20, 20), strict=True))


def test_requests_at_the_same_time_get_their_own_responses(server, service):
    with triton.InferenceServerClient(f"{server.host}:{server.port}", concurrency=8) as client:
        pending = [client.async_infer("iris_svc", features(TRAINING[i : i + 1])) for i in range(0, 150, 3)]
        found = np.concatenate([item.get_result().as_numpy("probabilities") for item in pending])
    assert found.tobytes() == service.model.predict(TRAINING)[::3].tobytes()


# kserve's InferenceRESTClient requires sixty packages. The test therefore sends its requests as httpx 0.28 does, and reads the
# responses like kserve (kserve/kserve: python/kserve/kserve/inference_client.py, InferResponse.from_bytes).


def kserve(server, method: str, path: str, body: bytes = b"", **fields: str) -> HttpResponse:
    options = {
        "host": f"{server.host}:{server.port}",
        "accept": "*/*",
        "accept-encoding": "gzip, deflate",
        "connection": "keep-alive",
        "user-agent": "python-httpx/0.28.1",
        **{name.replace("_", "-"): text for name, text in fields.items()},
    }
    if method == "POST":
        options["content-length"] = str(len(body))
    head = "".join(f"{name}: {text}\r\n" for name, text in options.items())
    with RawConnection(server) as connection:
        return connection.exchange(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)


def kserve_body(tensor: dict, **members) -> bytes:
    return json.dumps({"id": "i", "model_name": "iris_svc", "inputs": [tensor], **members}, separators=(",", ":")).encode()


TENSOR = {"name": "features", "shape": [1, 4], "datatype": "FP32"}


def test_the_kserve_client_reads_health_from_the_body(server):
    assert kserve(server, "GET", "/v2/health/live").json().get("live") is True
    assert kserve(server, "GET", "/v2/health/ready").json().get("ready") is True
    assert kserve(server, "GET", "/v2/models/iris_svc/ready").json().get("ready") is True
    assert kserve(server, "GET", "/v1/models/iris_svc").json().get("ready") is True


@pytest.mark.parametrize("out", [False, True], ids=["json-out", "binary-out"])
@pytest.mark.parametrize("into", [False, True], ids=["json-in", "binary-in"])
def test_the_kserve_client_infers(server, service, into, out):
    members = {"parameters": {"binary_data_output": True}} if out else {}
    if into:
        head = kserve_body({**TENSOR, "parameters": {"binary_data_size": 16}}, **members)
        fields = {"inference_header_content_length": str(len(head)), "content_type": "application/octet-stream"}
        response = kserve(server, "POST", "/v2/models/iris_svc/infer", head + struct.pack("<4f", *ROW), **fields)
    else:
        response = kserve(server, "POST", "/v2/models/iris_svc/infer", kserve_body({**TENSOR, "data": ROW}, **members))
    length = int(response.headers.get("inference-header-content-length", len(response.body)))
    document = json.loads(response.body[:length])
    assert (response.status, document["model_name"], document["id"]) == (200, "iris_svc", "i")
    label, found = document["outputs"]
    expected = service.model.predict(np.array([ROW], np.float32))
    if out:
        position = length + label["parameters"]["binary_data_size"]
        assert response.body[position : position + found["parameters"]["binary_data_size"]] == expected.tobytes()
    else:
        assert found["data"] == expected.ravel().tolist()
    assert found["shape"] == [1, 3]


def test_the_kserve_client_uses_v1(server, service):
    response = kserve(server, "POST", "/v1/models/iris_svc:predict", json.dumps({"instances": [ROW]}).encode())
    assert response.json() == {"predictions": service.model.predict(np.array([ROW], np.float32)).tolist()}


@pytest.mark.parametrize("path", ["/v2/models/nope/infer", "/v2/nowhere", "/v1/models/nope:predict", "/v2/models/iris_svc/infer"])
def test_the_kserve_client_finds_the_reason_of_a_failure(server, path):
    response = kserve(server, "POST", path, b"{}")
    assert response.status >= 400
    assert response.headers["content-type"] == "application/json"
    assert response.json()["error"].endswith(".")


def test_the_printed_curl_line_of_the_role_works(server):
    require_program("curl")
    line = server.startup_lines[-1].removeprefix("try: ")
    text = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout
    assert json.loads(text)["predictions"][0][0] > 0.99
