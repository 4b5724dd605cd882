"""Prep with pred, and a gateway with its members, as processes that are killed, stopped, replaced, and overloaded."""

import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from operator import le

import numpy as np
import onnx
import pytest
from fault_proxy import FaultProxy
from http_clients import (
    POOLED_REQUEST,
    READYZ,
    ROW,
    RawConnection,
    fetch,
    http_request,
    kill_tree,
    metric_sum,
    open_socket_count,
    signal_tree,
    wait_until,
)
from project import MODEL
from sealed_models import seal

NAMES = ("setosa", "versicolor", "virginica")
# A server where two requests may call other servers.
TWO_CALLS = {"iris_wsgi.server.listener.MAX_UPSTREAM_CALLS": 2}
LABEL, BATCH = "/predict/label", "/predict/batch"
ONE = http_request("POST", LABEL, {"data": [ROW]})
VOTE = http_request("POST", "/ensemble/predict", {"data": [ROW]})
HEALTH = http_request("GET", "/ensemble/health")


def ready(server) -> bool:
    return fetch(server, READYZ).status == 200


def why_not(server) -> str:
    response = fetch(server, READYZ)
    return "" if response.status == 200 else response.json()["detail"]


def metrics(server) -> str:
    return fetch(server, http_request("GET", "/metrics")).body.decode()


@pytest.fixture
def pred(run):
    return run("--role", "pred")


@pytest.fixture
def prep(run, pred):
    server = run("--role", "prep", "--pred-url", pred.url)
    wait_until(lambda: ready(server), "prep knows pred")
    return server


@pytest.fixture
def members(run):
    return {name: run("--role", "member", "--member", name) for name in NAMES}


def gateway_of(run, members, *options: str):
    registry = ",".join(f"{name}={server.url}" for name, server in members.items())
    server = run("--role", "gateway", "--members", registry, "--ensemble-ms", "1500", *options)
    wait_until(lambda: ready(server), "the gateway knows its members")
    return server


# The split model


@pytest.mark.long
def test_both_halves_give_the_responses_of_the_whole_model_to_the_byte(prep, live_server):
    rows = np.loadtxt(MODEL / "training.csv", delimiter=",", skiprows=1, usecols=range(4)).tolist()
    chance = np.random.default_rng(5)
    batches = [chance.uniform(-50, 50, (10_000, 4)).astype(np.float32).tolist() for _ in range(10)]
    with RawConnection(prep) as split, RawConnection(live_server) as full:
        for path, data in [(BATCH, rows), *((BATCH, batch) for batch in batches)] + [
            (p, [r]) for p in (LABEL, "/predict") for r in rows
        ]:
            request_bytes = http_request("POST", path, {"data": data})
            local, remote = full.exchange(request_bytes), split.exchange(request_bytes)
            assert (remote.status, remote.body) == (200, local.body)
            assert remote.headers["x-model-digest"] != local.headers["x-model-digest"]
        document = split.exchange(http_request("GET", "/metadata")).json()["model"]
    files = {half: onnx.load(MODEL / half / f"iris_{half}.onnx") for half in ("prep", "pred")}
    pairs = {prop.value for model in files.values() for prop in model.metadata_props if prop.key == "pair"}
    assert {document["digest"], document["pair"]} == pairs
    golden = {half: json.loads((MODEL / half / "golden.json").read_text())["files"] for half in files}
    assert {half: document[half] for half in files} == {half: f"sha256:{golden[half][f'iris_{half}.onnx']}" for half in files}


@pytest.mark.long
def test_prep_is_ready_when_pred_is_and_again_after_an_outage(run, pred):
    port = pred.port
    pred.stop()
    prep = run("--role", "prep", "--pred-url", f"http://127.0.0.1:{port}")
    wait_until(lambda: "Connection refused" in why_not(prep), "prep has tried to reach pred")
    assert fetch(prep, ONE).status == 503
    assert fetch(prep, http_request("GET", "/metadata")).status == fetch(prep, http_request("GET", "/livez")).status == 200
    for _ in range(2):
        pred = run("--role", "pred", "--port", str(port))
        wait_until(lambda: ready(prep), "pred is ready")
        assert fetch(prep, ONE).json() == {"prediction": "setosa"}
        kill_tree(pred.process)
        pred.process.wait()
        wait_until(lambda: not ready(prep), "pred is unavailable")
        response = fetch(prep, ONE)
        assert (response.status, response.headers["retry-after"]) == (503, "1")


