"""Kinds of LightGBM, XGBoost, and CatBoost classifiers."""

from typing import Any

import numpy as np
from exports import catboost_graph, lightgbm_graph, xgboost_graph
from own_model import OwnModel, classifier
from training_sets import TrainingSet, as_type, classes, named, with_missing

LEVELS = ("high", "low", "mid")
NAMES = {"0": "no", "1": "yes"}


def lightgbm(data: TrainingSet, zipmap: bool = True, **members: Any) -> OwnModel:
    from lightgbm import LGBMClassifier

    model = LGBMClassifier(n_estimators=10, verbose=-1, n_jobs=1).fit(data.inputs, data.targets)
    return classifier(model, data.rows, lightgbm_graph(model, data.inputs.shape[1], zipmap), **members)


def lightgbm_of_two() -> OwnModel:
    """LGBMClassifier with two classes and their names in label.json."""
    return lightgbm(classes(2), label_json=NAMES)


def lightgbm_of_three_strings() -> OwnModel:
    """LGBMClassifier with three string labels."""
    return lightgbm(named(classes(), LEVELS))


def lightgbm_tensor() -> OwnModel:
    """LGBMClassifier without ZipMap."""
    return lightgbm(classes(), zipmap=False)


def lightgbm_missing() -> OwnModel:
    """LGBMClassifier with NaN in training and in the rows."""
    return lightgbm(with_missing(classes(2)))


def lightgbm_missing_of_three() -> OwnModel:
    """LGBMClassifier with NaN in training and in the rows, three classes."""
    return lightgbm(with_missing(classes()))


def lightgbm_booster() -> OwnModel:
    """Booster of lightgbm.train with the objective binary."""
    import lightgbm

    data = classes(2)
    options = {"objective": "binary", "verbose": -1, "num_threads": 1}
    model = lightgbm.train(options, lightgbm.Dataset(data.inputs, data.targets), 10)
    return binary_booster(model, data, model.predict(data.rows), lightgbm_graph(model, 5, zipmap=False))


def binary_booster(model: Any, data: TrainingSet, probabilities: Any, graph: bytes) -> OwnModel:
    """Returns a model without classes_, whose predict() is the probability of the second class."""
    second = np.asarray(probabilities, float)
    labels = (second > 0.5).astype(int).tolist()
    return OwnModel(data.rows, labels, np.stack([1 - second, second], 1), [0, 1], model, graph, label_json=NAMES)


def lightgbm_categories() -> OwnModel:
    """LGBMClassifier with a column of category codes."""
    from lightgbm import LGBMClassifier

    chance = np.random.default_rng(8)
    data = classes(2)
    for table in (data.inputs, data.rows):
        table[:, 0] = chance.integers(0, 8, len(table))
    targets = np.where(data.inputs[:, 0] % 3 == 0, 1 - data.targets, data.targets)
    model = LGBMClassifier(n_estimators=10, verbose=-1, n_jobs=1)
    model.fit(data.inputs, targets, categorical_feature=[0])
    return classifier(model, data.rows, lightgbm_graph(model, 5))


def timestamps() -> OwnModel:
    """Float32 graph of a LGBMClassifier with a feature of seconds since 1970, which float32 holds only to 128 seconds."""
    return timestamp_model()._replace(estimator=None)


def timestamps_estimator() -> OwnModel:
    """LGBMClassifier with a feature of seconds since 1970."""
    return timestamp_model()._replace(graph=None)


def timestamp_model() -> OwnModel:
    from lightgbm import LGBMClassifier

    chance = np.random.default_rng(9)
    data = as_type(classes(2), np.float64)
    for table in (data.inputs, data.rows):
        table[:, 0] = 1_700_000_000 + chance.integers(0, 2000, len(table))
    targets = (data.inputs[:, 0] % 400 < 200).astype(int)
    model = LGBMClassifier(n_estimators=20, min_child_samples=5, verbose=-1, n_jobs=1).fit(data.inputs, targets)
    return classifier(model, data.rows, lightgbm_graph(model, 5))


def xgboost(data: TrainingSet, **members: Any) -> OwnModel:
    from xgboost import XGBClassifier

    model = XGBClassifier(n_estimators=10, n_jobs=1).fit(data.inputs, data.targets)
    return classifier(model, data.rows, xgboost_graph(model, data.inputs.shape[1]), **members)


def xgboost_of_two() -> OwnModel:
    """XGBClassifier with two classes."""
    return xgboost(classes(2), label_json=NAMES)


def xgboost_of_three() -> OwnModel:
    """XGBClassifier with three classes."""
    return xgboost(classes())


def xgboost_missing() -> OwnModel:
    """XGBClassifier with NaN in training and in the rows."""
    return xgboost(with_missing(classes(2)))


def xgboost_booster() -> OwnModel:
    """Booster of xgboost.train with the objective binary:logistic."""
    import xgboost

    data = classes(2)
    options = {"objective": "binary:logistic", "nthread": 1}
    model = xgboost.train(options, xgboost.DMatrix(data.inputs, data.targets), 10)
    return binary_booster(model, data, model.predict(xgboost.DMatrix(data.rows)), xgboost_graph(model, 5))


def catboost(data: TrainingSet, **members: Any) -> OwnModel:
    from catboost import CatBoostClassifier

    model = CatBoostClassifier(iterations=10, depth=4, verbose=False, allow_writing_files=False, thread_count=1)
    model.fit(data.inputs, data.targets)
    return classifier(model, data.rows, catboost_graph(model), **members)


def catboost_of_two() -> OwnModel:
    """CatBoostClassifier with two classes and its own exporter."""
    return catboost(classes(2), label_json=NAMES)


def catboost_of_three_strings() -> OwnModel:
    """CatBoostClassifier with three string labels."""
    return catboost(named(classes(), LEVELS))


def catboost_missing() -> OwnModel:
    """CatBoostClassifier with NaN in training and in the rows."""
    return catboost(with_missing(classes(2)))


def explainable_boosting(data: TrainingSet, **members: Any) -> OwnModel:
    """Returns a model of interpret with an input [N] per column, as its own exporter writes it."""
    import pandas
    from ebm2onnx import to_onnx
    from interpret.glassbox import ExplainableBoostingClassifier

    names = [f"column_{j}" for j in range(data.inputs.shape[1])]
    model = ExplainableBoostingClassifier(feature_names=names, interactions=0, max_rounds=50, n_jobs=1, random_state=0)
    model.fit(data.inputs, data.targets)
    graph = to_onnx(model, dtype=dict.fromkeys(names, "float"), predict_proba=True).SerializeToString()
    rows = pandas.DataFrame(data.rows, columns=names)
    # pack converts no estimator of this library.
    return classifier(model, rows, graph, **members)._replace(estimator=None)


def explainable_boosting_of_two() -> OwnModel:
    """ExplainableBoostingClassifier of interpret with two classes, exported by ebm2onnx."""
    return explainable_boosting(classes(2), label_json=NAMES)


def explainable_boosting_of_three() -> OwnModel:
    """ExplainableBoostingClassifier of interpret with three classes, exported by ebm2onnx."""
    return explainable_boosting(classes())
