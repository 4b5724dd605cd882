"""Web single: sends one row, and prints the probability of each class.

Usage: web_single.py [URL]
"""

import os
import sys

import httpx

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SERVER_URL", "http://127.0.0.1:8000")
# Sepal length, sepal width, petal length, and petal width, in centimeters.
ROW = [5.1, 3.5, 1.4, 0.2]


def main() -> None:
    response = httpx.post(f"{URL}/predict/proba", json={"data": [ROW]}).raise_for_status()
    classes = {entry["label"]: entry["probability"] for entry in response.json()["prediction"]}
    for label, probability in classes.items():
        print(f"{label:<12}{probability:.4f}")
    best = max(classes, key=classes.__getitem__)
    print(f"This flower is an Iris {best}.")
    if best != "setosa":
        sys.exit(f"expected setosa, not {best}")


if __name__ == "__main__":
    try:
        main()
    except httpx.HTTPError as error:
        sys.exit(f"{URL}: {error}")
