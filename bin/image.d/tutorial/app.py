"""The tutorial's server: FastAPI around the same model."""

import json

import numpy as np
import onnxruntime
from fastapi import FastAPI
from pydantic import BaseModel

session = onnxruntime.InferenceSession("iris_svc.onnx", providers=["CPUExecutionProvider"])
with open("label.json") as file:
    labels = json.load(file)
app = FastAPI()


class Rows(BaseModel):
    data: list[list[float]] = [[5.1, 3.5, 1.4, 0.2]]


@app.get("/readyz")
def readyz() -> dict[str, bool]:
    return {"ready": True}


@app.post("/predict/label")
def predict_label(rows: Rows) -> dict[str, str]:
    (probabilities,) = session.run(["probabilities"], {"features": np.array(rows.data, np.float32)})
    return {"prediction": labels[str(int(probabilities[0].argmax()))]}
