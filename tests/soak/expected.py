"""Expected responses, computed by the models themselves in this process."""

import json

import numpy as np
from processes import MODEL, NAMES

from iris_wsgi.codec.rows import Encoder
from iris_wsgi.model.session import load_model

Rows = list[list[float]]


class ExpectedResponses:
    """Response bodies that a correct server returns."""

    def __init__(self) -> None:
        self.model, self.manifest = load_model(MODEL)
        self.fast, _ = load_model(MODEL / "fast")
        self.members = {name: load_model(MODEL / "members" / name)[0] for name in NAMES}
        self.encoder = Encoder(self.model.outputs)

    def body(self, path: str, rows: Rows) -> bytes:
        """Returns the body of the response to a prediction request of the web-single pattern."""
        probabilities = self.probabilities(rows)
        encode = {"": self.encoder.row, "label": self.encoder.label, "proba": self.encoder.proba, "batch": self.encoder.batch}
        name = path.removeprefix("/predict").lstrip("/")
        return encode[name](probabilities if name == "batch" else probabilities[0].tolist())

    def probabilities(self, rows: Rows) -> np.ndarray:
        return self.model.predict(np.array(rows, np.float32))

    def batch(self, rows: Rows) -> dict:
        return json.loads(self.body("/predict/batch", rows))

    def provisional(self, row: list[float]) -> tuple[str, list[float]]:
        """Returns the label and the probabilities of the fast model."""
        (probabilities,) = self.fast.predict(np.array([row], np.float32)).tolist()
        return self.fast.labels[int(np.argmax(probabilities))], probabilities

    def votes(self, row: list[float]) -> dict[str, float]:
        """Returns the probability of each ensemble member."""
        rows = np.array([row], np.float32)
        return {name: float(member.predict(rows)[0, -1]) for name, member in self.members.items()}
