"""What clients do with each role: one function for each family of routes."""

import random
import time

import numpy as np
from answers import Rows
from faults import A_VOTE
from fleet import KEEP_SECONDS, NAMES
from http_clients import HttpResponse
from traffic import Client, Excused, Turn, Wrong

CENTRES = ([5.0, 3.4, 1.5, 0.2], [5.9, 2.8, 4.3, 1.3], [6.6, 3.0, 5.6, 2.0])
SINGLE = ("/predict", "/predict/label", "/predict/proba")
FINAL = ("succeeded", "failed", "cancelled")
BAD = (
    ({"data": [[5.1, 3.5, 1.4]]}, 422),
    ({"data": [[5.1, 3.5, "1.4", 0.2]]}, 422),
    ({"data": []}, 422),
    ({"rows": [[1, 2, 3, 4]]}, 422),
    ({"data": [[1e39, 3.5, 1.4, 0.2]]}, 422),
    ([[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]], 400),
)


def row() -> list[float]:
    """One of some thousands, so that caches are asked for what they have and for what they have not."""
    centre = random.choice(CENTRES)
    return [round(value + random.gauss(0, 0.2), 1) for value in centre]


def rows(most: int) -> Rows:
    return [row() for _ in range(random.randrange(1, most + 1))]


def single(client: Client) -> None:
    for path in SINGLE:
        asked = [row()]
        fields = random.choice(((), (), ("Cache-Control: no-store",), ("Cache-Control: no-cache",), ("Prefer: wait=5",)))
        answer = client.ask(f"POST {path}", path, {"data": asked}, *fields)
        client.equal(path, answer.body, client.right.predicted(path, asked))


def batch(client: Client) -> None:
    asked = rows(random.choice((3, 300, 10_000)))
    answer = client.ask("POST /predict/batch", "/predict/batch", {"data": asked})
    client.equal("/predict/batch", answer.body, client.right.predicted("/predict/batch", asked))


def bad(client: Client, paths: tuple[str, ...] = ("/predict/batch", *SINGLE)) -> None:
    path = random.choice(paths)
    document, status = random.choice(BAD)
    client.ask(f"POST {path}", path, document, well=(status,))


def bad_job(client: Client) -> None:
    bad(client, ("/jobs",))


def reading(client: Client) -> None:
    """The next GET of the description without more than a model in its path."""
    path = next(client.traffic.readable[client.server.name])
    own = path.replace("{model}", client.traffic.models.get(client.server.name, "")).replace("{version}", "1")
    answer = client.ask(f"GET {path}", own, None, *(("Accept: text/html",) if path == "/" else ()), well=(200, 308))
    if "etag" in answer.fields:
        tag = f"If-None-Match: {answer.fields['etag']}"
        client.ask(f"GET {path}", own, None, tag, *(("Accept: text/html",) if path == "/" else ()), well=(304, 200))


def unknown(client: Client) -> None:
    client.ask("GET unmatched", f"/no/{client.traffic.number()}", well=(404,))
    client.ask("PATCH unmatched", "/livez", well=(405,))


def infer(client: Client) -> None:
    """Version 2 and version 1 of the protocol, with a version in the path and without."""
    name, asked = client.traffic.models[client.server.name], rows(20)
    document = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [len(asked), 4], "data": np.ravel(asked).tolist()}]}
    right = client.right.probabilities(asked)
    for place, version in (("", ""), ("/versions/1", "/versions/{version}")):
        path, operation = f"/v2/models/{name}{place}/infer", f"POST /v2/models/{{model}}{version}/infer"
        told = client.ask(operation, path, document).json()["outputs"]
        found = next(one["data"] for one in told if one["name"] == "probabilities")
        client.equal(operation, found, right.ravel().tolist())
        client.ask(operation, path, {"inputs": []}, well=(400,))
        path, operation = f"/v1/models/{name}{place}:predict", f"POST /v1/models/{{model}}{version}:predict"
        client.equal(operation, client.ask(operation, path, {"instances": asked}).json()["predictions"], right.tolist())
    client.ask("POST /v2/repository/index", "/v2/repository/index", {})


