"""Batch on Spark: scores the Parquet files of a folder inside the executors, and counts the rows. It needs no server.

Usage: spark_batch.py IN OUT
"""

import os
import sys
from pathlib import Path

from pyspark.sql import SparkSession

from iris_wsgi.scorer import Scorer

MODEL = Path(__file__).resolve().parents[1] / "model"
# The Python of the executors. On a cluster, it is an environment with this package on each machine.
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)


def main(source: str, target: str) -> None:
    spark = SparkSession.builder.appName("iris_wsgi").getOrCreate()
    rows = spark.read.parquet(source)
    # With ship=True the executors get the files of the model from this process.
    scorer = Scorer(MODEL, keep=["id"], ship=True)
    scored = rows.mapInArrow(scorer.arrow, scorer.schema(rows.schema))
    scored.write.mode("overwrite").parquet(target)
    written = spark.read.parquet(target)
    print(f"{written.count()} rows, {written.where('error IS NOT NULL').count()} of them bad")
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
