"""SECURITY.md: every promise names existing tests. The promises without another test are tested here."""

import ast
import importlib
import re
import socket
import threading
import tracemalloc
from contextlib import ExitStack
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from applications import RecordingLog, call_wsgi
from http_clients import ROW, RawConnection, http_request
from project import ROOT

from iris_wsgi.client.endpoint import Address, CallMetrics, Endpoint
from iris_wsgi.client.prober import Prober
from iris_wsgi.observability.metrics import Registry
from iris_wsgi.settings import Settings, fields, name_of

TEXT = (ROOT / "SECURITY.md").read_text()
TABLES = re.findall(r"^\| (.+) \|\n\|[-|]+\|\n((?:\|.+\|\n)+)", TEXT, re.MULTILINE)
ROWS = [[cell.strip() for cell in line.strip("|\n").split("|")] for _, rows in TABLES for line in rows.splitlines()]


@cache
def functions_of(file: str) -> set[str]:
    return {item.name for item in ast.parse((ROOT / file).read_text()).body if isinstance(item, ast.FunctionDef)}


def test_each_promise_names_existing_tests():
    assert len(TABLES) == 5 and len(ROWS) > 40
    assert [header.split(" | ")[-1] for header, _ in TABLES] == ["held by"] * 5
    for promise, *_, tests in ROWS:
        names = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", tests)
        assert names and not re.sub(r"`tests/[\w/]+\.py::test_\w+`", "", tests).strip(), promise
        for file, name in names:
            assert name in functions_of(file), f"{file} has no {name}"


def test_each_bound_states_the_default_of_its_setting():
    defaults = {name_of(field.name): f"`{field.default}`" for field in fields(Settings)}
    result = {row[1].strip("`"): row[2] for row in ROWS if len(row) == 4 and row[1] != "fixed"}
    for name in [name for name in result if "." in name]:
        module, _, constant = name.rpartition(".")
        defaults[name] = f"`{getattr(importlib.import_module(f'iris_wsgi.{module}'), constant)}`"
    assert len(result) > 12 and result == {name: defaults[name] for name in result}


class Trap:
    """Server that must not receive a connection. `came` returns the requests that it received."""

    def __enter__(self) -> "Trap":
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.authority = "{}:{}".format(*self.listener.getsockname())
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()

    @property
    def came(self) -> bool:
        try:
            self.listener.accept()[0].close()
        except BlockingIOError:
            return False
        return True


def test_no_request_makes_the_server_connect_to_another_one(live_server):
    with Trap() as trap, RawConnection(live_server) as connection:
        url = f"http://{trap.authority}/label"
        names = ("Referer", "Origin", "Forwarded", "X-Forwarded-Host", "X-Forwarded-For", "X-Original-URL", "Link", "Location")
        names += ("Destination", "Via", "From", "Proxy", "Callback", "Webhook", "traceparent", "tracestate", "Prefer")
        result = [f"{name}: {url}" for name in names]
        requests = [
            *((http_request("GET", path, None, *result), 200) for path in ("/label", "/v2", "/jobs")),
            (http_request("POST", "/predict", {"data": [ROW]}, *result), 200),
            (http_request("POST", "/predict", {"data": [ROW], "url": url}), 422),
            (http_request("POST", "/jobs", {"data": [ROW], "callback": url}), 422),
            (http_request("PUT", "/items/0000", {"data": [ROW], "source": url}), 422),
            (http_request("POST", "/v2/repository/index", {"url": url}), 200),
            (f"GET {url} HTTP/1.1\r\nHost: {trap.authority}\r\n\r\n".encode(), 200),
            (f"GET /items/{url.replace('/', '%2F')} HTTP/1.1\r\nHost: a\r\n\r\n".encode(), 400),
        ]
        for data, status in requests[:-1]:
            assert connection.exchange(data).status == status, data
        assert connection.exchange(requests[-1][0]).status == 400
        with RawConnection(live_server) as other:
            assert other.exchange(f"CONNECT {trap.authority} HTTP/1.1\r\nHost: {trap.authority}\r\n\r\n".encode()).status == 501
        assert not trap.came


