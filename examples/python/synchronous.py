"""Synchronous: sends three rows as binary tensors with the client of Triton, and prints their classes.

Usage: synchronous.py [URL]
"""

import os
import sys

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SERVER_URL", "http://127.0.0.1:8000")
MODEL = "iris_svc"
ROWS = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.1, 4.7, 1.5], [7.2, 3.6, 6.1, 2.5]], dtype=np.float32)


def main() -> None:
    # This client takes host:port, without http://.
    with InferenceServerClient(URL.removeprefix("http://").rstrip("/")) as client:
        metadata = client.get_model_metadata(MODEL)
        print("inputs:", *(f"{one['name']} {one['datatype']} {one['shape']}" for one in metadata["inputs"]))
        tensor = InferInput("features", ROWS.shape, "FP32")
        tensor.set_data_from_numpy(ROWS)
        outputs = [InferRequestedOutput("label"), InferRequestedOutput("probabilities")]
        result = client.infer(MODEL, [tensor], outputs=outputs)
    numbers, probabilities = result.as_numpy("label"), result.as_numpy("probabilities")
    for row, number, values in zip(ROWS, numbers, probabilities, strict=True):
        print(f"{row} is of class {number}, with probability {values[number]:.4f}")
    if numbers.tolist() != [0, 1, 2]:
        sys.exit(f"expected the classes 0, 1, and 2, not {numbers}")


if __name__ == "__main__":
    try:
        main()
    except (InferenceServerException, OSError) as error:
        sys.exit(f"{URL}: {error}")
