"""Dependencies of roles: the model backend, and the services available before the model is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from iris_wsgi.codec.model_schema import Array, OutputSchema
from iris_wsgi.http.cache_headers import cache_directives
from iris_wsgi.model.predictor import LatencyProfile, Predict, PredictContext, PredictRow
from iris_wsgi.model.session import Graph
from iris_wsgi.observability.log import Log
from iris_wsgi.observability.metrics import Registry
from iris_wsgi.observability.trace_context import Headers, no_headers
from iris_wsgi.resilience.background import BackgroundTasks
from iris_wsgi.roles import ROLES
from iris_wsgi.settings import Settings
from iris_wsgi.wsgi.application import Request
from iris_wsgi.wsgi.health_routes import Readiness

# Timeout of a store for a request, in seconds: an outage is reported within a quarter of a second.
REQUEST_SECONDS = 0.2


def predict_context(request: Request) -> PredictContext:
    """Returns the properties of the request that predictors use."""
    return PredictContext(request.deadline, cache_directives(request.environ.get("HTTP_CACHE_CONTROL")), request.ids)


class Sample(NamedTuple):
    """The row [1, features] of /metadata and /predict/test, with the prediction [1, columns] of the model for it."""

    rows: Array
    outputs: Array


class ModelBackend(NamedTuple):
    """The model of a role, with its predictor and its readiness.

    `batch_difference` returns the maximum difference between the predictions for golden rows alone and in a batch.
    """

    model: Graph
    outputs: OutputSchema
    predict: Predict
    sample: Sample
    latency: LatencyProfile
    readiness: Readiness
    batch_difference: Callable[[], float]
    self_test: str
    # None if no model of this process predicts each row by itself.
    predict_row: PredictRow | None = None


class StartupContext(NamedTuple):
    """Services available before the model is loaded."""

    settings: Settings
    registry: Registry
    background: BackgroundTasks
    log: Log
    # Returns the headers that authenticate calls to other servers.
    credentials: Callable[[], Headers] = no_headers


class RoleContext(NamedTuple):
    """Dependencies of a role: those of StartupContext, and those of the model."""

    settings: Settings
    registry: Registry
    background: BackgroundTasks
    log: Log
    credentials: Callable[[], Headers]
    model: Graph
    outputs: OutputSchema
    predict: Predict
    sample: Sample
    latency: LatencyProfile
    readiness: Readiness
    predict_row: PredictRow | None = None


def model_folder(settings: Settings) -> Path:
    """Returns the folder of the role's model. The folder of the full model contains those of its halves and members."""
    return Path(settings.model_dir) / ROLES[settings.role].folder.format(member=settings.member)
