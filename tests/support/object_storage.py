"""A real S3 server with a bucket."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from http_clients import wait_until
from optional_programs import require_package

BUCKET = "lake"
MOTO = "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', sys.argv[1]])"


@contextmanager
def s3_server(port: int) -> Iterator[None]:
    require_package("moto", "storage")
    with subprocess.Popen([sys.executable, "-c", MOTO, str(port)], stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def s3_environ(port: int) -> dict[str, str]:
    """Returns the variables with which a process reaches the server."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def empty_bucket(port: int) -> Any:
    """Waits for the server, and empties its bucket. Returns the file system of s3fs."""
    system = require_package("s3fs", "storage").S3FileSystem(
        endpoint_url=f"http://127.0.0.1:{port}", key="key", secret="secret", use_listings_cache=False
    )

    def is_empty() -> bool:
        try:
            if system.exists(BUCKET):
                system.rm(BUCKET, recursive=True)
            system.mkdir(BUCKET)
        except OSError:
            return False
        return True

    wait_until(is_empty, "the S3 server has an empty bucket")
    return system
