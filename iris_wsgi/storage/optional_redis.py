"""Opens a Redis that a setting names, where the optional package is installed."""

from collections.abc import Callable
from typing import TypeVar

from iris_wsgi.settings import BadSetting

T = TypeVar("T")


def with_redis(name: str, connect: Callable[[], T]) -> T:
    """Returns what `connect` returns. Raises BadSetting, naming the setting, for a missing package or an invalid address."""
    try:
        return connect()
    except ImportError:
        raise BadSetting(
            f"{name} wants the package redis: bin/setup redis, pip install 'iris_wsgi[redis]', or the image `full`"
        ) from None
    except ValueError:
        # Its message could show the password.
        raise BadSetting(f"{name} is no address of a Redis: redis://[user:password@]host[:port][/database]") from None
