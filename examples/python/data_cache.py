"""Data cache: stores the features of an item, and asks for its prediction by its id.

Usage: data_cache.py [URL]
"""

import os
import sys

import httpx

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SERVER_URL", "http://127.0.0.1:8000")
ITEM = "/items/python-example"


def main() -> None:
    # One connection leads to one process, whose memory has the item after the first GET.
    with httpx.Client(base_url=URL) as client:
        for row, expected in (([5.1, 3.5, 1.4, 0.2], "setosa"), ([7.2, 3.6, 6.1, 2.5], "virginica")):
            version = client.put(ITEM, json={"data": [row]}).raise_for_status().json()["version"]
            for _ in range(2):
                response = client.get(f"{ITEM}/prediction").raise_for_status()
                label, status = response.json()["label"], response.headers.get("Cache-Status", "none")
                print(f"version {version} is {label}, Cache-Status: {status}")
                if label != expected:
                    sys.exit(f"expected {expected}, not {label}")
            if "; hit" not in status:
                sys.exit("expected the second response from the cache")


if __name__ == "__main__":
    try:
        main()
    except httpx.HTTPError as error:
        sys.exit(f"{URL}: {error}")
