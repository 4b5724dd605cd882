"""Scenarios of the clients: one function for each family of routes."""

import random
import time

import numpy as np
from expected import Rows
from faults import VOTE
from http_clients import HttpResponse
from processes import KEEP_SECONDS, NAMES
from traffic import Client, Excused, Scenario, UnexpectedResponse

CENTERS = ([5.0, 3.4, 1.5, 0.2], [5.9, 2.8, 4.3, 1.3], [6.6, 3.0, 5.6, 2.0])
SINGLE = ("/predict", "/predict/label", "/predict/proba")
FINAL = ("succeeded", "failed", "cancelled")
INVALID = (
    ({"data": [[5.1, 3.5, 1.4]]}, 422),
    ({"data": [[5.1, 3.5, "1.4", 0.2]]}, 422),
    ({"data": []}, 422),
    ({"rows": [[1, 2, 3, 4]]}, 422),
    ({"data": [[1e39, 3.5, 1.4, 0.2]]}, 422),
    ([[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]], 400),
)


def random_row() -> list[float]:
    """Returns one of some thousand rows, so that caches get rows that they have and rows that they do not have."""
    center = random.choice(CENTERS)
    return [round(value + random.gauss(0, 0.2), 1) for value in center]


def random_rows(max_rows: int) -> Rows:
    return [random_row() for _ in range(random.randrange(1, max_rows + 1))]


def predict_row(client: Client) -> None:
    for path in SINGLE:
        rows = [random_row()]
        headers = random.choice(((), (), ("Cache-Control: no-store",), ("Cache-Control: no-cache",), ("Prefer: wait=5",)))
        response = client.ask(f"POST {path}", path, {"data": rows}, *headers)
        client.check_equal(path, response.body, client.expected.body(path, rows))


def predict_batch(client: Client) -> None:
    rows = random_rows(random.choice((3, 300, 10_000)))
    response = client.ask("POST /predict/batch", "/predict/batch", {"data": rows})
    client.check_equal("/predict/batch", response.body, client.expected.body("/predict/batch", rows))


def send_invalid(client: Client, paths: tuple[str, ...] = ("/predict/batch", *SINGLE)) -> None:
    path = random.choice(paths)
    document, status = random.choice(INVALID)
    client.ask(f"POST {path}", path, document, statuses=(status,))


def send_invalid_job(client: Client) -> None:
    send_invalid(client, ("/jobs",))


def get_next_path(client: Client) -> None:
    """Reads the next GET path of the OpenAPI document that has no other parameters than the model and its version."""
    template = next(client.traffic.readable_paths[client.server.name])
    path = template.replace("{model}", client.traffic.models.get(client.server.name, "")).replace("{version}", "1")
    headers = ("Accept: text/html",) if template == "/" else ()
    response = client.ask(f"GET {template}", path, None, *headers, statuses=(200, 308))
    if "etag" in response.headers:
        tag = f"If-None-Match: {response.headers['etag']}"
        client.ask(f"GET {template}", path, None, tag, *headers, statuses=(304, 200))


def send_unmatched(client: Client) -> None:
    client.ask("GET unmatched", f"/no/{client.traffic.number()}", statuses=(404,))
    client.ask("PATCH unmatched", "/livez", statuses=(405,))


def infer(client: Client) -> None:
    """Sends inference requests of protocol versions 2 and 1, with a model version in the path and without."""
    name, rows = client.traffic.models[client.server.name], random_rows(20)
    document = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [len(rows), 4], "data": np.ravel(rows).tolist()}]}
    expected = client.expected.probabilities(rows)
    for part, template in (("", ""), ("/versions/1", "/versions/{version}")):
        path, operation = f"/v2/models/{name}{part}/infer", f"POST /v2/models/{{model}}{template}/infer"
        outputs = client.ask(operation, path, document).json()["outputs"]
        found = next(output["data"] for output in outputs if output["name"] == "probabilities")
        client.check_equal(operation, found, expected.ravel().tolist())
        client.ask(operation, path, {"inputs": []}, statuses=(400,))
        path, operation = f"/v1/models/{name}{part}:predict", f"POST /v1/models/{{model}}{template}:predict"
        predictions = client.ask(operation, path, {"instances": rows}).json()["predictions"]
        client.check_equal(operation, predictions, expected.tolist())
    client.ask("POST /v2/repository/index", "/v2/repository/index", {})


