"""Calls the application without a server and prints what takes the time of POST /predict/batch: the µs of each stage."""

import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import inprocess_app
import rows

import iris_wsgi
from iris_wsgi.codec import decimals
from iris_wsgi.codec import rows as codec_rows
from iris_wsgi.model.session import Model
from iris_wsgi.patterns.web_single import role

RUNS = {1_000: 200, 10_000: 40}
DECODE, PLACES, NUMBERS, MODEL, ENCODE, TEXTS, DIGITS, WHOLE = range(8)
# The stages within another one are subtracted from it.
STAGES = {
    "places of the numbers, and comparison of all rows with the first": (PLACES,),
    "digits to float32": (NUMBERS,),
    "rest of decoding and validation": (DECODE, PLACES, NUMBERS),
    "runs of the model": (MODEL,),
    "float32 to shortest digits": (DIGITS,),
    "one text without the unused bytes": (TEXTS, DIGITS),
    "labels and joining": (ENCODE, TEXTS),
    "routing, metrics, deadline, log": (WHOLE, DECODE, MODEL, ENCODE),
    "the whole request": (WHOLE,),
}
WRAPPED = (
    (role, "decode_rows", DECODE),
    (decimals, "edges_of", PLACES),
    (decimals, "parse_pointed", NUMBERS),
    (decimals, "parse_decimals", NUMBERS),
    (Model, "predict", MODEL),
    (codec_rows.Encoder, "batch", ENCODE),
    (codec_rows, "encode_rows", TEXTS),
    (decimals, "float_texts", DIGITS),
)
spent: Counter[int] = Counter()


def timed(function: Callable[..., Any], stage: int) -> Callable[..., Any]:
    """Returns the function, with its time added to the stage."""

    def call(*arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            spent[stage] += time.perf_counter() - began

    return call


def stages_of(app: Any, body: bytes, runs: int) -> list[float]:
    """Returns the seconds of each stage in the fastest request."""
    environ = inprocess_app.make_environ(body) | {"PATH_INFO": "/predict/batch"}
    found = []
    for _ in range(runs):
        spent.clear()
        began = time.perf_counter()
        response, _ = app.answer("POST", "/predict/batch", dict(environ), body)
        spent[WHOLE] = time.perf_counter() - began
        if response.status != 200:
            raise SystemExit(f"the application responded with {response.status}")
        found.append([spent[first] - sum(spent[stage] for stage in within) for first, *within in STAGES.values()])
    return min(found, key=lambda seconds: seconds[-1])


def main(model: str) -> None:
    for owner, name, stage in WRAPPED:
        setattr(owner, name, timed(getattr(owner, name), stage))
    app = iris_wsgi.create_app(role="web_single", model_dir=model)
    drawn = rows.large_row_sets()[0]
    tables = [stages_of(app, rows.batch_body(drawn[:count]), runs) for count, runs in RUNS.items()]
    print("| stage |", " | ".join(f"{count:,} rows, µs | share" for count in RUNS), "|")
    print("|---|", "--:|" * 2 * len(RUNS))
    for i, name in enumerate(STAGES):
        print(f"| {name} |", " | ".join(f"{table[i] * 1e6:,.0f} | {table[i] / table[-1]:.0%}" for table in tables), "|")


if __name__ == "__main__":
    main(sys.argv[1])
