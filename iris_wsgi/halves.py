"""The first half of a model whose second half another server runs: the preparation of its rows."""

import numpy as np

from iris_wsgi.errors import BadModel
from iris_wsgi.model import Graph
from iris_wsgi.payload import Array


class Prep(Graph):
    """Raw rows to rows as the other half takes them; `digest` is that of both together, their pair."""

    def __init__(self, content: bytes, labels: tuple[str, ...], file: str) -> None:
        """Raises BadModel."""
        super().__init__(content, labels, file)
        outputs = self.session.get_outputs()
        if len(outputs) != 1 or outputs[0].type != "tensor(float)" or len(outputs[0].shape) != 2:
            raise BadModel(f"{file} must have one output, tensor(float) [N, features], which the other half of the model takes")
        if "pair" not in self.identity:
            raise BadModel(f"{file} does not say in its metadata, under `pair`, whose first half it is")
        self.output = outputs[0].name
        # The halves have digests of their own; what answers name is the pair, as one half alone answers nothing.
        self.identity["prep"], self.digest = self.digest, self.identity["pair"]

    def prepare(self, rows: Array) -> Array:
        """Rows [n, features] to as many, in the width of the other half."""
        (prepared,) = self.run((self.output,), {self.input: rows}, None)
        return np.asarray(prepared, np.float32)
