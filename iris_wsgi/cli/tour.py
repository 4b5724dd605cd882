"""Smoke test of every pattern against a running server: a real request for each, its response, and whether it is right."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPException
from subprocess import SubprocessError
from typing import Any, NamedTuple
from urllib.parse import quote

from iris_wsgi.cli.tour_client import BOLD, GREEN, RED, UNFINISHED, YELLOW, Mismatch, NotServed, TourClient, UnknownServer
from iris_wsgi.codec.model_schema import CLASSIFIER
from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import GoldenRow
from iris_wsgi.model.session import Model

# Raised by access to a response of another form.
MALFORMED = (LookupError, TypeError, ValueError, AttributeError)


CLASSIFIERS_ONLY = "it is for classifiers with probabilities, and this model gives {}"
# Datatypes of the Open Inference Protocol by the type of a feature.
DATATYPES = {"float32": "FP32", "float64": "FP64", "bool": "BOOL", "string": "BYTES"}


def rows(*cases: GoldenRow) -> dict[str, list[list[Any]]]:
    return {"data": [case.row for case in cases]}


def web_single(client: TourClient) -> None:
    if client.outputs.kind != CLASSIFIER:
        check_row(client, client.send("POST", "/predict", rows(client.cases[0])).document)
        return
    classes = client.send("POST", "/predict/proba", rows(client.cases[0])).document["prediction"]
    best = max(classes, key=lambda entry: entry["probability"])
    if not client.outputs.has_label_column:
        client.check([entry["probability"] for entry in classes], best["label"])
        return
    # The graph decides the label, which may not be that of the highest probability.
    label = client.send("POST", "/predict/label", rows(client.cases[0])).document["prediction"]
    client.check([entry["probability"] for entry in classes], label)


def check_row(client: TourClient, document: Mapping[str, Any], case: GoldenRow | None = None) -> None:
    """Compares a response of POST /predict with a golden row, by default the first. Raises Mismatch."""
    name = "prediction" if client.outputs.kind == CLASSIFIER else client.outputs.name
    client.check(document[name], document.get("label"), case)


def check_record(client: TourClient, document: Mapping[str, Any], case: GoldenRow | None = None) -> None:
    """Compares label and outputs of a document with a golden row, by default the first. Raises Mismatch."""
    client.check(document[client.outputs.name], document.get("label"), case)


def synchronous(client: TourClient) -> None:
    check_whole_model(client)
    path = f"/v2/models/{quote(client.model.name)}"
    client.send("GET", path)
    # JSON tensors have no missing values.
    case = next((one for one in client.cases if None not in one.row), None)
    if case is None:
        raise NotServed("every golden row of this model has a missing value, which only binary tensors can send")
    outputs = client.send("POST", f"{path}/infer", {"inputs": list(tensors(client.model, case.row))}).document["outputs"]
    client.check(next(output["data"] for output in outputs if output["name"] == client.model.output), case=case)


def tensors(model: Model, row: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Yields the inputs of the graph for one row."""
    start = 0
    for one in model.inputs:
        data = list(row[start : start + one.width])
        shape = [1, one.width] if one.rank == 2 else [1]
        yield {"name": one.name, "datatype": DATATYPES.get(one.type, one.type.upper()), "shape": shape, "data": data}
        start += one.width


def check_whole_model(client: TourClient) -> None:
    """Raises NotServed if the server has other models only: a half, or a member."""
    names = client.models()
    if client.model.name not in names:
        raise NotServed(f"role {client.role} has {', '.join(names)} here, and not the whole model {client.model.name}")
    config = client.send("GET", f"/v2/models/{quote(client.model.name)}/config").document
    client.check_equal("the digest of the model", config["parameters"]["digest"]["string_value"], client.model.digest)


def asynchronous(client: TourClient) -> None:
    check_job(client, client.send("POST", "/jobs", rows(client.cases[0])).document)


def check_job(client: TourClient, job: Mapping[str, Any]) -> None:
    record = client.job(job["id"])
    if record["status"] in UNFINISHED:
        raise Mismatch(
            f"the job is still {record['status']}; is a worker running (python3 -m iris_wsgi worker) on the same store?"
        )
    client.check_equal("the status of the job", record["status"], "succeeded")
    result = record["result"]
    client.check(result[client.outputs.name][0], result.get("labels", [None])[0])


