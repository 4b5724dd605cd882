"""Smoke test of every pattern against a running server: a real request for each, its response, and whether it is right."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPException
from subprocess import SubprocessError
from typing import Any, NamedTuple
from urllib.parse import quote

from iris_wsgi.cli.tour_client import (
    BOLD,
    GREEN,
    RED,
    UNFINISHED,
    YELLOW,
    Mismatch,
    NotForModel,
    NotInRole,
    NotSetUp,
    NotTested,
    TourClient,
    UnknownServer,
    bundle_advice,
)
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
        raise NotForModel("every golden row of this model has a missing value, which only binary tensors can send")
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
    """Raises NotInRole if the role serves a part of the model: a half, or a member."""
    names = client.models()
    if client.model.name not in names:
        what = f"the server has {', '.join(names)}, and not the whole model {client.model.name}"
        if client.role in ("pred", "member"):
            raise NotInRole(f"{what}; roles all and synchronous have it")
        raise NotSetUp(f"{what} of {client.model_dir}; set --model-dir to the folder of the server's model")
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
        raise NotForModel(f"{client.model_dir} has no halves of its model in folders prep and pred")
    if half.name not in client.models():
        raise NotSetUp(f"the server does not have the other half, {half.name}; its log says why")
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
        raise NotForModel("every golden row of this model has a missing value")
    document = json.loads(client.run("edge", "predict", "--json", "--", *map(cell, case.row)))
    client.check(document["probabilities"], document["label"], case)
    client.check_equal("the model without a server", document["model"]["digest"], client.model.digest)
    if ("GET", "/edge/manifest.json") not in client.routes:
        raise why_no_bundle(client)
    check_bundle(client)


def why_no_bundle(client: TourClient) -> NotTested:
    types = sorted({feature.type for feature in client.model.features} - {"float32"})
    if types or len(client.model.inputs) > 1:
        words = ", ".join(types or ["several"])
        return NotForModel(f"the command works, but the page at /edge/ is for models with one float32 input, not {words}")
    cause = NotSetUp if client.role == "all" else NotInRole
    return cause(f"the command works, but the server has no bundle for devices: {bundle_advice(client.model_dir)}")


def check_bundle(client: TourClient) -> None:
    """Downloads the page and the model of the bundle, and compares them with its manifest. Raises Mismatch."""
    manifest = client.send("GET", "/edge/manifest.json").document
    source = manifest["model"].get("source") or manifest["model"]["digest"]
    client.check_equal("the model of the bundle", source, client.model.digest)
    files = {"": manifest["files"]["index.html"]}
    files |= {path: entry for path, entry in manifest["files"].items() if path.startswith("model/")}
    for path, entry in files.items():
        client.check_equal(f"the digest of /edge/{path}", client.file_digest(f"/edge/{path}"), entry["sha256"])


def no_fast_model(_: TourClient) -> NotTested:
    return NotForModel("the folder of the server's model has no matching fast model")


def no_members(_: TourClient) -> NotTested:
    return NotForModel("the folder of the server's model has no members")


def no_cache(client: TourClient) -> NotTested:
    if client.can_cache():
        return NotSetUp("its cache is off; restart the server without IRIS_CACHE=off")
    return NotForModel("its predictions for a row alone and in a batch differ, so they cannot be cached")


def no_route(_: TourClient) -> NotTested:
    return NotSetUp("the server does not have its routes; the log of the server says why")


class Pattern(NamedTuple):
    """A pattern with its purpose and its test. `roles` have the pattern; without roles, every server can have it.

    `route` is the route that the test requires. A server of another role may have the route because of a setting. `why_not` says
    why a server of these roles does not have the route.
    """

    name: str
    when: str
    walk: Callable[[TourClient], None]
    route: tuple[str, str] | None = None
    roles: tuple[str, ...] = ()
    why_not: Callable[[TourClient], NotTested] = no_route
    is_for_classifiers: bool = False

    def check(self, client: TourClient) -> None:
        """Raises NotTested if the pattern is one of other roles or of other models, or if the server does not have the route."""
        if self.roles and client.role not in self.roles and self.route not in client.routes:
            raise NotInRole(f"roles {enumerated(self.roles)} have it")
        if self.is_for_classifiers and client.outputs.kind != CLASSIFIER:
            raise NotForModel(CLASSIFIERS_ONLY.format(client.outputs.name))
        if self.route is not None and self.route not in client.routes:
            raise self.why_not(client)


PATTERNS = (
    Pattern("web single", "clients have a row and need its class, in plain JSON. Begin here.", web_single,
            ("POST", "/predict"), ("all", "web_single", "prediction_cache", "prep")),
    Pattern("synchronous", "clients speak the protocol of Triton or KServe, and wait for the response.", synchronous,
            ("POST", "/v2/models/{model}/infer"), ("all", "synchronous")),
    Pattern("asynchronous", "the result may be late, but must not be lost in any failure.", asynchronous,
            ("POST", "/jobs"), ("all", "asynchronous", "sync_async")),
    Pattern("batch", "many rows are in a file or a table, and no client waits for a single one.", batch),
    Pattern("prep-pred", "preprocessing and prediction are scaled or released separately.", prep_pred,
            roles=("all", "prep", "pred"), is_for_classifiers=True),
    Pattern("sync-async", "a good prediction is needed at once, and the best one as soon as possible.", sync_async,
            ("POST", "/predict/hybrid"), ("all", "sync_async"), no_fast_model),
    Pattern("prediction cache", "the same rows are repeated, and the model is slow.", prediction_cache,
            ("DELETE", "/cache"), ("all", "prediction_cache"), no_cache),
    Pattern("data cache", "clients know an id, and its features are in a database.", data_cache,
            ("PUT", "/items/{id}"), ("all", "data_cache")),
    Pattern("horizontal microservice", "each class has its own model, released and scaled separately.", horizontal,
            ("POST", "/ensemble/predict"), ("all", "gateway"), no_members, is_for_classifiers=True),
    Pattern("edge AI", "the network is slow, expensive, or absent, or the data must not leave the device.", edge,
            is_for_classifiers=True),
)  # fmt: skip


def enumerated(names: Sequence[str]) -> str:
    """Returns two or more names as in a sentence."""
    return " and ".join(names) if len(names) == 2 else f"{', '.join(names[:-1])}, and {names[-1]}"


class TourResults:
    """Results of the patterns: the names of those that are right and of those without a test, and lines on the others."""

    def __init__(self) -> None:
        self.right, self.in_other_roles, self.not_for_model = list[str](), list[str](), list[str]()
        self.not_set_up, self.wrong = dict[str, str](), list[str]()

    def add(self, pattern: Pattern, client: TourClient) -> None:
        """Tests a pattern, and prints its result."""
        try:
            pattern.check(client)
            pattern.walk(client)
            self.right.append(pattern.name)
            client.print("right", GREEN)
        except NotInRole as cause:
            self.in_other_roles.append(pattern.name)
            client.print(f"not served by role {client.role}: {cause}", YELLOW)
        except NotForModel as cause:
            self.not_for_model.append(pattern.name)
            client.print(f"skipped for this model: {cause}", YELLOW)
        except NotSetUp as cause:
            self.not_set_up[pattern.name] = str(cause)
            client.print(f"not set up: {cause}", YELLOW)
        except (Mismatch, BadModel, OSError, HTTPException, SubprocessError, *MALFORMED) as error:
            self.wrong.append(f"{pattern.name} is wrong: {reason(error)}")
            client.print(self.wrong[-1], RED)

    def summary(self, role: str) -> str:
        """Returns one line. It counts against the patterns that the role serves with this model."""
        count = len(self.right) + len(self.not_set_up) + len(self.wrong)
        line = f"{len(self.right)} of {count} pattern{'s' * (count != 1)} of role {role} "
        line += "is right" if len(self.right) == 1 else "are right"
        line += f"; wrong: {len(self.wrong)}" if self.wrong else ""
        for what, names in (
            ("not set up", self.not_set_up),
            ("skipped for this model", self.not_for_model),
            ("not served by this role", self.in_other_roles),
        ):
            line += f"; {what}: {', '.join(names)}" if names else ""
        return line


def tour(client: TourClient, fail: Callable[[str], None]) -> int:
    """Returns 0 if every tested pattern is right, and 1 if one is wrong or the server cannot be checked.

    Faults are printed with their pattern, and again at the end.
    """
    client.print(f"The server at {client.url}:", BOLD)
    if problem := inspection_problem(client):
        fail(problem)
        return 1
    results = TourResults()
    for number, pattern in enumerate(PATTERNS, 1):
        client.print(f"\n{number}/{len(PATTERNS)} {pattern.name}", BOLD)
        client.print(f"Use it when {pattern.when}")
        results.add(pattern, client)
    client.connection.close()
    client.print(f"\n{results.summary(client.role)}", BOLD)
    for name, advice in results.not_set_up.items():
        client.print(f"{name}: {advice}", YELLOW)
    for line in results.wrong:
        fail(line)
    return 1 if results.wrong else 0


def inspection_problem(client: TourClient) -> str | None:
    """Inspects the server. Returns None, or why the server cannot be checked."""
    try:
        client.inspect()
    except UnknownServer as error:
        return str(error)
    except (OSError, HTTPException) as error:
        return (
            f"no server responds at {client.url}: {reason(error)}; start one with bin/serve in another terminal, or name its URL"
        )
    except (Mismatch, *MALFORMED) as error:
        return f"{client.url} does not describe itself as an iris_wsgi server: {reason(error)}"
    return None


def reason(error: Exception) -> str:
    if isinstance(error, Mismatch):
        return str(error)
    if isinstance(error, MALFORMED):
        return f"its response has another form ({type(error).__name__}: {error})"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
