"""FastAPI as in its tutorial: pydantic models in and out, async handlers, and a lifespan that loads the model."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from classifier import Classifier
from fastapi import FastAPI
from pydantic import BaseModel

models: dict[str, Classifier] = {}


class Rows(BaseModel):
    data: list[list[float]]


class Label(BaseModel):
    prediction: str


class Batch(BaseModel):
    classes: list[str]
    labels: list[str]
    probabilities: list[list[float]]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    models["iris"] = Classifier()
    yield
    models.clear()


app = FastAPI(lifespan=lifespan)


@app.post("/predict/label")
async def predict_label(rows: Rows) -> Label:
    return Label(prediction=models["iris"].label(rows.data))


@app.post("/predict/batch")
async def predict_batch(rows: Rows) -> Batch:
    return Batch(**models["iris"].batch(rows.data))
