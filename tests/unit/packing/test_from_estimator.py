"""Folders from estimators: conversion, comparison with the estimator, and the models that pack refuses."""

import json
import warnings

import numpy as np
import pytest
from optional_programs import require_package
from small_models import LEVELS, golden_of, inputs, logistic, targets

import iris_wsgi
from iris_wsgi.errors import BadModel
from iris_wsgi.model.golden import load_verified_model
from iris_wsgi.packing.conversion import feature_names

ROWS = inputs(80, seed=1)


@pytest.fixture(autouse=True)
def _ignore_warnings_of_libraries():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def pack(estimator, rows, folder, **options):
    """Packs, and returns golden.json after a load of the folder."""
    iris_wsgi.pack(estimator, rows, folder, **options)
    load_verified_model(folder)
    return golden_of(folder)


@pytest.mark.long
def test_a_classifier_has_the_labels_and_probabilities_of_the_estimator(tmp_path):
    estimator = logistic(LEVELS)
    golden = pack(estimator, ROWS, tmp_path, name="levels")
    assert (golden["model"], golden["proof"], golden["kind"], golden["label"]) == (
        "model.onnx",
        "estimator",
        "classifier",
        "both",
    )
    assert golden["classes"] == LEVELS.tolist() and set(golden["files"]) == {"model.onnx", "label.json", "training.csv"}
    rows = [case["row"] for case in golden["rows"]]
    assert [case["label"] for case in golden["rows"]] == estimator.predict(rows).tolist()
    assert np.allclose([case["probabilities"] for case in golden["rows"]], estimator.predict_proba(rows), atol=1e-9)
    assert {case["label"] for case in golden["rows"]} == set(LEVELS)
    lines = (tmp_path / "training.csv").read_text().splitlines()
    assert lines[0] == "feature_0,feature_1,feature_2,feature_3,label" and len(lines) == 81


def test_the_report_states_what_was_compared_and_how_to_serve(tmp_path):
    report = iris_wsgi.pack(logistic(), ROWS, tmp_path)
    text = str(report)
    assert "80 rows compared with predict of LogisticRegression: labels equal, probabilities within" in text
    assert report.lines[-1] == f"serve the model: bin/serve --model-dir {tmp_path}" and report.proof == "estimator"
    assert f"seal {report.seal}" in report.lines


@pytest.mark.parametrize("labels", [[10, 20, 30], [0.0, 1.0, 2.0]])
def test_whole_numbers_are_labels(tmp_path, labels):
    golden = pack(logistic(labels), ROWS, tmp_path)
    assert golden["classes"] == [int(label) for label in labels]
    assert json.loads((tmp_path / "label.json").read_text()) == {str(i): str(int(label)) for i, label in enumerate(labels)}


def test_booleans_are_labels(tmp_path):
    golden = pack(logistic([False, True], 2), ROWS, tmp_path)
    assert {case["label"] for case in golden["rows"]} == {"False", "True"}


def test_names_of_classes_are_compared_with_the_classes_of_the_estimator(tmp_path):
    golden = pack(logistic([10, 20, 30]), ROWS, tmp_path, labels={"10": "ten", "20": "twenty", "30": "thirty"})
    assert {case["label"] for case in golden["rows"]} == {"ten", "twenty", "thirty"}
    with pytest.raises(BadModel, match="labels has the labels in another order than the graph"):
        pack(logistic(LEVELS), ROWS, tmp_path, labels=["low", "mid", "high"])


def test_scores_of_two_classes_are_one_column(tmp_path):
    from sklearn.svm import SVC, LinearSVC

    rows = inputs()
    for estimator in (SVC(), LinearSVC()):
        fitted = estimator.fit(rows, targets(rows, 2))
        golden = pack(fitted, ROWS, tmp_path / type(fitted).__name__)
        assert (golden["kind"], golden["label"], golden["columns"]) == ("scores", "graph", ["score"])
        given = [case["row"] for case in golden["rows"]]
        assert np.allclose([case["scores"][0] for case in golden["rows"]], fitted.decision_function(given))


def test_probabilities_of_votes_have_the_label_of_the_estimator(tmp_path):
    from sklearn.svm import SVC

    rows = inputs()
    fitted = SVC(probability=True, random_state=0).fit(rows, targets(rows))
    golden = pack(fitted, ROWS, tmp_path)
    assert golden["kind"] == "classifier" and golden["label"] in ("both", "graph")


def test_an_outlier_detector_has_scores(tmp_path):
    from sklearn.ensemble import IsolationForest

    golden = pack(IsolationForest(n_estimators=10, random_state=0).fit(inputs()), inputs(40, seed=3) * 2, tmp_path)
    assert (golden["kind"], golden["classes"], golden["columns"]) == ("scores", [-1, 1], ["score"])


