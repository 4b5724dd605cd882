"""Creation of model folders from estimators and ONNX files."""
