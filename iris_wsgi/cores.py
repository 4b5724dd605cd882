"""What the routes of a role are put around: a model that is here, or the half of one whose other half is elsewhere."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from iris_wsgi import golden
from iris_wsgi.asking import Ask
from iris_wsgi.catalogue import ROLES
from iris_wsgi.companions import Companions
from iris_wsgi.errors import BadModel, Problem
from iris_wsgi.log import Log
from iris_wsgi.metrics import Registry
from iris_wsgi.model import Graph, Model
from iris_wsgi.ops import Readiness
from iris_wsgi.pace import Pace, measure
from iris_wsgi.predictors import ModelMetrics, Predict, measured, within_deadline
from iris_wsgi.routes.single import Sample
from iris_wsgi.settings import Settings
from iris_wsgi.tracing import Fields, nothing
from iris_wsgi.watch import Watch

PRED = "pred"


def unchanged(ask: Ask) -> Ask:
    return ask


class Core(NamedTuple):
    """`difference` tells by how much answers to golden rows alone and in a batch differ at most."""

    graph: Graph
    predict: Predict
    sample: Sample
    difference: Callable[[], float]
    pace: Pace
    readiness: Readiness
    self_test: str
    # What else there is to do around a question that a request asks.
    around: Callable[[Ask], Ask] = unchanged


class Start(NamedTuple):
    """What a start has before it has a model."""

    settings: Settings
    registry: Registry
    companions: Companions
    log: Log
    # What it shows to the servers that it asks.
    credentials: Callable[[], Fields] = nothing


def folder_of(settings: Settings) -> Path:
    """Where the model of the role is: in that of the whole one there are the halves and the members."""
    return Path(settings.model_dir) / ROLES[settings.role].folder.format(member=settings.member)


def here(start: Start) -> Core:
    """Loads the model and tests it. Raises BadModel."""
    model, pinned, self_test = golden.proven_model(folder_of(start.settings), start.settings.model_seal)
    first = pinned.cases[0]
    try:
        pace = measure(model, first.row)
    except Problem as problem:
        raise BadModel(f"{folder_of(start.settings)}: {problem.detail}") from None
    return Core(
        model,
        measured(within_deadline(model, Watch()), model, ModelMetrics(start.registry, model)),
        Sample(first.row, model.predict(np.array([first.row], np.float32))[0].tolist()),
        partial(golden.difference, model, pinned.cases),
        pace,
        Readiness(lambda: golden.holds(model, first, pinned.tolerance), pace.alone),
        self_test,
    )


def of_member(start: Start) -> Core:
    """The same for a model of one species, which must be the one that is set."""
    core, wanted = here(start), start.settings.member
    species = core.graph.identity.get("member")
    if species != wanted or core.graph.labels[1:] != (wanted,):
        raise BadModel(
            f"{folder_of(start.settings)} holds a model of {species or 'no species'} for {', '.join(core.graph.labels)};"
            f" IRIS_MEMBER={wanted} needs one of {wanted} for other, {wanted}"
        )
    return core


def second_half(settings: Settings, whole: Graph) -> Model:
    """What role pred would serve of this model's folder. Raises BadModel, also where no path could tell the two models apart."""
    folder = Path(settings.model_dir) / PRED
    half, _, _ = golden.proven_model(folder)
    if half.name == whole.name:
        raise BadModel(f"{folder} holds a model of the name {half.name}, as the whole one has it")
    return half
