"""Predictions through the cache, of which the answer's fields then tell (RFC 9211)."""

import re

from iris_wsgi.asking import Ask, Told
from iris_wsgi.cached import ANYTHING, Answer, PredictionCache, Wishes
from iris_wsgi.payload import Array
from iris_wsgi.wsgi import Request

NAME, SECOND = "iris_wsgi", "iris_wsgi_shared"

directive = re.compile(r"(?:^|,)[ \t]*(no-store|no-cache|max-age[ \t]*=[ \t]*\"?0+\"?)[ \t]*(?=$|,|=)", re.IGNORECASE).findall


def through(cache: PredictionCache) -> Ask:
    """By the cache; Cache-Control of a request says whether an answer may come from there, and be kept there."""

    def ask(rows: Array, request: Request) -> Told:
        wanted = request.variables.get("HTTP_CACHE_CONTROL")
        wishes = ANYTHING if wanted is None else wishes_of(wanted)
        answer = cache.ask(rows, request.until, wishes)
        return answer.probabilities, (("Cache-Status", status(answer, wishes)),)

    return ask


def wishes_of(control: str) -> Wishes:
    """RFC 9111, section 5.2.1: no-store keeps nothing and, as here, takes nothing; no-cache has it worked out anew."""
    found = {one.lower()[:8] for one in directive(control)}
    return Wishes(use=not found, keep="no-store" not in found)


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
        return f"{second}{NAME}; fwd=miss{how}"
    return f'{second}{NAME}; fwd=partial{how}; detail="{answer.hits} of {rows} rows"'
