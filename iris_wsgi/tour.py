"""Walks through every pattern against a running server: a real request each, its answer, and whether that is right."""

import csv
import json
from collections.abc import Callable, Mapping
from http.client import HTTPException
from subprocess import SubprocessError
from typing import Any, NamedTuple

from iris_wsgi.folder import Case
from iris_wsgi.guide import BOLD, GREEN, RED, Guide, Wrong

# What an answer of another form than the one that is looked for raises.
MISSHAPEN = (LookupError, TypeError, ValueError, AttributeError)


def rows(*cases: Case) -> dict[str, list[list[float]]]:
    return {"data": [case.row for case in cases]}


def web_single(guide: Guide) -> None:
    told = guide.ask("POST", "/predict/proba", rows(guide.cases[0])).document["prediction"]
    best = max(told, key=lambda one: one["probability"])
    guide.right([one["probability"] for one in told], best["label"])


def synchronous(guide: Guide) -> None:
    place, row = f"/v2/models/{guide.model['name']}", guide.cases[0].row
    (taken,) = guide.ask("GET", place).document["inputs"]
    tensor = {"name": taken["name"], "datatype": "FP32", "shape": [1, len(row)], "data": row}
    told = guide.ask("POST", f"{place}/infer", {"inputs": [tensor]}).document["outputs"]
    guide.right(next(one["data"] for one in told if one["datatype"] == "FP32"))


def asynchronous(guide: Guide) -> None:
    finished(guide, guide.ask("POST", "/jobs", rows(guide.cases[0])).document)


def finished(guide: Guide, job: Mapping[str, Any]) -> None:
    told = guide.ask("GET", job["href"], Prefer="wait=10").document
    guide.same("the status of the job", told["status"], "succeeded")
    guide.right(told["result"]["probabilities"][0], told["result"]["labels"][0])


def batch(guide: Guide) -> None:
    names = ",".join(feature["name"] for feature in guide.model["features"])
    lines = [",".join(map(repr, case.row)) for case in guide.cases]
    told = guide.run("batch", "-", "-", "--in-format", "csv", "--quiet", given="\n".join([names, *lines, ""]))
    for (label, *probabilities), case in zip(list(csv.reader(told.splitlines()))[1:], guide.cases, strict=True):
        guide.right(probabilities, label, case)


def prep_pred(guide: Guide) -> None:
    with guide.prep() as url:
        guide.right(guide.ask("POST", "/predict", rows(guide.cases[0]), url).document["prediction"])


def sync_async(guide: Guide) -> None:
    told = guide.ask("POST", "/predict/hybrid", rows(guide.cases[0])).document
    guide.same("the provisional label", told["provisional"]["label"], guide.cases[0].label)
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
    guide.same("the model without a server", told["model"]["digest"], guide.model["digest"])
    reply = guide.ask("GET", "/edge/manifest.json", may_be=404)
    if reply.status == 404:
        guide.say("(For the page that answers in a browser without a network: bin/edge build, then bin/serve once again.)")
    else:
        guide.same("the model of the bundle", reply.document["model"]["digest"], guide.model["digest"])


class Pattern(NamedTuple):
    name: str
    when: str
    walk: Callable[[Guide], None]


PATTERNS = (
    Pattern("web single", "clients have a row and want its class, in plain JSON. Begin here.", web_single),
    Pattern("synchronous", "clients speak the protocol of Triton or KServe, and wait for the answer.", synchronous),
    Pattern("asynchronous", "the answer may come later, but must come whatever breaks meanwhile.", asynchronous),
    Pattern("batch", "many rows lie in a file or a table, and nobody waits for one of them.", batch),
    Pattern("prep-pred", "what prepares rows and what predicts are to be scaled or released apart.", prep_pred),
    Pattern("sync-async", "a good answer is wanted at once, and the best one as soon as there is one.", sync_async),
    Pattern("prediction cache", "the same rows come again and again, and the model is slow.", prediction_cache),
    Pattern("data cache", "clients know an id, and its features are in a database.", data_cache),
    Pattern("horizontal microservice", "there is a model for each class, released and scaled by itself.", horizontal),
    Pattern("edge AI", "the network is slow, dear or away, or the data must not leave the device.", edge),
)


def tour(guide: Guide, fail: Callable[[str], None]) -> int:
    """The status: 0 if all answers are right, 1 if not; what is wrong is told pattern by pattern, and once again at the end."""
    wrong = []
    try:
        guide.say(f"The server at {guide.url}:", BOLD)
        guide.model = guide.ask("GET", "/metadata").document["model"]
    except (OSError, HTTPException) as error:
        fail(f"no server answers at {guide.url}: {reason(error)}; start one with bin/serve in another terminal, or name its URL")
        return 1
    except (Wrong, *MISSHAPEN) as error:
        fail(f"{guide.url} is no server of role all (bin/serve): {reason(error)}")
        return 1
    for number, (name, when, walk) in enumerate(PATTERNS, 1):
        guide.say(f"\n{number}/{len(PATTERNS)} {name}", BOLD)
        guide.say(f"Use it when {when}")
        try:
            walk(guide)
            guide.say("right", GREEN)
        except (Wrong, OSError, HTTPException, SubprocessError, *MISSHAPEN) as error:
            wrong.append(f"{name} is wrong: {reason(error)}")
            guide.say(wrong[-1], RED)
    guide.connection.close()
    guide.say(f"\n{len(PATTERNS) - len(wrong)} of {len(PATTERNS)} patterns answer as they should", BOLD)
    for line in wrong:
        fail(line)
    return 1 if wrong else 0


def reason(error: Exception) -> str:
    if isinstance(error, Wrong):
        return str(error)
    if isinstance(error, MISSHAPEN):
        return f"its answer has another form than expected ({type(error).__name__}: {error})"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
