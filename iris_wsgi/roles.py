"""Table of the roles, with the properties that are needed before a role is loaded."""

from typing import NamedTuple

# The path of an example request, and the property of the body for the sample row; None for a GET.
Example = tuple[str, str | None]
LABEL: Example = ("/predict/label", "data")
PREDICT_V1: Example = ("/v1/models/{model}:predict", "instances")


class Role(NamedTuple):
    """The model is in `folder` of the model folder.

    A `cached` role has a prediction cache by default. Requests of a role that `writes` wait for a disk. A role with `items`
    has a cache of items, and a role with `jobs` a store of jobs.
    """

    folder: str = ""
    required_setting: str = ""
    cached: bool = False
    writes: bool = False
    items: bool = False
    jobs: bool = False
    example: Example = LABEL


ROLES = {
    "all": Role(cached=True, items=True, jobs=True),
    "web_single": Role(),
    "synchronous": Role(example=PREDICT_V1),
    "asynchronous": Role(writes=True, jobs=True, example=("/jobs", "data")),
    "worker": Role(jobs=True, example=("/metrics", None)),
    "sync_async": Role(writes=True, jobs=True, example=("/predict/hybrid", "data")),
    "prediction_cache": Role(cached=True),
    "data_cache": Role(writes=True, items=True, example=("/items/0000/prediction", None)),
    "prep": Role(folder="prep", required_setting="pred_url"),
    "pred": Role(folder="pred", example=PREDICT_V1),
    "gateway": Role(required_setting="members", example=("/ensemble/predict", "data")),
    "member": Role(folder="members/{member}", required_setting="member", example=PREDICT_V1),
}
