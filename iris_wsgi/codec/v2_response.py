"""Encoder of Open Inference Protocol v2 responses: arrays as JSON, as binary tensors, or as classes."""

from collections.abc import Mapping, Sequence

import numpy as np

from iris_wsgi.codec.decimals import encode_floats
from iris_wsgi.codec.json_documents import encode, encode_list, to_utf8
from iris_wsgi.codec.rows import not_finite
from iris_wsgi.codec.v2_request import InferenceRequest, ModelSignature
from iris_wsgi.codec.v2_tensors import DTYPES, Tensor, to_binary, to_json


def encode_infer(request: InferenceRequest, served: ModelSignature, outputs: Mapping[str, Tensor]) -> tuple[bytes, int | None]:
    """Encodes the response to `request`. Returns the body, and the value of Inference-Header-Content-Length.

    The latter is None if the whole body is JSON. With a length the media type is application/octet-stream, otherwise
    application/json. `outputs` has at least the requested arrays, by name, in the shapes of `served`. Raises PredictionFailed
    (500) for a value that is not finite.
    """
    entries, parts = [], []
    for output in request.outputs:
        tensor, datatype = np.asarray(outputs[output.spec.name]), output.spec.datatype
        if datatype in ("FP16", "FP32", "FP64") and not np.isfinite(tensor).all():
            raise not_finite()
        if output.classes:
            tensor, datatype = classified(tensor, output.classes, served.labels), "BYTES"
        entry: dict[str, object] = {"name": output.spec.name, "datatype": datatype, "shape": tensor.shape}
        if output.binary:
            parts.append(to_binary(tensor, datatype))
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        # The data may be long, so they are not encoded with the rest of the entry.
        data = "" if output.binary else f',"data":{encode_data(tensor, datatype)}'
        entries.append(f"{encode(entry)[:-1]}{data}}}")
    names = {"model_name": served.name, "model_version": served.version}
    start = encode({**names, **({} if request.id is None else {"id": request.id})})
    document = to_utf8(f'{start[:-1]},"outputs":[{",".join(entries)}]}}')
    # No terminal shows binary tensors, so their JSON part needs no line feed.
    return (b"".join((document, *parts)), len(document)) if parts else (document + b"\n", None)


def encode_data(tensor: Tensor, datatype: str) -> str:
    """Encodes the values of an array in a flat, row-major list."""
    return encode_floats(tensor.reshape(-1)).decode() if datatype == "FP32" else encode_list(to_json(tensor, datatype))


def classified(tensor: Tensor, max_classes: int, labels: Sequence[str]) -> Tensor:
    """Returns the `max_classes` highest values of each row [rows, classes] as "value:index:label", like Triton.

    They are sorted by value, and equal values by index. The label is omitted if the numbers of labels and classes differ.
    There are no more columns than classes. Values are written as in JSON, so they are read back exactly.
    """
    classes = tensor.shape[1]
    # A stable sort of the reversed row orders equal values by falling index. Reversing the result orders them by rising index.
    order = (classes - 1 - np.argsort(tensor[:, ::-1], axis=1, kind="stable")[:, ::-1])[:, :max_classes]
    values = np.take_along_axis(tensor, order, axis=1)
    ends = [f":{i}:{label}" for i, label in enumerate(labels)] if len(labels) == classes else [f":{i}" for i in range(classes)]
    written = [f"{value!r}{ends[i]}" for value, i in zip(values.ravel().tolist(), order.ravel().tolist(), strict=True)]
    return np.array(written, DTYPES["BYTES"]).reshape(order.shape)