def test_a_regressor_has_values_of_named_targets(tmp_path):
    from sklearn.ensemble import RandomForestRegressor

    rows = inputs()
    fitted = RandomForestRegressor(5, random_state=0).fit(rows, rows[:, :2] * 1000)
    golden = pack(fitted, ROWS, tmp_path, targets=["price", "rent"])
    assert (golden["kind"], golden["columns"]) == ("regressor", ["price", "rent"]) and "label" not in golden
    with pytest.raises(BadModel, match="predicts 2 targets, and 1 are named"):
        pack(fitted, ROWS, tmp_path, targets=["price"])
    fitted = RandomForestRegressor(5, random_state=0).fit(rows, rows[:, 0])
    assert pack(fitted, ROWS, tmp_path)["columns"] == ["value"] and not (tmp_path / "label.json").exists()


@pytest.mark.long
def test_missing_values_that_the_estimator_takes_may_be_missing(tmp_path):
    from sklearn.ensemble import HistGradientBoostingClassifier

    rows, tested = inputs(), ROWS.copy()
    rows[::3, 1], tested[::5, 1] = np.nan, np.nan
    golden = pack(HistGradientBoostingClassifier(max_iter=5).fit(rows, targets(inputs())), tested, tmp_path)
    assert [feature["missing"] for feature in golden["features"]] == [False, True, False, False]
    assert any(case["row"][1] is None for case in golden["rows"])
    with pytest.raises(BadModel, match=r"LogisticRegression\.predict fails for the rows: Input X contains NaN"):
        pack(logistic(), tested, tmp_path)


def test_values_beyond_float32_get_a_float64_input(tmp_path):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = inputs()
    rows[:, 0] = 1.7e9 + np.arange(len(rows)) * 7
    fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, (np.arange(len(rows)) > 60).astype(int))
    golden = pack(fitted, rows, tmp_path)
    assert {feature["type"] for feature in golden["features"]} == {"float64"}


@pytest.mark.long
def test_an_export_that_disagrees_with_its_estimator_is_refused(tmp_path):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import TunedThresholdClassifierCV

    rows = inputs()
    fitted = TunedThresholdClassifierCV(LogisticRegression(), scoring="recall").fit(rows, targets(rows, 2))
    with pytest.raises(
        BadModel, match=r"disagrees with its own predict .* on \d+ of 80 rows: row \d+: expected 1, the graph gives 0"
    ):
        pack(fitted, ROWS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("classes", [2, 3])
def test_equal_votes_of_trees_have_the_label_of_the_estimator(tmp_path, classes):
    from sklearn.ensemble import RandomForestClassifier

    rows = inputs(2000, seed=5)
    noisy = targets(rows + np.random.default_rng(6).normal(0, 1, rows.shape), classes)
    fitted = RandomForestClassifier(10, random_state=0).fit(rows[:500], noisy[:500])
    top = np.sort(fitted.predict_proba(rows), axis=1)
    assert (top[:, -1] == top[:, -2]).sum() > 20
    # On a tie, the label of the graph is the second of two classes, so the highest probability is served.
    assert pack(fitted, rows, tmp_path)["label"] == ("argmax" if classes == 2 else "both")


def test_votes_without_probabilities_are_scores(tmp_path):
    from sklearn.ensemble import VotingClassifier
    from sklearn.tree import DecisionTreeClassifier

    rows = inputs(1200)
    members = [(name, DecisionTreeClassifier(max_depth=depth, random_state=0)) for name, depth in (("a", 1), ("b", 2), ("c", 3))]
    fitted = VotingClassifier(members).fit(rows, targets(rows))
    golden = pack(fitted, rows, tmp_path)
    assert (golden["kind"], golden["label"], golden["classes"]) == ("scores", "graph", [0, 1, 2])


def test_texts_are_rows_of_one_column(tmp_path):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = ["Good fine day", "bad AWFUL rain", "fine GOOD day", "rain bad bad"] * 5
    fitted = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, ["yes", "no"] * 10)
    for rows in (texts, np.array(texts), [[text] for text in texts]):
        golden = pack(fitted, rows, tmp_path)
        assert [feature["type"] for feature in golden["features"]] == ["string"]
        assert {case["row"][0]: case["label"] for case in golden["rows"]} == dict(zip(texts, ["yes", "no"] * 2, strict=False))
    # The export splits words at letters that are not ASCII, unlike scikit-learn.
    with pytest.raises(BadModel, match="disagrees with its own predict"):
        pack(fitted, [*texts, "bad \u00f6good"], tmp_path)
    with pytest.raises(BadModel, match=r"predict fails for the rows: .*lower"):
        pack(fitted, [["a", "b"]], tmp_path)


