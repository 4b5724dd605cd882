"""Walks through every pattern against a running server: a real request each, its answer, and whether that is right."""

import csv
import json
from collections.abc import Callable, Mapping
from http.client import HTTPException
from subprocess import SubprocessError
from typing import Any, NamedTuple

from iris_wsgi.cli.tour_client import BOLD, GREEN, RED, UNFINISHED, YELLOW, Guide, NotJudged, Unserved, Wrong
from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import GoldenRow

# What an answer of another form than the one that is looked for raises.
MISSHAPEN = (LookupError, TypeError, ValueError, AttributeError)


def rows(*cases: GoldenRow) -> dict[str, list[list[float]]]:
    return {"data": [case.row for case in cases]}


def web_single(guide: Guide) -> None:
    told = guide.ask("POST", "/predict/proba", rows(guide.cases[0])).document["prediction"]
    best = max(told, key=lambda one: one["probability"])
    guide.right([one["probability"] for one in told], best["label"])


def synchronous(guide: Guide) -> None:
    of_whole(guide)
    place, row = f"/v2/models/{guide.model.name}", guide.cases[0].row
    (taken,) = guide.ask("GET", place).document["inputs"]
    tensor = {"name": taken["name"], "datatype": "FP32", "shape": [1, len(row)], "data": row}
    told = guide.ask("POST", f"{place}/infer", {"inputs": [tensor]}).document["outputs"]
    guide.right(next(one["data"] for one in told if one["datatype"] == "FP32"))


def of_whole(guide: Guide) -> None:
    """Raises Unserved where the server has models of other names alone, as roles of a half or of one species have."""
    names = guide.models()
    if guide.model.name not in names:
        raise Unserved(f"role {guide.role} has {', '.join(names)} here, and not the whole model {guide.model.name}")
    told = guide.ask("GET", f"/v2/models/{guide.model.name}/config").document["parameters"]["digest"]["string_value"]
    guide.same("the digest of the model", told, guide.model.digest)


def asynchronous(guide: Guide) -> None:
    finished(guide, guide.ask("POST", "/jobs", rows(guide.cases[0])).document)


def finished(guide: Guide, job: Mapping[str, Any]) -> None:
    told = guide.job(job["id"])
    if told["status"] in UNFINISHED:
        raise Wrong(f"the job is still {told['status']}; is a worker running (python3 -m iris_wsgi worker) on the same store?")
    guide.same("the status of the job", told["status"], "succeeded")
    guide.right(told["result"]["probabilities"][0], told["result"]["labels"][0])


def batch(guide: Guide) -> None:
    names = ",".join(feature.name for feature in guide.model.features)
    lines = [",".join(map(repr, case.row)) for case in guide.cases]
    told = guide.run("batch", "-", "-", "--in-format", "csv", "--quiet", given="\n".join([names, *lines, ""]))
    for (label, *probabilities), case in zip(list(csv.reader(told.splitlines()))[1:], guide.cases, strict=True):
        guide.right(probabilities, label, case)


def prep_pred(guide: Guide) -> None:
    if guide.role == "prep":
        # It asks the other half itself.
        guide.right(guide.ask("POST", "/predict", rows(guide.cases[0])).document["prediction"])
        return
    half = guide.half()
    if half is None:
        raise Unserved(f"{guide.model_dir} has no two halves of its model, the folders prep and pred")
    if half.name not in guide.models():
        raise Unserved(f"role {guide.role} does not have the other half, {half.name}; roles all and pred do")
    with guide.prep() as url:
        guide.right(guide.ask("POST", "/predict", rows(guide.cases[0]), url).document["prediction"])


def sync_async(guide: Guide) -> None:
    told = guide.ask("POST", "/predict/hybrid", rows(guide.cases[0])).document
    guide.same("the provisional label", told["provisional"]["label"], guide.cases[0].label)
    if told["final"]["status"] == "confident":
        guide.say("(The fast model is sure enough for IRIS_ESCALATE_BELOW, so there is no job.)")
        return
    finished(guide, told["final"])


def prediction_cache(guide: Guide) -> None:
    case = guide.cases[-1]
    for _ in range(2):
        reply = guide.ask("POST", "/predict", rows(case))
        guide.right(reply.document["prediction"], case=case)
    guide.same("that the second answer is a hit", reply.is_hit, True)


def data_cache(guide: Guide) -> None:
    case = guide.cases[-1]
    guide.ask("PUT", "/items/tour", rows(case))
    for hit in (False, True):
        reply = guide.ask("GET", "/items/tour/prediction")
        guide.right(reply.document["probabilities"], reply.document["label"], case)
        guide.same("that it is a hit", reply.is_hit, hit)


def horizontal(guide: Guide) -> None:
    told = guide.ask("POST", "/ensemble/predict", rows(guide.cases[0])).document
    guide.same("the status", told["status"], "complete")
    guide.same("the label", told["prediction"]["label"], guide.cases[0].label)