def half_or_member(client: Client) -> None:
    """Whose answers are those of no whole model: that there is one is enough, and who asks them compares."""
    name = client.traffic.models[client.server.name]
    document = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 4], "data": row()}]}
    config = client.ask("GET /v2/models/{model}", f"/v2/models/{name}").json()
    document["inputs"][0]["name"] = config["inputs"][0]["name"]
    for template in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"):
        path = template.replace("{model}", name).replace("{version}", "1")
        client.ask(f"POST {template}", path, document)
    for template in ("/v1/models/{model}:predict", "/v1/models/{model}/versions/{version}:predict"):
        path = template.replace("{model}", name).replace("{version}", "1")
        client.ask(f"POST {template}", path, {"instances": [row()]})
    client.ask("POST /v2/repository/index", "/v2/repository/index", {})


def cache(client: Client) -> None:
    client.ask("GET /cache", "/cache")


def clear(client: Client) -> None:
    client.ask("DELETE /cache", "/cache")


def ensemble(client: Client) -> None:
    asked, began = row(), time.time()
    told = client.ask("POST /ensemble/predict", "/ensemble/predict", {"data": [asked]}).json()
    right = client.right.votes(asked)
    found = {name: member["probability"] for name, member in told["members"].items() if name not in told["missing"]}
    client.equal("votes", found, {name: right[name] for name in found})
    if not told["missing"]:
        best = max(NAMES, key=right.__getitem__)
        client.equal("ensemble", told["prediction"]["label"], best)
    else:
        client.ledger.note(client.server.name, A_VOTE, 0, began, told)


def telemetry(client: Client) -> None:
    counts = [{"day": "2026-02-28", "label": "setosa", "count": 1}]
    report = {"key": f"soak-{client.traffic.number():020d}", "counts": counts}
    client.ask("POST /edge/telemetry", "/edge/telemetry", report, well=(204,))


def own_row(client: Client) -> list[float]:
    """One that nobody else hands in, the same as float32."""
    return [1 + client.traffic.number() / 4096, 3.5, 1.4, 0.2]


def insist(client: Client, operation: str, path: str, *fields: str, well: tuple[int, ...] = (200,)) -> HttpResponse:
    """Asks again while a fault excuses that there is no answer."""
    while True:
        try:
            return client.ask(operation, path, None, *fields, well=well)
        except Excused:
            time.sleep(0.05)


def job(client: Client) -> None:
    """Handed in, perhaps twice under a key, and looked at until it is done."""
    asked, began = own_row(client), time.time()
    key = (f"Idempotency-Key: {asked[0]}",) if random.random() < 0.5 else ()
    told = client.ask("POST /jobs", "/jobs", {"data": [asked]}, *key, well=(202,)).json()
    client.ledger.unfinished[told["id"]] = client.server
    if key and random.random() < 0.3:
        again = client.ask("POST /jobs", "/jobs", {"data": [asked]}, *key, well=(202,)).json()
        client.equal("the key's job", again["id"], told["id"])
    follow(client, told["id"], began, client.right.batch([asked]))


def cancelled(client: Client) -> None:
    """Handed in, and taken back before it is done or after that."""
    asked, began = [own_row(client) for _ in range(500)], time.time()
    told = client.ask("POST /jobs", "/jobs", {"data": asked}, well=(202,)).json()
    client.ledger.unfinished[told["id"]] = client.server
    insist(client, "DELETE /jobs/{id}", told["href"], well=(200, 409, 410))
    follow(client, told["id"], began, client.right.batch(asked))


def follow(client: Client, job_id: str, began: float, right: object) -> None:
    """Waits until a job is done, compares its result, and perhaps reads its record again."""
    while True:
        answer = record_of(client, job_id, began, "Prefer: wait=2")
        record = answer.json()
        if answer.status == 410 or record["status"] in FINAL:
            break
    client.ledger.finished += 1
    del client.ledger.unfinished[job_id]
    if answer.status == 410:
        return
    if record["status"] == "succeeded":
        client.equal("a job's result", record["result"], right)
        if record["attempts"] > 1 and not client.traffic.faults.during(began, time.time()):
            raise Wrong(f"{client.server.name}: {record['attempts']} attempts of {job_id}, and nothing was wrong")
    elif record["status"] == "failed":
        raise Wrong(f"{client.server.name}: {record}")
    if random.random() < 0.3:
        again = record_of(client, job_id, began)
        if again.status == 200:
            client.equal("a job that was done", again.body, answer.body)


