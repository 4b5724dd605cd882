"""Kinds of scikit-learn: classifiers, models of scores, label types, and input types."""

from typing import Any

import numpy as np
from exports import float_input, sklearn_graph
from own_model import OwnModel, classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeClassifier, SGDClassifier
from sklearn.model_selection import TunedThresholdClassifierCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier
from training_sets import (
    TrainingSet,
    as_type,
    classes,
    framed,
    named,
    orders,
    passengers,
    reviews,
    several_labels,
    with_missing,
)

LEVELS = ("high", "low", "mid")


def forest(trees: int = 10, **options: Any) -> RandomForestClassifier:
    return RandomForestClassifier(trees, max_depth=6, random_state=0, **options)


def fitted(estimator: Any, data: TrainingSet, exported: bool = True, **members: Any) -> OwnModel:
    """Trains the estimator and exports it with the defaults of skl2onnx."""
    estimator.fit(data.inputs, data.targets)
    graph = sklearn_graph(estimator, data.inputs) if exported else None
    return classifier(estimator, data.rows, graph, **members)


def positions(*names: str) -> dict[str, str]:
    """Returns a label.json."""
    return {str(place): name for place, name in enumerate(names)}


def random_forest_of_three() -> OwnModel:
    """RandomForest with the default export: ZipMap with the keys 0 to 2."""
    return fitted(forest(), classes())


def random_forest_of_two() -> OwnModel:
    """RandomForest with two classes, which onnxruntime 1.26 and 1.27 compute wrong."""
    return fitted(forest(), classes(2))


def random_forest_rare_class() -> OwnModel:
    """RandomForest with two classes, one of them rare."""
    return fitted(forest(), classes(2, weights=[0.9], seed=2))


def logistic_regression_strings() -> OwnModel:
    """LogisticRegression with string labels: ZipMap with string keys and no label.json."""
    return fitted(LogisticRegression(), named(classes(), LEVELS))


def label_json_same_order() -> OwnModel:
    """String labels with a label.json in the order of the graph."""
    return fitted(LogisticRegression(), named(classes(), LEVELS), label_json=positions(*LEVELS))


def label_json_other_order() -> OwnModel:
    """String labels with a label.json in the order low, mid, high."""
    return fitted(LogisticRegression(), named(classes(), LEVELS), label_json=positions("low", "mid", "high"))


def label_json_typing_error() -> OwnModel:
    """String labels with one letter changed in label.json."""
    return fitted(LogisticRegression(), named(classes(), LEVELS), label_json=positions("high", "low", "mit"))


def label_json_too_many() -> OwnModel:
    """Four names in label.json for a ZipMap of three."""
    return fitted(forest(), classes(), label_json=positions("a", "b", "c", "d"))


def label_json_too_few() -> OwnModel:
    """Two names in label.json for three classes."""
    return fitted(forest(), classes(), label_json=positions("a", "b"))


def label_json_too_many_tensor() -> OwnModel:
    """Four names in label.json for a tensor of three probabilities."""
    data = classes()
    model = forest().fit(data.inputs, data.targets)
    return classifier(model, data.rows, sklearn_graph(model, data.inputs, zipmap=False), label_json=positions("a", "b", "c", "d"))


def labels_like_missing_cells() -> OwnModel:
    """Classes with the names NA and none, which a CSV may use for missing values."""
    return fitted(LogisticRegression(), named(classes(2), ("NA", "none")))


def labels_10_20_30() -> OwnModel:
    """Labels 10, 20, and 30 with their names in label.json."""
    return fitted(forest(), named(classes(), (10, 20, 30)), label_json=positions("ten", "twenty", "thirty"))


def label_json_keyed_by_label() -> OwnModel:
    """Labels 10, 20, and 30 as the keys of label.json, in place of positions."""
    keys = {"10": "ten", "20": "twenty", "30": "thirty"}
    return fitted(forest(), named(classes(), (10, 20, 30)), label_json=keys)._replace(estimator=None)


