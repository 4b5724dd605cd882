"""How a route asks for predictions: as it is, or through what a role has put in between."""

from collections.abc import Callable

from iris_wsgi.payload import Array
from iris_wsgi.predictors import Predict
from iris_wsgi.wsgi import Request

Headers = tuple[tuple[str, str], ...]
# Probabilities [n, classes], and what the answer's fields say of how they were come by. A plain tuple: there is one a request.
Told = tuple[Array, Headers]
Ask = Callable[[Array, Request], Told]


def plainly(predict: Predict) -> Ask:
    return lambda rows, request: (predict(rows, request.until), ())
