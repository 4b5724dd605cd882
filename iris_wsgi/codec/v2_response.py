"""Answers of the Open Inference Protocol v2: arrays to bodies, as JSON, in binary or as classes."""

from collections.abc import Mapping, Sequence

import numpy as np

from iris_wsgi.codec.json_documents import encode, encode_list
from iris_wsgi.codec.rows import not_finite
from iris_wsgi.codec.v2_request import InferenceRequest, ModelSignature
from iris_wsgi.codec.v2_tensors import DTYPES, Tensor, to_binary, to_json


def encode_infer(request: InferenceRequest, served: ModelSignature, outputs: Mapping[str, Tensor]) -> tuple[bytes, int | None]:
    """The body that answers `request`, and its field Inference-Header-Content-Length; None where all of it is JSON.

    `outputs` are arrays by name in the shapes of `served`, more of them than wanted if need be. With a length the media type
    is application/octet-stream, else application/json. Raises PredictFailed (500) for a value that is not finite.
    """
    told, parts = [], []
    for wanted in request.outputs:
        tensor, datatype = np.asarray(outputs[wanted.spec.name]), wanted.spec.datatype
        if datatype in ("FP16", "FP32", "FP64") and not np.isfinite(tensor).all():
            raise not_finite()
        if wanted.classes:
            tensor, datatype = classified(tensor, wanted.classes, served.labels), "BYTES"
        answer: dict[str, object] = {"name": wanted.spec.name, "datatype": datatype, "shape": tensor.shape}
        if wanted.binary:
            parts.append(to_binary(tensor, datatype))
            answer["parameters"] = {"binary_data_size": len(parts[-1])}
        # The data, which may be long, are put in beside the encoder's own work.
        data = "" if wanted.binary else f',"data":{encode_list(to_json(tensor, datatype))}'
        told.append(f"{encode(answer)[:-1]}{data}}}")
    names = {"model_name": served.name, "model_version": served.version}
    start = encode({**names, **({} if request.id is None else {"id": request.id})})
    document = f'{start[:-1]},"outputs":[{",".join(told)}]}}'.encode()
    return (b"".join((document, *parts)), len(document)) if parts else (document, None)


def classified(tensor: Tensor, most: int, labels: Sequence[str]) -> Tensor:
    """The `most` highest of each row [rows, classes] as "value:index:label", by value and of equals by index.

    No label where there are not as many as classes; no more columns than classes, as Triton has it. A value is written as
    JSON would, and so reads back exactly.
    """
    classes = tensor.shape[1]
    # A stable sort of the mirrored row puts equals last index first, and the mirror of that first index first.
    order = (classes - 1 - np.argsort(tensor[:, ::-1], axis=1, kind="stable")[:, ::-1])[:, :most]
    values = np.take_along_axis(tensor, order, axis=1)
    ends = [f":{i}:{label}" for i, label in enumerate(labels)] if len(labels) == classes else [f":{i}" for i in range(classes)]
    written = [f"{value!r}{ends[i]}" for value, i in zip(values.ravel().tolist(), order.ravel().tolist(), strict=True)]
    return np.array(written, DTYPES["BYTES"]).reshape(order.shape)
