"""Training data of the kinds, and 200 rows each. Every number is a float32 unless the kind is about another type."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from own_model import ROWS
from sklearn.datasets import make_classification, make_multilabel_classification, make_regression

TRAINING_ROWS = 500
NUMERIC_NAMES = ("age", "income", "visits", "distance", "score")


class TrainingSet(NamedTuple):
    """Inputs and targets for training, and rows for the comparison."""

    inputs: Any
    targets: Any
    rows: Any


def split(inputs: Any, targets: Any) -> TrainingSet:
    return TrainingSet(inputs[:-ROWS], targets[:-ROWS], inputs[-ROWS:])


def classes(count: int = 3, features: int = 5, seed: int = 0, training_rows: int = TRAINING_ROWS, **options: Any) -> TrainingSet:
    """Numbers with targets 0 to count - 1."""
    informative = min(features, max(4, count.bit_length() + 2))
    inputs, targets = make_classification(
        training_rows + ROWS,
        features,
        n_informative=informative,
        n_redundant=0,
        n_classes=count,
        n_clusters_per_class=1,
        random_state=seed,
        **options,
    )
    return split(inputs.astype(np.float32), targets)


def named(data: TrainingSet, names: Any) -> TrainingSet:
    """Replaces each target by its name."""
    return data._replace(targets=np.asarray(names)[data.targets])


def as_type(data: TrainingSet, dtype: Any, scale: float = 1.0) -> TrainingSet:
    """Converts the numbers to another type, after a multiplication."""
    return data._replace(inputs=(data.inputs * scale).astype(dtype), rows=(data.rows * scale).astype(dtype))


def with_missing(data: TrainingSet, share: float = 0.15, seed: int = 7) -> TrainingSet:
    """Replaces a share of the numbers by NaN."""
    chance = np.random.default_rng(seed)

    def holes(values: np.ndarray) -> np.ndarray:
        return np.where(chance.random(values.shape) < share, np.float32(np.nan), values)

    return data._replace(inputs=holes(data.inputs), rows=holes(data.rows))


def framed(data: TrainingSet, names: Any = NUMERIC_NAMES) -> TrainingSet:
    """Converts the inputs and the rows to DataFrames with column names."""
    return data._replace(inputs=pd.DataFrame(data.inputs, columns=list(names)), rows=pd.DataFrame(data.rows, columns=list(names)))


def several_labels(seed: int = 0) -> TrainingSet:
    """Numbers with targets [N, 3] of 0 and 1, so that a row has none, one, or several labels."""
    inputs, targets = make_multilabel_classification(TRAINING_ROWS + ROWS, 5, n_classes=3, random_state=seed)
    return split(inputs.astype(np.float32), targets)


def regression(targets: int = 1, seed: int = 0, scale: float = 1.0) -> TrainingSet:
    """Numbers with targets [N] or [N, targets]."""
    inputs, values = make_regression(TRAINING_ROWS + ROWS, 5, n_targets=targets, noise=1.0, random_state=seed)
    return split(inputs.astype(np.float32), values * scale)


def passengers(seed: int = 3) -> TrainingSet:
    """DataFrame with two columns of numbers and two of strings, and targets 0 and 1."""
    chance = np.random.default_rng(seed)
    count = TRAINING_ROWS + ROWS
    table = pd.DataFrame(
        {
            "age": chance.uniform(1, 80, count).astype(np.float32),
            "fare": chance.exponential(40, count).astype(np.float32),
            "sex": chance.choice(["female", "male"], count),
            "port": chance.choice(["C", "Q", "S"], count),
        }
    )
    survived = (table.sex == "female") * 2.0 + (table.age < 20) - (table.port == "S") * 0.5 + chance.normal(0, 0.7, count)
    return split(table, (survived > 0.9).astype(int).to_numpy())


def orders(seed: int = 4) -> TrainingSet:
    """DataFrame with a column of whole numbers, one of truth values, one of numbers, and one of strings."""
    chance = np.random.default_rng(seed)
    count = TRAINING_ROWS + ROWS
    table = pd.DataFrame(
        {
            "quantity": chance.integers(1, 500, count),
            "express": chance.random(count) < 0.4,
            "weight": chance.exponential(3, count).astype(np.float32),
            "city": chance.choice(["Tokyo", "Osaka", "Nagoya"], count),
        }
    )
    late = (table.quantity > 250) + (table.city == "Osaka") - table.express * 1.2 + chance.normal(0, 0.5, count)
    return split(table, np.where(late > 0.6, "late", "on time"))


def reviews(seed: int = 5) -> TrainingSet:
    """Texts with targets "bad" and "good"."""
    chance = np.random.default_rng(seed)
    good, bad = ("great", "fine", "lovely", "quick"), ("poor", "slow", "broken", "late")
    neutral = ("the", "parcel", "came", "box", "and", "it", "was")
    targets = chance.integers(0, 2, TRAINING_ROWS + ROWS)
    texts = np.array([" ".join(chance.choice([*neutral, *(good if target else bad)], 8)) for target in targets], dtype=object)
    return split(texts, np.where(targets == 1, "good", "bad"))