def infer_part(client: Client) -> None:
    """Sends inference requests to half a model or to an ensemble member; their clients compare the values."""
    name = client.traffic.models[client.server.name]
    document = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 4], "data": random_row()}]}
    metadata = client.ask("GET /v2/models/{model}", f"/v2/models/{name}").json()
    document["inputs"][0]["name"] = metadata["inputs"][0]["name"]
    for template in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"):
        path = template.replace("{model}", name).replace("{version}", "1")
        client.ask(f"POST {template}", path, document)
    for template in ("/v1/models/{model}:predict", "/v1/models/{model}/versions/{version}:predict"):
        path = template.replace("{model}", name).replace("{version}", "1")
        client.ask(f"POST {template}", path, {"instances": [random_row()]})
    client.ask("POST /v2/repository/index", "/v2/repository/index", {})


def get_cache(client: Client) -> None:
    client.ask("GET /cache", "/cache")


def clear_cache(client: Client) -> None:
    client.ask("DELETE /cache", "/cache")


def predict_with_ensemble(client: Client) -> None:
    row, began = random_row(), time.time()
    document = client.ask("POST /ensemble/predict", "/ensemble/predict", {"data": [row]}).json()
    expected, missing = client.expected.votes(row), document["missing"]
    found = {name: member["probability"] for name, member in document["members"].items() if name not in missing}
    client.check_equal("votes", found, {name: expected[name] for name in found})
    if not missing:
        best = max(NAMES, key=expected.__getitem__)
        client.check_equal("ensemble", document["prediction"]["label"], best)
    else:
        client.results.record(client.server.name, VOTE, 0, began, document)


def send_telemetry(client: Client) -> None:
    counts = [{"day": "2026-02-28", "label": "setosa", "count": 1}]
    report = {"key": f"soak-{client.traffic.number():020d}", "counts": counts}
    client.ask("POST /edge/telemetry", "/edge/telemetry", report, statuses=(204,))


def unique_row(client: Client) -> list[float]:
    """Returns a row that no other job has, whose values are exact as float32."""
    return [1 + client.traffic.number() / 4096, 3.5, 1.4, 0.2]


def ask_until_answered(
    client: Client, operation: str, path: str, *headers: str, statuses: tuple[int, ...] = (200,)
) -> HttpResponse:
    """Repeats a request while a fault excuses its failure."""
    while True:
        try:
            return client.ask(operation, path, None, *headers, statuses=statuses)
        except Excused:
            time.sleep(0.05)


def run_job(client: Client) -> None:
    """Submits a job, sometimes twice with an idempotency key, and waits for its result."""
    row, began = unique_row(client), time.time()
    key = (f"Idempotency-Key: {row[0]}",) if random.random() < 0.5 else ()
    job = client.ask("POST /jobs", "/jobs", {"data": [row]}, *key, statuses=(202,)).json()
    client.results.unfinished[job["id"]] = client.server
    if key and random.random() < 0.3:
        again = client.ask("POST /jobs", "/jobs", {"data": [row]}, *key, statuses=(202,)).json()
        client.check_equal("job of the key", again["id"], job["id"])
    follow_job(client, job["id"], began, client.expected.batch([row]))


def cancel_job(client: Client) -> None:
    """Submits a job and cancels it, before or after it is done."""
    rows, began = [unique_row(client) for _ in range(500)], time.time()
    job = client.ask("POST /jobs", "/jobs", {"data": rows}, statuses=(202,)).json()
    client.results.unfinished[job["id"]] = client.server
    ask_until_answered(client, "DELETE /jobs/{id}", job["href"], statuses=(200, 409, 410))
    follow_job(client, job["id"], began, client.expected.batch(rows))


def follow_job(client: Client, job_id: str, began: float, expected: object) -> None:
    """Waits until a job is done, compares its result, and sometimes reads its record again."""
    while True:
        response = get_job(client, job_id, began, "Prefer: wait=2")
        record = response.json()
        if response.status == 410 or record["status"] in FINAL:
            break
    client.results.finished += 1
    del client.results.unfinished[job_id]
    if response.status == 410:
        return
    if record["status"] == "succeeded":
        client.check_equal("result of a job", record["result"], expected)
        if record["attempts"] > 1 and not client.traffic.faults.during(began, time.time()):
            raise UnexpectedResponse(f"{client.server.name}: {record['attempts']} attempts of {job_id} without a fault")
    elif record["status"] == "failed":
        raise UnexpectedResponse(f"{client.server.name}: {record}")
    if random.random() < 0.3:
        again = get_job(client, job_id, began)
        if again.status == 200:
            client.check_equal("record of a finished job", again.body, response.body)


