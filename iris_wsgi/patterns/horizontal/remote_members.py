"""Members of the ensemble on other servers, called concurrently."""

from collections.abc import Sequence

from iris_wsgi.client.call import CallFailure, run_calls
from iris_wsgi.client.endpoint import Endpoint
from iris_wsgi.client.inference import InferenceCall
from iris_wsgi.client.v2_messages import RemoteModel
from iris_wsgi.codec.rows import Array
from iris_wsgi.observability.trace_context import Headers
from iris_wsgi.patterns.horizontal.voting import Vote


class RemoteMembers:
    """One endpoint for each species, in the order that breaks ties."""

    def __init__(self, endpoints: Sequence[Endpoint], quorum: int) -> None:
        self.endpoints, self.quorum = endpoints, quorum
        self.names = [endpoint.name for endpoint in endpoints]

    def vote(self, row: Array, deadline: float, headers: Headers) -> list[Vote]:
        """Calls all members at once. A member that has not responded by the deadline is missing."""
        calls = [InferenceCall(endpoint, endpoint.model, row, deadline, headers) for endpoint in self.endpoints]
        run_calls([call for inference in calls for call in inference.calls], deadline)
        return [vote_of(call) for call in calls]

    def why_not(self) -> dict[str, str | None]:
        return {endpoint.name: endpoint.why_not() for endpoint in self.endpoints}


def vote_of(call: InferenceCall) -> Vote:
    result = call.result()
    if isinstance(result, CallFailure):
        return Vote(None, error=result.outcome)
    assert call.model is not None
    return Vote(float(result[0, -1]), call.model.digest)


def why_not_member(model: RemoteModel, name: str, digest: str | None) -> str | None:
    """Returns why a model cannot be the member for the species `name`, or None if it can.

    `digest` is that of the gateway's own copy of the member, if it has one.
    """
    species = model.parameters.get("member")
    if species != name:
        return f"its model is of {species or 'no species'}, not of {name}"
    if model.classes != 2:
        return f"its model has {model.classes} classes, not two"
    if digest and model.digest != digest:
        return f"its model is {model.digest}, and that of this gateway's release is {digest}"
    return None
