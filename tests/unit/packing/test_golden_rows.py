"""The choice of golden rows: classes, extremes, missing values, close rows, and the bounds of the file."""

import numpy as np
from small_models import inputs

from iris_wsgi.packing.folder import MAX_ROWS, MIN_ROWS, USUAL_ROWS, choose_rows
from iris_wsgi.packing.sample import read_sample


def test_the_rows_have_each_class_the_extremes_and_the_closest_rows():
    rows = inputs(500)
    values = np.random.default_rng(1).dirichlet([1, 1, 1], 500)
    labels = np.zeros(500, int)
    labels[[401, 77]] = 1, 2
    chosen = choose_rows(read_sample(rows), labels, values)
    assert {0, 401, 77} <= set(chosen) and chosen == sorted(set(chosen))
    assert {*rows.argmin(axis=0), *rows.argmax(axis=0)} <= set(chosen)
    top = np.sort(values, axis=1)
    assert int((top[:, -1] - top[:, -2]).argmin()) in chosen
    assert 32 <= len(chosen) <= USUAL_ROWS


def test_the_rows_have_missing_values_of_each_feature_and_each_text():
    rows = [[float(i), "ab"[i == 99], None if i == 57 else 1.0] for i in range(200)]
    chosen = choose_rows(read_sample(rows), None, np.zeros((200, 1)))
    assert {57, 99, 199} <= set(chosen)


def test_many_classes_and_many_features_are_bounded():
    labels = np.arange(1000)
    chosen = choose_rows(read_sample(inputs(1000)), labels, np.eye(1000))
    assert len(chosen) <= MAX_ROWS and len(chosen) * 1004 <= 60_000
    wide = choose_rows(read_sample(inputs(50, 20_000)), None, np.zeros((50, 1)))
    assert len(wide) == MIN_ROWS


def test_few_rows_are_all_golden():
    assert choose_rows(read_sample(inputs(5)), None, np.zeros((5, 2))) == [0, 1, 2, 3, 4]
