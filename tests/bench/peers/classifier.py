"""Model of all peers, with the same file, the same session options, and the same results as in our server."""

import glob
import json
import os
import sys

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np
import onnxruntime

OUTPUT = ["probabilities"]


class Classifier:
    """Model in the folder that BENCH_MODEL names."""

    def __init__(self) -> None:
        folder = os.environ["BENCH_MODEL"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        (file,) = glob.glob(f"{folder}/*.onnx")
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        with open(f"{folder}/label.json", encoding="utf-8") as file:
            self.labels = list(json.load(file).values())

    def probabilities(self, rows: list[list[float]]) -> np.ndarray:
        """Returns the probabilities as float32 [rows, classes]."""
        return self.session.run(OUTPUT, {"features": np.array(rows, np.float32)})[0]

    def label(self, rows: list[list[float]]) -> str:
        """Returns the label of the first row."""
        return self.labels[int(self.probabilities(rows)[0].argmax())]

    def batch(self, rows: list[list[float]]) -> dict[str, list]:
        """Returns the document of /predict/batch."""
        found = self.probabilities(rows)
        labels = [self.labels[i] for i in found.argmax(axis=1).tolist()]
        return {"classes": self.labels, "labels": labels, "probabilities": found.tolist()}

    def answer(self, rows: list[list[float]]) -> dict[str, object]:
        """Returns the label of a single row, or the batch document for more rows, for frameworks with one route."""
        return {"prediction": self.label(rows)} if len(rows) == 1 else self.batch(rows)


if __name__ == "__main__":
    # Prints the expected labels of the rows on standard input.
    json.dump(Classifier().batch(json.load(sys.stdin))["labels"], sys.stdout)
