"""The server as a process: real sockets, real signals, real mistakes."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import MODEL, Running, need
from test_single import POINTS, training_rows

from iris_wsgi.cpus import cpus, threads_for, workers_for
from iris_wsgi.settings import Settings


def ask(server, method: str, path: str, document=None):
    connection = http.client.HTTPConnection(server.host, server.port, timeout=120)
    body = None if document is None else json.dumps(document)
    connection.request(method, path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def start(*arguments: str, **environ: str) -> subprocess.CompletedProcess:
    """A start that is expected to fail."""
    command = [sys.executable, "-m", "iris_wsgi", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environ})


def test_it_says_what_runs_where_and_how_to_try_it(live):
    said = "\n".join(live.said)
    assert re.search(r"^iris_wsgi \S+ serves role all on http://127\.0\.0\.1:\d+$", said, re.MULTILINE)
    assert re.search(r"^model iris_svc 1\.0\.0 sha256:[0-9a-f]{64}$", said, re.MULTILINE)
    assert re.search(r"^self-test: \d+ golden rows answered", said, re.MULTILINE)
    assert re.search(r"^workers: 1 \(as set\); threads: \d+ \(.+\); model: 1 thread", said, re.MULTILINE)


def test_the_curl_line_that_it_prints_works(live):
    need("curl")
    line = live.said[-1].removeprefix("try: ")
    assert subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout == '{"prediction":"setosa"}'


@pytest.mark.parametrize(("label", "row"), POINTS.items())
def test_the_fixed_points_over_a_socket(live, label, row):
    answer, content = ask(live, "POST", "/predict/label", {"data": [row]})
    assert (answer.status, json.loads(content)) == (200, {"prediction": label})


def test_the_150_rows_over_a_socket_equal_the_model_bit_for_bit(live, service):
    rows = training_rows()
    wanted = service.model.predict(np.array(rows, np.float32)).tolist()
    batch = json.loads(ask(live, "POST", "/predict/batch", {"data": rows})[1])
    assert batch["probabilities"] == wanted
    for row, probabilities in zip(rows, wanted, strict=True):
        assert json.loads(ask(live, "POST", "/predict", {"data": [row]})[1])["prediction"] == probabilities


def test_a_taken_port_is_told_in_one_line(live):
    failed = start("--port", str(live.port), "--model-dir", str(MODEL))
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.count("\n") == 1
    assert f"IRIS_PORT={live.port}" in failed.stderr and "already in use" in failed.stderr


def test_a_port_that_is_bound_but_silent_is_told_too():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        failed = start("--port", str(other.getsockname()[1]), "--model-dir", str(MODEL))
    assert failed.returncode == 1 and "already in use" in failed.stderr


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.1", "300.1.1.1", "a..b", "a" * 64])
def test_an_address_that_is_not_ours_is_told_in_one_line(host):
    failed = start("--host", host, "--port", "0", "--model-dir", str(MODEL))
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    assert f"IRIS_HOST={host}" in failed.stderr


def test_a_changed_model_stops_the_start_with_status_1_and_one_line(model_copy):
    content = bytearray((model_copy / "iris_svc.onnx").read_bytes())
    content[1000] ^= 1
    (model_copy / "iris_svc.onnx").write_bytes(content)
    failed = start("--port", "0", "--model-dir", str(model_copy))
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.count("\n") == 1 and "SHA-256" in failed.stderr


def test_a_wrong_setting_stops_the_start_with_status_2_and_one_line():
    failed = start(IRIS_PORT="http")
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (2, "", 1)
    assert "IRIS_PORT='http'" in failed.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0_and_no_traceback(run, number):
    server = run()
    assert ask(server, "GET", "/health")[1] == b'{"health":"ok"}'
    server.process.send_signal(number)
    _, err = server.process.communicate(timeout=120)
    assert server.process.returncode == 0
    assert [json.loads(line)["route"] for line in err.splitlines()] == ["/health"]


def test_an_ipv6_address_works_and_is_shown_in_brackets(run):
    server = run("--host", "::1")
    assert server.url == f"http://[::1]:{server.port}"
    connection = http.client.HTTPConnection("::1", server.port, timeout=120)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    connection.close()


def test_every_address_is_shown_as_one_that_can_be_opened(run):
    assert run("--host", "0.0.0.0").url.startswith("http://127.0.0.1:")


def test_web_single_writes_no_file_and_opens_no_socket_but_its_own(run, tmp_path):
    need("strace")
    trace = tmp_path / "trace"
    calls = "trace=openat,open,creat,unlink,rename,mkdir,socket,connect,bind,truncate,link,symlink"
    quiet = {"PYTHONDONTWRITEBYTECODE": "1", "HOME": str(tmp_path / "home"), "COVERAGE_PROCESS_CONFIG": ""}
    server = run("--role", "web_single", under=("strace", "-f", "-qq", "-e", calls, "-o", str(trace)), **quiet)
    for path in ("/predict", "/predict/label", "/predict/proba", "/predict/batch"):
        assert ask(server, "POST", path, {"data": [[5.1, 3.5, 1.4, 0.2]]})[0].status == 200
    ask(server, "POST", "/predict/batch", {"data": [[5.1, 3.5, 1.4, 0.2]] * 10_000})
    ask(server, "GET", "/metrics")
    # strace passes no signal on; its child is the server.
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGTERM)
    server.process.communicate(timeout=120)
    lines = trace.read_text().splitlines()
    assert any("golden.json" in line for line in lines)
    writing = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|creat\(|unlink|rename|mkdir|truncate|link\(")
    # The log's own pipe is opened again, so that it never blocks; see log.unblocked().
    itself = ("/dev/null", '"/proc/self/fd/2"')
    assert [line for line in lines if writing.search(line) and not any(name in line for name in itself)] == []
    assert len([line for line in lines if " socket(" in line]) == 1
    assert [line for line in lines if "connect(" in line] == []


def test_a_connection_that_the_system_refuses_to_set_up_costs_no_other(run):
    """Elsewhere than on Linux a client that is gone by then is enough for that."""
    need("strace")
    # The first call of a worker is for the listener; -D has the server as our child.
    refused = "inject=setsockopt:error=EINVAL:when=2"
    under = ("strace", "-D", "-f", "-qq", "-e", "trace=setsockopt", "-e", refused, "-o", "/dev/null")
    server = run("--role", "web_single", under=under, COVERAGE_PROCESS_CONFIG="")
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(server, "GET", "/livez")
    assert ask(server, "GET", "/livez")[0].status == 200
    assert "a connection failed" in server.stop()[1]


def test_workers_follow_the_cpu_quota(tmp_path):
    usable = cpus(tmp_path)[0]
    assert cpus(tmp_path) == (usable, f"{usable} CPUs, no quota")
    quota = tmp_path / "cpu.max"
    quota.write_text("max 100000\n")
    assert cpus(tmp_path)[0] == usable
    quota.write_text("50000 100000\n")
    assert cpus(tmp_path) == (1, f"cpu.max allows 0.5 of {usable} CPUs")
    quota.write_text("100000000 100000\n")
    assert cpus(tmp_path)[0] == usable


def test_workers_follow_the_quota_of_control_groups_of_version_1_too(tmp_path):
    usable = cpus(tmp_path)[0]
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    for quota, found in (
        ("-1", (usable, f"{usable} CPUs, no quota")),
        ("50000", (1, f"cpu.cfs_quota_us allows 0.5 of {usable} CPUs")),
    ):
        (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota + "\n")
        assert cpus(tmp_path) == found


def test_the_default_numbers_of_workers_and_threads_come_from_the_cpus():
    assert workers_for(Settings()) == cpus()
    assert workers_for(Settings(workers=3)) == (3, "as set")
    assert threads_for(Settings(threads=7), 1) == (7, "as set")
    assert threads_for(Settings(), 1)[0] == 4
    assert threads_for(Settings(), 8)[0] == 16
    assert threads_for(Settings(role="asynchronous"), 1)[0] == threads_for(Settings(role="sync_async"), 8)[0] == 16
    assert threads_for(Settings(role="asynchronous", threads=7), 1)[0] == 7


def test_a_defect_in_one_connection_costs_that_connection_and_is_logged(tmp_path):
    """A real fault cannot be had, so one is put in: the server must outlive what it does not expect."""
    code = (
        "import sys; from iris_wsgi import channel; from iris_wsgi.__main__ import main\n"
        "def broken(self): raise KeyError('put in')\n"
        "channel.Channel.wait_for_more = broken\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "serve", "--port", "0", "--workers", "1", "--model-dir", str(MODEL)]
    command += ["--state-dir", str(tmp_path)]
    server = Running(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    try:
        with socket.create_connection((server.host, server.port)) as half:
            half.sendall(b"GET /livez")
            assert half.recv(100) == b""
        assert ask(server, "GET", "/livez")[0].status == 200
    finally:
        _, err = server.stop()
    (failed,) = [line for line in map(json.loads, err.splitlines()) if line["level"] == "error"]
    assert "put in" in failed["traceback"]
