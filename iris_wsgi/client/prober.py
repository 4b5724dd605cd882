"""Keeps an eye on a target: who it is, whether it answers, and, while it is not asked, whether it is well again."""

from collections.abc import Callable
from time import monotonic
from urllib.parse import quote

from iris_wsgi.client.call import Call, Failure, gather
from iris_wsgi.client.connection import Lost
from iris_wsgi.client.endpoint import Target
from iris_wsgi.client.inference import Asked
from iris_wsgi.client.v2_messages import MOST_JSON, Peer, ask_for, names_of, peer_of
from iris_wsgi.codec.rows import Array
from iris_wsgi.http.response_parser import BadReply, Reply
from iris_wsgi.resilience.background import pause

# How often to look at a target that is well, and at one that is not; and how long it may take to answer.
EVERY_SECONDS, SOON_SECONDS, PATIENCE_SECONDS = 1.0, 0.25, 1.0
# How often its name is looked up anew.
LOOKUP_SECONDS = 5.0
# How many models of a server are looked at, to find the one that is wanted.
MOST_MODELS = 8
FIELDS = (("X-Request-ID", "probe"),)

# Why a model is not the one that is wanted, in words that go on from "it"; None if it is.
Fits = Callable[[Peer], str | None]
# The same by what it answers.
Proves = Callable[[Callable[[Array], Array]], str | None]


def no_more(_: Callable[[Array], Array]) -> None:
    """For who is satisfied by who it is."""


class Watcher:
    """Asks about `row` as a client would. This is the half-open trial of the breaker too: no client has to wait for it."""

    def __init__(self, target: Target, row: Array, fits: Fits, proves: Proves = no_more) -> None:
        self.target, self.row, self.fits, self.proves = target, row, fits, proves
        self.look_at = self.lookup_at = 0.0

    def run(self, stopping: Callable[[], bool]) -> None:
        """Until the process ends; then the connections do too."""
        while not stopping():
            self.look()
            pause(SOON_SECONDS)
        self.target.end()

    def look(self) -> None:
        """What is wrong becomes the target's `why_not`."""
        if monotonic() < self.look_at:
            return
        peer = self.target.peer
        try:
            if monotonic() >= self.lookup_at:
                self.target.resolve()
                self.lookup_at = monotonic() + LOOKUP_SECONDS
            if peer is None:
                peer = self.known()
                if wrong := self.proves(lambda rows: self.ask(peer, rows)):
                    raise BadReply(wrong)
                self.target.trust(peer)
            self.ask(peer, self.row)
        except BadReply as error:
            # It may have another model now: who it is is asked first the next time.
            self.target.distrust(str(error))
        except Lost as error:
            if self.target.peer is None:
                self.target.distrust(str(error))
        self.look_at = monotonic() + (EVERY_SECONDS if self.target.why_not() is None else 0.0)

    def known(self) -> Peer:
        """The model there that is wanted, which may be one of several. Raises Lost, and BadReply where there is none."""
        wrong = "it serves no model"
        for name in names_of(self.get("/v2/models"))[:MOST_MODELS]:
            peer = peer_of(self.get(f"/v2/models/{quote(name, safe='')}/config"), name)
            unlike = f"its model takes {peer.width} values, not {self.row.shape[1]}" if peer.width != self.row.shape[1] else None
            if (unlike := unlike or self.fits(peer)) is None:
                return peer
            wrong = unlike
        raise BadReply(wrong)

    def get(self, path: str) -> Reply:
        message = ask_for(path, self.target.place.authority, (*self.target.credentials(), *FIELDS))
        call = Call(self.target, message, MOST_JSON, earns=False)
        gather([call], monotonic() + PATIENCE_SECONDS)
        if isinstance(call.result, Reply):
            return call.result
        raise (BadReply if call.result and call.result.outcome == "bad_answer" else Lost)(call.result.why if call.result else "")

    def ask(self, peer: Peer, rows: Array) -> Array:
        until = monotonic() + PATIENCE_SECONDS
        asked = Asked(self.target, peer, rows, until, FIELDS, trial=True)
        gather(asked.calls, until)
        found = asked.result()
        if isinstance(found, Failure):
            raise (BadReply if found.outcome == "bad_answer" else Lost)(found.why)
        return found