def batch(client: TourClient) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([feature.name for feature in client.model.features])
    writer.writerows([[cell(value) for value in case.row] for case in client.cases])
    output = client.run("batch", "-", "-", "--in-format", "csv", "--quiet", stdin=text.getvalue())
    for line, case in zip(list(csv.reader(output.splitlines()))[1:], client.cases, strict=True):
        values = line[len(line) - len(client.outputs.columns) :]
        client.check(values, line[0] if client.outputs.labels else None, case)


def cell(value: Any) -> str:
    """Returns a field of CSV: empty for a missing value, and a number with all of its digits."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value)


def prep_pred(client: TourClient) -> None:
    if client.role == "prep":
        # It calls the other half itself.
        client.check(client.send("POST", "/predict", rows(client.cases[0])).document["prediction"])
        return
    half = client.half()
    if half is None:
        raise NotServed(f"{client.model_dir} has no halves of its model in folders prep and pred")
    if half.name not in client.models():
        raise NotServed(f"role {client.role} does not have the other half, {half.name}; roles all and pred do")
    with client.prep() as url:
        check_row(client, client.send("POST", "/predict", rows(client.cases[0]), url).document)


def sync_async(client: TourClient) -> None:
    document = client.send("POST", "/predict/hybrid", rows(client.cases[0])).document
    if client.outputs.labels:
        client.check_equal("the provisional label", document["provisional"]["label"], client.cases[0].label)
    if document["final"]["status"] == "confident":
        client.print("(The fast model is confident enough for IRIS_ESCALATE_BELOW, so there is no job.)")
        return
    check_job(client, document["final"])


def prediction_cache(client: TourClient) -> None:
    case = client.cases[-1]
    for _ in range(2):
        response = client.send("POST", "/predict", rows(case))
        check_row(client, response.document, case)
    client.check_equal("whether the second response is a hit", response.is_hit, True)


def data_cache(client: TourClient) -> None:
    case = client.cases[-1]
    client.send("PUT", "/items/tour", rows(case))
    for hit in (False, True):
        response = client.send("GET", "/items/tour/prediction")
        check_record(client, response.document, case)
        client.check_equal("whether the response is a hit", response.is_hit, hit)


def horizontal(client: TourClient) -> None:
    document = client.send("POST", "/ensemble/predict", rows(client.cases[0])).document
    client.check_equal("the status", document["status"], "complete")
    client.check_equal("the label", document["prediction"]["label"], client.cases[0].label)


def edge(client: TourClient) -> None:
    case = next((one for one in client.cases if None not in one.row), None)
    if case is None:
        raise NotServed("every golden row of this model has a missing value")
    document = json.loads(client.run("edge", "predict", "--json", "--", *map(cell, case.row)))
    client.check(document["probabilities"], document["label"], case)
    client.check_equal("the model without a server", document["model"]["digest"], client.model.digest)
    if ("GET", "/edge/manifest.json") not in client.routes:
        types = sorted({feature.type for feature in client.model.features} - {"float32"})
        if types or len(client.model.inputs) > 1:
            reason = f"for models with one float32 input, and this one takes {', '.join(types or ['several'])}"
            raise NotServed(f"the command works, but the page at /edge/ is {reason}")
        raise NotServed("the command works, but there is no page at /edge/: run bin/edge build, and restart bin/serve")
    manifest = client.send("GET", "/edge/manifest.json").document
    client.check_equal(
        "the model of the bundle", manifest["model"].get("source") or manifest["model"]["digest"], client.model.digest
    )


class Pattern(NamedTuple):
    """A pattern with its purpose and its test. `route` is the route that it requires, and `roles` are the roles that have it.

    `why_not` says why role all may not have the route.
    """

    name: str
    when: str
    walk: Callable[[TourClient], None]
    route: tuple[str, str] | None = None
    roles: str = ""
    why_not: str = "its log says why"
    is_for_classifiers: bool = False

    def check(self, client: TourClient) -> None:
        """Raises NotServed if the pattern is for another kind of model, or if the server does not have the route."""
        if self.is_for_classifiers and client.outputs.kind != CLASSIFIER:
            raise NotServed(CLASSIFIERS_ONLY.format(client.outputs.name))
        if self.route is not None and self.route not in client.routes:
            route = " ".join(self.route)
            why = self.why_not if client.role == "all" else f"{self.roles} do"
            raise NotServed(f"role {client.role} does not have {route} here; {why}")


PATTERNS = (
    Pattern("web single", "clients have a row and need its class, in plain JSON. Begin here.", web_single,
            ("POST", "/predict"), "roles all, web_single, prediction_cache and prep"),
    Pattern("synchronous", "clients speak the protocol of Triton or KServe, and wait for the response.", synchronous,
            ("POST", "/v2/models/{model}/infer"), "roles all and synchronous"),
    Pattern("asynchronous", "the result may be late, but must not be lost in any failure.", asynchronous,
            ("POST", "/jobs"), "roles all, asynchronous and sync_async"),
    Pattern("batch", "many rows are in a file or a table, and no client waits for a single one.", batch),
    Pattern("prep-pred", "preprocessing and prediction are scaled or released separately.", prep_pred, is_for_classifiers=True),
    Pattern("sync-async", "a good prediction is needed at once, and the best one as soon as possible.", sync_async,
            ("POST", "/predict/hybrid"), "roles all and sync_async", "its model folder has no matching fast model"),
    Pattern("prediction cache", "the same rows are repeated, and the model is slow.", prediction_cache,
            ("DELETE", "/cache"), "roles all and prediction_cache, or IRIS_CACHE=on,",
            "its cache is off, or its model cannot be cached"),
    Pattern("data cache", "clients know an id, and its features are in a database.", data_cache,
            ("PUT", "/items/{id}"), "roles all and data_cache"),
    Pattern("horizontal microservice", "each class has its own model, released and scaled separately.", horizontal,
            ("POST", "/ensemble/predict"), "roles all and gateway", "its model folder has no members", is_for_classifiers=True),
    Pattern("edge AI", "the network is slow, expensive, or absent, or the data must not leave the device.", edge,
            is_for_classifiers=True),
)  # fmt: skip


def tour(client: TourClient, fail: Callable[[str], None]) -> int:
    """Returns 0 if every served pattern is right, and 1 if one is wrong or the server cannot be checked.

    Faults are printed with their pattern, and again at the end.
    """
    client.print(f"The server at {client.url}:", BOLD)
    try:
        client.inspect()
    except UnknownServer as error:
        fail(str(error))
        return 1
    except (OSError, HTTPException) as error:
        fail(
            f"no server responds at {client.url}: {reason(error)}; start one with bin/serve in another terminal, or name its URL"
        )
        return 1
    except (Mismatch, *MALFORMED) as error:
        fail(f"{client.url} does not describe itself as an iris_wsgi server: {reason(error)}")
        return 1
    wrong, unserved = [], 0
    for number, pattern in enumerate(PATTERNS, 1):
        client.print(f"\n{number}/{len(PATTERNS)} {pattern.name}", BOLD)
        client.print(f"Use it when {pattern.when}")
        try:
            pattern.check(client)
            pattern.walk(client)
            client.print("right", GREEN)
        except NotServed as error:
            unserved += 1
            client.print(f"not served: {error}", YELLOW)
        except (Mismatch, BadModel, OSError, HTTPException, SubprocessError, *MALFORMED) as error:
            wrong.append(f"{pattern.name} is wrong: {reason(error)}")
            client.print(wrong[-1], RED)
    client.connection.close()
    right = len(PATTERNS) - len(wrong) - unserved
    others = f"; not served: {unserved}" if unserved else ""
    client.print(f"\n{right} of {len(PATTERNS)} patterns are right; wrong: {len(wrong)}{others}", BOLD)
    for line in wrong:
        fail(line)
    return 1 if wrong else 0


def reason(error: Exception) -> str:
    if isinstance(error, Mismatch):
        return str(error)
    if isinstance(error, MALFORMED):
        return f"its response has another form ({type(error).__name__}: {error})"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
