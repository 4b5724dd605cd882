"""Horizontal microservice: asks one model per class, and prints the vote of each.

Usage: horizontal.py [URL]
"""

import os
import sys

import httpx

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SERVER_URL", "http://127.0.0.1:8000")


def main() -> None:
    with httpx.Client(base_url=URL) as client:
        health = client.get("/ensemble/health").raise_for_status().json()
        down = [name for name, member in health["members"].items() if not member["up"]]
        print(f"{len(health['members'])} members, down: {', '.join(down) or 'none'}")
        document = client.post("/ensemble/predict", json={"data": [[6.7, 3.1, 4.7, 1.5]]}).raise_for_status().json()
    for name, vote in document["members"].items():
        # A member that is down has an error, and the others decide.
        print(f"{name:<12}{vote['probability']:.4f}" if "probability" in vote else f"{name:<12}{vote['error']}")
    label = document["prediction"]["label"]
    print(f"The members decide: {label} ({document['status']}).")
    if label != "versicolor":
        sys.exit(f"expected versicolor, not {label}")


if __name__ == "__main__":
    try:
        main()
    except httpx.HTTPError as error:
        sys.exit(f"{URL}: {error}")
