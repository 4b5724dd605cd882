"""One row to its answer, as the server would give it."""

from collections.abc import Sequence

import numpy as np

from iris_wsgi.codec.rows import best, finite
from iris_wsgi.errors import BadModel, Problem
from iris_wsgi.model.session import Model, first_line
from iris_wsgi.settings import BadSetting
from iris_wsgi.tabular.csv_reader import number_error


def answer(model: Model, texts: Sequence[str]) -> tuple[str, list[float]]:
    """The label and the probabilities of all classes. Raises BadSetting for what is no row, BadModel where the model fails."""
    names = [feature.name for feature in model.features]
    if len(texts) != model.width:
        raise BadSetting(f"{len(texts)} numbers are given, and the model takes {model.width}: {', '.join(names)}")
    for name, text in zip(names, texts, strict=True):
        if (why := number_error(text)) is not None:
            raise BadSetting(f"{name} {why}")
    try:
        (probabilities,) = finite(model.predict(np.array([[float(text) for text in texts]], np.float32)))
    except Problem as problem:
        raise BadModel(problem.detail) from None
    except Exception as error:
        raise BadModel(f"the model fails on this row: {first_line(error)}") from None
    return model.labels[best(probabilities)], probabilities
