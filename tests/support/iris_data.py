"""Training rows of the Iris model, and one row with a known label for each species."""

from project import MODEL

from iris_wsgi.codec.model_schema import Feature, RowSchema

LABELED_ROWS = {"setosa": [5.1, 3.5, 1.4, 0.2], "versicolor": [6.7, 3.1, 4.7, 1.5], "virginica": [7.2, 3.6, 6.1, 2.5]}

NAMES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
IRIS_ROWS = RowSchema([Feature(name) for name in NAMES])


def training_rows() -> list[list[float]]:
    lines = (MODEL / "training.csv").read_text().splitlines()[1:]
    return [[float(value) for value in line.split(",")[:4]] for line in lines]
