"""The server as a process: sockets, signals, and mistakes."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from chosen_models import pack_mixed
from http_clients import is_alive, wait_until
from iris_data import LABELED_ROWS, training_rows
from optional_programs import require_program, skip_or_fail
from project import MODEL
from server_process import ServerProcess, error_of, free_ports, refuses_connections, run_failing_start
from terminal_process import TerminalProcess

from iris_wsgi import __version__
from iris_wsgi.cpu_limits import available_cpus, thread_count, worker_count
from iris_wsgi.server.serve import STARTED
from iris_wsgi.settings import Settings


def send_request(server, method: str, path: str, document=None):
    connection = http.client.HTTPConnection(server.host, server.port, timeout=120)
    body = None if document is None else json.dumps(document)
    connection.request(method, path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response, content


def test_the_start_prints_the_role_the_address_and_an_example(live_server):
    startup_text = "\n".join(live_server.startup_lines)
    assert re.search(r"^iris_wsgi \S+ serves role all on http://127\.0\.0\.1:\d+$", startup_text, re.MULTILINE)
    assert re.search(r"^model iris_svc 1\.0\.0 sha256:[0-9a-f]{64}$", startup_text, re.MULTILINE)
    assert f"model folder: {MODEL}" in live_server.startup_lines
    assert re.search(r"^state folder: /.+", startup_text, re.MULTILINE)
    assert re.search(r"^self-test: \d+ golden rows answered", startup_text, re.MULTILINE)
    assert re.search(r"^proof: the golden rows have .+; .*answered by onnxruntime \d", startup_text, re.MULTILINE)
    assert re.search(r"^workers: 1 \(as set\); threads: \d+ \(.+\); model: 1 thread", startup_text, re.MULTILINE)


def test_the_start_says_in_its_lines_and_in_the_log_that_nothing_outside_of_the_graph_was_compared(run, tmp_path):
    server = run("--role", "web_single", "--model-dir", str(pack_mixed(tmp_path / "model")))
    (event,) = map(json.loads, server.stop()[1].splitlines())
    words = "the golden rows have the graph's own predictions: nothing outside of the graph was compared; packed with onnxruntime"
    assert event["level"] == "warning" and event["message"].startswith(f"the model is not proven: {words} ")
    assert any(line.startswith(f"proof: {words} ") for line in server.startup_lines)


def test_in_a_pod_the_start_is_one_line_of_json(tmp_path):
    """Neither stream is a terminal."""
    words = [
        "serve",
        "--host",
        "0.0.0.0",
        "--port",
        "0",
        "--workers",
        "1",
        "--model-dir",
        str(MODEL),
        "--state-dir",
        str(tmp_path),
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-m", "iris_wsgi", *words], stdout=pipe, stderr=pipe, text=True) as server:
        event = json.loads(server.stderr.readline())
        try:
            response, content = send_request(NamedServer("127.0.0.1", event["port"]), "GET", "/metadata")
            assert response.status == 200 and json.loads(content)["model"]["digest"] == event["model_digest"]
        finally:
            server.terminate()
        output, errors = server.communicate(timeout=120)
    assert output == "" and [json.loads(line)["route"] for line in errors.splitlines()] == ["/metadata"]
    threads, why = thread_count(Settings(), available_cpus()[0])
    expected = {"level": "info", "message": STARTED, "role": "all", "version": __version__, "host": "0.0.0.0", "workers": 1}
    expected |= {
        "workers_reason": "as set",
        "threads": threads,
        "threads_reason": why,
        "model": "iris_svc",
        "model_version": "1.0.0",
        "model_dir": str(MODEL),
        "state_dir": str(tmp_path),
    }
    assert {name: event[name] for name in expected} == expected and event["model_digest"].startswith("sha256:")
    assert event["self_test"].startswith("34 golden rows answered") and "answered by onnxruntime" in event["proof"]


@pytest.mark.parametrize("stdout", ["terminal", "pipe"])
def test_a_terminal_for_standard_error_gets_the_lines_for_people_and_no_json(tmp_path, stdout):
    words = ["serve", "--port", "0", "--workers", "1", "--model-dir", str(MODEL), "--state-dir", str(tmp_path)]
    master, terminal = os.openpty()
    output = terminal if stdout == "terminal" else subprocess.PIPE
    server = subprocess.Popen([sys.executable, "-m", "iris_wsgi", *words], stdout=output, stderr=terminal)
    os.close(terminal)
    text = b""
    try:
        while b"\ntry: " not in text:
            text += os.read(master, 65536)
    finally:
        server.terminate()
        server.communicate(timeout=120)
        os.close(master)
    assert b" serves role all on http://127.0.0.1:" in text and b'{"time"' not in text


def test_an_error_on_a_terminal_is_a_line_for_people():
    master, terminal = os.openpty()
    failed = subprocess.run([sys.executable, "-m", "iris_wsgi", "worker", "--port", "http"], stderr=terminal, timeout=60)
    os.close(terminal)
    assert failed.returncode == 2 and os.read(master, 65536).startswith(b"iris_wsgi: --port='http' ")
    os.close(master)


def test_the_printed_curl_line_works(live_server):
    require_program("curl")
    line = live_server.startup_lines[-1].removeprefix("try: ")
    assert subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout == '{"prediction":"setosa"}\n'


@pytest.mark.parametrize(("label", "row"), LABELED_ROWS.items())
def test_the_labeled_rows_over_a_socket(live_server, label, row):
    response, content = send_request(live_server, "POST", "/predict/label", {"data": [row]})
    assert (response.status, json.loads(content)) == (200, {"prediction": label})


def test_the_150_rows_over_a_socket_equal_the_model_bit_for_bit(live_server, service):
    rows = training_rows()
    expected = service.model.predict(np.array(rows, np.float32)).tolist()
    batch = json.loads(send_request(live_server, "POST", "/predict/batch", {"data": rows})[1])
    assert batch["probabilities"] == expected
    for row, probabilities in zip(rows, expected, strict=True):
        assert json.loads(send_request(live_server, "POST", "/predict", {"data": [row]})[1])["prediction"] == probabilities


def test_a_used_port_is_reported_in_one_line(live_server):
    failed = run_failing_start("--port", str(live_server.port), "--model-dir", str(MODEL))
    assert (failed.returncode, failed.stdout) == (1, "")
    assert f"IRIS_PORT={live_server.port}" in error_of(failed.stderr) and "already in use" in error_of(failed.stderr)


def test_a_port_that_is_bound_without_listening_is_reported_too():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        failed = run_failing_start("--port", str(other.getsockname()[1]), "--model-dir", str(MODEL))
    assert failed.returncode == 1 and "already in use" in failed.stderr


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.1", "300.1.1.1", "a..b", "a" * 64])
def test_an_address_of_another_machine_is_reported_in_one_line(host):
    failed = run_failing_start("--host", host, "--port", "0", "--model-dir", str(MODEL))
    assert failed.returncode == 1 and f"IRIS_HOST={host}" in error_of(failed.stderr)


def test_a_changed_model_stops_the_start_with_status_1_and_one_line(model_copy):
    content = bytearray((model_copy / "iris_svc.onnx").read_bytes())
    content[1000] ^= 1
    (model_copy / "iris_svc.onnx").write_bytes(content)
    failed = run_failing_start("--port", "0", "--model-dir", str(model_copy))
    assert (failed.returncode, failed.stdout) == (1, "") and "SHA-256" in error_of(failed.stderr)


def test_an_invalid_setting_stops_the_start_with_status_2_and_one_line():
    failed = run_failing_start(IRIS_PORT="http")
    assert (failed.returncode, failed.stdout) == (2, "") and "IRIS_PORT='http'" in error_of(failed.stderr)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_with_status_0_and_no_traceback(run, number):
    server = run()
    assert send_request(server, "GET", "/health")[1] == b'{"health":"ok"}\n'
    server.process.send_signal(number)
    _, err = server.process.communicate(timeout=120)
    assert server.process.returncode == 0
    assert [json.loads(line)["route"] for line in err.splitlines()] == ["/health"]


def test_an_ipv6_address_works_and_is_shown_in_brackets(run):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        skip_or_fail("this machine has no IPv6")
    server = run("--host", "::1")
    assert server.url == f"http://[::1]:{server.port}"
    connection = http.client.HTTPConnection("::1", server.port, timeout=120)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    connection.close()


def test_every_address_is_shown_as_one_that_a_client_can_use(run):
    assert run("--host", "0.0.0.0").url.startswith("http://127.0.0.1:")


def test_web_single_writes_no_file_and_opens_no_other_socket(run, tmp_path):
    require_program("strace")
    trace = tmp_path / "trace"
    calls = "trace=openat,open,creat,unlink,rename,mkdir,socket,connect,bind,truncate,link,symlink"
    quiet = {"PYTHONDONTWRITEBYTECODE": "1", "HOME": str(tmp_path / "home"), "COVERAGE_PROCESS_CONFIG": ""}
    server = run("--role", "web_single", under=("strace", "-f", "-qq", "-e", calls, "-o", str(trace)), **quiet)
    for path in ("/predict", "/predict/label", "/predict/proba", "/predict/batch"):
        assert send_request(server, "POST", path, {"data": [[5.1, 3.5, 1.4, 0.2]]})[0].status == 200
    send_request(server, "POST", "/predict/batch", {"data": [[5.1, 3.5, 1.4, 0.2]] * 10_000})
    send_request(server, "GET", "/metrics")
    # strace does not forward signals. Its child is the server.
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGTERM)
    server.process.communicate(timeout=120)
    lines = trace.read_text().splitlines()
    assert any("golden.json" in line for line in lines)
    writing = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|creat\(|unlink|rename|mkdir|truncate|link\(")
    # The log opens its own pipe again, so that a write never blocks; see log.nonblocking().
    itself = ("/dev/null", '"/proc/self/fd/2"')
    assert [line for line in lines if writing.search(line) and not any(name in line for name in itself)] == []
    assert len([line for line in lines if " socket(" in line]) == 1
    assert [line for line in lines if "connect(" in line] == []


def test_a_connection_that_the_system_refuses_to_set_up_affects_no_other(run):
    """On other systems than Linux, a client that is already gone causes this error."""
    require_program("strace")
    # The first call of a worker is for the listener. With -D the server is our child.
    refused = "inject=setsockopt:error=EINVAL:when=2"
    under = ("strace", "-D", "-f", "-qq", "-e", "trace=setsockopt", "-e", refused, "-o", "/dev/null")
    server = run("--role", "web_single", under=under, COVERAGE_PROCESS_CONFIG="")
    with pytest.raises((OSError, http.client.HTTPException)):
        send_request(server, "GET", "/livez")
    assert send_request(server, "GET", "/livez")[0].status == 200
    assert "a connection failed" in server.stop()[1]


def test_the_default_numbers_of_workers_and_threads_come_from_the_cpus():
    assert worker_count(Settings())[0] <= available_cpus()[0]
    assert worker_count(Settings(workers=3)) == (3, "as set")
    assert thread_count(Settings(threads=7), 1) == (7, "as set")
    assert thread_count(Settings(), 1)[0] == 4
    assert thread_count(Settings(), 8)[0] == 16
    assert thread_count(Settings(role="asynchronous"), 1)[0] == thread_count(Settings(role="sync_async"), 8)[0] == 16
    assert thread_count(Settings(role="asynchronous", threads=7), 1)[0] == 7


def test_a_defect_in_one_connection_ends_that_connection_and_is_logged(tmp_path):
    """The test injects a defect, because the server must survive an unexpected exception."""
    code = (
        "import sys, warnings; from iris_wsgi.server import connection; from iris_wsgi.cli.main import main\n"
        "def broken(self): warnings.warn('a warning of a library'); raise KeyError('put in')\n"
        "connection.HTTPConnection.wait_for_more = broken\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "serve", "--port", "0", "--workers", "1", "--model-dir", str(MODEL)]
    command += ["--state-dir", str(tmp_path)]
    server = ServerProcess(TerminalProcess(command, stderr=subprocess.PIPE))
    try:
        with socket.create_connection((server.host, server.port)) as half:
            half.sendall(b"GET /livez")
            assert half.recv(100) == b""
        assert send_request(server, "GET", "/livez")[0].status == 200
    finally:
        _, err = server.stop()
    events = {line["level"]: line for line in map(json.loads, err.splitlines())}
    assert "put in" in events["error"]["traceback"] and "a warning of a library" in events["warning"]["message"]


def test_a_defect_of_the_parent_is_one_line_of_the_log():
    code = (
        "import sys; from iris_wsgi.server.supervisor import Supervisor; from iris_wsgi.cli.main import main\n"
        "def broken(self): raise KeyError('put in')\n"
        "Supervisor.run = broken\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    failed = subprocess.run([sys.executable, "-c", code, "serve", "--port", "0"], capture_output=True, text=True, timeout=60)
    event = json.loads(failed.stderr)
    assert (failed.returncode, failed.stdout, event["message"]) == (1, "", "the server failed")
    assert "put in" in event["traceback"]


STREAMS = {
    "closed": ">&- 2>&- <&-",
    "closed errors": ">/dev/null 2>&-",
    "closed output": ">&- 2>/dev/null",
    "full": ">/dev/full 2>/dev/full",
    "full output": ">/dev/full 2>/dev/null",
    "gone": "2>/dev/null | true",
    "both gone": "2>&1 | true",
}


@pytest.mark.parametrize("streams", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("command", ["serve --role web_single", pytest.param("worker", marks=pytest.mark.long)])
def test_no_closed_or_full_stream_ends_the_start_or_a_later_line_of_the_log(tmp_path, command, streams):
    (port,) = free_ports(1)
    line = f"{sys.executable} -m iris_wsgi {command} --port {port} --workers 1 --model-dir {MODEL} --state-dir {tmp_path}"
    script = f"sh -c 'echo $$ > {tmp_path}/pid; exec {line}' {streams}"
    shell = subprocess.Popen(["sh", "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = NamedServer("127.0.0.1", port)
    try:
        wait_until(lambda: not refuses_connections(server), "the server listens")
        for _ in range(3):
            assert send_request(server, "GET", "/livez")[0].status == 200
        if "&-" in streams:
            # A socket of the server must not have the number of a standard stream.
            pid = (tmp_path / "pid").read_text().strip()
            assert not [text for text in ("0", "1", "2") if os.readlink(f"/proc/{pid}/fd/{text}").startswith("socket:")]
    finally:
        pid = int((tmp_path / "pid").read_text())
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        shell.wait(120)
    wait_until(lambda: not is_alive(pid), "the end of the server")


class NamedServer(NamedTuple):
    host: str
    port: int


@pytest.mark.parametrize("stream", ["2>&-", "2>/dev/full"])
def test_the_exit_status_is_the_same_without_a_reader(stream):
    command = f"{sys.executable} -m iris_wsgi serve --port http {stream}"
    assert subprocess.run(["sh", "-c", command], timeout=60).returncode == 2


def test_a_full_disk_for_the_output_is_reported_in_one_line():
    command = f"{sys.executable} -m iris_wsgi verify --model-dir {MODEL} >/dev/full"
    failed = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    assert failed.stderr.startswith("iris_wsgi: standard output: No space left")


@pytest.mark.parametrize(
    ("limit", "arguments", "needed"),
    [
        (20, (), 40),
        (39, ("--role", "web_single"), 40),
        (50, ("--role", "prep", "--pred-url", "http://127.0.0.1:9"), 56),
        (80, ("--role", "gateway", "--members", "a=http://127.0.0.1:9,b=http://127.0.0.1:9,c=http://127.0.0.1:9"), 88),
        (60, ("--role", "web_single", "--workers", "30"), 76),
    ],
)
def test_too_few_descriptors_stop_the_start_with_one_line_that_names_the_limit_and_the_solution(
    limit, arguments, needed, tmp_path
):
    command = [sys.executable, "-m", "iris_wsgi", "serve", "--port", "0", "--workers", "1", "--model-dir", str(MODEL), *arguments]
    failed = subprocess.run(
        ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *command, "--state-dir", str(tmp_path / "state")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (failed.returncode, failed.stdout) == (1, "") and error_of(failed.stderr)
    assert f"open {limit} files here (ulimit -n)" in failed.stderr and f"needs {needed} at least" in failed.stderr
    assert "ulimit -n 1024" in failed.stderr and "LimitNOFILE=" in failed.stderr


def test_with_the_required_descriptors_every_pattern_responds(run):
    server = run(under=("sh", "-c", 'ulimit -n 40; exec "$@"', "sh"))
    for path in ("/readyz", "/metrics", "/items/0000", "/ensemble/health", "/v2/health/ready"):
        assert send_request(server, "GET", path)[0].status == 200, path
    response, content = send_request(server, "POST", "/jobs", {"data": [[5.1, 3.5, 1.4, 0.2]]})
    assert response.status == 202
    wait_until(
        lambda: json.loads(send_request(server, "GET", json.loads(content)["href"])[1])["status"] == "succeeded",
        "the job is done",
    )