def random_forest_ties() -> OwnModel:
    """RandomForest of 60 trees with two classes, and rows for which both classes have the probability 0.5."""
    return fitted(RandomForestClassifier(60, random_state=0), classes(2, flip_y=0.3))


def random_forest_unproven() -> OwnModel:
    """RandomForest of which the user has the graph and rows without expected labels."""
    return fitted(forest(), classes())._replace(estimator=None, has_expected=False)


def labels_10_20_30_unnamed() -> OwnModel:
    """Labels 10, 20, and 30 without label.json."""
    return fitted(forest(), named(classes(), (10, 20, 30)))


def labels_minus_1_and_1() -> OwnModel:
    """Labels -1 and 1."""
    return fitted(LogisticRegression(), named(classes(2), (-1, 1)))


def labels_of_truth() -> OwnModel:
    """Labels False and True."""
    return fitted(LogisticRegression(), named(classes(2), (False, True)), label_json=positions("False", "True"))


def labels_of_truth_tensor() -> OwnModel:
    """Labels False and True of a RandomForest, without ZipMap."""
    data = named(classes(2), (False, True))
    model = forest().fit(data.inputs, data.targets)
    graph = sklearn_graph(model, data.inputs, zipmap=False)
    return classifier(model, data.rows, graph, label_json=positions("False", "True"))


def string_numbers() -> OwnModel:
    """String labels "1" to "12", whose order as strings is not that of numbers."""
    data = named(classes(12, 6), [str(number) for number in range(1, 13)])
    return fitted(LogisticRegression(max_iter=300), data)


def digits() -> OwnModel:
    """Ten classes and 64 features."""
    return fitted(forest(), classes(10, 64))


def one_class() -> OwnModel:
    """Training rows of one class only."""
    data = classes(2)
    return fitted(DecisionTreeClassifier(), data._replace(targets=np.zeros(len(data.targets), int)))


def double_zipmap() -> OwnModel:
    """Rows of float64 and the default export, which onnxruntime cannot load."""
    data = as_type(classes(), np.float64)
    model = LogisticRegression().fit(data.inputs, data.targets)
    return classifier(model, data.rows, sklearn_graph(model, data.inputs), estimator=None)


def double_estimator() -> OwnModel:
    """Estimator that was trained with float64."""
    return fitted(LogisticRegression(), as_type(classes(), np.float64), exported=False)


def double_tensor() -> OwnModel:
    """Graph with an input and an output of float64."""
    data = as_type(classes(), np.float64)
    model = LogisticRegression().fit(data.inputs, data.targets)
    return classifier(model, data.rows, sklearn_graph(model, data.inputs, zipmap=False), estimator=None)


def int64_input() -> OwnModel:
    """Whole numbers as int64."""
    return fitted(forest(), as_type(classes(), np.int64, 10))


def int32_input() -> OwnModel:
    """Whole numbers as int32."""
    data = as_type(classes(), np.int32, 10)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(data.inputs, data.targets)
    return classifier(model, data.rows)


def columns_of_numbers() -> OwnModel:
    """DataFrame of numbers with a ColumnTransformer: one float input for each column."""
    data = framed(classes(2))
    scale = ColumnTransformer([("scale", StandardScaler(), list(data.inputs.columns))])
    return fitted(Pipeline([("columns", scale), ("model", LogisticRegression())]), data)


def columns_of_numbers_and_strings() -> OwnModel:
    """DataFrame of numbers and strings with a OneHotEncoder: one input for each column."""
    data = passengers()
    encode = make_column_transformer(
        (StandardScaler(), ["age", "fare"]), (OneHotEncoder(handle_unknown="ignore"), ["sex", "port"])
    )
    return fitted(
        Pipeline([("columns", encode), ("model", LogisticRegression())]), data, label_json=positions("died", "survived")
    )


def columns_of_all_types() -> OwnModel:
    """DataFrame of int64, bool, float32, and strings."""
    data = orders()
    encode = make_column_transformer(
        (StandardScaler(), ["quantity", "weight"]), (OneHotEncoder(), ["city"]), remainder="passthrough"
    )
    return fitted(Pipeline([("columns", encode), ("model", LogisticRegression())]), data, exported=False)


