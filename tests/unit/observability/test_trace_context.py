"""Request ids and trace context: valid ids, and the log lines of all processes of a request."""

import json
import re
import subprocess
import sys

import pytest
from http_clients import ROW, RawConnection, fetch, http_request, wait_until
from project import ROOT
from racing_threads import race

from iris_wsgi.observability.trace_context import RequestIdSequence, new_request_id, request_ids

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def ids(traceparent: str, tracestate: str = ""):
    return request_ids({"HTTP_X_REQUEST_ID": "it", "HTTP_TRACEPARENT": traceparent, "HTTP_TRACESTATE": tracestate})


@pytest.mark.parametrize(
    ("traceparent", "flags"),
    [
        (f"00-{TRACE}-{PARENT}-01", "01"),
        (f"00-{TRACE}-{PARENT}-00", "00"),
        # Unknown flags are not forwarded (section 3.2.2.5), and neither are unknown versions (section 4.3).
        (f"00-{TRACE}-{PARENT}-ff", "03"),
        (f"cc-{TRACE}-{PARENT}-01", "01"),
        (f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like", "01"),
    ],
)
def test_a_trace_continues_with_its_id_and_our_span_as_the_parent(traceparent, flags):
    found = ids(traceparent)
    first, second = found.context, ids(traceparent).context
    assert found.log_fields() == {"request_id": "it", "trace_id": TRACE, "span_id": first.span, "parent_id": PARENT}
    assert found.upstream_headers() == [("X-Request-ID", "it"), ("traceparent", f"00-{TRACE}-{first.span}-{flags}")]
    assert len({PARENT, first.span, second.span}) == 3 and len(first.span) == 16 and int(first.span, 16)


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "a",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT.upper()}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{PARENT}-01-x",
        f"00-{TRACE}-{PARENT}-01-",
        f"00-{TRACE}-{PARENT}-1",
        f"ff-{TRACE}-{PARENT}-01",
        f"cc-{TRACE}-{PARENT}-01.x",
        f"00-{TRACE}-{PARENT}",
        f" 00-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01\r\nX: y",
        f"cc-{TRACE}-{PARENT}-01-\r\nX: y",
        f"00-{TRACE}-{PARENT}-01,00-{TRACE}-{PARENT}-01",
        f"00-{TRACE[:-1]}é-{PARENT}-01",
    ],
)
def test_an_invalid_trace_is_ignored(traceparent):
    found = ids(traceparent, "rojo=1")
    assert found.log_fields() == {"request_id": "it"} and found.upstream_headers() == [("X-Request-ID", "it")]


@pytest.mark.parametrize(
    "state",
    [
        "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
        "rojo=1 , \tcongo=a b!~",
        "fw529a3039@dt=FfAAAA,,0a-b*c/d_e=x",
        ",".join(f"k{i}=v" for i in range(32)),
        f"{'k' * 256}={'v' * 256}",
    ],
)
def test_the_trace_state_continues_unchanged(state):
    assert ids(f"00-{TRACE}-{PARENT}-01", state).upstream_headers()[2:] == [("tracestate", state)]


@pytest.mark.parametrize(
    "state",
    ["", "a", "a=", "=a", "A=1", "a=1=2", "a=1;b=2 ", "a=\x7f", "a=é", "a=1\r\nX: y", f"{'k' * 257}=v", f"k={'v' * 257}",
     ",".join(f"k{i}=v" for i in range(33))],
)  # fmt: skip
def test_an_invalid_state_is_removed_and_the_trace_continues(state):
    found = ids(f"00-{TRACE}-{PARENT}-01", state)
    assert [name for name, _ in found.upstream_headers()] == ["X-Request-ID", "traceparent"]


# Ids of requests without one


def test_a_new_id_has_32_hexadecimal_digits_and_follows_the_ids_of_its_process():
    first, second = new_request_id(), new_request_id()
    assert re.fullmatch("[0-9a-f]{32}", first) and first[:20] == second[:20]
    assert int(second[20:], 16) == int(first[20:], 16) + 1
    other = RequestIdSequence()
    assert other()[:20] not in (first[:20], RequestIdSequence()()[:20]) and other()[20:] == f"{2:012x}"


@pytest.mark.parametrize("offered", [None, "", "a b", "x" * 65, "é", "a\n"])
def test_a_request_without_a_valid_id_gets_a_new_one(offered):
    found = request_ids({} if offered is None else {"HTTP_X_REQUEST_ID": offered}).request
    assert int(found, 16) + 1 == int(new_request_id(), 16)


def test_threads_never_share_an_id():
    found = []
    race(*[lambda: found.extend([new_request_id() for _ in range(5000)])] * 4)
    assert len(found) == len(set(found)) == 20_000


