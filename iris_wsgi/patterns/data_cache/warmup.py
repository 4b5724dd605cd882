"""Asks a server for items before its clients do, so that they are in its memory when traffic comes."""

import http.client
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import urlsplit

from iris_wsgi.console import Teller, tell
from iris_wsgi.errors import BackendUnavailable
from iris_wsgi.patterns.data_cache.item_store import ItemStore

AT_ONCE = 1000
SECONDS = 30.0
# Nobody knows to which process of a server a connection leads: after so many in a row that found all of it in memory all of them
# have it, most likely, and after so many in all there is no room for it.
SETTLED, MOST_PASSES = 3, 16


def ids_of(store: ItemStore, most: int) -> Iterator[str]:
    """The first ids of the database, `most` of them at most."""
    after, left = "", most
    while left and (some := store.ids(after, min(left, AT_ONCE))):
        yield from some
        after, left = some[-1], left - len(some)


def warm(url: str, fields: Mapping[str, str], ids: list[str], teller: Teller, say: Callable[[str], None]) -> int:
    """The status: 0 when all are in memory, 1 when some are not. Raises BackendUnavailable for no server there."""
    if not ids:
        say("there are no items")
        return 0
    settled = passes = failed = 0
    while settled < SETTLED and passes < MOST_PASSES:
        loaded, failed = one_pass(url, fields, ids, teller, passes)
        passes += 1
        settled = settled + 1 if not loaded and not failed else 0
    teller.end()
    if settled == SETTLED:
        say(f"{len(ids)} items and what the model says of them are in the memory of {url}, after {passes} rounds")
        return 0
    tell(
        f"not all of {len(ids)} items stay in the memory of {url}: {failed} failed in the last round; is IRIS_ITEMS_BYTES"
        " enough, or do they change?"
    )
    return 1


def one_pass(url: str, fields: Mapping[str, str], ids: list[str], teller: Teller, passes: int) -> tuple[int, int]:
    """Asks for all on one connection; how many were not there, and how many could not be told."""
    loaded, failed, place = 0, 0, urlsplit(url)
    try:
        connection = http.client.HTTPConnection(place.hostname or "", place.port or 80, timeout=SECONDS)
        for i, item_id in enumerate(ids):
            for path in (f"/items/{item_id}", f"/items/{item_id}/prediction"):
                connection.request("GET", path, headers=fields)
                answer = connection.getresponse()
                answer.read()
                failed += answer.status != 200
                loaded += "; hit" not in answer.headers.get("Cache-Status", "")
            teller.tell(i + 1, passes * len(ids) + i + 1, failed)
        connection.close()
    except (OSError, http.client.HTTPException) as error:
        raise BackendUnavailable(
            f"no server at {url}: {getattr(error, 'strerror', None) or error or type(error).__name__}"
        ) from None
    return loaded, failed