def columns_with_missing_numbers() -> OwnModel:
    """DataFrame with empty cells and a SimpleImputer."""
    data = framed(with_missing(classes(2)))
    columns = list(data.inputs.columns)
    fill = ColumnTransformer([("fill", SimpleImputer(strategy="median"), columns)])
    return fitted(Pipeline([("columns", fill), ("model", LogisticRegression())]), data)


def columns_with_units() -> OwnModel:
    """DataFrame whose column names have blanks, units, and a comma."""
    names = ("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)", "mass, dry (g)")
    return fitted(forest(), framed(classes(), names), exported=False)


def unknown_width() -> OwnModel:
    """Export with initial types [None, None], so that the graph does not state the number of features."""
    data = classes()
    model = LogisticRegression().fit(data.inputs, data.targets)
    graph = sklearn_graph(model, data.inputs, initial_types=float_input(None))
    return classifier(model, data.rows, graph, estimator=None)


def fixed_batch() -> OwnModel:
    """Export with initial types [1, 5], so that the graph takes one row only."""
    data = classes()
    model = LogisticRegression().fit(data.inputs, data.targets)
    graph = sklearn_graph(model, data.inputs, initial_types=float_input(5, 1), zipmap=False)
    return classifier(model, data.rows, graph, estimator=None)


def hist_gradient_boosting_missing() -> OwnModel:
    """HistGradientBoosting with NaN in training and in the rows, three classes."""
    return fitted(HistGradientBoostingClassifier(max_iter=10, random_state=0), with_missing(classes()))


def hist_gradient_boosting_missing_of_two() -> OwnModel:
    """HistGradientBoosting with NaN in training and in the rows, two classes."""
    return fitted(HistGradientBoostingClassifier(max_iter=10, random_state=0), with_missing(classes(2)))


def hist_gradient_boosting_grid() -> OwnModel:
    """HistGradientBoosting with numbers on a grid, where thresholds lie between the grid points."""
    data = as_type(classes(), np.float32, 10)
    data = data._replace(inputs=np.round(data.inputs), rows=np.round(data.rows))
    return fitted(HistGradientBoostingClassifier(max_iter=10, random_state=0), data)


def tree_on_thresholds() -> OwnModel:
    """DecisionTree on whole numbers, with rows on its thresholds."""
    data = as_type(classes(), np.float32, 4)
    rows = np.round(data.rows * 2) / 2
    return fitted(DecisionTreeClassifier(max_depth=6, random_state=0), data._replace(inputs=np.round(data.inputs), rows=rows))


def calibrated_sigmoid() -> OwnModel:
    """CalibratedClassifierCV with the method sigmoid."""
    return fitted(CalibratedClassifierCV(forest(), method="sigmoid", cv=3), classes())


def calibrated_isotonic() -> OwnModel:
    """CalibratedClassifierCV with the method isotonic, which skl2onnx converts wrong for some rows."""
    return fitted(CalibratedClassifierCV(forest(), method="isotonic", cv=3), classes())


def nearest_neighbors() -> OwnModel:
    """KNeighborsClassifier."""
    return fitted(KNeighborsClassifier(5), classes())


def voting_soft() -> OwnModel:
    """VotingClassifier of probabilities, with a pipeline."""
    members = [("forest", forest()), ("line", make_pipeline(StandardScaler(), LogisticRegression()))]
    return fitted(VotingClassifier(members, voting="soft", flatten_transform=False), classes())


def voting_hard() -> OwnModel:
    """VotingClassifier of labels, which has no probabilities."""
    members = [("forest", forest()), ("line", LogisticRegression()), ("bayes", GaussianNB())]
    return fitted(VotingClassifier(members, voting="hard", flatten_transform=False), classes())


