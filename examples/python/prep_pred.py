"""Prep-pred: starts a second server that scales the rows, and leaves the prediction to the first one.

Usage: prep_pred.py [URL]
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SERVER_URL", "http://127.0.0.1:8000")
SERVE = Path(__file__).resolve().parents[2] / "bin/serve"
READY_SECONDS = 30


def main() -> None:
    httpx.get(f"{URL}/readyz").raise_for_status()
    command = [SERVE, "--role", "prep", "--port", "0", "--workers", "1", "--pred-url", URL]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as prep:
        try:
            predict(address_of(prep))
        finally:
            prep.terminate()


def address_of(prep: subprocess.Popen[str]) -> str:
    """Returns the URL of the server, from its log of JSON lines."""
    line = ""
    for line in prep.stderr or ():
        if line.startswith("{") and "port" in (event := json.loads(line)):
            return f"http://127.0.0.1:{event['port']}"
    sys.exit(f"the server of role prep has not started: {line}")


def predict(prep_url: str) -> None:
    with httpx.Client(base_url=prep_url) as client:
        end = time.monotonic() + READY_SECONDS
        while (ready := client.get("/readyz")).status_code != 200:
            if time.monotonic() > end:
                sys.exit(f"the server of role prep is not ready: {ready.text}")
            time.sleep(0.1)
        response = client.post("/predict/label", json={"data": [[7.2, 3.6, 6.1, 2.5]]}).raise_for_status()
    label = response.json()["prediction"]
    print(f"{prep_url} has scaled the row, and {URL} has predicted {label}.")
    if label != "virginica":
        sys.exit(f"expected virginica, not {label}")


if __name__ == "__main__":
    try:
        main()
    except (httpx.HTTPError, OSError) as error:
        sys.exit(f"{URL}: {error}")
