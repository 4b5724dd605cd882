"""What is right: the answers of the models themselves, in this process."""

import json
from pathlib import Path

import numpy as np
from fleet import MODEL, NAMES

from iris_wsgi.codec.rows import Encoder
from iris_wsgi.model.artifact import ArtifactManifest
from iris_wsgi.model.session import Model, load_model

Rows = list[list[float]]


class Right:
    """The bodies that a server must answer with."""

    def __init__(self) -> None:
        self.model, self.golden = model(MODEL)
        self.fast, _ = model(MODEL / "fast")
        self.members = {name: model(MODEL / "members" / name)[0] for name in NAMES}
        self.encoder = Encoder(self.model.labels)

    def predicted(self, path: str, rows: Rows) -> bytes:
        """The answer at one of the web-single routes."""
        probabilities = self.probabilities(rows)
        encode = {"": self.encoder.row, "label": self.encoder.label, "proba": self.encoder.proba, "batch": self.encoder.batch}
        return encode[path.removeprefix("/predict").lstrip("/")](probabilities)

    def probabilities(self, rows: Rows) -> np.ndarray:
        return self.model.predict(np.array(rows, np.float32))

    def batch(self, rows: Rows) -> dict:
        return json.loads(self.predicted("/predict/batch", rows))

    def provisional(self, row: list[float]) -> tuple[str, list[float]]:
        (probabilities,) = self.fast.predict(np.array([row], np.float32)).tolist()
        return self.fast.labels[int(np.argmax(probabilities))], probabilities

    def votes(self, row: list[float]) -> dict[str, float]:
        asked = np.array([row], np.float32)
        return {name: float(member.predict(asked)[0, -1]) for name, member in self.members.items()}


def model(folder: Path) -> tuple[Model, ArtifactManifest]:
    return load_model(folder)
