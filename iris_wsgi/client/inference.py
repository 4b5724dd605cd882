"""Inference calls to an endpoint over the Open Inference Protocol v2, and the predictor that makes them."""

from time import monotonic

import numpy as np

from iris_wsgi.client.call import Call, CallFailure, run_calls
from iris_wsgi.client.endpoint import Endpoint
from iris_wsgi.client.v2_messages import FLOAT_BYTES, RemoteModel, infer_request, max_response_bytes, parse_probabilities
from iris_wsgi.codec.rows import Array
from iris_wsgi.errors import RETRY_AFTER, BadGateway, DeadlineExceeded, Problem, ServiceUnavailable
from iris_wsgi.http.response_parser import InvalidResponse, ParsedResponse
from iris_wsgi.model.predictor import Predict, PredictContext, Prediction
from iris_wsgi.observability.trace_context import Headers

# A body of v2 may have 1 MiB by default. More rows are sent in several requests.
MAX_TENSOR_BYTES = 524_288
# The timeout of a request without a deadline.
MAX_SECONDS = 60.0


class InferenceCall:
    """One inference request to an endpoint: its validated result updates the metrics and the circuit breaker."""

    def __init__(
        self, endpoint: Endpoint, model: RemoteModel | None, rows: Array, deadline: float, headers: Headers, probe: bool = False
    ) -> None:
        """`calls` is empty if the endpoint is unavailable, except for a `probe`, which finds out whether it is."""
        self.endpoint, self.model, self.rows, self.deadline, self.probe = endpoint, model, len(rows), deadline, probe
        self.started = monotonic()
        self.calls: list[Call] = []
        if model and (probe or endpoint.breaker.up):
            all_headers = (*endpoint.credentials(), *headers)
            message = infer_request(model, endpoint.address.authority, rows, deadline - self.started, all_headers)
            self.calls.append(Call(endpoint, message, max_response_bytes(model, len(rows)), earns=not probe))

    def result(self) -> Array | CallFailure:
        """Returns the output [rows, classes], or the failure, after the call has ended."""
        found = self.validated(self.calls[0].result) if self.calls else CallFailure("refused", "it is not called now")
        if not self.probe:
            outcome = found.outcome if isinstance(found, CallFailure) else "ok"
            self.endpoint.metrics.calls.add((self.endpoint.name, outcome))
        if not isinstance(found, CallFailure):
            self.endpoint.succeeded(self.calls[0].seconds)
        elif self.calls and (found.outcome != "late" or self.deadline - self.started >= self.endpoint.fair_seconds):
            self.endpoint.failed(found.why)
        return found

    def validated(self, result: ParsedResponse | CallFailure | None) -> Array | CallFailure:
        if not isinstance(result, ParsedResponse) or self.model is None:
            return result if isinstance(result, CallFailure) else CallFailure("late", "the call was aborted")
        if result.status in (503, 504):
            return CallFailure("unreachable" if result.status == 503 else "late", f"it answers {result.status}")
        try:
            if result.status != 200:
                raise InvalidResponse(f"it answers {result.status}")
            return parse_probabilities(result, self.model, self.rows)
        except InvalidResponse as error:
            return CallFailure("bad_answer", str(error))


def remote_predictor(endpoint: Endpoint) -> Predict:
    """Returns the predictor of the model of an endpoint.

    It raises ServiceUnavailable (503) for an unreachable endpoint, BadGateway (502) for an invalid response, and
    DeadlineExceeded (504).
    """

    def predict(rows: Array, context: PredictContext) -> Prediction:
        model = endpoint.model
        max_rows = max(1, min(model.max_rows, MAX_TENSOR_BYTES // (FLOAT_BYTES * model.width))) if model else len(rows)
        if len(rows) <= max_rows:
            return Prediction(predict_chunk(rows, context))
        chunks = [predict_chunk(rows[i : i + max_rows], context) for i in range(0, len(rows), max_rows)]
        return Prediction(np.concatenate(chunks))

    def predict_chunk(rows: Array, context: PredictContext) -> Array:
        deadline = min(context.deadline, monotonic() + MAX_SECONDS)
        headers = context.ids.upstream_headers() if context.ids else ()
        call = InferenceCall(endpoint, endpoint.model, rows, deadline, headers)
        run_calls(call.calls, deadline)
        result = call.result()
        if isinstance(result, CallFailure):
            raise problem_of(result, endpoint.name)
        return result

    return predict


def problem_of(failure: CallFailure, name: str) -> Problem:
    """Returns the problem for clients. It names the service only, because the log has the details."""
    service = f"The service {name}, which this response requires,"
    if failure.outcome == "late":
        return DeadlineExceeded(f"{service} did not respond in time. Try again, with a later deadline.")
    if failure.outcome == "bad_answer":
        return BadGateway(f"{service} sent an invalid response; try again soon.", headers=(RETRY_AFTER,))
    return ServiceUnavailable(f"{service} cannot be reached; try again soon.", headers=(RETRY_AFTER,))
