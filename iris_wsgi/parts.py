"""What roles are put together from."""

from collections.abc import Callable
from typing import NamedTuple

from iris_wsgi.asking import Ask
from iris_wsgi.companions import Companions
from iris_wsgi.log import Log
from iris_wsgi.metrics import Registry
from iris_wsgi.model import Graph
from iris_wsgi.ops import Readiness
from iris_wsgi.pace import Pace
from iris_wsgi.predictors import Predict
from iris_wsgi.routes.single import Sample
from iris_wsgi.settings import Settings
from iris_wsgi.tracing import Fields

# How long a store may take to answer a request, which is to be told of one that is down within a quarter of a second.
REQUEST_SECONDS = 0.2


class Parts(NamedTuple):
    """What each role is given."""

    settings: Settings
    model: Graph
    predict: Predict
    ask: Ask
    sample: Sample
    registry: Registry
    readiness: Readiness
    pace: Pace
    companions: Companions
    log: Log
    # What is shown to the servers that it asks.
    credentials: Callable[[], Fields]
