"""Messages of onnxruntime, as several versions write them: the sentence that matters, and the change that mends the model."""

import pytest

from iris_wsgi.model.session import explain

SIGNATURE = "onnxruntime::Model::Model(onnx::ModelProto&&, const onnxruntime::PathString&, const onnxruntime::ModelOptions&)"
LOCALE = "onnxruntime::StringNormalizer::Locale::Locale(const std::string&)::<lambda()>"
MESSAGES = {
    f"[ONNXRuntimeError] : 1 : FAIL : /src/core/graph/model.cc:256 {SIGNATURE} Unsupported model IR version: 99, max 14\n": (
        "Unsupported model IR version: 99, max 14; set `model.ir_version`"
    ),
    "[ONNXRuntimeError] : 1 : FAIL : Load model from /m/model.onnx failed:Fatal error: ai.onnx.contrib:Inverse2(-1) is not a"
    " registered function/op": "Fatal error: ai.onnx.contrib:Inverse2(-1) is not a registered function/op; its operator belongs",
    f"[ONNXRuntimeError] : 1 : FAIL : Exception during initialization: /src/text/normalizer.cc:235 {LOCALE} Failed to"
    " construct locale with name:en_US:": "Failed to construct locale with name:en_US:; this machine lacks the locale",
    "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Failed to load model because protobuf parsing failed.": (
        "Failed to load model because protobuf parsing failed; the file is damaged"
    ),
    "[ONNXRuntimeError] : 1 : FAIL : External data path validation failed for initializer: coefficient.": (
        "External data path validation failed for initializer: coefficient; its weights are in another file"
    ),
    "filesystem error: cannot get file size: No such file or directory [model.onnx.data]": (
        "filesystem error: cannot get file size: No such file or directory [model.onnx.data]; its weights are in another file"
    ),
    "'SessionOptions' object has no attribute 'add_external_initializers_from_files_in_memory'": (
        "'SessionOptions' object has no attribute 'add_external_initializers_from_files_in_memory'; its weights are in other"
        " files, which onnxruntime loads from version 1.24 on"
    ),
    "an unknown fault": "an unknown fault",
}


@pytest.mark.parametrize(("message", "expected"), MESSAGES.items(), ids=[str(i) for i in range(len(MESSAGES))])
def test_a_message_is_shortened_to_its_sentence_and_names_the_change(message, expected):
    assert explain(RuntimeError(message)).startswith(expected)


def test_a_message_is_one_line_of_at_most_300_characters():
    assert explain(RuntimeError("word " * 200 + "\nsecond line")) == ("word " * 60).rstrip()
    assert explain(RuntimeError("")) == "RuntimeError"