@pytest.mark.long
def test_pred_of_another_pair_is_named_and_not_called(run, tmp_path):
    pred = shutil.copytree(MODEL, tmp_path / "other") / "pred"
    model = onnx.load(pred / "iris_pred.onnx")
    (pair,) = [prop for prop in model.metadata_props if prop.key == "pair"]
    own_pair, pair.value = pair.value, "sha256:other"
    onnx.save(model, pred / "iris_pred.onnx")
    seal(pred)
    other = run("--role", "pred", "--model-dir", str(tmp_path / "other"))
    prep = run("--role", "prep", "--pred-url", other.url)
    wait_until(lambda: "pair" in why_not(prep), "the pairs are compared")
    assert "of the pair sha256:other" in why_not(prep) and f"of the pair {own_pair}" in why_not(prep)
    assert fetch(prep, ONE).status == 503
    # The matching one replaces it.
    other.stop()
    run("--role", "pred", "--port", str(other.port))
    wait_until(lambda: ready(prep), "the pairs match")
    assert fetch(prep, ONE).status == 200


def test_while_pred_hangs_other_requests_continue_and_the_excess_is_refused_at_once(run, pred):
    with FaultProxy(pred) as between:
        prep = run("--role", "prep", "--pred-url", between.url, "--queue", "3", "--deadline-ms", "20000", constants=TWO_CALLS)
        wait_until(lambda: ready(prep), "prep knows pred")
        between.mode = "hang"
        with ExitStack() as stack:
            connections = [stack.enter_context(RawConnection(prep)) for _ in range(30)]
            for connection in connections:
                connection.send(ONE)
            wait_until(
                lambda: sum(connection.readable() for connection in connections) >= 25,
                "the requests beyond two calls and three queued ones are refused",
            )
            refused = [connection.receive() for connection in connections if connection.readable()]
            assert {(response.status, response.headers["retry-after"]) for response in refused} == {(503, "1")}
            assert fetch(prep, http_request("GET", "/label")).status == fetch(prep, http_request("GET", "/livez")).status == 200
            between.__exit__()


# Members


def test_an_ensemble_of_processes_responds_like_one_in_a_process(run, members, live_server):
    # With this quorum the gateway is not ready before it knows all three members.
    gateway = gateway_of(run, members, "--quorum", "3")
    with RawConnection(gateway) as separate, RawConnection(live_server) as local:
        for row in np.loadtxt(MODEL / "training.csv", delimiter=",", skiprows=1, usecols=range(4)).tolist()[::10]:
            request_bytes = http_request("POST", "/ensemble/predict", {"data": [row]})
            assert separate.exchange(request_bytes).body == local.exchange(request_bytes).body


def kill(server) -> None:
    kill_tree(server.process)
    server.process.wait()


@pytest.mark.long
@pytest.mark.parametrize("fault", ["is killed", "stands still"])
def test_a_member_that_fails_is_missing_until_it_is_back(run, members, fault):
    gateway, member = gateway_of(run, members), members["virginica"]
    kill(member) if fault == "is killed" else signal_tree(member.process.pid, signal.SIGSTOP)
    errors = set()
    for _ in range(6):
        response = fetch(gateway, VOTE)
        document = response.json()
        assert (response.status, document["status"], document["missing"]) == (200, "partial", ["virginica"])
        assert document["prediction"]["label"] == "setosa"
        errors.add(document["members"]["virginica"]["error"])
    assert errors <= {"late", "unreachable", "refused", "bad_answer"}
    wait_until(lambda: fetch(gateway, HEALTH).json()["status"] == "partial", "the breaker is open")
    assert fetch(gateway, VOTE).json()["members"]["virginica"]["error"] == "refused"
    assert ready(gateway)
    if fault == "is killed":
        run("--role", "member", "--member", "virginica", "--port", str(member.port))
    else:
        signal_tree(member.process.pid, signal.SIGCONT)
    wait_until(lambda: fetch(gateway, VOTE).json()["status"] == "complete", "the member is called again, without a restart")


@pytest.mark.long
def test_below_the_quorum_the_status_is_503_and_never_200_without_a_vote(run, members):
    gateway, generous = gateway_of(run, members), gateway_of(run, members, "--quorum", "1")
    for count, name in enumerate(NAMES, 1):
        kill(members[name])
        for server, needed in ((gateway, 2), (generous, 1)):
            response = fetch(server, VOTE)
            assert response.status == (200 if 3 - count >= needed else 503)
            if response.status == 503:
                assert name in response.json()["detail"] and f"Of 3 members {needed} must answer" in response.json()["detail"]
    for server in (gateway, generous):
        wait_until(lambda server=server: not ready(server), "the gateway is not ready")
        assert fetch(server, HEALTH).status == 503