def multilabel():
    from sklearn.multiclass import OneVsRestClassifier

    return OneVsRestClassifier(logistic()).fit(inputs(), np.eye(3, dtype=int)[targets(inputs())])


def several_outputs():
    from sklearn.multioutput import MultiOutputClassifier

    return MultiOutputClassifier(logistic()).fit(inputs(), np.stack([targets(inputs()), targets(inputs(), 2)], 1))


def clusters():
    from sklearn.cluster import KMeans

    return KMeans(3, n_init=1, random_state=0).fit(inputs())


def scaler():
    from sklearn.preprocessing import StandardScaler

    return StandardScaler().fit(inputs())


def own_class():
    return type("Guess", (), {"predict": lambda self, rows: np.zeros(len(rows))})()


def broken():
    return type("Broken", (), {"predict": lambda self, rows: 1 / 0})()


REFUSED = {
    multilabel: "gives several labels per row",
    several_outputs: "gives several labels per row",
    clusters: "is a clusterer",
    scaler: "has no method predict",
    own_class: "Guess cannot be converted",
    broken: r"Broken\.predict fails for the rows: division by zero",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_other_models_are_refused_in_one_sentence(tmp_path, make):
    with pytest.raises(BadModel, match=REFUSED[make]):
        pack(make(), ROWS, tmp_path)


def test_rows_are_required_and_must_have_the_features(tmp_path):
    with pytest.raises(BadModel, match="an estimator needs rows"):
        pack(logistic(), None, tmp_path)
    with pytest.raises(BadModel, match=r"the rows have 3 columns .* takes 4 features"):
        pack(logistic(), ROWS[:, :3], tmp_path)


def frame():
    """Returns a DataFrame with numbers and strings, and the targets."""
    pandas = require_package("pandas")
    table = pandas.DataFrame(inputs(), columns=["age (years)", "b", "c", "d"])
    chance = np.random.default_rng(4)
    table["visits"] = chance.integers(0, 9, len(table))
    table["city"] = chance.choice(["Tokyo", "Osaka"], len(table))
    return table, targets(inputs(), 2)


def columns_pipeline(last):
    from sklearn.compose import make_column_transformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    steps = (StandardScaler(), ["age (years)", "b", "visits"]), (OneHotEncoder(handle_unknown="ignore"), ["city"])
    return make_pipeline(make_column_transformer(*steps), last)


@pytest.mark.long
def test_a_data_frame_with_strings_has_one_input_per_column(tmp_path):
    from sklearn.linear_model import LogisticRegression

    table, numbers = frame()
    golden = pack(columns_pipeline(LogisticRegression()).fit(table, numbers), table, tmp_path)
    assert [feature["name"] for feature in golden["features"]] == list(table)
    assert [feature["type"] for feature in golden["features"]] == ["float32"] * 4 + ["int64", "string"]
    assert {case["row"][5] for case in golden["rows"]} == {"Tokyo", "Osaka"}


@pytest.mark.long
def test_an_array_gets_the_names_of_the_training(tmp_path):
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    table, numbers = frame()
    table = table[["age (years)", "b"]]
    steps = make_column_transformer((StandardScaler(), ["b"]), remainder="passthrough")
    golden = pack(make_pipeline(steps, LogisticRegression()).fit(table, numbers), table.to_numpy(), tmp_path)
    assert [feature["name"] for feature in golden["features"]] == list(table)


@pytest.mark.long
@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_boosters_are_steps_of_a_pipeline(tmp_path, library):
    package = require_package(library)
    require_package("onnxmltools")
    table, numbers = frame()
    step = {"lightgbm": "LGBMClassifier", "xgboost": "XGBClassifier"}[library]
    options = {"verbose": -1} if library == "lightgbm" else {}
    fitted = columns_pipeline(getattr(package, step)(n_estimators=10, n_jobs=1, **options)).fit(table, numbers)
    assert pack(fitted, table, tmp_path)["proof"] == "estimator"


@pytest.mark.long
def test_an_unfitted_template_in_a_search_is_no_obstacle(tmp_path):
    package = require_package("xgboost")
    require_package("onnxmltools")
    from sklearn.model_selection import GridSearchCV

    rows = inputs()
    search = GridSearchCV(package.XGBClassifier(n_estimators=3, n_jobs=1), {"max_depth": [2]}, cv=2).fit(rows, targets(rows))
    assert pack(search, ROWS, tmp_path)["proof"] == "estimator"


def lightgbm_models(package, rows, numbers):
    dataset = package.Dataset(rows, numbers)
    yield package.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1).fit(rows, LEVELS[numbers])
    yield package.LGBMRegressor(n_estimators=5, verbose=-1, n_jobs=1).fit(rows, rows[:, 0])
    yield package.train({"objective": "multiclass", "num_class": 3, "verbose": -1, "num_threads": 1}, dataset, 5)


