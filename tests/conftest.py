"""Fixtures that many tests share: an application, a running server, a clock, and databases."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import webtest
from applications import RecordingLog, call_wsgi
from http_clients import NO_COVERAGE
from manual_clock import ManualClock
from optional_programs import check_subprocesses
from postgres_server import PostgresServer
from project import MODEL
from redis_server import RedisServer
from sealed_models import seal
from server_process import ServerProcess, start_server

from iris_wsgi.factory import Service, build
from iris_wsgi.settings import Settings

check_subprocesses()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Lets coverage not trace the processes that a test with the mark `repeats` starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in NO_COVERAGE.items() if item.get_closest_marker("repeats") else ():
            patch.setenv(name, value)
        return (yield)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips the long tests on a laptop, unless the command line names their file. CI runs all tests.

    Files with long tests come first, so that no test process is left waiting for another at the end.
    """
    files_with_long_tests = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in files_with_long_tests)
    if os.environ.get("CI") == "true" or any(".py" in str(argument) for argument in config.invocation_params.args):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason=f"takes seconds; to run it, name its file: bin/test {item.location[0]}"))


@pytest.fixture
def restored_signals() -> Iterator[None]:
    """Restores the signal handlers, which a run in this process changes."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.fixture
def log() -> Iterator[RecordingLog]:
    recording = RecordingLog()
    yield recording
    os.close(recording.descriptor)


@pytest.fixture
def make_app(log: RecordingLog, tmp_path: Path) -> Callable[..., webtest.TestApp]:
    """Function that builds an application from settings, as a webtest application with lint. It has no job worker."""

    def build_app(**settings) -> webtest.TestApp:
        service = build(Settings(**{"model_dir": str(MODEL), "state_dir": str(tmp_path / "state"), **settings}), log)
        app = webtest.TestApp(service.app)
        app.service = service
        return app

    return build_app


@pytest.fixture
def app(make_app: Callable[..., webtest.TestApp]) -> webtest.TestApp:
    return make_app()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    """Service of the role `all`, for tests whose many calls would take minutes with lint."""
    return build(Settings(model_dir=str(MODEL), state_dir=str(tmp_path_factory.mktemp("state"))), RecordingLog())


@pytest.fixture
def call(service: Service) -> Callable[..., tuple[int, dict[str, str], bytes]]:
    """Function that calls the application without a server and without lint. It returns the status, the headers, and the body."""

    def call_app(method: str, path: str, body: bytes = b"", **environ) -> tuple[int, dict[str, str], bytes]:
        return call_wsgi(service.app, method, path, body, **environ)

    return call_app


@pytest.fixture
def model_copy(tmp_path: Path) -> Path:
    """Copy of the model's folder that a test may damage."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


@pytest.fixture
def run() -> Iterator[Callable[..., ServerProcess]]:
    """Function that starts servers. The fixture ends the servers that still run after the test."""
    started: list[ServerProcess] = []

    def start(*arguments: str, **options) -> ServerProcess:
        started.append(start_server(*arguments, **options))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            # The second signal ends the server at once, and lets it write its coverage data.
            server.process.send_signal(signal.SIGINT)
            server.process.terminate()
        try:
            server.process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            server.process.kill()
            # Another process may still have the pipes open, so communicate() could block.
            server.process.wait()


@pytest.fixture
def clock(tmp_path: Path) -> ManualClock:
    """Clock that stands still until the test advances it."""
    return ManualClock(tmp_path / "clock")


@pytest.fixture(scope="session")
def live_server() -> Iterator[ServerProcess]:
    """Server for all tests that only send requests, with any Host header."""
    server = start_server(IRIS_ALLOWED_HOSTS="*")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def upstream_settings() -> Iterator[dict[str, dict[str, str]]]:
    """Settings of the roles that call other servers, by role. The servers are one `pred` and three members."""
    pred = start_server("--role", "pred")
    members = {name: start_server("--role", "member", "--member", name) for name in ("setosa", "versicolor", "virginica")}
    registry = ",".join(f"{name}={server.url}" for name, server in members.items())
    # With a smaller quorum, the digest in a response would depend on the two quickest members.
    yield {"prep": {"pred_url": pred.url}, "gateway": {"members": registry, "quorum": 3}}
    for server in (pred, *members.values()):
        server.stop()


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory) -> Path:
    """Model that needs about 30 ms for one row and seconds for a thousand. It multiplies by the unit matrix."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    folder = tmp_path_factory.mktemp("slow")
    unit = numpy_helper.from_array(np.eye(512, dtype=np.float32), "unit")
    wide = numpy_helper.from_array(np.tile(np.eye(4, dtype=np.float32), 128), "wide")
    narrow = numpy_helper.from_array(np.eye(512, 3, dtype=np.float32), "narrow")
    chain = [helper.make_node("MatMul", [f"x{i}", "unit"], [f"x{i + 1}"]) for i in range(400)]
    nodes = [
        helper.make_node("MatMul", ["row", "wide"], ["x0"]),
        *chain,
        helper.make_node("MatMul", ["x400", "narrow"], ["logits"]),
    ]
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"]))
    rows = helper.make_tensor_value_info("row", TensorProto.FLOAT, [None, 4])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 3])
    graph = helper.make_graph(nodes, "slow", [rows], [probabilities], [unit, wide, narrow])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    (folder / "slow.onnx").write_bytes(model.SerializeToString())
    (folder / "label.json").write_text('{"0": "a", "1": "b", "2": "c"}')
    seal(folder)
    return folder


def real_redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.remove()


# Tests may empty the shared server. Tests that stop or restart a server use their own.
shared_redis = pytest.fixture(real_redis, scope="session", name="shared_redis")
own_redis = pytest.fixture(real_redis, name="own_redis")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Server of all tests. A test that stops the server starts it again."""
    server = PostgresServer()
    yield server
    server.remove()
