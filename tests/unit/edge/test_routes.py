"""The edge routes: the files of a bundle, and the reports of devices."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urljoin

import pytest
import webtest
from applications import call_wsgi
from edge_bundles import DIGEST, SMALL_BUNDLE, build_bundle, write_bundle, write_manifest
from http_clients import LIVEZ, RawConnection, fetch, http_request, wait_until
from project import MODEL, ROOT
from server_process import error_of

from iris_wsgi.factory import build
from iris_wsgi.model.artifact import sha256
from iris_wsgi.observability.metrics import Registry
from iris_wsgi.observability.shared_memory import REPORTS, SharedMemory
from iris_wsgi.patterns.edge.role import MAX_BYTES, POLICY
from iris_wsgi.patterns.edge.telemetry import ReportDeduplicator
from iris_wsgi.roles import ROLES
from iris_wsgi.settings import BadSetting, Settings
from iris_wsgi.wsgi.conditional import requested_range

WASM, ONNX = SMALL_BUNDLE["ort/a.wasm"], SMALL_BUNDLE["model/a.onnx"]
KEY = "0f8fad5b-d9cb-469f-a165-70867728950e"
SETOSA = {"day": "2026-02-28", "label": "setosa", "count": 3}


@pytest.fixture
def bundle(tmp_path):
    write_bundle(tmp_path / "edge")
    return tmp_path / "edge"


@pytest.fixture
def app(make_app, bundle):
    return make_app(role="web_single", edge_dir=str(bundle))


# Files


@pytest.mark.parametrize("path", SMALL_BUNDLE)
def test_every_file_of_the_manifest_is_served_with_its_type_and_its_digest_as_etag(app, path):
    response = app.get(f"/edge/{path}")
    assert response.body == SMALL_BUNDLE[path]
    assert response.headers["ETag"] == f'"{sha256(SMALL_BUNDLE[path])}"'
    kinds = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "mjs": "text/javascript; charset=utf-8",
             "css": "text/css; charset=utf-8", "wasm": "application/wasm", "json": "application/json",
             "onnx": "application/octet-stream"}  # fmt: skip
    assert response.headers["Content-Type"] == kinds[path.rpartition(".")[2]]
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_the_folder_itself_is_the_page_and_redirects_without_its_slash(app):
    assert app.get("/edge/").body == SMALL_BUNDLE["index.html"]
    response = app.get("/edge")
    assert (response.status_int, urljoin("http://a/iris/edge", response.headers["Location"])) == (308, "http://a/iris/edge/")


def test_a_file_that_is_not_in_the_manifest_is_not_served(bundle, make_app):
    (bundle / "more.js").write_text("1")
    (bundle.parent / "secret").write_text("1")
    app = make_app(role="web_single", edge_dir=str(bundle))
    for path in ("/edge/more.js", "/edge/../secret", "/edge/%2e%2e/secret", "/edge/ort", "/edge/ort/", "/edge/ort/a.wasm.gz",
                 "/edge//edge.js", "/edge/./edge.js", "/edge/edge.js/", "/edge/EDGE.JS"):  # fmt: skip
        assert app.get(path, status=404).headers["Content-Type"] == "application/problem+json"


def test_files_are_read_once(app, bundle):
    for path in bundle.rglob("*.*"):
        path.write_bytes(b"changed")
    for path, content in SMALL_BUNDLE.items():
        assert app.get(f"/edge/{path}").body == content


@pytest.mark.parametrize("role", ROLES)
def test_every_role_serves_the_bundle_where_it_is_set_and_nothing_otherwise(make_app, bundle, role):
    members = ",".join(f"{name}=http://127.0.0.1:9" for name in ("setosa", "versicolor", "virginica"))
    more = {"prep": {"pred_url": "http://127.0.0.1:9"}, "member": {"member": "setosa"}, "gateway": {"members": members}}
    settings = {"role": role, **more.get(role, {})}
    assert make_app(edge_dir=str(bundle), **settings).get("/edge/").body == SMALL_BUNDLE["index.html"]
    make_app(**settings).get("/edge/", status=404)


def test_the_page_has_the_policy_of_the_server_and_no_inline_script():
    page = (ROOT / "bin/edge.d/index.html").read_text()
    assert re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)[1] == POLICY
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=|https?://(?!www\.w3\.org/2000/svg)", page)


def test_the_policy_admits_no_other_origin_and_no_frame_around_the_page(app):
    result = app.get("/edge/").headers["Content-Security-Policy"]
    assert result == f"{POLICY}; frame-ancestors 'none'"
    assert POLICY.startswith("default-src 'none'; ") and "unsafe-inline" not in POLICY and "'unsafe-eval'" not in POLICY
    assert app.get("/edge/").headers["Referrer-Policy"] == "no-referrer"


# Caching


def test_only_a_url_with_the_digest_is_cached_without_a_limit(app):
    digest = sha256(WASM)
    assert app.get(f"/edge/ort/a.wasm?sha256={digest}").headers["Cache-Control"] == "public, max-age=31536000, immutable"
    for query in (
        "",
        f"?sha256={digest[:-1]}",
        f"?sha256={sha256(ONNX)}",
        f"?xsha256={digest}",
        f"?sha256={digest}0",
        "?sha256=",
    ):
        assert app.get(f"/edge/ort/a.wasm{query}").headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("path", ["/edge/", "/edge/index.html", "/edge/sw.js", "/edge/manifest.json"])
def test_files_that_lead_to_another_bundle_are_always_revalidated(app, path):
    assert app.get(path).headers["Cache-Control"] == "no-cache"


def test_a_client_with_the_file_gets_304_for_each_coding_with_its_own_etag(app):
    plain = app.get("/edge/ort/a.wasm").headers["ETag"]
    packed = app.get("/edge/ort/a.wasm", headers={"Accept-Encoding": "gzip"}).headers["ETag"]
    assert plain != packed
    for tag, other, coding in ((plain, packed, ""), (packed, plain, "gzip")):
        for send in (app.get, app.head):
            response = send("/edge/ort/a.wasm", headers={"If-None-Match": tag, "Accept-Encoding": coding})
            assert (response.status_int, response.body, response.headers["ETag"]) == (304, b"", tag)
            assert response.headers["Vary"] == "Accept-Encoding" and "Content-Type" not in response.headers
        assert app.get("/edge/ort/a.wasm", headers={"If-None-Match": other, "Accept-Encoding": coding}).status_int == 200


# Compressed files


def test_a_client_that_accepts_gzip_gets_the_compressed_copy(app):
    for accept in ("gzip", "gzip, deflate, br, zstd", "x-gzip", "*", "gzip;q=0.1"):
        # Not through webtest, which decompresses responses.
        _, headers, body = call_wsgi(app.service.app, "GET", "/edge/ort/a.wasm", HTTP_ACCEPT_ENCODING=accept)
        assert headers["Content-Encoding"] == "gzip" and headers["Vary"] == "Accept-Encoding"
        assert gzip.decompress(body) == WASM and int(headers["Content-Length"]) == len(body)


def test_another_client_gets_the_file_as_it_is(app):
    for accept in ("", "br", "gzip;q=0", "identity", "deflate", "identity;q=1, gzip;q=0.5"):
        response = app.get("/edge/ort/a.wasm", headers={"Accept-Encoding": accept})
        assert (
            response.body == WASM and "Content-Encoding" not in response.headers and response.headers["Vary"] == "Accept-Encoding"
        )


def test_a_file_without_a_compressed_copy_is_the_same_for_every_client(app):
    response = app.get("/edge/model/a.onnx", headers={"Accept-Encoding": "gzip"})
    assert response.body == ONNX and "Vary" not in response.headers


# Ranges (RFC 9110, section 14)


@pytest.mark.parametrize(
    ("expected", "first", "last"),
    [("bytes=0-0", 0, 0), ("bytes=0-99", 0, 99), ("bytes=100-", 100, 10239), ("bytes=-1", 10239, 10239),
     ("bytes=-99999", 0, 10239), ("bytes=10239-10239", 10239, 10239), ("bytes=5-99999999999999", 5, 10239),
     ("BYTES=1-2", 1, 2), ("bytes= 1-2 ", 1, 2)],
)  # fmt: skip
def test_one_range_gets_206_with_these_bytes_only(app, expected, first, last):
    response = app.get("/edge/model/a.onnx", headers={"Range": expected})
    assert (response.status_int, response.body) == (206, ONNX[first : last + 1])
    assert response.headers["Content-Range"] == f"bytes {first}-{last}/10240"
    assert response.headers["Content-Length"] == str(last - first + 1)
    assert response.headers["ETag"] == f'"{sha256(ONNX)}"' and response.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize("expected", ["bytes=10240-", "bytes=10240-10241", "bytes=99999-", "bytes=-0"])
def test_a_range_after_the_end_gets_416_with_the_length(app, expected):
    response = app.get("/edge/model/a.onnx", headers={"Range": expected}, status=416)
    assert response.headers["Content-Range"] == "bytes */10240"
    assert response.json["status"] == 416


@pytest.mark.parametrize(
    "expected",
    ["bytes=0-1,3-4", "bytes=-", "bytes=2-1", "bytes=a-b", "bytes=0x1-2", "bytes 0-1", "items=0-1", "", "bytes=", "bytes=1-2-3",
     "bytes=+1-2", "bytes=1 -2", "bytes=٣-٤", "bytes=" + "9" * 5000 + "-", "bytes=0-1;x"],
)  # fmt: skip
def test_several_ranges_and_invalid_ones_get_the_whole_file(expected):
    assert requested_range({"HTTP_RANGE": expected}, 10240, '"x"') is None


def test_if_range_requires_the_same_file_and_otherwise_gets_the_whole(app):
    tag = f'"{sha256(ONNX)}"'
    assert app.get("/edge/model/a.onnx", headers={"Range": "bytes=0-1", "If-Range": tag}).status_int == 206
    for other in ('"x"', f"W/{tag}", "Sun, 22 Nov 2026 08:49:29 GMT", "", f'{tag}, "x"'):
        assert app.get("/edge/model/a.onnx", headers={"Range": "bytes=0-1", "If-Range": other}).status_int == 200


def test_a_range_of_a_compressed_file_is_a_range_of_the_compressed_bytes(app, bundle):
    packed = (bundle / "ort/a.wasm.gz").read_bytes()
    fields = {"HTTP_RANGE": "bytes=10-19", "HTTP_ACCEPT_ENCODING": "gzip"}
    status, headers, body = call_wsgi(app.service.app, "GET", "/edge/ort/a.wasm", **fields)
    assert (status, body, headers["Content-Encoding"]) == (206, packed[10:20], "gzip")


def test_head_and_304_override_ranges(app):
    tag = f'"{sha256(ONNX)}"'
    head = app.head("/edge/model/a.onnx", headers={"Range": "bytes=0-1"})
    assert (head.status_int, head.headers["Content-Length"]) == (200, "10240")
    assert app.get("/edge/model/a.onnx", headers={"Range": "bytes=0-1", "If-None-Match": tag}).status_int == 304


# Invalid bundles


def damage(bundle, how):
    manifest = json.loads((bundle / "manifest.json").read_text())
    match how:
        case "no folder":
            return bundle.rename(bundle.with_name("elsewhere"))
        case "no manifest":
            (bundle / "manifest.json").unlink()
        case "no JSON":
            (bundle / "manifest.json").write_text("{")
        case "a file too short":
            (bundle / "edge.js").write_bytes(b"export {}")
        case "a file changed":
            (bundle / "edge.js").write_bytes(b"export {}!")
        case "a file gone":
            (bundle / "ort/a.wasm").unlink()
        case "a folder for a file":
            (bundle / "edge.js").unlink()
            (bundle / "edge.js").mkdir()
        case "a packed file of something else":
            (bundle / "ort/a.wasm.gz").write_bytes(gzip.compress(b"x" * len(WASM)))
        case "a packed file cut off":
            (bundle / "ort/a.wasm.gz").write_bytes(gzip.compress(WASM)[:-1])
        case "a packed file of too much":
            (bundle / "ort/a.wasm.gz").write_bytes(gzip.compress(WASM + bytes(1000)))
        case "a wrong name":
            (bundle / "manifest.json").write_text(json.dumps({**manifest, "bundle": "1-000000000000"}))
        case "a path out of it":
            (bundle.parent / "x").write_bytes(b"x")
            manifest["files"]["../x"] = {"sha256": sha256(b"x"), "bytes": 1}
            write_manifest(bundle, manifest)
        case "no page":
            del manifest["files"]["index.html"]
            write_manifest(bundle, manifest)
        case "too much":
            manifest["files"]["edge.js"]["bytes"] = MAX_BYTES
            write_manifest(bundle, manifest)
    return None


@pytest.mark.parametrize(
    ("how", "words"),
    [("no folder", "cannot be read"), ("no manifest", "cannot be read"), ("no JSON", "JSON object"),
     ("a file too short", "edge.js"), ("a file changed", "edge.js"), ("a file gone", "ort/a.wasm"),
     ("a folder for a file", "edge.js"),
     ("a packed file of something else", "ort/a.wasm.gz"), ("a packed file cut off", "ort/a.wasm.gz"),
     ("a packed file of too much", "ort/a.wasm.gz"), ("a wrong name", "name"), ("a path out of it", "outside"),
     ("no page", "index.html"),
     ("too much", str(MAX_BYTES))],
)  # fmt: skip
def test_an_invalid_bundle_stops_the_start_with_one_line(make_app, bundle, how, words):
    damage(bundle, how)
    with pytest.raises(BadSetting) as stopped:
        make_app(role="web_single", edge_dir=str(bundle))
    assert str(stopped.value).startswith(f"IRIS_EDGE_DIR={str(bundle)!r} is not an edge bundle: ")
    assert words in str(stopped.value) and "\n" not in str(stopped.value)


# Bundles of another model

OTHER = f"sha256:{'0' * 64}"


def test_a_bundle_of_another_model_stops_the_start_with_one_line(make_app, bundle):
    write_bundle(bundle, digest=OTHER)
    for role in ("all", "web_single", "worker"):
        with pytest.raises(BadSetting) as stopped:
            make_app(role=role, edge_dir=str(bundle))
        result = str(stopped.value)
        assert result.startswith(
            f"IRIS_EDGE_DIR={str(bundle)!r} is a bundle of the model iris_svc 1.0.0 {OTHER}, and this server has "
        )
        assert DIGEST in result and f"bin/edge build --model-dir {MODEL}" in result and "\n" not in result


@pytest.mark.parametrize("what", ["of another model", "damaged", "gone"])
def test_where_no_bundle_is_required_another_one_is_left_out_with_a_warning(make_app, bundle, log, what):
    if what == "of another model":
        write_bundle(bundle, digest=OTHER)
    elif what == "damaged":
        (bundle / "edge.js").write_text("changed")
    else:
        shutil.rmtree(bundle)
    app = make_app(role="web_single", edge_dir=str(bundle), edge_required="no")
    for path in ("/edge/", "/edge/manifest.json", "/edge"):
        app.get(path, status=404)
    assert not [path for path in app.get("/openapi.json").json["paths"] if path.startswith("/edge")]
    (line,) = [event for event in log.events() if "/edge/" in event.get("message", "")]
    assert line["level"] == "warning" and line["message"].startswith(f"/edge/ is not served: IRIS_EDGE_DIR={str(bundle)!r} is ")


def test_a_matching_bundle_is_also_served_where_it_is_not_required(make_app, bundle):
    assert make_app(role="web_single", edge_dir=str(bundle), edge_required="no").get("/edge/").body == SMALL_BUNDLE["index.html"]


def test_with_a_custom_model_the_built_bundle_of_the_other_is_left_out_and_its_own_is_served(run, tmp_path):
    iris, own = build_bundle(tmp_path / "iris", MODEL), build_bundle(tmp_path / "own", MODEL / "fast")
    words = ("--role", "web_single", "--model-dir", str(MODEL / "fast"))
    server = run(*words, IRIS_EDGE_DIR=str(iris), IRIS_EDGE_REQUIRED="no")
    assert fetch(server, http_request("GET", "/edge/")).status == 404
    assert "/edge/ is not served: IRIS_EDGE_DIR=" in server.stop()[1]
    server = run(*words, IRIS_EDGE_DIR=str(own), IRIS_EDGE_REQUIRED="no")
    assert fetch(server, http_request("GET", "/edge/manifest.json")).json()["model"]["name"] == "iris_lr"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_whose_bundle_is_of_another_model_does_not_start(tmp_path, workers):
    iris = build_bundle(tmp_path / "iris", MODEL)
    words = ("serve", "--port", "0", "--role", "web_single", "--workers", workers, "--model-dir", str(MODEL / "fast"))
    command = [sys.executable, "-m", "iris_wsgi", *words, "--edge-dir", str(iris)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (1, "")
    error = error_of(result.stderr)
    assert error.startswith("IRIS_EDGE_DIR=") and "this server has iris_lr" in error


def test_a_role_that_serves_a_part_of_the_model_accepts_the_bundle_of_the_full_model_and_its_labels(make_app, bundle):
    app = make_app(role="member", member="setosa", edge_dir=str(bundle))
    app.post_json("/edge/telemetry", report(counts=[{**SETOSA, "label": "virginica"}]), status=204)
    assert reported_counts(app)["virginica"] == 3


# Reports


def report(**changes):
    return {"key": KEY, "counts": [SETOSA], **changes}


def reported_counts(app):
    found = re.findall(r'^edge_predictions_total\{label="(\w+)"\} (\d+)$', app.get("/metrics").text, re.MULTILINE)
    return {label: int(count) for label, count in found}


def test_a_report_counts_and_is_logged_without_its_key(app, log):
    more = {"day": "2026-03-01", "label": "setosa", "count": 4}, {"day": "2026-03-01", "label": "virginica", "count": 1}
    response = app.post_json("/edge/telemetry", report(counts=[SETOSA, *more]))
    assert (response.status_int, response.body) == (204, b"")
    assert reported_counts(app) == {"setosa": 7, "versicolor": 0, "virginica": 1}
    line = next(line for line in log.events() if line["message"] == "predictions at the edge")
    assert line["counts"] == [{"day": "2026-02-28", "label": "setosa", "count": 3}, *more]
    assert KEY not in json.dumps(log.events())


def test_a_repeated_report_counts_once_and_another_key_counts_too(app):
    for key in (KEY, KEY, "another-key-of-16", KEY, "another-key-of-16"):
        assert app.post_json("/edge/telemetry", report(key=key)).status_int == 204
    assert reported_counts(app)["setosa"] == 6


@pytest.mark.parametrize(
    ("document", "pointer"),
    [
        ([], "#"),
        ({}, "#"),
        ({"key": KEY}, "#"),
        (report(more=1), "#"),
        (report(key=1), "#/key"),
        (report(key="x" * 15), "#/key"),
        (report(key="x" * 65), "#/key"),
        (report(key="x" * 16 + "\n"), "#/key"),
        (report(key="ä" * 20), "#/key"),
        (report(counts=[]), "#/counts"),
        (report(counts={}), "#/counts"),
        (report(counts=[SETOSA] * 1001), "#/counts"),
        (report(counts=[1]), "#/counts/0"),
        (report(counts=[SETOSA, {**SETOSA, "row": [5.1]}]), "#/counts/1"),
        (report(counts=[{**SETOSA, "label": "rose"}]), "#/counts/0/label"),
        (report(counts=[{**SETOSA, "label": ["setosa"]}]), "#/counts/0/label"),
        (report(counts=[{**SETOSA, "label": 0}]), "#/counts/0/label"),
        (report(counts=[{**SETOSA, "day": "2026-02-29"}]), "#/counts/0/day"),
        (report(counts=[{**SETOSA, "day": "2026-2-1"}]), "#/counts/0/day"),
        (report(counts=[{**SETOSA, "day": "20260201"}]), "#/counts/0/day"),
        (report(counts=[{**SETOSA, "day": 1}]), "#/counts/0/day"),
        (report(counts=[{**SETOSA, "count": 0}]), "#/counts/0/count"),
        (report(counts=[{**SETOSA, "count": -1}]), "#/counts/0/count"),
        (report(counts=[{**SETOSA, "count": 1.0}]), "#/counts/0/count"),
        (report(counts=[{**SETOSA, "count": True}]), "#/counts/0/count"),
        (report(counts=[{**SETOSA, "count": 10**9 + 1}]), "#/counts/0/count"),
    ],
)
def test_an_invalid_report_gets_422_with_the_place_and_counts_nothing(app, document, pointer):
    response = app.post_json("/edge/telemetry", document, status=422)
    assert [fault["pointer"] for fault in response.json["errors"]] == [pointer]
    assert reported_counts(app) == {"setosa": 0, "versicolor": 0, "virginica": 0}


def test_a_report_with_one_invalid_count_counts_nothing_and_may_be_sent_again(app):
    app.post_json("/edge/telemetry", report(counts=[SETOSA, {**SETOSA, "label": "rose"}]), status=422)
    app.post_json("/edge/telemetry", report())
    assert reported_counts(app)["setosa"] == 3


def test_keys_are_stored_for_all_processes_in_memory_of_a_fixed_size():
    words = memoryview(bytearray(8 * 64)).cast("Q")
    first, second = ReportDeduplicator(words), ReportDeduplicator(words)
    assert first.add("a" * 16) and not first.add("a" * 16) and not second.add("a" * 16)
    fresh = [second.add(f"key-number-{i:09}") for i in range(1000)]
    assert all(fresh) and len(words) == 64 and REPORTS >= 4096


def test_a_report_counts_once_in_all_processes(bundle, log):
    # Two processes are two slots of one shared memory.
    memory, settings = SharedMemory(2), Settings(model_dir=str(MODEL), role="web_single", edge_dir=str(bundle))
    apps = [webtest.TestApp(build(settings, log, Registry(memory, slot)).app) for slot in (0, 1)]
    for app in (*apps, *apps):
        assert app.post_json("/edge/telemetry", report()).status_int == 204
    assert reported_counts(apps[0]) == {"setosa": 3, "versicolor": 0, "virginica": 0}


# Live server


@pytest.mark.long
def test_large_files_reach_slow_clients_whole_and_block_no_other_client_and_no_memory(tmp_path, run):
    content = os.urandom(1 << 20) * 24
    write_bundle(tmp_path / "edge", {**SMALL_BUNDLE, "ort/a.wasm": content}, packed=())
    server = run("--role", "web_single", "--edge-dir", str(tmp_path / "edge"))
    ask_for = http_request("GET", "/edge/ort/a.wasm")

    def held():
        text = Path(f"/proc/{server.worker_pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) * 1024

    before = held()
    slow = [RawConnection(server, receive_buffer=4096) for _ in range(20)]
    for connection in slow:
        connection.send(ask_for)
        wait_until(connection.readable, "the response starts")
    with RawConnection(server) as other:
        assert other.exchange(LIVEZ).status == 200
        assert other.exchange(ask_for).body == content
        assert other.exchange(LIVEZ).status == 200
    # Twenty copies would be 480 MB.
    assert held() - before < 5 * len(content)
    assert slow[0].receive().body == content
    for connection in slow:
        connection.__exit__()


def test_the_command_reports_an_invalid_bundle_in_one_line(tmp_path):
    line = [
        sys.executable,
        "-m",
        "iris_wsgi",
        "serve",
        "--port",
        "0",
        "--edge-dir",
        str(tmp_path),
        "--model-dir",
        str(ROOT / "model"),
        "--state-dir",
        str(tmp_path / "state"),
    ]
    result = subprocess.run([*line, "--workers", "1"], capture_output=True, text=True, timeout=60)
    assert result.returncode != 0 and "is not an edge bundle" in result.stderr
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
