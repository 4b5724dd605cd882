"""Search for the columns of features: in a header and in a JSON request the same names fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iris_wsgi.codec.model_schema import AmbiguousName, FeatureNames
from iris_wsgi.tabular.feature_values import AmbiguousColumns, FeatureColumns

NAMES = st.sampled_from(["age", "Age", "AGE (years)", "a.g_e", "city", "City", "x", "X [cm]", "x (m)", "", " ", "(cm)", "other"])


@given(st.lists(NAMES, min_size=1, max_size=4, unique=True), st.lists(NAMES, max_size=5, unique=True))
def test_a_column_of_one_feature_fits_the_feature_that_a_request_finds(features, columns):
    try:
        found = FeatureColumns(features).find(columns)
    except AmbiguousColumns:
        return
    names = FeatureNames(features)
    for j, column in enumerate(found):
        if column is not None:
            assert names.find(column) == j
        else:
            assert not any(fits(names, name, j) for name in columns)


def fits(names: FeatureNames, column: str, j: int) -> bool:
    try:
        return names.find(column) == j
    except AmbiguousName:
        return False


@pytest.mark.parametrize(
    ("features", "columns", "words"),
    [
        (["age"], ["Age", "AGE"], "'Age' and 'AGE' fit the feature 'age'"),
        (["age"], ["Age", "Age"], "'Age' and 'Age' fit the feature 'age'"),
        (["x (cm)", "x (m)"], ["X"], "'X' fits the features 'x (cm)' and 'x (m)'"),
    ],
)
def test_ambiguous_columns_are_named(features, columns, words):
    with pytest.raises(AmbiguousColumns) as error:
        FeatureColumns(features).find(columns)
    assert str(error.value) == words
