"""Health prober of an endpoint: verifies its model, and tests in the background whether it responds."""

from collections.abc import Callable
from time import monotonic
from urllib.parse import quote

from iris_wsgi.client.call import Call, CallFailure, run_calls
from iris_wsgi.client.endpoint import ConnectFailed, Endpoint
from iris_wsgi.client.inference import InferenceCall
from iris_wsgi.client.v2_messages import MAX_JSON_BYTES, RemoteModel, get_request, parse_model_config, parse_model_names
from iris_wsgi.codec.rows import Array
from iris_wsgi.http.response_parser import InvalidResponse, ParsedResponse
from iris_wsgi.resilience.background import pause

# The periods of probes of an available and of an unavailable endpoint, and the timeout of a probe.
PERIOD_SECONDS, UNAVAILABLE_PERIOD_SECONDS, TIMEOUT_SECONDS = 1.0, 0.25, 1.0
# The period of lookups of the host name.
LOOKUP_SECONDS = 5.0
# The maximum number of models of a server to look at.
MAX_MODELS = 8
HEADERS = (("X-Request-ID", "probe"),)

# Both return None for the right model, and otherwise the reason in words that follow "it cannot be used: ".
Matches = Callable[[RemoteModel], str | None]
SelfTest = Callable[[Callable[[Array], Array]], str | None]


def accept(_: Callable[[Array], Array]) -> None:
    """Default self-test: accepts any matching model."""


class Prober:
    """Sends `row` as a client would. It is also the half-open trial of the circuit breaker, so no client waits for that."""

    def __init__(self, endpoint: Endpoint, row: Array, matches: Matches, self_test: SelfTest = accept) -> None:
        self.endpoint, self.row, self.matches, self.self_test = endpoint, row, matches, self_test
        self.probe_at = self.lookup_at = 0.0

    def run(self, is_stopping: Callable[[], bool]) -> None:
        """Probes until the process stops, and then closes the connections."""
        while not is_stopping():
            self.probe()
            pause(UNAVAILABLE_PERIOD_SECONDS)
        self.endpoint.end()

    def probe(self) -> None:
        """Updates the availability of the endpoint, if a probe is due."""
        if monotonic() < self.probe_at:
            return
        model = self.endpoint.model
        try:
            if monotonic() >= self.lookup_at:
                self.endpoint.resolve()
                self.lookup_at = monotonic() + LOOKUP_SECONDS
            if model is None:
                model = self.find_model()
                if why := self.self_test(lambda rows: self.predict(model, rows)):
                    raise InvalidResponse(why)
                self.endpoint.mark_available(model)
            self.predict(model, self.row)
        except InvalidResponse as error:
            # The server may have another model now, so the next probe verifies the model first.
            self.endpoint.mark_unavailable(str(error))
        except ConnectFailed as error:
            if self.endpoint.model is None:
                self.endpoint.mark_unavailable(str(error))
        self.probe_at = monotonic() + (PERIOD_SECONDS if self.endpoint.why_not() is None else 0.0)

    def find_model(self) -> RemoteModel:
        """Returns the first model of the server that matches. Raises ConnectFailed and InvalidResponse."""
        why = "it serves no model"
        width = self.row.shape[1]
        for name in parse_model_names(self.get("/v2/models"))[:MAX_MODELS]:
            model = parse_model_config(self.get(f"/v2/models/{quote(name, safe='')}/config"), name)
            mismatch = f"its model takes {model.width} values, not {width}" if model.width != width else self.matches(model)
            if mismatch is None:
                return model
            why = mismatch
        raise InvalidResponse(why)

    def get(self, path: str) -> ParsedResponse:
        message = get_request(path, self.endpoint.address.authority, (*self.endpoint.credentials(), *HEADERS))
        call = Call(self.endpoint, message, MAX_JSON_BYTES, earns=False)
        run_calls([call], monotonic() + TIMEOUT_SECONDS)
        if isinstance(call.result, ParsedResponse):
            return call.result
        assert call.result is not None
        raise error_of(call.result)

    def predict(self, model: RemoteModel, rows: Array) -> Array:
        deadline = monotonic() + TIMEOUT_SECONDS
        call = InferenceCall(self.endpoint, model, rows, deadline, HEADERS, probe=True)
        run_calls(call.calls, deadline)
        result = call.result()
        if isinstance(result, CallFailure):
            raise error_of(result)
        return result


def error_of(failure: CallFailure) -> InvalidResponse | ConnectFailed:
    return (InvalidResponse if failure.outcome == "bad_answer" else ConnectFailed)(failure.why)
