"""The catalogue: what is known of each role before anything of it is loaded."""

from typing import NamedTuple

# Where to send the sample, and the member of the body that holds it; None asks only.
Example = tuple[str, str | None]
LABEL: Example = ("/predict/label", "data")
PREDICT_V1: Example = ("/v1/models/{model}:predict", "instances")


class Role(NamedTuple):
    """Functions are named as module:function, so that a role loads its own alone: `routes` makes its routes of `parts.Parts`, and
    `core` what they are around of a `cores.Start`. Its model is in `folder` of the model's; it `needs` a setting; where nothing
    else is said it has a prediction cache if it is `cached`; its requests wait for a disk if it `writes`."""

    routes: str
    core: str = "cores:here"
    folder: str = ""
    needs: str = ""
    cached: bool = False
    writes: bool = False
    example: Example = LABEL


ROLES = {
    "all": Role("roles:everything", cached=True),
    "web_single": Role("roles:web_single"),
    "synchronous": Role("roles:synchronous", example=PREDICT_V1),
    "asynchronous": Role("queues:asynchronous", writes=True, example=("/jobs", "data")),
    "worker": Role("queues:worker", example=("/metrics", None)),
    "sync_async": Role("queues:sync_async", writes=True, example=("/predict/hybrid", "data")),
    "prediction_cache": Role("roles:web_single", cached=True),
    "data_cache": Role("items.parts:item_routes", writes=True, example=("/items/0000/prediction", None)),
    "prep": Role("roles:prep", "halves:split", "prep", needs="pred_url"),
    "pred": Role("roles:synchronous", folder="pred", example=PREDICT_V1),
    "gateway": Role("ensembles:remote_ensemble", needs="members", example=("/ensemble/predict", "data")),
    "member": Role("roles:synchronous", "cores:of_member", "members/{member}", needs="member", example=PREDICT_V1),
}
