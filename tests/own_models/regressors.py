"""Kinds of regressors, of all libraries."""

from typing import Any

import numpy as np
from exports import catboost_graph, lightgbm_graph, sklearn_graph, xgboost_graph
from own_model import OwnModel, regressor
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, PolynomialFeatures, StandardScaler
from sklearn.svm import SVR
from training_sets import TrainingSet, passengers, regression, with_missing


def fitted_regressor(estimator: Any, data: TrainingSet, **members: Any) -> OwnModel:
    estimator.fit(data.inputs, data.targets)
    return regressor(estimator, data.rows, sklearn_graph(estimator, data.inputs), **members)


def linear_regression() -> OwnModel:
    """LinearRegression with one target."""
    return fitted_regressor(LinearRegression(), regression())


def linear_regression_two_targets() -> OwnModel:
    """LinearRegression with two targets."""
    return fitted_regressor(LinearRegression(), regression(2))


def forest_regressor() -> OwnModel:
    """RandomForestRegressor with one target."""
    return fitted_regressor(RandomForestRegressor(10, max_depth=6, random_state=0), regression())


def forest_regressor_two_targets() -> OwnModel:
    """RandomForestRegressor with two targets."""
    return fitted_regressor(RandomForestRegressor(10, max_depth=6, random_state=0), regression(2))


def regressor_of_large_values() -> OwnModel:
    """Pipeline whose values are in the millions."""
    return fitted_regressor(make_pipeline(StandardScaler(), PolynomialFeatures(2), Ridge()), regression(scale=1e5))


def support_vector_regressor() -> OwnModel:
    """SVR."""
    return fitted_regressor(SVR(), regression())


def hist_gradient_boosting_regressor_missing() -> OwnModel:
    """HistGradientBoostingRegressor with NaN in training and in the rows."""
    return fitted_regressor(HistGradientBoostingRegressor(max_iter=10, random_state=0), with_missing(regression()))


def regressor_of_columns() -> OwnModel:
    """DataFrame of numbers and strings with a OneHotEncoder and one target."""
    data = passengers()
    encode = make_column_transformer((StandardScaler(), ["age"]), (OneHotEncoder(), ["sex", "port"]))
    targets = data.inputs["fare"].to_numpy()
    data = TrainingSet(data.inputs.drop(columns="fare"), targets, data.rows.drop(columns="fare"))
    return fitted_regressor(Pipeline([("columns", encode), ("model", LinearRegression())]), data)


def transformed_target() -> OwnModel:
    """TransformedTargetRegressor with logarithms, which skl2onnx cannot convert."""
    data = regression()
    model = TransformedTargetRegressor(LinearRegression(), func=np.log1p, inverse_func=np.expm1)
    model.fit(data.inputs, np.abs(data.targets))
    return regressor(model, data.rows)


def lightgbm_regressor() -> OwnModel:
    """LGBMRegressor."""
    from lightgbm import LGBMRegressor

    data = regression()
    model = LGBMRegressor(n_estimators=10, verbose=-1, n_jobs=1).fit(data.inputs, data.targets)
    return regressor(model, data.rows, lightgbm_graph(model, 5))


def xgboost_regressor() -> OwnModel:
    """XGBRegressor."""
    from xgboost import XGBRegressor

    data = regression()
    model = XGBRegressor(n_estimators=10, n_jobs=1).fit(data.inputs, data.targets)
    return regressor(model, data.rows, xgboost_graph(model, 5))


def catboost_regressor() -> OwnModel:
    """CatBoostRegressor with its own exporter."""
    from catboost import CatBoostRegressor

    data = regression()
    model = CatBoostRegressor(iterations=10, depth=4, verbose=False, allow_writing_files=False, thread_count=1)
    model.fit(data.inputs, data.targets)
    return regressor(model, data.rows, catboost_graph(model))
