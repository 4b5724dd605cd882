"""Ensemble voting: the votes of members that know one species each, and the verdict over them."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from iris_wsgi.codec.rows import Array
from iris_wsgi.model.predictor import Predict, PredictContext
from iris_wsgi.observability.trace_context import Headers


class Vote(NamedTuple):
    """The probability that a member gives its species, with the digest of its model, or None and the label of an error."""

    probability: float | None
    digest: str = ""
    error: str = ""


class Verdict(NamedTuple):
    """The most probable species, or None below the threshold, its probability, and the names of missing members."""

    label: str | None
    probability: float
    missing: list[str]


class EnsembleMembers(Protocol):
    """The members by name, in the order that breaks ties."""

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def quorum(self) -> int: ...
    def vote(self, row: Array, deadline: float, headers: Headers) -> list[Vote]: ...
    def why_not(self) -> dict[str, str | None]: ...


def majority(members: int) -> int:
    return members // 2 + 1


def decide(names: Sequence[str], votes: Sequence[Vote], abstain_below: float) -> Verdict:
    """Counts the votes: normalizes the probabilities, and abstains below the threshold.

    If members are missing, the rest up to 1 is theirs, because they might have claimed it. So without the one member that
    knows a row, the small probabilities of the others stay small.
    """
    missing = [name for name, vote in zip(names, votes, strict=True) if vote.probability is None]
    claims = [vote.probability or 0.0 for vote in votes]
    total = max(1.0, sum(claims)) if missing else sum(claims)
    if not total:
        return Verdict(None, 0.0, missing)
    # max() returns the first of equal values: ties go to the member that is named first.
    best = max(range(len(claims)), key=claims.__getitem__)
    probability = claims[best] / total
    return Verdict(names[best] if probability >= abstain_below else None, probability, missing)


def digest_of(votes: Sequence[Vote]) -> str:
    """Returns one digest over the models that have voted, in their order."""
    digests = "\n".join(vote.digest for vote in votes if vote.probability is not None)
    return f"sha256:{hashlib.sha256(digests.encode()).hexdigest()}"


class LocalMembers:
    """Members in this process. The last class of each is its species."""

    def __init__(self, members: Mapping[str, tuple[Predict, str]], quorum: int) -> None:
        """`members` has the predictors and the digests of their models, by species."""
        self.members, self.names, self.quorum = members, list(members), quorum

    def vote(self, row: Array, deadline: float, headers: Headers) -> list[Vote]:
        """Predicts one after the other, because each takes microseconds."""
        context = PredictContext(deadline)
        return [Vote(float(predict(row, context).outputs[0, -1]), digest) for predict, digest in self.members.values()]

    def why_not(self) -> dict[str, str | None]:
        return dict.fromkeys(self.names)
