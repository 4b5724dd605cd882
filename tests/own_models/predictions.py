"""Predictions of a packed model by each way: HTTP, the protocol v2 in JSON and in binary, and the batch command."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from applications import RecordingLog, call_wsgi
from http_clients import RawConnection
from server_process import start_server

from iris_wsgi.factory import build
from iris_wsgi.settings import Settings

# Bound on the numbers in one request, so that rows of thousands of features fit into the limit of a body.
MAX_VALUES = 40_000
# Rows that are also sent alone and by name.
FEW = 3
V2_TYPES = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8", "INT32": "<i4", "BOOL": "?"}
LENGTH = "Inference-Header-Content-Length"


class WrongResponse(Exception):
    """A response that has another status or another form than expected."""


class Predictions(NamedTuple):
    """Label of each row, None if this way has none, and values [rows, columns]. `raw` labels are values of the graph."""

    way: str
    labels: list[Any] | None
    values: np.ndarray
    raw: bool = False


# Sends a request: method, path, body, header fields. Returns the status, the header fields in lower case, and the body.
Send = Callable[[str, str, bytes, Mapping[str, str]], tuple[int, Mapping[str, str], bytes]]


class Rows(NamedTuple):
    """Rows as JSON values in the order of the features, and the names of the features."""

    values: list[list[Any]]
    names: list[str]

    def chunks(self) -> Iterator[list[list[Any]]]:
        step = max(1, MAX_VALUES // len(self.names))
        for start in range(0, len(self.values), step):
            yield self.values[start : start + step]


def json_rows(rows: Any, features: Sequence[Mapping[str, Any]]) -> Rows:
    """Converts an array or a DataFrame. Columns of a DataFrame are found by name, and a missing number becomes None."""
    names = [feature["name"] for feature in features]
    if isinstance(rows, pd.DataFrame):
        columns = [rows[name] if name in rows else rows.iloc[:, place] for place, name in enumerate(names)]
        values = [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    else:
        values = np.asarray(rows).reshape(len(rows), -1).tolist()
    # NaN is the only value that differs from itself.
    return Rows([[None if value != value else value for value in row] for row in values], names)


@contextmanager
def application(folder: Path, state: Path) -> Iterator[Send]:
    """Builds the application in this process."""
    service = build(Settings(model_dir=str(folder), state_dir=str(state)), RecordingLog())

    def send(method: str, path: str, body: bytes, fields: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
        environ = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in fields.items()}
        status, headers, content = call_wsgi(service.app, method, path, body, **environ)
        return status, {name.lower(): value for name, value in headers.items()}, content

    yield send


@contextmanager
def server(folder: Path, _: Path) -> Iterator[Send]:
    """Starts a server process."""
    process = start_server("--model-dir", str(folder))
    connection = RawConnection(process)

    def send(method: str, path: str, body: bytes, fields: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in fields.items())]
        lines += [f"Content-Length: {len(body)}", "Content-Type: application/json"]
        response = connection.exchange("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        return response.status, response.headers, response.body

    try:
        yield send
    finally:
        connection.socket.close()
        process.stop()


def ask(send: Send, method: str, path: str, document: Any = None, expected_status: int = 200) -> Any:
    """Sends a request in JSON and returns the document of the response. Raises WrongResponse for another status."""
    body = b"" if document is None else json.dumps(document).encode()
    status, _, content = send(method, path, body, {})
    if status != expected_status:
        raise WrongResponse(f"{method} {path} has the status {status}: {content[:300].decode(errors='replace')}")
    return json.loads(content)


def by_http(send: Send, rows: Rows, kind: str) -> Predictions:
    """Asks `POST /predict/batch` for all rows, and the other routes for a few rows, which must give the same predictions."""
    member = {"classifier": "probabilities", "scores": "scores", "regressor": "values"}[kind]
    parts = [ask(send, "POST", "/predict/batch", {"data": chunk}) for chunk in rows.chunks()]
    labels = None if kind == "regressor" else [label for part in parts for label in part["labels"]]
    values = np.array([row for part in parts for row in part[member]], float)
    for place, row in enumerate(rows.values[:FEW]):
        one = ask(send, "POST", "/predict", {"data": [row]})
        same("POST /predict", one["prediction" if kind == "classifier" else member], values[place])
        named = {name: value for name, value in zip(rows.names, row, strict=True) if value is not None}
        document = ask(send, "POST", "/predict/batch", {"data": [named]})
        same("a row by name", document[member][0], values[place])
        if labels is not None:
            label = ask(send, "POST", "/predict/label", {"data": [row]})["prediction"]
            same_label("POST /predict/label", label, labels[place])
            same_label("a row by name", document["labels"][0], labels[place])
        if kind == "classifier":
            pairs = ask(send, "POST", "/predict/proba", {"data": [row]})["prediction"]
            same("POST /predict/proba", [pair["probability"] for pair in pairs], values[place])
    check_absent_routes(send, rows, kind)
    return Predictions("http", labels, values)


def check_absent_routes(send: Send, rows: Rows, kind: str) -> None:
    """Raises WrongResponse if a model without probabilities or labels serves them."""
    for path in {"classifier": (), "scores": ("/predict/proba",), "regressor": ("/predict/proba", "/predict/label")}[kind]:
        status, _, _ = send("POST", path, json.dumps({"data": rows.values[:1]}).encode(), {})
        if status not in (404, 405):
            raise WrongResponse(f"POST {path} has the status {status} for a model of the kind {kind}")


def same(way: str, found: Any, expected: Any) -> None:
    if not np.allclose(np.array(found, float), expected, rtol=1e-5, atol=1e-6):
        raise WrongResponse(f"{way} gives other values than POST /predict/batch")


def same_label(way: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise WrongResponse(f"{way} gives the label {found}, and POST /predict/batch gives {expected}")


class V2Model(NamedTuple):
    """Signature of a model in the protocol v2."""

    name: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]

    def infer_path(self) -> str:
        return f"/v2/models/{self.name}/infer"


def v2_model(send: Send, name: str) -> V2Model:
    document = ask(send, "GET", f"/v2/models/{name}")
    return V2Model(document["name"], document["inputs"], document["outputs"])


def columns_of(place: int, specs: Sequence[Mapping[str, Any]], chunk: list[list[Any]]) -> list[list[Any]]:
    """Returns the columns of an input. The inputs take the columns in their order."""
    widths = [spec["shape"][1] if len(spec["shape"]) > 1 else 1 for spec in specs]
    start = sum(widths[:place])
    return [row[start : start + widths[place]] for row in chunk]


def by_v2_json(send: Send, rows: Rows, model: V2Model) -> Predictions:
    """Sends all rows as tensors in JSON."""
    found: dict[str, list[np.ndarray]] = {}
    for chunk in rows.chunks():
        inputs = []
        for place, spec in enumerate(model.inputs):
            part = columns_of(place, model.inputs, chunk)
            shape = [len(part), len(part[0])][: len(spec["shape"])]
            data = [value for row in part for value in row]
            inputs.append({"name": spec["name"], "datatype": spec["datatype"], "shape": shape, "data": data})
        document = ask(send, "POST", model.infer_path(), {"inputs": inputs})
        for output in document["outputs"]:
            kind = object if output["datatype"] == "BYTES" else None
            found.setdefault(output["name"], []).append(np.array(output["data"], kind).reshape(output["shape"]))
    return v2_predictions("v2 JSON", model, {name: np.concatenate(parts) for name, parts in found.items()})


def by_v2_binary(send: Send, rows: Rows, model: V2Model) -> Predictions:
    """Sends all rows as binary tensors, and requests binary outputs."""
    found: dict[str, list[np.ndarray]] = {}
    for chunk in rows.chunks():
        inputs, tail = [], b""
        for place, spec in enumerate(model.inputs):
            part = columns_of(place, model.inputs, chunk)
            data = encoded(part, spec["datatype"])
            shape = [len(part), len(part[0])][: len(spec["shape"])]
            size = {"binary_data_size": len(data)}
            inputs.append({"name": spec["name"], "datatype": spec["datatype"], "shape": shape, "parameters": size})
            tail += data
        head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
        status, headers, content = send("POST", model.infer_path(), head + tail, {LENGTH: str(len(head))})
        if status != 200:
            raise WrongResponse(f"binary inference has the status {status}: {content[:300].decode(errors='replace')}")
        for name, tensor in decoded(content, int(headers[LENGTH.lower()])).items():
            found.setdefault(name, []).append(tensor)
    return v2_predictions("v2 binary", model, {name: np.concatenate(parts) for name, parts in found.items()})


def encoded(part: list[list[Any]], datatype: str) -> bytes:
    """Encodes values as the bytes of a tensor. None becomes NaN."""
    if datatype == "BYTES":
        texts = [value.encode() for row in part for value in row]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    return np.array([[np.nan if value is None else value for value in row] for row in part]).astype(V2_TYPES[datatype]).tobytes()


def decoded(content: bytes, head: int) -> dict[str, np.ndarray]:
    """Decodes a response with binary tensors."""
    tensors, offset = {}, head
    for output in json.loads(content[:head])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        data, offset = content[offset : offset + size], offset + size
        if output["datatype"] == "BYTES":
            values = np.array(list(texts_of(data)), object)
        else:
            values = np.frombuffer(data, V2_TYPES[output["datatype"]])
        tensors[output["name"]] = values.reshape(output["shape"])
    return tensors


def texts_of(data: bytes) -> Iterator[str]:
    while data:
        size = int.from_bytes(data[:4], "little")
        yield data[4 : 4 + size].decode()
        data = data[4 + size :]


def v2_predictions(way: str, model: V2Model, found: Mapping[str, np.ndarray]) -> Predictions:
    """Separates the label from the values by the datatypes of the outputs."""
    types = {output["name"]: output["datatype"] for output in model.outputs}
    labels = [tensor for name, tensor in found.items() if not types[name].startswith("FP")]
    values = [tensor for name, tensor in found.items() if types[name].startswith("FP")]
    if len(labels) > 1 or len(values) != 1:
        raise WrongResponse(f"{way} gives the outputs {types}")
    rows = len(values[0])
    return Predictions(way, labels[0].ravel().tolist() if labels else None, values[0].reshape(rows, -1).astype(float), raw=True)


def by_batch(folder: Path, rows: Rows, scratch: Path) -> Predictions:
    """Runs the batch command on a CSV of the rows."""
    source, target = scratch / "batch_rows.csv", scratch / "batch_predictions.csv"
    write_csv(source, rows.names, rows.values)
    command = [sys.executable, "-m", "iris_wsgi", "batch", "--model-dir", folder, "--workers", "1", "--quiet", source, target]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if run.returncode:
        raise WrongResponse(f"batch has the status {run.returncode}: {run.stderr[-300:]}")
    with target.open(newline="") as file:
        lines = list(csv.DictReader(file))
    if len(lines) != len(rows.values):
        raise WrongResponse(f"batch writes {len(lines)} of {len(rows.values)} rows: {run.stderr[-300:]}")
    labels = [line["label"] for line in lines] if "label" in lines[0] else None
    return Predictions("batch", labels, np.array([[float(line[name]) for name in line if name != "label"] for line in lines]))


def write_csv(path: Path, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Writes a CSV. None becomes an empty cell."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([["" if value is None else value for value in row] for row in rows])
