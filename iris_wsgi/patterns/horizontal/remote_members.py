"""Members of an ensemble on other servers, asked at the same time."""

from collections.abc import Sequence

from iris_wsgi.client.call import Failure, gather
from iris_wsgi.client.endpoint import Target
from iris_wsgi.client.inference import Asked
from iris_wsgi.client.v2_messages import Peer
from iris_wsgi.codec.rows import Array
from iris_wsgi.observability.trace_context import Fields
from iris_wsgi.patterns.horizontal.voting import Vote


class Panel:
    """One target for each species, in the order in which ties are broken."""

    def __init__(self, targets: Sequence[Target], quorum: int) -> None:
        self.targets, self.quorum = targets, quorum
        self.names = [target.name for target in targets]

    def ask(self, row: Array, until: float, fields: Fields) -> list[Vote]:
        """All at once; who has not answered until then is missing."""
        asked = [Asked(target, target.peer, row, until, fields) for target in self.targets]
        gather([call for one in asked for call in one.calls], until)
        return [vote_of(one) for one in asked]

    def why_not(self) -> dict[str, str | None]:
        return {target.name: target.why_not() for target in self.targets}


def vote_of(asked: Asked) -> Vote:
    found = asked.result()
    if isinstance(found, Failure):
        return Vote(None, error=found.outcome)
    assert asked.peer is not None
    return Vote(float(found[0, -1]), asked.peer.digest)


def why_no_member(peer: Peer, name: str, digest: str | None) -> str | None:
    """What speaks against this model as the member for a species; `digest` is that of the gateway's own copy, if it has one."""
    species = peer.told.get("member")
    if species != name:
        return f"its model is of {species or 'no species'}, not of {name}"
    if peer.classes != 2:
        return f"its model has {peer.classes} classes, not two"
    if digest and peer.digest != digest:
        return f"its model is {peer.digest}, and that of this gateway's release is {digest}"
    return None
