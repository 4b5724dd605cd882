"""A category that the model did not learn is an invalid request, and not a failure of the server."""

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from iris_wsgi.packing.packer import pack_model
from iris_wsgi.packing.proof import PackOptions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Packed model with the output of a OneHotEncoder of the cities Osaka and Tokyo as its probabilities."""
    encode = helper.make_node(
        "OneHotEncoder", ["city"], ["encoded"], domain="ai.onnx.ml", cats_strings=["Osaka", "Tokyo"], zeros=0
    )
    flatten = helper.make_node("Reshape", ["encoded", "shape"], ["probabilities"])
    graph = helper.make_graph(
        [encode, flatten],
        "cities",
        [helper.make_tensor_value_info("city", TensorProto.STRING, ["n", 1])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(np.array([-1, 2]), "shape")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    (tmp_path / "cities.onnx").write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
    (tmp_path / "label.json").write_text('{"0": "west", "1": "east"}')
    (tmp_path / "rows.csv").write_text("city,label\nTokyo,east\nOsaka,west\n")
    pack_model(tmp_path / "cities.onnx", tmp_path / "rows.csv", tmp_path / "packed", PackOptions())
    return tmp_path / "packed"


def test_an_unknown_category_is_an_invalid_request(folder, make_app, log):
    app = make_app(model_dir=str(folder), cache="off")
    assert app.post_json("/predict/label", {"data": [["Tokyo"]]}).json == {"prediction": "east"}
    for path, body in (
        ("/predict/label", {"data": [["Paris"]]}),
        ("/predict/batch", {"data": [["Tokyo"], ["Paris"], [""]]}),
        ("/v2/models/cities/infer", {"inputs": [{"name": "city", "datatype": "BYTES", "shape": [1, 1], "data": ["Paris"]}]}),
    ):
        response = app.post_json(path, body, status=400)
        assert "not one of the categories that the model learned" in json.dumps(response.json)
    assert not [event for event in log.events() if event.get("level") == "error"]
