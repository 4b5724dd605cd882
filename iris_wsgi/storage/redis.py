"""How every part of this server asks a Redis: calls end in time, nothing is tried twice, and no password is shown."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from iris_wsgi.errors import BackendUnavailable, OperationDenied

T = TypeVar("T")


SIGN_IN = "The Redis of this server refuses its user or password: correct them in the address, or let the user sign in."
GRANT = (
    "The user of this server's Redis lacks a permission: allow it its keys, and EVALSHA, SCRIPT LOAD and what the scripts call."
)
PRIMARY = "The Redis of this server takes no writes: the address must lead to the primary."

# Redis takes no long command from a client that has not signed in.
STRANGERS = ("NOAUTH", "Authentication required", "unauthenticated")
# A script words the denial of one of its commands as its version of Redis does.
DENIALS = ("NOPERM", "ACL failure", "The user executing the script can't")


class RedisClient:
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

    def call(self, ask: Callable[[], T]) -> T:
        """Returns the answer of Redis. Raises BackendUnavailable, also for an answer of another form."""
        denied = False
        remedy = ""
        try:
            return ask()
        except (redis.RedisError, OSError) as error:
            denied, remedy = remedy_of(error)
            why = f"does not do its work: {((str(error).splitlines() or [''])[0] or type(error).__name__)[:200]}"
        except (ValueError, TypeError, LookupError, AttributeError):
            why = "gives answers of another form"
        # What is still to come on such a connection would be taken for the answer to something else.
        self.client.connection_pool.disconnect(inuse_connections=False)
        raise (OperationDenied if denied else BackendUnavailable)(f"the Redis at {self.place} {why}", remedy)

    def config(self, names: Sequence[str]) -> dict[str, str]:
        """Returns those of the Redis's settings that it tells this user, by CONFIG GET. Raises BackendUnavailable."""

        def ask() -> dict[str, str]:
            with self.client.pipeline(transaction=False) as steps:
                for name in names:
                    steps.config_get(name)
                answers = steps.execute(raise_on_error=False)
            for one in answers:
                if isinstance(one, redis.ConnectionError | redis.TimeoutError):
                    raise one
            return {text(name): text(value) for one in answers if isinstance(one, dict) for name, value in one.items()}

        return self.call(ask)

    def info(self, section: str) -> dict[str, str]:
        """Returns a section of INFO; an empty one where this user may not ask for it. Raises BackendUnavailable."""

        def ask() -> dict[str, str]:
            with suppress(redis.ResponseError):
                return {name: text(value) for name, value in self.client.info(section).items()}
            return {}

        return self.call(ask)


def text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def remedy_of(error: Exception) -> tuple[bool, str]:
    """Whether the Redis denies this operation alone, and what a person must change; empty where a retry may help."""
    if isinstance(error, redis.exceptions.AuthenticationError) or any(words in str(error) for words in STRANGERS):
        return False, SIGN_IN
    if isinstance(error, redis.exceptions.NoPermissionError) or any(words in str(error) for words in DENIALS):
        return True, GRANT
    read_only = isinstance(error, redis.exceptions.ReadOnlyError) or "read only replica" in str(error)
    return read_only, PRIMARY if read_only else ""
