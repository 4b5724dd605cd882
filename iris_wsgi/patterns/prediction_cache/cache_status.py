"""Predictions through the cache, of which the answer's fields then tell (RFC 9211)."""

from iris_wsgi.codec.rows import Array
from iris_wsgi.patterns.prediction_cache.cache import Answer, PredictionCache
from iris_wsgi.services import Ask, Told
from iris_wsgi.wsgi.application import Request
from iris_wsgi.wsgi.cache_control import NOT_CACHED, NotCached, Wishes, wishes_of

NAME, SECOND = "iris_wsgi", "iris_wsgi_shared"


def through(cache: PredictionCache) -> Ask:
    """By the cache; Cache-Control of a request says whether an answer may come from there, and be kept there."""

    def ask(rows: Array, request: Request) -> Told:
        wishes = wishes_of(request.variables)
        answer = cache.ask(rows, request.until, wishes)
        if answer is None:
            raise NotCached(NOT_CACHED, headers=(("Cache-Status", f"{NAME}; detail=only-if-cached"),))
        return answer.probabilities, (("Cache-Status", status(answer, wishes)),)

    return ask


def status(answer: Answer, wishes: Wishes) -> str:
    """One member for each level that was asked, the one next to the model first (RFC 9211, section 2)."""
    rows, stored = len(answer.probabilities), "; stored" if answer.kept else ""
    if not wishes.use:
        return f"{NAME}; fwd=request{stored}"
    if answer.hits == rows:
        return f"{NAME}; hit; ttl={int(answer.left)}"
    second = "" if not answer.shared else f"{SECOND}; {'fwd=partial' if answer.run else 'hit'}, "
    how = stored if answer.run or answer.shared else "; collapsed"
    if answer.hits == 0:
        return f"{second}{NAME}; fwd={'request' if answer.refused else 'miss'}{how}"
    return f'{second}{NAME}; fwd=partial{how}; detail="{answer.hits} of {rows} rows"'
