"""Kinds at the edges: exact numbers, texts that look like other values, and exports that differ from the model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from exports import Network, make_graph, sigmoid, softmax
from network_models import FLOAT, SOFTMAX, predicted
from onnx import TensorProto, helper, numpy_helper
from own_model import ROWS, OwnModel, classifier, regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import BaggingClassifier, HistGradientBoostingClassifier
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LinearRegression, LogisticRegression, Perceptron
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsOneClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.svm import LinearSVC, OneClassSVM
from sklearn.tree import DecisionTreeClassifier
from sklearn_models import fitted, forest, positions, scores_of
from training_sets import TRAINING_ROWS, TrainingSet, as_type, classes, framed, named, passengers, regression, split

INT64 = TensorProto.INT64


# Numbers.


def large_integers() -> OwnModel:
    """Graph of int64 whose class is the remainder of a number up to 2**62."""
    rows = np.random.default_rng(1).integers(-(2**62), 2**62, (ROWS, 2))
    three = numpy_helper.from_array(np.array(3, np.int64), "three")
    column = numpy_helper.from_array(np.array(0, np.int64), "column")
    nodes = [
        helper.make_node("Gather", ["ids", "column"], ["first"], axis=1),
        helper.make_node("Mod", ["first", "three"], ["rest"]),
    ]
    graph, values = one_hot_graph(nodes, rows[:, 0] % 3, [("ids", INT64, ["batch", 2])], [three, column])
    return OwnModel(rows, (rows[:, 0] % 3).tolist(), values, [0, 1, 2], graph=graph)


def precise_doubles() -> OwnModel:
    """Graph of float64 whose class is a digit after the decimal point of a number of 1.7e9."""
    rows = 1.7e9 + np.random.default_rng(2).integers(0, 3000, (ROWS, 2)) / 4
    quarter = np.floor((rows[:, 0] * 4) % 3).astype(int)
    constants = {"four": np.array(4.0), "three": np.array(3.0), "column": np.array(0, np.int64)}
    nodes = [
        helper.make_node("Gather", ["seconds", "column"], ["first"], axis=1),
        helper.make_node("Mul", ["first", "four"], ["quarters"]),
        helper.make_node("Mod", ["quarters", "three"], ["rest_double"], fmod=1),
        helper.make_node("Cast", ["rest_double"], ["rest"], to=INT64),
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph, values = one_hot_graph(nodes, quarter, [("seconds", TensorProto.DOUBLE, ["batch", 2])], initializers)
    return OwnModel(rows, quarter.tolist(), values, [0, 1, 2], graph=graph)


def one_hot_graph(nodes: list[Any], places: np.ndarray, inputs: Any, initializers: list[Any]) -> tuple[bytes, np.ndarray]:
    """Returns a graph that gives the class `rest` the probability 0.8, and these probabilities for the given places."""
    table = np.full((3, 3), 0.1, np.float32) + 0.7 * np.eye(3, dtype=np.float32)
    gather = helper.make_node("Gather", ["table", "rest"], ["probabilities"], axis=0)
    graph = make_graph([*nodes, gather], 2, inputs=inputs, initializers=[*initializers, numpy_helper.from_array(table, "table")])
    return graph, table[places].astype(float)


def extreme_numbers() -> OwnModel:
    """DecisionTree with rows of -0.0, subnormal numbers, and numbers of 3e38."""
    chance = np.random.default_rng(3)
    values = np.array([-0.0, 0.0, 1e-45, -1e-40, 1e-38, 3.4e38, -3.4e38, 1.0, -1.0, 16777217.0], np.float32)
    inputs = chance.choice(values, (TRAINING_ROWS + ROWS, 4))
    targets = (inputs[:, 0] > 0).astype(int) + (inputs[:, 1] > 1e30)
    return fitted(DecisionTreeClassifier(random_state=0), split(inputs, targets))


def byte_rows() -> OwnModel:
    """RandomForest with rows of uint8, as pixels are."""
    return fitted(forest(), as_type(classes(), np.uint8, 20), exported=False)


def one_feature() -> OwnModel:
    """LogisticRegression with one feature."""
    data = classes(2)
    return fitted(LogisticRegression(), data._replace(inputs=data.inputs[:, :1], rows=data.rows[:, :1]))


# Texts.


def categories(values: tuple[str, ...], seed: int = 6) -> TrainingSet:
    """DataFrame of a column of strings and a column of numbers."""
    chance = np.random.default_rng(seed)
    count = TRAINING_ROWS + ROWS
    table = pd.DataFrame({"category": chance.choice(np.array(values, object), count), "size": chance.random(count)})
    table["size"] = table["size"].astype(np.float32)
    is_even = table["category"].map({value: place % 2 for place, value in enumerate(values)})
    return split(table, (is_even + table["size"] + chance.normal(0, 0.3, count) > 1).astype(int).to_numpy())


def one_hot(data: TrainingSet) -> OwnModel:
    columns = make_column_transformer((OneHotEncoder(), ["category"]), remainder="passthrough")
    return fitted(make_pipeline(columns, LogisticRegression()), data)


def categories_with_quotes() -> OwnModel:
    """Categories with commas, quotes, line feeds, blanks, and characters of other scripts."""
    return one_hot(categories(("a,b", 'say "x"', "two\nlines", "東京", "semi;colon", "tab\there", "it's")))


def categories_like_numbers() -> OwnModel:
    """Categories that are texts of numbers, with zeros that a number loses."""
    return one_hot(categories(("007", "1.50", "10", "1e5", "-0")))


def categories_like_integers() -> OwnModel:
    """Categories that are texts of integers only."""
    return one_hot(categories(("1", "2", "10", "20")))


def categories_like_truth_values() -> OwnModel:
    """Categories that are texts of truth values."""
    return one_hot(categories(("true", "false", "True", "FALSE")))


def categories_like_missing_cells() -> OwnModel:
    """Categories that a CSV may use for missing values."""
    return one_hot(categories(("NA", "null", "None", "nan", "x")))


def categories_with_blanks() -> OwnModel:
    """Categories with blanks at their ends, and an empty one."""
    return one_hot(categories((" x", "x ", "x", "")))


def missing_strings() -> OwnModel:
    """DataFrame with missing texts, which an ONNX graph cannot take."""
    data = categories(("a", "b", "c"))
    for table in (data.inputs, data.rows):
        table.loc[table.index[::7], "category"] = None
    columns = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["category"]), remainder="passthrough")
    model = make_pipeline(columns, LogisticRegression()).fit(data.inputs, data.targets)
    return classifier(model, data.rows)


def ordinal_categories() -> OwnModel:
    """OrdinalEncoder on a column of strings."""
    data = categories(("low", "mid", "high"))
    columns = make_column_transformer((OrdinalEncoder(), ["category"]), remainder="passthrough")
    return fitted(make_pipeline(columns, forest()), data)


def labels_with_commas() -> OwnModel:
    """String labels with commas, quotes, and characters of other scripts."""
    return fitted(LogisticRegression(), named(classes(), ("low, or none", 'say "yes"', "高い")))


def labels_by_case() -> OwnModel:
    """String labels that differ in case only."""
    return fitted(LogisticRegression(), named(classes(), ("A", "a", "a.")))


def features_by_case() -> OwnModel:
    """Feature names that are equal without case, dots, and blanks."""
    return fitted(forest(), framed(classes(), ("size", "Size", "si ze", "s.i.z.e", "weight")), exported=False)


def feature_named_label() -> OwnModel:
    """Features with the names of columns of the output."""
    return fitted(forest(), framed(classes(), ("label", "probability_0", "data", "score", "value_0")), exported=False)


def columns_in_other_order() -> OwnModel:
    """Rows whose columns have another order than the inputs of the graph."""
    own = fitted_passengers()
    return own._replace(rows=own.rows[["port", "fare", "sex", "age"]], estimator=None)


def fitted_passengers() -> OwnModel:
    data = passengers()
    columns = make_column_transformer((StandardScaler(), ["age", "fare"]), (OneHotEncoder(), ["sex", "port"]))
    return fitted(make_pipeline(columns, LogisticRegression()), data)


# Estimators.


def linear_discriminant() -> OwnModel:
    """LinearDiscriminantAnalysis."""
    return fitted(LinearDiscriminantAnalysis(), classes())


def bagging() -> OwnModel:
    """BaggingClassifier."""
    return fitted(BaggingClassifier(DecisionTreeClassifier(max_depth=4), 8, random_state=0), classes())


def one_vs_one() -> OwnModel:
    """OneVsOneClassifier of LogisticRegression."""
    data = classes()
    model = OneVsOneClassifier(LogisticRegression()).fit(data.inputs, data.targets)
    return scores_of(model, data)


def perceptron() -> OwnModel:
    """Perceptron, which has scores only."""
    data = classes()
    model = Perceptron(random_state=0).fit(data.inputs, data.targets)
    return scores_of(model, data)


def calibrated_scores() -> OwnModel:
    """CalibratedClassifierCV of LinearSVC."""
    return fitted(CalibratedClassifierCV(LinearSVC(random_state=0), cv=3), classes(2))


def grid_search() -> OwnModel:
    """GridSearchCV of LogisticRegression."""
    return fitted(GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2), classes())


def many_steps() -> OwnModel:
    """Pipeline of StandardScaler, SelectKBest, PCA, KBinsDiscretizer, and LogisticRegression."""
    bins = KBinsDiscretizer(4, encode="onehot-dense", quantile_method="averaged_inverted_cdf")
    return fitted(make_pipeline(StandardScaler(), SelectKBest(k=4), PCA(3), bins, LogisticRegression()), classes())


def outliers_by_svm() -> OwnModel:
    """OneClassSVM with the labels -1 and 1 and one score."""
    data = classes()
    model = OneClassSVM(nu=0.1).fit(data.inputs)
    return OwnModel(
        data.rows, model.predict(data.rows).tolist(), model.decision_function(data.rows).reshape(-1, 1), [-1, 1], model
    )


def clusters() -> OwnModel:
    """KMeans, which is neither a classifier nor a regressor."""
    data = classes()
    return OwnModel(data.rows, estimator=KMeans(3, n_init=1, random_state=0).fit(data.inputs))


def transformer() -> OwnModel:
    """PCA, which predicts nothing."""
    data = classes()
    return OwnModel(data.rows, estimator=PCA(2).fit(data.inputs))


def not_fitted() -> OwnModel:
    """LogisticRegression that was not trained."""
    return OwnModel(classes().rows, estimator=LogisticRegression())


def categories_of_trees() -> OwnModel:
    """HistGradientBoosting with a categorical column, which skl2onnx cannot convert."""
    data = classes(2)
    for table in (data.inputs, data.rows):
        table[:, 0] = np.abs(np.round(table[:, 0] * 2)) % 6
    model = HistGradientBoostingClassifier(max_iter=10, categorical_features=[0], random_state=0)
    return fitted(model, data, exported=False)


def xgboost_early_stopping() -> OwnModel:
    """XGBClassifier that stopped early: it predicts with the best number of trees."""
    from xgboost import XGBClassifier

    data = classes(2, flip_y=0.3)
    model = XGBClassifier(n_estimators=200, early_stopping_rounds=3, learning_rate=0.5, n_jobs=1)
    model.fit(data.inputs[:300], data.targets[:300], eval_set=[(data.inputs[300:], data.targets[300:])], verbose=False)
    return classifier(model, data.rows)


def lightgbm_early_stopping() -> OwnModel:
    """LGBMClassifier that stopped early."""
    import lightgbm

    data = classes(2, flip_y=0.3)
    model = lightgbm.LGBMClassifier(n_estimators=200, learning_rate=0.5, verbose=-1, n_jobs=1)
    stop = lightgbm.early_stopping(3, verbose=False)
    model.fit(data.inputs[:300], data.targets[:300], eval_set=[(data.inputs[300:], data.targets[300:])], callbacks=[stop])
    return classifier(model, data.rows)


def xgboost_with_dropout() -> OwnModel:
    """XGBClassifier with the booster dart, whose trees have weights."""
    from xgboost import XGBClassifier

    data = classes(2)
    model = XGBClassifier(n_estimators=10, booster="dart", rate_drop=0.3, n_jobs=1, random_state=0)
    return classifier(model.fit(data.inputs, data.targets), data.rows)


def xgboost_forest() -> OwnModel:
    """XGBRFClassifier."""
    from xgboost import XGBRFClassifier

    data = classes(2)
    return classifier(XGBRFClassifier(n_estimators=10, n_jobs=1, random_state=0).fit(data.inputs, data.targets), data.rows)


def lightgbm_one_versus_all() -> OwnModel:
    """LGBMClassifier with the objective multiclassova."""
    from lightgbm import LGBMClassifier

    data = classes()
    model = LGBMClassifier(n_estimators=10, objective="multiclassova", verbose=-1, n_jobs=1)
    return classifier(model.fit(data.inputs, data.targets), data.rows)


def lightgbm_counts() -> OwnModel:
    """LGBMRegressor with the objective poisson, whose values are powers."""
    from lightgbm import LGBMRegressor

    data = regression()
    model = LGBMRegressor(n_estimators=10, objective="poisson", verbose=-1, n_jobs=1)
    return regressor(model.fit(data.inputs, np.abs(data.targets)), data.rows)


def xgboost_counts() -> OwnModel:
    """XGBRegressor with the objective count:poisson."""
    from xgboost import XGBRegressor

    data = regression()
    model = XGBRegressor(n_estimators=10, objective="count:poisson", n_jobs=1)
    return regressor(model.fit(data.inputs, np.abs(data.targets)), data.rows)


def lightgbm_frame() -> OwnModel:
    """LGBMClassifier that was trained on a DataFrame."""
    from lightgbm import LGBMClassifier

    data = framed(classes())
    return classifier(LGBMClassifier(n_estimators=10, verbose=-1, n_jobs=1).fit(data.inputs, data.targets), data.rows)


def xgboost_frame() -> OwnModel:
    """XGBClassifier that was trained on a DataFrame."""
    from xgboost import XGBClassifier

    data = framed(classes())
    return classifier(XGBClassifier(n_estimators=10, n_jobs=1).fit(data.inputs, data.targets), data.rows)


def lightgbm_in_pipeline() -> OwnModel:
    """Pipeline of StandardScaler and LGBMClassifier."""
    from lightgbm import LGBMClassifier

    data = classes()
    model = make_pipeline(StandardScaler(), LGBMClassifier(n_estimators=10, verbose=-1, n_jobs=1))
    return classifier(model.fit(data.inputs, data.targets), data.rows)


def catboost_categories() -> OwnModel:
    """CatBoostClassifier with a column of strings, which its exporter refuses."""
    from catboost import CatBoostClassifier

    data = categories(("a", "b", "c"))
    model = CatBoostClassifier(iterations=5, depth=3, verbose=False, allow_writing_files=False, cat_features=["category"])
    return classifier(model.fit(data.inputs, data.targets), data.rows)


# Graphs that mislead.


def two_tensor_inputs() -> OwnModel:
    """Network with two inputs of three and two columns."""
    network = Network()
    nodes = [helper.make_node("Concat", ["left", "right"], ["input"], axis=1), *network.nodes(), SOFTMAX]
    inputs = [("left", FLOAT, ["batch", 3]), ("right", FLOAT, ["batch", 2])]
    graph = make_graph(nodes, 5, inputs=inputs, initializers=network.initializers())
    own = predicted(network, softmax(network.logits()), graph)
    return own._replace(rows=pd.DataFrame(network.rows, columns=["left_0", "left_1", "left_2", "right_0", "right_1"]))


def columns_of_rank_1() -> OwnModel:
    """Network with five inputs [N]."""
    network = Network()
    names = ["age", "income", "visits", "distance", "score"]
    axis = numpy_helper.from_array(np.array([1], np.int64), "axis")
    columns = [helper.make_node("Unsqueeze", [name, "axis"], [f"{name}_column"]) for name in names]
    joined = helper.make_node("Concat", [f"{name}_column" for name in names], ["input"], axis=1)
    nodes = [*columns, joined, *network.nodes(), SOFTMAX]
    inputs = [(name, FLOAT, ["batch"]) for name in names]
    graph = make_graph(nodes, 5, inputs=inputs, initializers=[*network.initializers(), axis])
    own = predicted(network, softmax(network.logits()), graph)
    return own._replace(rows=pd.DataFrame(network.rows, columns=names))


def with_label(change: Callable[[np.ndarray], np.ndarray], element_type: int) -> OwnModel:
    """Returns a network whose label output has this type."""
    network = Network()
    nodes = [
        SOFTMAX,
        helper.make_node("ArgMax", ["probabilities"], ["place"], axis=1, keepdims=0),
        helper.make_node("Cast", ["place"], ["label"], to=element_type),
    ]
    outputs = [("label", element_type, ["batch"]), ("probabilities", FLOAT, ["batch", 3])]
    values = softmax(network.logits())
    own = predicted(network, values, network.graph(*nodes, outputs=outputs))
    return own._replace(labels=change(values.argmax(axis=1)).tolist())


def int32_labels() -> OwnModel:
    """Network with a label output of int32."""
    return with_label(lambda places: places, TensorProto.INT32)


def label_only() -> OwnModel:
    """Network with a label output and no probabilities."""
    network = Network()
    node = helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0)
    graph = network.graph(node, outputs=[("label", INT64, ["batch"])])
    return predicted(network, softmax(network.logits()), graph)


def independent_sigmoids() -> OwnModel:
    """Network with three sigmoid outputs that do not sum to 1: several labels for each row."""
    network = Network()
    node = helper.make_node("Sigmoid", ["logits"], ["probabilities"])
    return OwnModel(network.rows, graph=network.graph(node), label_json=positions("red", "green", "blue"))


def values_that_are_not_finite() -> OwnModel:
    """Network that gives NaN for some rows."""
    network = Network()
    node = helper.make_node("Log", ["logits"], ["probabilities"])
    return OwnModel(network.rows, graph=network.graph(node), label_json=positions("red", "green", "blue"))


def depends_on_batch() -> OwnModel:
    """Network with a softmax over the rows: the prediction of a row depends on the other rows of the request."""
    network = Network()
    nodes = [
        helper.make_node("Softmax", ["logits"], ["by_column"], axis=0),
        helper.make_node("ReduceSum", ["by_column", "last"], ["total"], keepdims=1),
        helper.make_node("Div", ["by_column", "total"], ["probabilities"]),
    ]
    last = numpy_helper.from_array(np.array([1], np.int64), "last")
    graph = make_graph([*network.nodes(), *nodes], 5, initializers=[*network.initializers(), last])
    by_column = softmax(network.logits().T).T
    return predicted(network, by_column / by_column.sum(axis=1, keepdims=True), graph)


def random_numbers() -> OwnModel:
    """Network that adds random numbers at each run."""
    network = Network()
    nodes = [
        helper.make_node("RandomNormalLike", ["logits"], ["noise"]),
        helper.make_node("Add", ["logits", "noise"], ["noisy"]),
        helper.make_node("Softmax", ["noisy"], ["probabilities"]),
    ]
    return predicted(network, softmax(network.logits()), network.graph(*nodes), has_expected=False)


def one_sigmoid_of_a_regressor() -> OwnModel:
    """Regressor whose values lie between 0 and 1."""
    network = Network(width=1)
    node = helper.make_node("Sigmoid", ["logits"], ["share"])
    graph = network.graph(node, outputs=[("share", FLOAT, ["batch", 1])])
    return OwnModel(network.rows, values=sigmoid(network.logits()), graph=graph)


def regressor_of_shares() -> OwnModel:
    """Regressor with three targets that sum to 1."""
    network = Network()
    return OwnModel(network.rows, values=softmax(network.logits()), graph=network.graph(SOFTMAX))


def regressor_in_frame() -> OwnModel:
    """LinearRegression that was trained on a DataFrame, with the names of two targets."""
    data = framed(regression(2))
    targets = pd.DataFrame(data.targets, columns=["price", "rent"])
    model = LinearRegression().fit(data.inputs, targets)
    return regressor(model, data.rows)
