"""Label of one row with msgspec, which decodes and validates the body, and metrics and log lines as users add them."""

import sys
import time
from collections.abc import Callable

import msgspec
import numpy as np
from classifier import Classifier

BAD = b'{"detail": "must be {\\"data\\": [[4 numbers]]}"}'
decoder = msgspec.json.Decoder(msgspec.defstruct("Rows", [("data", list[tuple[float, float, float, float]])]))
batch_encoder = msgspec.json.Encoder()


class Label:
    """Functions from the bytes of a body to the status and the bytes of the response."""

    def __init__(self) -> None:
        self.classifier = Classifier()
        self.answers = [msgspec.json.encode({"prediction": label}) for label in self.classifier.labels]

    def label(self, body: bytes) -> tuple[int, bytes]:
        try:
            rows = decoder.decode(body).data
        except msgspec.DecodeError:
            return 422, BAD
        if len(rows) != 1:
            return 422, BAD
        return 200, self.answers[int(self.classifier.probabilities(rows)[0].argmax())]

    def batch(self, body: bytes) -> tuple[int, bytes]:
        try:
            rows = np.array(decoder.decode(body).data, np.float32)
        except msgspec.DecodeError:
            return 422, BAD
        return 200, batch_encoder.encode(self.classifier.batch(rows))

    def by_path(self, path: str) -> Callable[[bytes], tuple[int, bytes]]:
        return self.batch if path == "/predict/batch" else self.label


class RequestMetrics:
    """Counter and histogram of requests with prometheus-client, as its documentation shows them."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Histogram

        self.requests = Counter("requests", "Requests.", ["method", "path", "status"])
        self.seconds = Histogram("request_seconds", "Seconds of a request.", ["path"])

    def count(self, method: str, path: str, status: int, began: float) -> None:
        self.requests.labels(method, path, status).inc()
        self.seconds.labels(path).observe(time.perf_counter() - began)


def log_line(method: str, path: str, status: int, began: float) -> None:
    """Writes an access log line, for servers that have no access log."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {method} {path} {status} {time.perf_counter() - began:.6f}\n")