@pytest.mark.long
@pytest.mark.parametrize("mode", ["garbage", "half", "reset", "mute", "twice", "drip", "hang"])
def test_a_member_with_invalid_responses_is_missing_and_used_again_later(run, members, mode):
    with FaultProxy(members["setosa"]) as between:
        gateway = gateway_of(run, {**members, "setosa": between})
        between.mode = mode
        for _ in range(5):
            document = fetch(gateway, VOTE).json()
            assert (document["status"], document["missing"]) == ("partial", ["setosa"])
        between.mode = "pass"
        wait_until(lambda: fetch(gateway, VOTE).json()["status"] == "complete", "the member is used again")


@pytest.mark.long
def test_a_member_of_another_model_does_not_vote(run, members, tmp_path):
    wrong = {**members, "setosa": members["virginica"]}
    gateway = gateway_of(run, wrong)
    document = fetch(gateway, HEALTH).json()["members"]["setosa"]
    assert not document["up"] and "of virginica, not of setosa" in document["why"]
    assert fetch(gateway, VOTE).json()["missing"] == ["setosa"]
    # The model is of the same species, but of another release.
    other = shutil.copytree(MODEL, tmp_path / "other")
    model = onnx.load(other / "members/setosa/iris_setosa.onnx")
    model.producer_version = "another"
    onnx.save(model, other / "members/setosa/iris_setosa.onnx")
    seal(other / "members/setosa")
    server = run("--role", "member", "--member", "setosa", "--model-dir", str(other))
    gateway = gateway_of(run, {**members, "setosa": server})
    assert "that of this gateway's release" in fetch(gateway, HEALTH).json()["members"]["setosa"]["why"]


@pytest.mark.repeats
@pytest.mark.long
def test_ten_thousand_requests_with_faults_leave_nothing_open(run, members):
    with FaultProxy(members["setosa"]) as between:
        gateway = gateway_of(run, {**members, "setosa": between})
        pid = gateway.worker_pid

        def idle_connections() -> float:
            return sum(metric_sum(metrics(gateway), "remote_connections", target=name) for name in NAMES)

        def resource_counts() -> tuple[float, int]:
            """Returns the numbers of sockets that are not idle connections, and of threads."""
            return open_socket_count(pid) - idle_connections(), len(os.listdir(f"/proc/{pid}/task"))

        def client(count: int) -> list[int]:
            with RawConnection(gateway) as connection:
                return [connection.exchange(VOTE).status for _ in range(count)]

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(client, [100] * 4))
            before = resource_counts()
            request_bytes = [pool.submit(client, 2500) for _ in range(4)]
            modes = ["garbage", "reset", "pass", "half", "mute"]
            while not all(item.done() for item in request_bytes):
                modes.append(modes.pop(0))
                between.mode = modes[0]
                os.kill(members["versicolor"].worker_pid, signal.SIGSTOP)
                between.stopped.wait(0.05)
                os.kill(members["versicolor"].worker_pid, signal.SIGCONT)
                between.stopped.wait(0.3)
            between.mode = "pass"
            assert {status for future in request_bytes for status in future.result()} <= {200, 503}
        wait_until(lambda: fetch(gateway, VOTE).json()["status"] == "complete", "all members are back")
        wait_until(lambda: all(map(le, resource_counts(), before)), "no more connections and threads than before")
        # Each of the four clients waits for at most one call and one hedge of each member.
        assert idle_connections() <= 4 * 2 * len(NAMES)
        text = metrics(gateway)
        for name in NAMES:
            calls = sum(
                metric_sum(text, "remote_calls_total", target=name, outcome=o)
                for o in ("ok", "late", "bad_answer", "unreachable")
            )
            extra = metric_sum(text, "remote_retries_total", target=name)
            # Health checks also add a tenth of a call to the budget.
            assert extra <= 0.1 * calls + 5


@pytest.mark.long
def test_members_that_hang_delay_no_local_request(run, members):
    with FaultProxy(members["setosa"]) as between:
        registry = ",".join(f"{name}={between.url if name == 'setosa' else members[name].url}" for name in NAMES)
        options = ("--ensemble-ms", "20000", "--deadline-ms", "20000", "--threads", "2", "--queue", "4")
        server = run("--role", "all", "--members", registry, *options, constants=TWO_CALLS)
        wait_until(lambda: fetch(server, VOTE).json().get("status") == "complete", "the gateway knows its members")
        between.mode = "hang"
        with ExitStack() as stack:
            for connection in [stack.enter_context(RawConnection(server)) for _ in range(20)]:
                connection.send(VOTE)
            for _ in range(5):
                assert fetch(server, POOLED_REQUEST).status == 200
                assert fetch(server, ONE).status == 200
            between.__exit__()
