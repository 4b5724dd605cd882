"""How every part of this server connects to a Redis: calls end in time, nothing is tried twice, and no password is shown."""

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from iris_wsgi.stores.jobs import StoreDown


class Link:
    """A `client` that connects when it is first used, and again whenever that is needed.

    A call waits `seconds` for a connection and as long for each answer on it. Raises ValueError for what is no address.
    """

    def __init__(self, url: str, seconds: float) -> None:
        # Nothing is tried twice: that could be done twice, and would take twice the time.
        self.client = redis.Redis.from_url(
            url,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            decode_responses=False,
        )
        place = self.client.connection_pool.connection_kwargs
        # Never the URL, which may hold a password.
        self.place = place.get("path") or f"{place.get('host', 'localhost')}:{place.get('port', 6379)}"

    def down(self, error: Exception) -> StoreDown:
        """What a call that failed is told as."""
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        return StoreDown(f"the Redis at {self.place} does not do its work: {reason[:200]}")
