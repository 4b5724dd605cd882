"""Property tests: for any JSON or bytes, the response is JSON and never a 5xx."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from property_tests import examples

TAKING = ["/predict", "/predict/label", "/predict/proba", "/predict/batch"]
numbers = st.integers() | st.floats() | st.integers(10**38, 10**400)
scalars = st.none() | st.booleans() | numbers | st.text()
documents = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30)
almost_rows = st.lists(st.lists(numbers | scalars, min_size=3, max_size=5) | documents, max_size=4)
almost_bodies = st.fixed_dictionaries({"data": almost_rows | documents}, optional={"x": documents})
good_rows = st.lists(
    st.lists(st.floats(-3.4e38, 3.4e38) | st.integers(-(10**38), 10**38), min_size=4, max_size=4), min_size=1, max_size=5
)
relaxed = settings(max_examples=examples(400), deadline=None, suppress_health_check=list(HealthCheck))


def respond(call, path: str, body: bytes) -> tuple[int, dict]:
    status, headers, content = call("POST", path, body)
    assert headers["Content-Type"] == ("application/json" if status == 200 else "application/problem+json")
    assert len(content) == int(headers["Content-Length"])

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return status, json.loads(content.decode("utf-8"), parse_constant=refuse)


@pytest.mark.long
@relaxed
@given(document=documents | almost_bodies, path=st.sampled_from(TAKING))
def test_no_json_document_gets_a_5xx_or_a_response_that_is_not_json(call, document, path):
    status, _ = respond(call, path, json.dumps(document).encode())
    assert status in (200, 400, 422)


@relaxed
@given(body=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_no_bytes_get_a_5xx_or_a_response_that_is_not_json(call, body):
    assert respond(call, "/predict/batch", body)[0] in (200, 400, 422)


@relaxed
@given(start=st.integers(0, 40), end=st.integers(0, 40), middle=st.binary(max_size=5))
def test_no_damage_to_a_valid_body_gets_a_5xx(call, start, end, middle):
    good = b'{"data": [[5.1, 3.5, 1.4, 0.2]]}'
    assert respond(call, "/predict", good[:start] + middle + good[end:])[0] in (200, 400, 422)


@relaxed
@given(rows=good_rows)
def test_every_finite_row_gets_probabilities_that_sum_to_one(call, rows):
    status, response = respond(call, "/predict/batch", json.dumps({"data": rows}).encode())
    assert status == 200
    for label, probabilities in zip(response["labels"], response["probabilities"], strict=True):
        assert abs(sum(probabilities) - 1) < 1e-5
        assert label == response["classes"][probabilities.index(max(probabilities))]