def xgboost_models(package, rows, numbers):
    data = package.DMatrix(rows, numbers)
    yield package.XGBClassifier(n_estimators=5, n_jobs=1).fit(rows, numbers)
    yield package.XGBRegressor(n_estimators=5, n_jobs=1).fit(rows, rows[:, 0])
    yield package.train({"objective": "multi:softprob", "num_class": 3, "nthread": 1}, data, 5)
    yield package.train({"objective": "binary:logistic", "nthread": 1}, package.DMatrix(rows, numbers > 0), 5)


def catboost_models(package, rows, numbers):
    options = {"iterations": 5, "verbose": False, "allow_writing_files": False, "thread_count": 1}
    yield package.CatBoostClassifier(**options).fit(rows, LEVELS[numbers])
    yield package.CatBoostClassifier(**options).fit(rows, (numbers > 0).astype(int))
    yield package.CatBoostRegressor(**options).fit(rows, rows[:, 0])


MODELS = {"lightgbm": lightgbm_models, "xgboost": xgboost_models, "catboost": catboost_models}


@pytest.mark.long
@pytest.mark.parametrize("library", MODELS)
def test_models_of_other_libraries_have_their_own_results(tmp_path, library):
    package = require_package(library)
    require_package("onnxmltools")
    rows = inputs().astype(np.float32)
    for i, estimator in enumerate(MODELS[library](package, rows, targets(rows))):
        golden = pack(estimator, ROWS.astype(np.float32), tmp_path / str(i))
        assert golden["proof"] == "estimator" and golden["kind"] in ("classifier", "regressor")


@pytest.mark.long
def test_a_booster_without_probabilities_is_refused_with_the_objective_to_use(tmp_path):
    package = require_package("xgboost")
    rows = inputs()
    fitted = package.train({"objective": "multi:softmax", "num_class": 3, "nthread": 1}, package.DMatrix(rows, targets(rows)), 2)
    with pytest.raises(BadModel, match="gives no probabilities; train with multi:softprob"):
        pack(fitted, ROWS, tmp_path)


@pytest.mark.long
def test_text_columns_of_a_booster_are_refused_with_the_change(tmp_path):
    package = require_package("lightgbm")
    table, numbers = frame()
    table["city"] = table["city"].astype("category")
    fitted = package.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1).fit(table, numbers)
    with pytest.raises(BadModel, match="train a Pipeline with OneHotEncoder"):
        pack(fitted, table, tmp_path)


@pytest.mark.long
def test_names_that_a_library_makes_for_an_array_are_not_names():
    package = require_package("lightgbm")
    rows = inputs()
    assert feature_names(package.LGBMClassifier(n_estimators=2, verbose=-1, n_jobs=1).fit(rows, targets(rows))) is None
    assert feature_names(logistic()) is None
    table, numbers = frame()
    assert feature_names(columns_pipeline(logistic()).fit(table, numbers)) == tuple(table)


@pytest.mark.parametrize("names", [[0, 1], ["no", "yes"], [False, True]])
def test_a_tie_has_the_first_class_as_in_predict(tmp_path, names):
    from sklearn.ensemble import RandomForestClassifier

    chance = np.random.default_rng(0)
    rows = inputs(600)
    numbers = np.where(chance.random(600) < 0.4, 1 - targets(rows, 2), targets(rows, 2))
    estimator = RandomForestClassifier(60, random_state=0).fit(rows[:300], np.array(names)[numbers[:300]])
    golden = pack(estimator, rows[300:], tmp_path)
    tied = [case for case in golden["rows"] if case["probabilities"] == [0.5, 0.5]]
    assert tied and {case["label"] for case in tied} == {str(names[0])}
    # Of two classes with equal votes, the label of the graph is the second one.
    assert golden["label"] == "argmax" and golden["classes"] == ([0, 1] if names[1] is True else names)


@pytest.mark.parametrize("wrap", ["none", "pipeline", "search"])
def test_the_label_of_votes_is_served_also_if_the_highest_probability_agrees(tmp_path, wrap):
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    estimator = SVC(probability=True, random_state=0)
    if wrap == "pipeline":
        estimator = make_pipeline(StandardScaler(), estimator)
    elif wrap == "search":
        estimator = GridSearchCV(estimator, {"C": [1.0]}, cv=2)
    rows = inputs()
    estimator.fit(rows, targets(rows, 2))
    certain = rows[estimator.predict_proba(rows).max(axis=1) > 0.9]
    assert pack(estimator, certain, tmp_path)["label"] == "graph"