def test_forked_processes_have_other_ids_than_their_parent_and_each_other():
    program = """if True:
        import os
        from iris_wsgi.observability.trace_context import new_request_id
        print(new_request_id(), flush=True)
        for _ in range(3):
            if not os.fork():
                # A child of a child, too.
                if not os.fork():
                    print(new_request_id(), flush=True)
                    os._exit(0)
                os.wait()
                print(new_request_id(), flush=True)
                os._exit(0)
            os.wait()
        print(new_request_id(), flush=True)
    """
    given = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    first, *children, last = given
    assert len(children) == 6 and len({first[:20], *(one[:20] for one in children)}) == 7
    assert {one[20:] for one in children} == {f"{1:012x}"}
    # The parent continues with its own ids.
    assert int(last, 16) == int(first, 16) + 1


# Several processes


def request_with_trace(path: str) -> bytes:
    return http_request("POST", path, {"data": [ROW]}, "X-Request-ID: one-id", f"traceparent: 00-{TRACE}-{PARENT}-01")


def lines(server) -> list[dict]:
    """Stops a server and returns the events in its log."""
    return [json.loads(line) for line in server.stop()[1].splitlines()]


def of_request(server) -> dict:
    (line,) = [line for line in lines(server) if line.get("request_id") == "one-id"]
    return line


@pytest.mark.long
def test_one_request_is_found_in_the_logs_of_a_gateway_and_its_members(run):
    members = {name: run("--role", "member", "--member", name) for name in ("setosa", "versicolor", "virginica")}
    registry = ",".join(f"{name}={server.url}" for name, server in members.items())
    gateway = run("--role", "gateway", "--members", registry, "--quorum", "3")
    wait_until(lambda: fetch(gateway, http_request("GET", "/readyz")).status == 200, "the gateway knows its members")
    assert fetch(gateway, request_with_trace("/ensemble/predict")).headers["x-request-id"] == "one-id"
    first = of_request(gateway)
    assert (first["route"], first["trace_id"], first["parent_id"]) == ("/ensemble/predict", TRACE, PARENT)
    member_lines = [of_request(server) for server in members.values()]
    assert {(line["status"], line["trace_id"], line["parent_id"]) for line in member_lines} == {(200, TRACE, first["span_id"])}
    assert len({PARENT, first["span_id"], *(line["span_id"] for line in member_lines)}) == 5


def test_one_request_is_found_in_the_logs_of_both_halves_of_a_model(run):
    pred = run("--role", "pred")
    prep = run("--role", "prep", "--pred-url", pred.url)
    wait_until(lambda: fetch(prep, http_request("GET", "/readyz")).status == 200, "prep knows pred")
    assert fetch(prep, request_with_trace("/predict/label")).status == 200
    first, second = of_request(prep), of_request(pred)
    assert (first["trace_id"], first["parent_id"]) == (TRACE, PARENT)
    assert (second["trace_id"], second["parent_id"]) == (TRACE, first["span_id"])


@pytest.mark.long
@pytest.mark.parametrize(("role", "path"), [("asynchronous", "/jobs"), ("sync_async", "/predict/hybrid")])
def test_the_job_of_a_request_is_found_in_the_log_of_its_worker(run, tmp_path, role, path):
    state = {"IRIS_STATE_DIR": str(tmp_path / "state")}
    server, worker = run("--role", role, **state), run(command="worker", **state)
    job_path = fetch(server, request_with_trace(path)).headers["location"]
    wait_until(
        lambda: fetch(server, http_request("GET", job_path)).json()["status"] == "succeeded", "the worker has finished the job"
    )
    first = of_request(server)
    assert (first["trace_id"], f"/jobs/{first['job']}") == (TRACE, job_path)
    (attempt_line,) = [line for line in lines(worker) if line.get("job") == first["job"]]
    assert (attempt_line["message"], attempt_line["outcome"], attempt_line["attempt"], attempt_line["rows"]) == (
        "attempt ended",
        "succeeded",
        1,
        1,
    )


def test_a_request_refused_for_lack_of_room_keeps_its_ids(run):
    server = run("--role", "asynchronous", constants={"iris_wsgi.server.event_loop.MAX_LONG_POLLS": 1})
    job_path = fetch(server, request_with_trace("/jobs").replace(b"one-id", b"another")).headers["location"]
    long_poll = http_request(
        "GET", job_path, None, "X-Request-ID: one-id", f"traceparent: 00-{TRACE}-{PARENT}-01", "Prefer: wait=30"
    )
    with RawConnection(server) as connection, RawConnection(server) as other:
        connection.send(long_poll), other.send(long_poll)
        wait_until(lambda: connection.readable() or other.readable(), "one request waits, and the other is refused")
        response = (connection if connection.readable() else other).receive()
        assert (response.status, response.headers["x-request-id"]) == (503, "one-id")
    (line,) = [line for line in lines(server) if line.get("message") == "request refused"]
    assert (line["status"], line["request_id"], line["trace_id"], line["parent_id"]) == (503, "one-id", TRACE, PARENT)
