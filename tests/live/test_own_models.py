"""Models as people have them: each kind is packed, served, and compared with the library that trained it."""

import sys
import warnings
from importlib.util import find_spec

import pytest
from optional_programs import skip_or_fail
from project import ROOT

sys.path.insert(0, str(ROOT / "tests/own_models"))
LIBRARIES = ("catboost", "lightgbm", "onnxmltools", "pandas", "skl2onnx", "sklearn", "xgboost")
MISSING = [name for name in LIBRARIES if find_spec(name) is None]
if not MISSING:
    with warnings.catch_warnings():
        # The libraries warn of their own versions.
        warnings.simplefilter("ignore")
        from judge import judge
        from kinds import KINDS
        from predictions import server
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
        skip_or_fail(f"{', '.join(MISSING)} not installed; run bin/setup test,train,own_models")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FAST or [None], ids=lambda kind: kind and kind.name)
def test_every_prediction_is_that_of_the_library(tmp_path, kind):
    verdicts = list(judge(kind, tmp_path))
    assert verdicts
    assert not [line for verdict in verdicts for line in verdict.faults]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LIVE)
def test_every_prediction_of_a_server_process_is_that_of_the_library(tmp_path, name):
    (kind,) = (kind for kind in KINDS if kind.name == name)
    assert not [line for verdict in judge(kind, tmp_path, server) for line in verdict.faults]


def test_the_kinds_are_those_of_five_libraries():
    assert len(KINDS) >= 55
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert all(kind.summary for kind in KINDS)
