"""Adapters between the predictors of the package and plain functions of arrays."""

from collections.abc import Callable
from math import inf

from iris_wsgi.codec.rows import Array
from iris_wsgi.model.predictor import Predict, PredictContext, Prediction


def predictor(compute: Callable[[Array, float], Array]) -> Predict:
    """Returns the predictor that computes probabilities with a function of rows and a deadline."""
    return lambda rows, context: Prediction(compute(rows, context.deadline))


def of_arrays(predict: Predict) -> Callable[..., Array]:
    """Returns a function of rows and a deadline that returns the probabilities of the predictor."""

    def compute(rows: Array, deadline: float = inf) -> Array:
        return predict(rows, PredictContext(deadline)).outputs

    return compute