def get_job(client: Client, job_id: str, began: float, *headers: str) -> HttpResponse:
    """Returns the response for a job that was submitted after `began`, with 410 only if the record may have expired."""
    response = ask_until_answered(client, "GET /jobs/{id}", f"/jobs/{job_id}", *headers, statuses=(200, 410))
    if response.status == 410 and time.time() < began + KEEP_SECONDS:
        raise UnexpectedResponse(f"{client.server.name}: {job_id} expired before {KEEP_SECONDS} s: {response.body!r}")
    return response


def get_job_counts(client: Client) -> None:
    """Reads the counts of jobs, and a job with an unknown id."""
    client.ask("GET /jobs", "/jobs")
    client.ask("GET /jobs/{id}", "/jobs/j0123456789012345678901", statuses=(404,))


def predict_hybrid(client: Client) -> None:
    row, began = unique_row(client), time.time()
    document = client.ask("POST /predict/hybrid", "/predict/hybrid", {"data": [row]}).json()
    found = document["provisional"]["label"], document["provisional"]["probabilities"]
    client.check_equal("provisional result", found, client.expected.provisional(row))
    final = document["final"]
    if final["status"] == "unavailable":
        client.results.record(client.server.name, "POST /jobs", 503, began, document)
    client.results.unfinished[final["id"]] = client.server
    follow_job(client, final["id"], began, client.expected.batch([row]))


def read_seeded_item(client: Client) -> None:
    """Reads an item of the training data and its prediction, and an unknown item."""
    number = random.randrange(150)
    row = client.traffic.training[number]
    response = client.ask("GET /items/{id}", f"/items/{number:04d}").json()
    client.check_equal("an item", response["data"], [row])
    prediction = client.ask("GET /items/{id}/prediction", f"/items/{number:04d}/prediction").json()
    client.check_equal("prediction of an item", prediction["probabilities"], client.expected.probabilities([row])[0].tolist())
    client.ask("GET /items/{id}", f"/items/none-{random.randrange(1000)}", statuses=(404,))


def write_item(client: Client) -> None:
    """Writes and reads an item of this client alone: a read returns the last acknowledged write.

    A write without a response may take effect later, because the database still executes the statements that it has received.
    """
    name, item = random.choice(list(client.items.items()))
    if random.random() < 0.5:
        rows = [random_row()]
        item.unacknowledged.append(rows)
        client.ask("PUT /items/{id}", f"/items/{name}", {"data": rows}, statuses=(200, 201))
        item.unacknowledged.remove(rows)
        item.acknowledged = rows
    response = client.ask("GET /items/{id}", f"/items/{name}", statuses=(200, 404))
    found = response.json()["data"] if response.status == 200 else None
    if found != item.acknowledged and found not in item.unacknowledged:
        raise UnexpectedResponse(f"{client.server.name}: {name} is {found}, expected {item}")


def mixed(*scenarios: Scenario) -> list[Scenario]:
    """Returns the scenarios of a role, each several times, and those of every role."""
    return [*scenarios * 4, get_next_path, get_next_path, send_unmatched]


PREDICTIONS = (predict_row, predict_batch, send_invalid)
JOBS = (get_job_counts, cancel_job, send_invalid_job)
SCENARIOS: dict[str, list[Scenario]] = {
    "all": [
        *mixed(*PREDICTIONS, infer, get_cache, predict_with_ensemble, run_job, predict_hybrid, read_seeded_item, write_item),
        *JOBS,
        send_telemetry,
        clear_cache,
    ],
    "web_single": mixed(*PREDICTIONS),
    "synchronous": mixed(infer),
    "asynchronous": mixed(run_job, *JOBS),
    "sync_async": mixed(predict_hybrid, run_job, *JOBS),
    "worker": mixed(),
    "prediction_cache": [*mixed(*PREDICTIONS, get_cache), clear_cache],
    "data_cache": mixed(read_seeded_item, write_item),
    "pred": mixed(infer_part),
    "prep": mixed(*PREDICTIONS),
    "gateway": mixed(predict_with_ensemble),
    **{f"member-{name}": mixed(infer_part) for name in NAMES},
}