def stacking() -> OwnModel:
    """StackingClassifier."""
    members = [("forest", forest()), ("line", make_pipeline(StandardScaler(), LogisticRegression()))]
    return fitted(StackingClassifier(members, cv=3), classes())


def ada_boost() -> OwnModel:
    """AdaBoostClassifier."""
    return fitted(AdaBoostClassifier(n_estimators=10, random_state=0), classes())


def extra_trees() -> OwnModel:
    """ExtraTreesClassifier with string labels."""
    return fitted(ExtraTreesClassifier(10, max_depth=6, random_state=0), named(classes(), LEVELS))


def gradient_boosting() -> OwnModel:
    """GradientBoostingClassifier with two classes."""
    return fitted(GradientBoostingClassifier(n_estimators=10, random_state=0), classes(2))


def naive_bayes() -> OwnModel:
    """GaussianNB."""
    return fitted(GaussianNB(), classes())


def neural_network() -> OwnModel:
    """MLPClassifier after a StandardScaler."""
    return fitted(make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=80, random_state=0)), classes())


def stochastic_gradient() -> OwnModel:
    """SGDClassifier with log loss."""
    return fitted(SGDClassifier(loss="log_loss", random_state=0), classes())


def scores_of(trained: Any, data: TrainingSet, graph: bytes | None = None, **members: Any) -> OwnModel:
    """Returns a model whose values are scores: the estimator has no probabilities, and a graph has one score for each class."""
    model = classifier(trained, data.rows, graph, **members)
    scores = np.asarray(trained.decision_function(data.rows), float)
    return model._replace(values=scores.reshape(len(data.rows), -1))


def svc_of(data: TrainingSet, **options: Any) -> OwnModel:
    model = SVC(random_state=0, **options).fit(data.inputs, data.targets)
    return scores_of(model, data, sklearn_graph(model, data.inputs), label="graph")


def svc_scores_of_two() -> OwnModel:
    """SVC without probability, two classes."""
    # The graph has a score for each class, and the sign of the first is that of the second class. The library has one score.
    return svc_of(named(classes(2), ("no", "yes")))._replace(values=None)


def svc_scores_of_three() -> OwnModel:
    """SVC without probability, three classes."""
    return svc_of(classes())


def svc_probability_of_two() -> OwnModel:
    """SVC with probability, two classes."""
    return fitted(SVC(probability=True, random_state=0), classes(2), label="graph")


def svc_probability_of_three() -> OwnModel:
    """SVC with probability, three classes: the label is by votes and not by probability."""
    return fitted(SVC(probability=True, random_state=0), classes(), label="graph")


def linear_svc_of(data: TrainingSet) -> OwnModel:
    model = LinearSVC(random_state=0).fit(data.inputs, data.targets)
    return scores_of(model, data, sklearn_graph(model, data.inputs), label="graph")


def linear_svc_of_two() -> OwnModel:
    """LinearSVC with two classes."""
    return linear_svc_of(classes(2))


def linear_svc_of_three() -> OwnModel:
    """LinearSVC with three classes."""
    return linear_svc_of(classes())


def ridge_classifier() -> OwnModel:
    """RidgeClassifier, which has scores only."""
    data = classes()
    model = RidgeClassifier().fit(data.inputs, data.targets)
    return scores_of(model, data, sklearn_graph(model, data.inputs), label="graph")


def raw_scores() -> OwnModel:
    """LogisticRegression that was exported with raw_scores."""
    data = classes()
    model = LogisticRegression().fit(data.inputs, data.targets)
    graph = sklearn_graph(model, data.inputs, raw_scores=True)
    return scores_of(model, data, graph, estimator=None, label="graph")


def tuned_threshold() -> OwnModel:
    """TunedThresholdClassifierCV, whose threshold skl2onnx drops."""
    data = classes(2, weights=[0.85], flip_y=0.1, seed=2)
    return fitted(TunedThresholdClassifierCV(LogisticRegression(), scoring="balanced_accuracy", cv=3), data)


