"""Warms up a server: requests items before its clients do, so that they are in memory."""

import http.client
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import urlsplit

from iris_wsgi.console import ProgressReporter, print_error
from iris_wsgi.errors import BackendUnavailable
from iris_wsgi.patterns.data_cache.item_store import ItemStore

IDS_PER_QUERY = 1000
TIMEOUT_SECONDS = 30.0
# The kernel chooses the process of a connection. After three rounds in a row with hits only, most likely all processes have all
# items. After 16 rounds the memory is too small for them.
FULL_ROUNDS, MAX_ROUNDS = 3, 16


def first_ids(store: ItemStore, limit: int) -> Iterator[str]:
    after, left = "", limit
    while left and (ids := store.ids(after, min(left, IDS_PER_QUERY))):
        yield from ids
        after, left = ids[-1], left - len(ids)


def warm(url: str, headers: Mapping[str, str], ids: list[str], progress: ProgressReporter, say: Callable[[str], None]) -> int:
    """Returns the exit status: 0 if all items are in memory, else 1. Raises BackendUnavailable if the server is down."""
    if not ids:
        say("there are no items")
        return 0
    full = rounds = failed = 0
    while full < FULL_ROUNDS and rounds < MAX_ROUNDS:
        loaded, failed = request_all(url, headers, ids, progress, rounds)
        rounds += 1
        full = full + 1 if not loaded and not failed else 0
    progress.end()
    if full == FULL_ROUNDS:
        say(f"{len(ids)} items and their predictions are in the memory of {url}, after {rounds} rounds")
        return 0
    print_error(
        f"not all of {len(ids)} items stay in the memory of {url}: {failed} requests failed in the last round;"
        " raise IRIS_ITEMS_BYTES, unless the items change"
    )
    return 1


def request_all(url: str, headers: Mapping[str, str], ids: list[str], progress: ProgressReporter, rounds: int) -> tuple[int, int]:
    """Requests all items on one connection. Returns the number of misses and of failures."""
    loaded, failed, address = 0, 0, urlsplit(url)
    try:
        connection = http.client.HTTPConnection(address.hostname or "", address.port or 80, timeout=TIMEOUT_SECONDS)
        for i, item_id in enumerate(ids):
            for path in (f"/items/{item_id}", f"/items/{item_id}/prediction"):
                connection.request("GET", path, headers=dict(headers))
                response = connection.getresponse()
                response.read()
                failed += response.status != 200
                loaded += "; hit" not in response.headers.get("Cache-Status", "")
            progress.update(i + 1, rounds * len(ids) + i + 1, failed)
        connection.close()
    except (OSError, http.client.HTTPException) as error:
        raise BackendUnavailable(
            f"no server at {url}: {getattr(error, 'strerror', None) or error or type(error).__name__}"
        ) from None
    return loaded, failed
