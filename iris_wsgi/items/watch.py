"""Looks again and again at what others have written."""

from contextlib import suppress

from iris_wsgi.companions import pause
from iris_wsgi.items.cache import ItemCache
from iris_wsgi.stores.jobs import Stop, StoreDown


def look(cache: ItemCache, ending: Stop) -> None:
    """Twice in the time that a look counts, so that one may be late."""
    while not ending():
        # The breaker tells the log of a database that is down.
        with suppress(StoreDown):
            cache.check()
        pause(cache.times.check / 2)