def isolation_forest() -> OwnModel:
    """IsolationForest with the labels -1 and 1 and one score."""
    data = classes()
    model = IsolationForest(n_estimators=20, random_state=0).fit(data.inputs)
    graph = sklearn_graph_of_anomalies(model, data.inputs)
    scores = model.decision_function(data.rows).reshape(-1, 1)
    return OwnModel(data.rows, model.predict(data.rows).tolist(), scores, [-1, 1], model, graph, label="graph")


def sklearn_graph_of_anomalies(model: Any, inputs: Any) -> bytes:
    from skl2onnx import to_onnx

    return to_onnx(model, inputs[:1], target_opset={"": 15, "ai.onnx.ml": 3}).SerializeToString()


def several_outputs() -> OwnModel:
    """MultiOutputClassifier: several labels for each row."""
    data = several_labels()
    model = MultiOutputClassifier(LogisticRegression()).fit(data.inputs, data.targets)
    return OwnModel(data.rows, estimator=model, graph=sklearn_graph(model, data.inputs, zipmap=False))


def one_vs_rest_multilabel() -> OwnModel:
    """OneVsRestClassifier with several labels for each row."""
    data = several_labels()
    model = OneVsRestClassifier(LogisticRegression()).fit(data.inputs, data.targets)
    return OwnModel(data.rows, estimator=model, graph=sklearn_graph(model, data.inputs, zipmap=False))


def network_multilabel() -> OwnModel:
    """MLPClassifier with several labels for each row."""
    data = several_labels()
    model = MLPClassifier((8,), max_iter=80, random_state=0).fit(data.inputs, data.targets)
    return OwnModel(data.rows, estimator=model, graph=sklearn_graph(model, data.inputs, zipmap=False))


def text_model(**vectorizer_options: Any) -> OwnModel:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import StringTensorType

    data = reviews()
    vectorizer = TfidfVectorizer(token_pattern="[a-zA-Z]+")
    model = make_pipeline(vectorizer, LogisticRegression()).fit(data.inputs, data.targets)
    options = {"options": {id(vectorizer): vectorizer_options}} if vectorizer_options else {}
    graph = to_onnx(model, initial_types=[("text", StringTensorType([None, 1]))], **options).SerializeToString()
    return classifier(model, data.rows, graph, estimator=None)


def text() -> OwnModel:
    """TfidfVectorizer with LogisticRegression: one string input, with a locale that onnxruntime lacks."""
    return text_model()


def text_with_locale() -> OwnModel:
    """TfidfVectorizer with LogisticRegression: one string input, with the locale of every machine."""
    return text_model(locale="C")


def class_names_output() -> OwnModel:
    """Export with output_class_labels: a third output with the names of the classes."""
    data = named(classes(), LEVELS)
    model = LogisticRegression().fit(data.inputs, data.targets)
    graph = sklearn_graph(model, data.inputs, zipmap=False, output_class_labels=True)
    return classifier(model, data.rows, graph, estimator=None)


def zipmap_columns() -> OwnModel:
    """Export with zipmap="columns": one output for each class."""
    data = classes()
    model = LogisticRegression().fit(data.inputs, data.targets)
    return classifier(model, data.rows, sklearn_graph(model, data.inputs, zipmap="columns"), estimator=None)


def thousand_classes() -> OwnModel:
    """LogisticRegression-like linear model with 1,000 classes."""
    data = classes(2, 20, training_rows=3000)
    targets = np.arange(len(data.inputs)) % 1000
    return fitted(GaussianNB(), data._replace(targets=targets))


def many_features() -> OwnModel:
    """LogisticRegression with 5,000 features."""
    return fitted(LogisticRegression(), classes(2, 5000))


def large_forest() -> OwnModel:
    """RandomForest whose graph has about 80 MB."""
    data = classes(3, 20, training_rows=30_000, flip_y=0.9)
    model = RandomForestClassifier(112, random_state=0, n_jobs=2).fit(data.inputs, data.targets)
    return classifier(model, data.rows, sklearn_graph(model, data.inputs, zipmap=False), estimator=None)
