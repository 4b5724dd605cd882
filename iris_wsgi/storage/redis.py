"""Redis client: calls end in time, no call is retried, and errors never contain the password."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from iris_wsgi.console import remedy_for_extra
from iris_wsgi.errors import BackendUnavailable, OperationDenied
from iris_wsgi.settings import BadSetting

T = TypeVar("T")

SIGN_IN = "The Redis of this server rejects its user or password: correct the credentials in the address, or enable the user."
GRANT = (
    "The user of this server's Redis lacks a permission: grant access to its keys, EVALSHA, SCRIPT LOAD,"
    " and the commands of the scripts."
)
PRIMARY = "The Redis of this server is read-only: the address must be that of the primary."

# Errors of Redis for a long command before authentication.
UNAUTHENTICATED = ("NOAUTH", "Authentication required", "unauthenticated")
# Errors of the versions of Redis for a forbidden command in a script.
DENIALS = ("NOPERM", "ACL failure", "The user executing the script can't")


class RedisClient:
    """Client that connects on first use, and again after a failure.

    The timeout applies to a connection attempt and to each reply. No call is retried: a retry could run a command twice, and
    would double the time. Raises BadSetting, which names `setting`, if the package is missing or the address is invalid.
    """

    def __init__(self, url: str, timeout_seconds: float, setting: str) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry

            self.redis = redis.Redis.from_url(
                url,
                socket_timeout=timeout_seconds,
                socket_connect_timeout=timeout_seconds,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
                decode_responses=False,
            )
        except ImportError:
            raise BadSetting(
                f"{setting} requires the package redis: {remedy_for_extra('redis')}, or use the image `full`"
            ) from None
        except ValueError:
            # The message of the library may contain the password.
            raise BadSetting(
                f"{setting} is not an address of a Redis server: redis://[user:password@]host[:port][/database]"
            ) from None
        options = self.redis.connection_pool.connection_kwargs
        # Not the URL, which may contain a password.
        self.address = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"

    def call(self, operation: Callable[[], T]) -> T:
        """Returns the result of `operation`. Raises BackendUnavailable, also for a malformed reply."""
        from redis import RedisError

        denied = False
        remedy = ""
        try:
            return operation()
        except (RedisError, OSError) as error:
            denied, remedy = remedy_of(error)
            reason = f"failed: {((str(error).splitlines() or [''])[0] or type(error).__name__)[:200]}"
        except (ValueError, TypeError, LookupError, AttributeError):
            reason = "sent a malformed reply"
        # The rest of a reply on such a connection would be read as the reply to the next command.
        self.redis.connection_pool.disconnect(inuse_connections=False)
        raise (OperationDenied if denied else BackendUnavailable)(f"the Redis at {self.address} {reason}", remedy)

    def config(self, names: Sequence[str]) -> dict[str, str]:
        """Returns the settings of Redis that its user may read by CONFIG GET. Raises BackendUnavailable."""
        import redis

        def read() -> dict[str, str]:
            with self.redis.pipeline(transaction=False) as pipeline:
                for name in names:
                    pipeline.config_get(name)
                replies = pipeline.execute(raise_on_error=False)
            for reply in replies:
                if isinstance(reply, redis.ConnectionError | redis.TimeoutError):
                    raise reply
            return {text(name): text(value) for reply in replies if isinstance(reply, dict) for name, value in reply.items()}

        return self.call(read)

    def info(self, section: str) -> dict[str, str]:
        """Returns a section of INFO, which is empty if the user may not read it. Raises BackendUnavailable."""
        from redis import ResponseError

        def read() -> dict[str, str]:
            with suppress(ResponseError):
                return {name: text(value) for name, value in self.redis.info(section).items()}
            return {}

        return self.call(read)


def text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def remedy_of(error: Exception) -> tuple[bool, str]:
    """Returns whether Redis denies this operation alone, and the required change. The change is empty if a retry may help."""
    from redis.exceptions import AuthenticationError, NoPermissionError, ReadOnlyError

    if isinstance(error, AuthenticationError) or any(words in str(error) for words in UNAUTHENTICATED):
        return False, SIGN_IN
    if isinstance(error, NoPermissionError) or any(words in str(error) for words in DENIALS):
        return True, GRANT
    is_read_only = isinstance(error, ReadOnlyError) or "read only replica" in str(error)
    return is_read_only, PRIMARY if is_read_only else ""