def test_the_server_does_not_follow_redirects_of_upstream_servers():
    with ExitStack() as stack:
        trap = stack.enter_context(Trap())
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def redirect() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                where = f"http://{trap.authority}/v2/models"
                head = f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {where}\r\nContent-Length: 0\r\n\r\n"
                connection.sendall(head.encode())

        thread = threading.Thread(target=redirect)
        thread.start()
        registry = Registry()
        metrics = CallMetrics(registry, ["pred"])
        registry.join()
        target = Endpoint("pred", Address(*listener.getsockname()), metrics, RecordingLog().event)
        Prober(target, np.array([ROW], np.float32), lambda peer: None).probe()
        thread.join()
        target.end()
        assert "it answers 307" in str(target.why_not()) and not trap.came


# Memory for parsing a body, in bytes for each byte of the body.
MOST_TIMES = 40
KINDS = {
    "rows": b"[5.1,3.5,1.4,0.2]",
    "lists": b"[]",
    "objects": b"{}",
    "members": b'{"a":1.5}',
    "numbers": b"1.5",
    "letters": '"\U0001f600a"'.encode(),
    "long names": b'{"%s":0}' % (b"x" * 100),
}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.long) if kind != "rows" else kind for kind in KINDS])
@pytest.mark.parametrize("path", ["/predict/batch", "/jobs", "/v2/models/iris_svc/infer", "/v1/models/iris_svc:predict"])
def test_a_hostile_body_takes_at_most_forty_times_its_size(service, kind, path):
    unit = KINDS[kind]
    body = b'{"data":[' + b",".join([unit] * (262_144 // (len(unit) + 1))) + b"]}"
    if path.startswith("/v2"):
        body = b'{"inputs":[' + body.replace(b'"data"', b'"name":"features","datatype":"FP32","shape":[1,4],"data"') + b"]}"
    body = body.replace(b'"data"', b'"instances"') if path.startswith("/v1") else body
    tracemalloc.start()
    try:
        status, _, _ = call_wsgi(service.app, "POST", path, body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert status in (200, 400, 422)
    assert 2 * len(body) < peak < MOST_TIMES * len(body)


def test_no_other_origin_is_allowed(service):
    requests = SimpleNamespace(HTTP_ORIGIN="https://elsewhere.example", HTTP_ACCESS_CONTROL_REQUEST_METHOD="POST")
    for path in service.app.table:
        for method in ("GET", "OPTIONS"):
            _, headers, _ = call_wsgi(service.app, method, path, **vars(requests))
            assert not [name for name in headers if name.lower().startswith("access-control")]


def test_the_package_has_no_way_to_execute_input():
    runs = {"pickle", "marshal", "shelve", "subprocess", "pty", "ctypes", "code", "multiprocessing"}
    calls = {"eval", "exec", "compile", "__import__", "system", "popen", "import_module"}
    # No server imports these modules: the tour starts our commands, and a batch run pickles for its own processes and tasks.
    names_of_modules = ("cli/tour.py", "cli/tour_client.py", "patterns/batch/process_pool.py", "patterns/batch/ray_engine.py")
    process_modules = {ROOT / "iris_wsgi" / name for name in names_of_modules}
    for file in set((ROOT / "iris_wsgi").rglob("*.py")) - process_modules:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [item.name for item in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert not {name.partition(".")[0] for name in names} & runs, file
            if isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                # The pattern must not match re.compile.
                of_re = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "re"
                assert called not in calls or of_re, (file, called)


def test_the_sum_of_the_worst_case_is_correct():
    words = r"(\d+) for the process .*?, (\d+) for bodies, (\d+) for responses, and (\d+) threads × (\d+) × (\d+)\s[^:]*: (\d+)\."
    process, bodies, responses, threads, times, body, total = map(int, re.search(words, TEXT).groups())
    assert (bodies, body) == (Settings().pending_bytes >> 20, Settings().max_body_bytes >> 20)
    assert responses == bodies and total == process + bodies + responses + threads * times * body
    assert times == MOST_TIMES
