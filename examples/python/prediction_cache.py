"""Prediction cache: sends the same row twice, and prints that the second response comes from the cache.

Usage: prediction_cache.py [URL]
"""

import os
import random
import sys

import httpx

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SERVER_URL", "http://127.0.0.1:8000")


def main() -> None:
    # A new flower each time, so that the first request is a miss.
    row = [5.1, 3.5, 1.4, round(random.uniform(0.1, 0.3), 6)]
    # One connection leads to one process. Each process has its own cache, unless Redis shares one.
    with httpx.Client(base_url=URL) as client:
        responses = [client.post("/predict/label", json={"data": [row]}).raise_for_status() for _ in range(2)]
    for response in responses:
        status, milliseconds = response.headers.get("Cache-Status", "none"), response.elapsed.total_seconds() * 1000
        print(f"{response.json()['prediction']} in {milliseconds:.1f} ms, Cache-Status: {status}")
    if responses[0].json() != responses[1].json() or "; hit" not in responses[1].headers.get("Cache-Status", ""):
        sys.exit("expected the second response from the cache")


if __name__ == "__main__":
    try:
        main()
    except httpx.HTTPError as error:
        sys.exit(f"{URL}: {error}")
