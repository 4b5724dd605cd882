"""BentoML: a service class with one worker, and type hints for inputs and outputs."""

import bentoml
from classifier import Classifier
from pydantic import BaseModel


class Label(BaseModel):
    prediction: str


class Batch(BaseModel):
    classes: list[str]
    labels: list[str]
    probabilities: list[list[float]]


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Iris:
    def __init__(self) -> None:
        self.classifier = Classifier()

    @bentoml.api(route="/predict/label")
    async def label(self, data: list[list[float]]) -> Label:
        return Label(prediction=self.classifier.label(data))

    @bentoml.api(route="/predict/batch")
    async def batch(self, data: list[list[float]]) -> Batch:
        return Batch(**self.classifier.batch(data))
