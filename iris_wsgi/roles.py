"""The catalogue: what is known of each role before anything of it is loaded."""

from typing import NamedTuple

# Where to send the sample, and the member of the body that holds it; None asks only.
Example = tuple[str, str | None]
LABEL: Example = ("/predict/label", "data")
PREDICT_V1: Example = ("/v1/models/{model}:predict", "instances")


class Role(NamedTuple):
    """The role's model is in `folder` of the model's folder, and the role requires the setting `needs`.

    A `cached` role has a prediction cache by default. Requests of a role that `writes` wait for a disk. A role with `items`
    has a cache of items.
    """

    folder: str = ""
    needs: str = ""
    cached: bool = False
    writes: bool = False
    items: bool = False
    example: Example = LABEL


ROLES = {
    "all": Role(cached=True, items=True),
    "web_single": Role(),
    "synchronous": Role(example=PREDICT_V1),
    "asynchronous": Role(writes=True, example=("/jobs", "data")),
    "worker": Role(example=("/metrics", None)),
    "sync_async": Role(writes=True, example=("/predict/hybrid", "data")),
    "prediction_cache": Role(cached=True),
    "data_cache": Role(writes=True, items=True, example=("/items/0000/prediction", None)),
    "prep": Role(folder="prep", needs="pred_url"),
    "pred": Role(folder="pred", example=PREDICT_V1),
    "gateway": Role(needs="members", example=("/ensemble/predict", "data")),
    "member": Role(folder="members/{member}", needs="member", example=PREDICT_V1),
}
