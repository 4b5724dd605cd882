"""Usual scoring script: pandas in chunks, onnxruntime for each, label and probabilities appended. Usage: IN OUT MODEL."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pandas
import pyarrow
from pyarrow.parquet import ParquetFile, ParquetWriter

FEATURES = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
CHUNK_ROWS = 50_000


def main(source: str, target: str, model: str) -> None:
    session = onnxruntime.InferenceSession(str(next(Path(model).glob("*.onnx"))))
    labels = list(json.loads((Path(model) / "label.json").read_text()).values())

    def scored(frame: pandas.DataFrame) -> pandas.DataFrame:
        rows = frame[FEATURES].to_numpy(np.float32)
        (probabilities,) = session.run(["probabilities"], {session.get_inputs()[0].name: rows})
        answer = frame[["id"]].copy()
        answer["label"] = np.array(labels)[probabilities.argmax(axis=1)]
        for i, label in enumerate(labels):
            answer[f"probability_{label}"] = probabilities[:, i]
        return answer

    if source.endswith(".csv"):
        for i, frame in enumerate(pandas.read_csv(source, chunksize=CHUNK_ROWS)):
            scored(frame).to_csv(target, mode="a" if i else "w", header=not i, index=False)
    elif source.endswith(".jsonl"):
        for i, frame in enumerate(pandas.read_json(source, lines=True, chunksize=CHUNK_ROWS)):
            scored(frame).to_json(target, orient="records", lines=True, mode="a" if i else "w")
    else:
        writer = None
        for batch in ParquetFile(source).iter_batches(CHUNK_ROWS):
            table = pyarrow.Table.from_pandas(scored(batch.to_pandas()), preserve_index=False)
            writer = writer or ParquetWriter(target, table.schema)
            writer.write_table(table)
        writer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
