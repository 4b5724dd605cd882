"""The predictor whose model another server has, and how its failures are told."""

from time import monotonic

import numpy as np

from iris_wsgi.client.call import Failure, gather
from iris_wsgi.client.endpoint import Target
from iris_wsgi.client.inference import Asked
from iris_wsgi.client.v2_messages import FLOAT_BYTES
from iris_wsgi.codec.rows import Array
from iris_wsgi.errors import RETRY_AFTER, BadGateway, DeadlineExceeded, Problem, ServiceUnavailable
from iris_wsgi.model.predictor import Predict, PredictContext, Prediction

# What a body of v2 may have there by default is 1 MiB; more rows go in several requests.
MOST_TENSOR = 524_288
# Where a request has no deadline it does not wait forever all the same.
MOST_SECONDS = 60.0


def remote(target: Target) -> Predict:
    """Rows as the other's model takes them, to its output.

    Raises ServiceUnavailable (503) without a connection, DeadlineExceeded (504), and BadGateway (502) for an invalid response.
    """

    def predict(rows: Array, context: PredictContext) -> Prediction:
        peer = target.peer
        most = max(1, min(peer.most, MOST_TENSOR // (FLOAT_BYTES * peer.width))) if peer else len(rows)
        if len(rows) <= most:
            return Prediction(piece(rows, context))
        return Prediction(np.concatenate([piece(rows[i : i + most], context) for i in range(0, len(rows), most)]))

    def piece(rows: Array, context: PredictContext) -> Array:
        until = min(context.deadline, monotonic() + MOST_SECONDS)
        headers = context.ids.passed_on() if context.ids else ()
        asked = Asked(target, target.peer, rows, until, headers)
        gather(asked.calls, until)
        found = asked.result()
        if isinstance(found, Failure):
            raise problem_of(found, target.name)
        return found

    return predict


def problem_of(failure: Failure, name: str) -> Problem:
    """What a client is told: never more than which service it was, since the log has the rest."""
    which = f"The service {name}, which this answer needs,"
    if failure.outcome == "late":
        return DeadlineExceeded(f"{which} did not answer in time. Try again, with a later deadline.")
    if failure.outcome == "bad_answer":
        return BadGateway(f"{which} gave an answer that cannot be used; try again soon.", headers=(RETRY_AFTER,))
    return ServiceUnavailable(f"{which} cannot be reached; try again soon.", headers=(RETRY_AFTER,))
