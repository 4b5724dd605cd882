"""One question of a target: asked over v2, looked at, counted, and told to the breaker."""

from time import monotonic

from iris_wsgi.client.call import Call, Failure
from iris_wsgi.client.endpoint import Target
from iris_wsgi.client.v2_messages import Peer, infer_request, most_bytes, probabilities_of
from iris_wsgi.codec.rows import Array
from iris_wsgi.http.response_parser import BadReply, Reply
from iris_wsgi.observability.trace_context import Fields


class Asked:
    """At most one call, for gather() to make."""

    def __init__(self, target: Target, peer: Peer | None, rows: Array, until: float, fields: Fields, trial: bool = False) -> None:
        """Where the target is not well it is not asked, unless this is the `trial` that shall tell."""
        self.target, self.peer, self.rows, self.until, self.trial = target, peer, len(rows), until, trial
        self.began = monotonic()
        self.calls: list[Call] = []
        if peer and (trial or target.breaker.up):
            shown = (*target.credentials(), *fields)
            message = infer_request(peer, target.place.authority, rows, until - self.began, shown)
            self.calls.append(Call(target, message, most_bytes(peer, len(rows)), earns=not trial))

    def result(self) -> Array | Failure:
        """Once the call has ended: the output [rows, classes], or why there is none."""
        found = self.judged(self.calls[0].result) if self.calls else Failure("refused", "it is not asked now")
        if not self.trial:
            self.target.metrics.calls.add((self.target.name, found.outcome if isinstance(found, Failure) else "ok"))
        if not isinstance(found, Failure):
            self.target.works(self.calls[0].seconds)
        elif self.calls and (found.outcome != "late" or self.until - self.began >= self.target.fair_seconds):
            self.target.fails(found.why)
        return found

    def judged(self, result: Reply | Failure | None) -> Array | Failure:
        if not isinstance(result, Reply) or self.peer is None:
            return result if isinstance(result, Failure) else Failure("late", "it was given up")
        if result.status in (503, 504):
            return Failure("unreachable" if result.status == 503 else "late", f"it answers {result.status}")
        try:
            if result.status != 200:
                raise BadReply(f"it answers {result.status}")
            return probabilities_of(result, self.peer, self.rows)
        except BadReply as error:
            return Failure("bad_answer", str(error))