def edge(guide: Guide) -> None:
    row = [str(value) for value in guide.cases[0].row]
    told = json.loads(guide.run("edge", "predict", "--json", *row))
    guide.right(told["probabilities"], told["label"])
    guide.same("the model without a server", told["model"]["digest"], guide.model.digest)
    if ("GET", "/edge/manifest.json") not in guide.routes:
        raise Unserved(
            "the command answers as it should, and there is no page at /edge/: bin/edge build, then bin/serve once again"
        )
    manifest = guide.ask("GET", "/edge/manifest.json").document
    guide.same("the model of the bundle", manifest["model"]["digest"], guide.model.digest)


class Pattern(NamedTuple):
    """Its name, when to use it, how to try it; the route that it needs of a server, where it needs any, which roles have that
    route, and why role all may not."""

    name: str
    when: str
    walk: Callable[[Guide], None]
    route: tuple[str, str] | None = None
    roles: str = ""
    why_not: str = "its log says why"

    def check(self, guide: Guide) -> None:
        """Raises Unserved where the server does not have the route."""
        if self.route is not None and self.route not in guide.routes:
            route = " ".join(self.route)
            why = self.why_not if guide.role == "all" else f"{self.roles} do"
            raise Unserved(f"role {guide.role} does not have {route} here; {why}")


PATTERNS = (
    Pattern("web single", "clients have a row and want its class, in plain JSON. Begin here.", web_single,
            ("POST", "/predict/proba"), "roles all, web_single, prediction_cache and prep"),
    Pattern("synchronous", "clients speak the protocol of Triton or KServe, and wait for the answer.", synchronous,
            ("POST", "/v2/models/{model}/infer"), "roles all and synchronous"),
    Pattern("asynchronous", "the answer may come later, but must come whatever breaks meanwhile.", asynchronous,
            ("POST", "/jobs"), "roles all, asynchronous and sync_async"),
    Pattern("batch", "many rows lie in a file or a table, and nobody waits for one of them.", batch),
    Pattern("prep-pred", "what prepares rows and what predicts are to be scaled or released apart.", prep_pred),
    Pattern("sync-async", "a good answer is wanted at once, and the best one as soon as there is one.", sync_async,
            ("POST", "/predict/hybrid"), "roles all and sync_async", "there is no fast model that fits beside its model"),
    Pattern("prediction cache", "the same rows come again and again, and the model is slow.", prediction_cache,
            ("DELETE", "/cache"), "roles all and prediction_cache, or IRIS_CACHE=on,",
            "its cache is off, or its model cannot be cached"),
    Pattern("data cache", "clients know an id, and its features are in a database.", data_cache,
            ("PUT", "/items/{id}"), "roles all and data_cache"),
    Pattern("horizontal microservice", "there is a model for each class, released and scaled by itself.", horizontal,
            ("POST", "/ensemble/predict"), "roles all and gateway", "there are no models of one species each beside its model"),
    Pattern("edge AI", "the network is slow, dear or away, or the data must not leave the device.", edge),
)  # fmt: skip


def tour(guide: Guide, fail: Callable[[str], None]) -> int:
    """The status: 0 if all that is served is right, 1 if anything is wrong or the server cannot be judged.

    What is wrong is told pattern by pattern, and once again at the end.
    """
    guide.say(f"The server at {guide.url}:", BOLD)
    try:
        guide.look()
    except NotJudged as error:
        fail(str(error))
        return 1
    except (OSError, HTTPException) as error:
        fail(f"no server answers at {guide.url}: {reason(error)}; start one with bin/serve in another terminal, or name its URL")
        return 1
    except (Wrong, *MISSHAPEN) as error:
        fail(f"{guide.url} does not describe itself as an iris_wsgi server does: {reason(error)}")
        return 1
    wrong, unserved = [], 0
    for number, pattern in enumerate(PATTERNS, 1):
        guide.say(f"\n{number}/{len(PATTERNS)} {pattern.name}", BOLD)
        guide.say(f"Use it when {pattern.when}")
        try:
            pattern.check(guide)
            pattern.walk(guide)
            guide.say("right", GREEN)
        except Unserved as error:
            unserved += 1
            guide.say(f"not served: {error}", YELLOW)
        except (Wrong, BadModel, OSError, HTTPException, SubprocessError, *MISSHAPEN) as error:
            wrong.append(f"{pattern.name} is wrong: {reason(error)}")
            guide.say(wrong[-1], RED)
    guide.connection.close()
    right = len(PATTERNS) - len(wrong) - unserved
    others = f"; not served: {unserved}" if unserved else ""
    guide.say(f"\n{right} of {len(PATTERNS)} patterns answer as they should; wrong: {len(wrong)}{others}", BOLD)
    for line in wrong:
        fail(line)
    return 1 if wrong else 0


def reason(error: Exception) -> str:
    if isinstance(error, Wrong):
        return str(error)
    if isinstance(error, MISSHAPEN):
        return f"its answer has another form than expected ({type(error).__name__}: {error})"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
