"""Models as people have them: each kind is packed, served, and compared with the library that trained it."""

import sys
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
from optional_programs import skip_or_fail
from project import ROOT

sys.path.insert(0, str(ROOT / "tests/own_models"))
LIBRARIES = ("catboost", "ebm2onnx", "interpret", "lightgbm", "onnxmltools", "pandas", "skl2onnx", "sklearn", "xgboost")
MISSING = [name for name in LIBRARIES if find_spec(name) is None]
if not MISSING:
    with warnings.catch_warnings():
        # The libraries warn of their own versions.
        warnings.simplefilter("ignore")
        from judge import compare, judge
        from kinds import KINDS
        from own_model import OwnModel
        from predictions import Predictions, server
FAST = [] if MISSING else [kind for kind in KINDS if not kind.slow]
# Kinds that are also served by a server process: a tensor, columns with strings, missing values, scores, and a regressor.
LIVE = (
    "logistic_regression_strings",
    "columns_of_numbers_and_strings",
    "hist_gradient_boosting_missing",
    "linear_svc_of_two",
    "linear_regression_two_targets",
)


@pytest.fixture(autouse=True)
def require_libraries() -> None:
    if MISSING:
        skip_or_fail(f"{', '.join(MISSING)} not installed; run bin/setup test,train,models,pack")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FAST or [None], ids=lambda kind: kind and kind.name)
def test_every_prediction_is_that_of_the_library(tmp_path, kind):
    verdicts = list(judge(kind, tmp_path))
    assert verdicts
    assert not [line for verdict in verdicts for line in verdict.faults]


@pytest.mark.repeats
@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LIVE)
def test_every_prediction_of_a_server_process_is_that_of_the_library(tmp_path, name):
    (kind,) = (kind for kind in KINDS if kind.name == name)
    assert not [line for verdict in judge(kind, tmp_path, server) for line in verdict.faults]


def test_the_judge_reports_wrong_labels_and_wrong_values():
    values = np.array([[0.8, 0.2], [0.4, 0.6]])
    own = OwnModel(np.zeros((2, 1)), [10, 20], values, [10, 20])
    assert compare(own, Predictions("http", ["10", "20"], values)) == (0.0, [])
    assert compare(own, Predictions("v2", [10, 20], values, raw=True)) == (0.0, [])
    nan, off = np.where(values == 0.2, np.nan, values), np.where(values == 0.6, 0.6 + 2e-5, values)
    for labels, found, fault in (
        (["10", "10"], values, "wrong labels: 1; row 1 has '10', expected is '20'"),
        (None, values, "there are 0 labels for 2 rows"),
        (["10", "20"], off, "a value is off by 2.0e-05"),
        (["10", "20"], nan, "a value is off by nan"),
        (["10", "20"], values[:1], "the values have the shape (1, 2), not (2, 2)"),
    ):
        assert compare(own, Predictions("http", labels, found))[1] == [f"http: {fault}"]


def test_the_kinds_are_those_of_five_libraries():
    assert len(KINDS) >= 55
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert all(kind.summary for kind in KINDS)
