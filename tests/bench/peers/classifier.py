"""The model as every peer uses it: the same file, the same session options, the same answers as ours."""

import glob
import json
import os
import sys

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np
import onnxruntime

OUTPUT = ["probabilities"]


class Classifier:
    """The one model of the folder that BENCH_MODEL names."""

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
        """float32 [rows, classes]."""
        return self.session.run(OUTPUT, {"features": np.array(rows, np.float32)})[0]

    def label(self, rows: list[list[float]]) -> str:
        """The label of the first row."""
        return self.labels[int(self.probabilities(rows)[0].argmax())]

    def batch(self, rows: list[list[float]]) -> dict[str, list]:
        """What /predict/batch answers."""
        found = self.probabilities(rows)
        labels = [self.labels[i] for i in found.argmax(axis=1).tolist()]
        return {"classes": self.labels, "labels": labels, "probabilities": found.tolist()}

    def answer(self, rows: list[list[float]]) -> dict[str, object]:
        """For frameworks of one route: one row is asked for its label, more rows are a batch."""
        return {"prediction": self.label(rows)} if len(rows) == 1 else self.batch(rows)


if __name__ == "__main__":
    # The labels that servers are checked against: rows in, one list of labels out.
    json.dump(Classifier().batch(json.load(sys.stdin))["labels"], sys.stdout)
