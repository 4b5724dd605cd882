"""Many models of one species each, asked about one row: who is asked, and what is made of their votes."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from iris_wsgi.codec.rows import Array
from iris_wsgi.model.predictor import Predict, PredictContext
from iris_wsgi.observability.trace_context import Fields


class Vote(NamedTuple):
    """What a member says of its species: a probability, by the model of that digest; or, in a word, why nothing."""

    probability: float | None
    digest: str = ""
    error: str = ""


class Verdict(NamedTuple):
    """The most probable species, None where none is probable enough, with its probability, and which members are missing."""

    label: str | None
    probability: float
    missing: list[str]


class Panel(Protocol):
    """The members by name, in the order in which ties are broken."""

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def quorum(self) -> int: ...
    def ask(self, row: Array, until: float, fields: Fields) -> list[Vote]: ...
    def why_not(self) -> dict[str, str | None]: ...


def majority(members: int) -> int:
    return members // 2 + 1


def decide(names: Sequence[str], votes: Sequence[Vote], abstain_below: float) -> Verdict:
    """The probabilities are made to add up to 1. What those that answered leave of it is that of the missing, who might have
    claimed it: without the one member that knows a row, the others' small probabilities stay small.
    """
    missing = [name for name, vote in zip(names, votes, strict=True) if vote.probability is None]
    claims = [vote.probability or 0.0 for vote in votes]
    whole = max(1.0, sum(claims)) if missing else sum(claims)
    if not whole:
        return Verdict(None, 0.0, missing)
    # max() takes the first of equals: ties go to the member that is named first.
    best = max(range(len(claims)), key=claims.__getitem__)
    probability = claims[best] / whole
    return Verdict(names[best] if probability >= abstain_below else None, probability, missing)


def digest_of(votes: Sequence[Vote]) -> str:
    """Of the models that have answered, in their order."""
    told = "\n".join(vote.digest for vote in votes if vote.probability is not None)
    return f"sha256:{hashlib.sha256(told.encode()).hexdigest()}"


class Here:
    """The members in this process, whose last class is their species."""

    def __init__(self, members: Mapping[str, tuple[Predict, str]], quorum: int) -> None:
        """Predictors and the digests of their models, by species."""
        self.members, self.names, self.quorum = members, list(members), quorum

    def ask(self, row: Array, until: float, fields: Fields) -> list[Vote]:
        """One after the other: each takes microseconds."""
        context = PredictContext(until)
        return [Vote(float(predict(row, context).probabilities[0, -1]), digest) for predict, digest in self.members.values()]

    def why_not(self) -> dict[str, str | None]:
        return dict.fromkeys(self.names)
