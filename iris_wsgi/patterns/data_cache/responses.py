"""What clients are told of an item, as JSON."""

import json

import numpy as np

from iris_wsgi.codec.rows import Array, best, finite
from iris_wsgi.errors import Conflict
from iris_wsgi.model.predictor import Predict, PredictContext
from iris_wsgi.model.session import Graph


class Texts:
    """The bodies about items, for one model."""

    def __init__(self, model: Graph, predict: Predict) -> None:
        self.model, self.predict = model, predict

    def item(self, item_id: str, version: int, row: bytes, _: float) -> bytes:
        """The shortest numbers that are these float32: what was sent, unless it had more digits than fit."""
        data = [float(str(value)) for value in floats(row)]
        return json.dumps({"id": item_id, "version": version, "data": [data]}).encode()

    def prediction(self, item_id: str, version: int, row: bytes, until: float) -> bytes:
        """Raises Conflict for an item of another width, and what the predictor raises."""
        values = floats(row)
        if len(values) != self.model.width:
            raise Conflict(f"The item has {len(values)} features, and the model takes {self.model.width}; PUT it anew.")
        probabilities = finite(self.predict(values.reshape(1, -1), PredictContext(until)).probabilities)[0]
        told = {"id": item_id, "version": version, "classes": self.model.labels, "label": self.model.labels[best(probabilities)]}
        return json.dumps({**told, "probabilities": probabilities}).encode()


def floats(row: bytes) -> Array:
    return np.frombuffer(row, "<f4").astype(np.float32, copy=False)
