"""A category that the model did not learn: an error of the client on every route, and a bad row in batch."""

import csv
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import webtest
from job_requests import run_worker
from metrics_text import sample_value
from packed_models import MIXED_FEATURES, mixed_columns, write

from iris_wsgi.cli.main import main
from iris_wsgi.model.session import NOT_A_CATEGORY
from iris_wsgi.tabular.chunk_scorer import UNKNOWN_CATEGORY

PACKED = mixed_columns(strict=True)
KNOWN = PACKED.rows[0]
UNKNOWN = [KNOWN[0], "Paris", *KNOWN[2:]]
NAMES = [name for name, *_ in MIXED_FEATURES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folder of a model with a strict encoder, whose fast model is the same."""
    path = write(tmp_path_factory.mktemp("strict") / "model", PACKED)
    shutil.copytree(path, path / "fast")
    return path


@pytest.fixture
def app(make_app: Callable[..., webtest.TestApp], folder: Path) -> webtest.TestApp:
    return make_app(model_dir=str(folder))


@pytest.mark.parametrize(
    ("path", "rows"),
    [
        ("/predict", [UNKNOWN]),
        ("/predict/label", [UNKNOWN]),
        ("/predict/proba", [UNKNOWN]),
        ("/predict/batch", [KNOWN, UNKNOWN]),
        ("/predict/hybrid", [UNKNOWN]),
    ],
)
def test_the_routes_of_rows_answer_400_and_report_no_failure_of_the_server(app, path, rows):
    assert app.post_json(path, {"data": rows}, status=400).json["detail"] == NOT_A_CATEGORY
    assert app.post_json(path, {"data": [KNOWN]}).status_code in (200, 202)
    assert not [event for event in app.service.observer.log.events() if event["level"] == "error"]


def test_the_inference_protocol_answers_400(app):
    datatypes = {"float32": "FP32", "string": "BYTES", "int64": "INT64", "bool": "BOOL"}
    inputs = [
        {"name": name, "datatype": datatypes[kind], "shape": [1, 1], "data": [value]}
        for (name, kind, _), value in zip(MIXED_FEATURES, UNKNOWN, strict=True)
    ]
    model = app.service.model.name
    assert app.post_json(f"/v2/models/{model}/infer", {"inputs": inputs}, status=400).json == {"error": NOT_A_CATEGORY}
    assert app.post_json(f"/v1/models/{model}:predict", {"instances": [UNKNOWN]}, status=400).json == {"error": NOT_A_CATEGORY}


def test_a_job_fails_once_with_the_reason_and_an_item_is_refused(app):
    path = app.post_json("/jobs", {"data": [UNKNOWN]}, status=202).json["href"]
    run_worker(app)
    record = app.get(path).json
    assert (record["status"], record["error"], record["attempts"]) == ("failed", NOT_A_CATEGORY, 1)
    app.put_json("/items/a", {"data": [UNKNOWN]}, status=201)
    assert app.get("/items/a/prediction", status=409).json["detail"] == f"{NOT_A_CATEGORY} PUT the item again."


@pytest.mark.parametrize("settings", [{"cache": "on"}, {"batch_rows": 8, "cache": "off"}])
def test_neither_a_cache_nor_the_batcher_keeps_the_error(make_app, folder, settings):
    app = make_app(role="web_single", model_dir=str(folder), **settings)
    for _ in range(2):
        app.post_json("/predict/label", {"data": [UNKNOWN]}, status=400)
    expected = app.post_json("/predict/label", {"data": [KNOWN]}).json
    assert app.post_json("/predict/label", {"data": [KNOWN]}).json == expected
    assert sample_value(app.get("/metrics").text, "http_requests_total", method="POST", route="/predict/label", status="400") == 2


def test_a_file_and_a_table_have_a_bad_row(folder, tmp_path):
    with (tmp_path / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([NAMES, KNOWN, UNKNOWN, KNOWN])
    batch = [sys.executable, "-m", "iris_wsgi", "batch", "--model-dir", str(folder), "--quiet"]
    subprocess.run([*batch, str(tmp_path / "in.csv"), str(tmp_path / "out.csv")], check=True, timeout=120)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 3
    (errors,) = tmp_path.glob("out.csv*err*")
    assert UNKNOWN_CATEGORY in errors.read_text()
    with closing(sqlite3.connect(tmp_path / "items.db")) as connection, connection:
        connection.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, age REAL, city TEXT, visits INTEGER, member BOOLEAN)")
        connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?)", [(1, *KNOWN), (2, *UNKNOWN), (3, *KNOWN)])
    database = f"sqlite:///{tmp_path}/items.db"
    subprocess.run([*batch, "--table", "items", "--database", database], check=True, timeout=120)
    with closing(sqlite3.connect(tmp_path / "items.db")) as connection:
        found = connection.execute("SELECT id, label, error FROM items_prediction ORDER BY id").fetchall()
    assert [(key, label is None, error) for key, label, error in found] == [
        (1, False, None),
        (2, True, UNKNOWN_CATEGORY),
        (3, False, None),
    ]


def test_a_golden_row_with_an_unknown_text_stops_the_start(folder, tmp_path, capsys):
    copy = shutil.copytree(folder, tmp_path / "copy")
    document = json.loads((copy / "golden.json").read_text())
    document["rows"][0]["row"] = UNKNOWN
    (copy / "golden.json").write_text(json.dumps(document))
    assert main(["verify", "--model-dir", str(copy)]) == 1
    assert NOT_A_CATEGORY in capsys.readouterr().err
