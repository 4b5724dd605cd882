"""The ONNX model: artifact, session, and prediction."""