def record_of(client: Client, job_id: str, began: float, *fields: str) -> HttpResponse:
    """Returns the answer about a job that was submitted after `began`: 410 only if it may have been done for so long."""
    answer = insist(client, "GET /jobs/{id}", f"/jobs/{job_id}", *fields, well=(200, 410))
    if answer.status == 410 and time.time() < began + KEEP_SECONDS:
        raise Wrong(f"{client.server.name}: {job_id} is gone before its {KEEP_SECONDS} s are over: {answer.body!r}")
    return answer


def job_counts(client: Client) -> None:
    """Counts, and an id that there is none of."""
    client.ask("GET /jobs", "/jobs")
    client.ask("GET /jobs/{id}", "/jobs/j0123456789012345678901", well=(404,))


def hybrid(client: Client) -> None:
    asked, began = own_row(client), time.time()
    told = client.ask("POST /predict/hybrid", "/predict/hybrid", {"data": [asked]}).json()
    first = told["provisional"]
    client.equal("provisional", (first["label"], first["probabilities"]), client.right.provisional(asked))
    if told["final"]["status"] == "unavailable":
        client.ledger.note(client.server.name, "POST /jobs", 503, began, told)
    client.ledger.unfinished[told["final"]["id"]] = client.server
    follow(client, told["final"]["id"], began, client.right.batch([asked]))


def seeded(client: Client) -> None:
    """An item of the training, and what the model says of it."""
    number = random.randrange(150)
    asked = client.traffic.training[number]
    answer = client.ask("GET /items/{id}", f"/items/{number:04d}").json()
    client.equal("an item", answer["data"], [asked])
    told = client.ask("GET /items/{id}/prediction", f"/items/{number:04d}/prediction").json()
    client.equal("an item's prediction", told["probabilities"], client.right.probabilities([asked])[0].tolist())
    client.ask("GET /items/{id}", f"/items/none-{random.randrange(1000)}", well=(404,))


def written(client: Client) -> None:
    """Writes and reads an item of this client alone: a read returns the last acknowledged write.

    A write without an answer may also take effect later: the database still executes what it has received.
    """
    name, item = random.choice(list(client.items.items()))
    if random.random() < 0.5:
        asked = [row()]
        item.unacknowledged.append(asked)
        client.ask("PUT /items/{id}", f"/items/{name}", {"data": asked}, well=(200, 201))
        item.unacknowledged.remove(asked)
        item.acknowledged = asked
    answer = client.ask("GET /items/{id}", f"/items/{name}", well=(200, 404))
    found = answer.json()["data"] if answer.status == 200 else None
    if found != item.acknowledged and found not in item.unacknowledged:
        raise Wrong(f"{client.server.name}: {name} is {found}, and may be {item}")


def mixed(*more: Turn) -> list[Turn]:
    """Those of every role, and some often."""
    return [*more * 4, reading, reading, unknown]


TURNS: dict[str, list[Turn]] = {
    "all": [
        *mixed(single, batch, bad, infer, cache, ensemble, job, hybrid, seeded, written),
        job_counts,
        cancelled,
        bad_job,
        telemetry,
        clear,
    ],
    "web_single": mixed(single, batch, bad),
    "synchronous": mixed(infer),
    "asynchronous": mixed(job, job_counts, cancelled, bad_job),
    "sync_async": mixed(hybrid, job, job_counts, cancelled, bad_job),
    "worker": mixed(),
    "prediction_cache": [*mixed(single, batch, bad, cache), clear],
    "data_cache": mixed(seeded, written),
    "pred": mixed(half_or_member),
    "prep": mixed(single, batch, bad),
    "gateway": mixed(ensemble),
    **{f"member-{name}": mixed(half_or_member) for name in NAMES},
}
