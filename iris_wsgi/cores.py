"""What the routes of a role are put around: a model that is here, or the half of one whose other half is elsewhere."""

from collections.abc import Callable
from functools import partial
from math import inf
from pathlib import Path
from typing import NamedTuple

import numpy as np

from iris_wsgi import golden
from iris_wsgi.companions import Companions
from iris_wsgi.errors import BadModel
from iris_wsgi.halves import Prep
from iris_wsgi.log import Log
from iris_wsgi.metrics import Registry
from iris_wsgi.model import Graph, load, load_model
from iris_wsgi.ops import Readiness
from iris_wsgi.pace import BLOCKING, Pace, measure
from iris_wsgi.payload import Array
from iris_wsgi.predictors import ModelMetrics, Predict, measured, within_deadline
from iris_wsgi.remote.metrics import CallMetrics
from iris_wsgi.remote.peer import Peer
from iris_wsgi.remote.predictor import Trace, remote
from iris_wsgi.remote.target import Target, place_of
from iris_wsgi.remote.watcher import Watcher
from iris_wsgi.routes.single import Sample
from iris_wsgi.settings import Settings
from iris_wsgi.watch import Watch

PRED = "pred"


class Core(NamedTuple):
    """`difference` tells by how much answers to golden rows alone and in a batch differ at most."""

    graph: Graph
    predict: Predict
    sample: Sample
    difference: Callable[[], float]
    pace: Pace
    readiness: Readiness
    self_test: str
    trace: Trace | None = None


class Start(NamedTuple):
    """What a start has before it has a model."""

    settings: Settings
    registry: Registry
    companions: Companions
    log: Log


def folder_of(settings: Settings) -> Path:
    """Where the model of the role is: in that of the whole one there are the halves and the members."""
    whole = Path(settings.model_dir)
    within = {"prep": whole / "prep", "pred": whole / PRED, "member": whole / "members" / settings.member}
    return within.get(settings.role, whole)


def here(start: Start) -> Core:
    """Loads the model and tests it. Raises BadModel."""
    model, pinned = load_model(folder_of(start.settings), start.settings.model_seal)
    self_test = golden.self_test(model, pinned.cases, pinned.tolerance)
    first = pinned.cases[0]
    pace = measure(model, first.row)
    return Core(
        model,
        measured(within_deadline(model, Watch()), model, ModelMetrics(start.registry, model)),
        Sample(first.row, model.predict(np.array([first.row], np.float32))[0].tolist()),
        partial(golden.difference, model, pinned.cases),
        pace,
        Readiness(lambda: golden.holds(model, first, pinned.tolerance), pace.alone),
        self_test,
    )


def member(start: Start) -> Core:
    """The same for a model of one species, which must be the one that is set."""
    core, wanted = here(start), start.settings.member
    species = core.graph.identity.get("member")
    if species != wanted or core.graph.labels[1:] != (wanted,):
        raise BadModel(
            f"{folder_of(start.settings)} holds a model of {species or 'no species'} for {', '.join(core.graph.labels)};"
            f" IRIS_MEMBER={wanted} needs one of {wanted} for other, {wanted}"
        )
    return core


class Joined(NamedTuple):
    """Both halves as one model, as golden rows test it."""

    labels: tuple[str, ...]
    width: int
    predict: Callable[[Array], Array]


def split(start: Start) -> Core:
    """Loads the first half; whether the other answers, and belongs to it, is for readiness to tell. Raises BadModel."""
    settings = start.settings
    prep, pinned = load(Prep, folder_of(settings), settings.model_seal)
    rows = np.array([case.row for case in pinned.cases], np.float32)
    prepared = prep.prepare(rows)
    if not np.isfinite(prepared).all():
        raise BadModel(f"{folder_of(settings)} makes values that are not finite of its golden rows")
    trace = Trace()
    target = Target(PRED, place_of(settings.pred_url), CallMetrics(start.registry, [PRED]), start.log.event)

    def proves(ask: Callable[[Array], Array]) -> str | None:
        joined = Joined(prep.labels, prep.width, lambda rows: ask(prep.prepare(rows)))
        try:
            golden.self_test(joined, pinned.cases, pinned.tolerance)
        except BadModel as error:
            return str(error)
        off = golden.difference(joined, pinned.cases) if settings.cache == "on" else 0.0
        return f"its answers to a row alone and in a batch differ by up to {off:.1e}; they cannot be cached" if off else None

    def fits(peer: Peer) -> str | None:
        if wrong := why_no_pair(prep, peer):
            return wrong
        prep.identity["pred"] = peer.digest
        return None

    watcher = Watcher(target, prepared[:1], fits, proves)
    start.companions.add("look at pred", partial(watcher.run, start.companions.is_ending), finishes=False)
    ask = remote(target, trace)

    def predict(rows: Array, until: float = inf) -> Array:
        return ask(prep.prepare(rows), until)

    readiness = Readiness(lambda: True)
    readiness.others.append(target.why_not)
    return Core(
        prep,
        measured(predict, prep, ModelMetrics(start.registry, prep)),
        Sample(pinned.cases[0].row, pinned.cases[0].probabilities),
        lambda: 0.0,
        BLOCKING,
        readiness,
        f"{len(rows)} golden rows prepared; what they give is tested with the other half",
        trace,
    )


def why_no_pair(prep: Prep, peer: Peer) -> str | None:
    pair = peer.told.get("pair")
    if pair != prep.digest:
        return f"its model is of the pair {pair or 'none'}, and this half is of the pair {prep.digest}"
    if peer.classes != len(prep.labels):
        return f"its model has {peer.classes} classes, not {len(prep.labels)}"
    return None


CORES: dict[str, Callable[[Start], Core]] = {"prep": split, "member": member}
