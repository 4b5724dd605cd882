"""Asynchronous: submits a job, and waits for its result.

Usage: asynchronous.py [URL]
"""

import os
import sys
import uuid

import httpx

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SERVER_URL", "http://127.0.0.1:8000")
ROWS = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.1, 4.7, 1.5], [7.2, 3.6, 6.1, 2.5]]


def main() -> None:
    with httpx.Client(base_url=URL, timeout=30) as client:
        # A client that repeats the request with the same key gets the same job, and not a second one.
        key = {"Idempotency-Key": str(uuid.uuid4())}
        job = client.post("/jobs", json={"data": ROWS}, headers=key).raise_for_status().json()
        print(f"{job['id']} is {job['status']}")
        while job["status"] in ("queued", "running"):
            # The server responds when the job has finished, or after ten seconds.
            job = client.get(f"/jobs/{job['id']}", headers={"Prefer": "wait=10"}).raise_for_status().json()
            print(f"{job['id']} is {job['status']}")
    if job["status"] != "succeeded":
        sys.exit(f"the job has not succeeded: {job}")
    print("labels:", *job["result"]["labels"])
    if job["result"]["labels"] != ["setosa", "versicolor", "virginica"]:
        sys.exit("expected setosa, versicolor, and virginica")


if __name__ == "__main__":
    try:
        main()
    except httpx.HTTPError as error:
        sys.exit(f"{URL}: {error}")
