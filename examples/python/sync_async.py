"""Sync-async: gets a provisional label from the fast model at once, and the final one from a job of the full model.

Usage: sync_async.py [URL]
"""

import os
import sys

import httpx

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SERVER_URL", "http://127.0.0.1:8000")
# The two models disagree about this flower, which is an Iris virginica.
ROW = [4.9, 2.5, 4.5, 1.7]


def main() -> None:
    with httpx.Client(base_url=URL, timeout=30) as client:
        document = client.post("/predict/hybrid", json={"data": [ROW]}).raise_for_status().json()
        provisional, job = document["provisional"], document["final"]
        print(f"provisional: {provisional['label']} ({provisional['model']['name']})")
        # With IRIS_ESCALATE_BELOW, a confident provisional label is already final, and there is no job.
        if job["status"] == "confident":
            return
        while job["status"] in ("queued", "running"):
            # The server responds when the job has finished, or after ten seconds.
            job = client.get(f"/jobs/{job['id']}", headers={"Prefer": "wait=10"}).raise_for_status().json()
    if job["status"] != "succeeded":
        sys.exit(f"the job has not succeeded: {job}")
    (label,) = job["result"]["labels"]
    print(f"final:       {label} ({job['model']['name']})")
    if label != "virginica":
        sys.exit(f"expected virginica, not {label}")


if __name__ == "__main__":
    try:
        main()
    except httpx.HTTPError as error:
        sys.exit(f"{URL}: {error}")
