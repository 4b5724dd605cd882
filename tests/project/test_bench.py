"""Tests of the benchmark: its verdicts, the best peers, the row of an earlier commit, and the measure of fairness."""

import importlib.util
import socket
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from http_clients import wait_until
from optional_programs import require_program
from project import ROOT

BENCH = ROOT / "tests/bench"
NAMES = ("best_peers", "bench", "earlier", "environments", "load", "load_windows", "report", "results", "servers", "targets")


@pytest.fixture
def bench():
    """Modules of the benchmark, imported for one test. Their names are free again, because the soak has some of them too."""
    own = {file.stem for file in BENCH.glob("*.py")} - {"__main__"}
    others = {name: sys.modules.pop(name) for name in own & sys.modules.keys()}
    sys.path.insert(0, str(BENCH))
    try:
        spec = importlib.util.spec_from_file_location("bench_main", BENCH / "__main__.py")
        main = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(main)
        return SimpleNamespace(main=main, **{name: importlib.import_module(name) for name in NAMES})
    finally:
        sys.path.remove(str(BENCH))
        for name in own:
            sys.modules.pop(name, None)
        sys.modules.update(others)


# Figures of every server of one worker. Each test changes those that it is about.
USUAL = {
    **dict.fromkeys(("label_cpu_16", "label_cpu_256"), 100.0),
    **dict.fromkeys(("label_rate_16", "label_rate_256"), 10_000.0),
    **dict.fromkeys(("label_p99_16", "label_p99_256", "label_p99_2000"), 50.0),
    **dict.fromkeys(("label_turns_256", "label_turns_2000"), 1.0),
    **dict.fromkeys(("idle_cpu_0", "idle_cpu_2000"), 100.0),
    "start": 0.2,
    "memory_idle": 60.0,
}


def made_up(bench, **changes):
    """Returns results in which all servers are equal, except for these changes of figures by server."""
    results = bench.results.Results(1, "bin/bench")
    for server in bench.servers.SERVERS:
        results.add(server.name, USUAL | changes.get(server.name, {}))
    results.add("alone", {"cpu": 40.0})
    return results


def verdicts(bench, results):
    """Returns the verdict of each line of the targets by its text before the first colon."""
    lines = list(bench.targets.lines(results))
    assert all("\n" not in line for line in lines)
    return {line.partition(" ")[2].partition(":")[0]: line.partition(" ")[0] for line in lines}


@pytest.mark.parametrize(
    ("peer", "limit", "named"),
    [
        ("asgi", 1.0, "msgspec on uvicorn"),
        ("asgi_old", 1.0, "msgspec on uvicorn"),
        ("wsgi_granian", 1.1, "msgspec on granian (WSGI)"),
        ("bjoern", 1.45, "msgspec on bjoern"),
        ("uvicorn", 0.3, "FastAPI on uvicorn"),
        ("mosec", 0.5, "mosec"),
        ("waitress", 0.35, "our application on stock waitress"),
    ],
)
def test_the_cpu_of_a_request_has_a_limit_relative_to_each_peer(bench, peer, limit, named):
    what = f"CPU of a request, relative to {named}"
    for cpu, verdict in ((100 / limit + 1, "PASS"), (100 / limit - 1, "MISS")):
        # The two rows of uvicorn have one limit, which is that of the faster row.
        others = {name: {"label_cpu_16": 1000.0} for name in ("asgi", "asgi_old")}
        assert verdicts(bench, made_up(bench, **others | {peer: {"label_cpu_16": cpu}}))[what] == verdict


@pytest.mark.parametrize("at", [16, 256])
@pytest.mark.parametrize("peer", ["asgi", "asgi_old"])
def test_the_rate_must_reach_that_of_msgspec_on_uvicorn(bench, at, peer):
    what = f"requests/s at {at} connections"
    assert verdicts(bench, made_up(bench))[what] == "PASS"
    assert verdicts(bench, made_up(bench, **{peer: {f"label_rate_{at}": 10_001.0}}))[what] == "MISS"
    # bjoern and granian are compared by their CPU.
    faster = {name: {f"label_rate_{at}": 90_000.0} for name in ("bjoern", "rsgi_granian", "uvicorn")}
    assert verdicts(bench, made_up(bench, **faster))[what] == "PASS"


@pytest.mark.parametrize("at", [16, 256])
def test_granian_is_compared_by_its_best_row(bench, at):
    rate, tail = f"requests per CPU second at {at} connections, relative to msgspec on granian", "p99 at 256 connections"
    for peer in ("asgi_granian", "rsgi_granian", "wsgi_granian"):
        for cpu, verdict in ((92.0, "PASS"), (90.0, "MISS")):
            assert verdicts(bench, made_up(bench, **{peer: {f"label_cpu_{at}": cpu}}))[rate] == verdict
        for p99, verdict in ((50.0, "PASS"), (49.9, "MISS")):
            assert verdicts(bench, made_up(bench, **{peer: {"label_p99_256": p99}}))[tail] == verdict


@pytest.mark.parametrize("peer", ["asgi_fair", "asgi_old_fair", "rsgi_granian_fair", "wsgi_granian_fair", "bjoern_fair"])
def test_no_peer_with_log_and_metrics_may_be_ahead(bench, peer):
    for what, key, better in (
        ("CPU of a request", "label_cpu_16", 99.0),
        ("requests/s at 16 connections", "label_rate_16", 10_001.0),
        ("requests/s at 256 connections", "label_rate_256", 10_001.0),
    ):
        what = f"{what}, everyone with log and metrics"
        assert verdicts(bench, made_up(bench))[what] == "PASS"
        assert verdicts(bench, made_up(bench, **{peer: {key: better}}))[what] == "MISS"
        assert verdicts(bench, made_up(bench, **{peer.removesuffix("_fair"): {key: better}}))[what] == "PASS"


def test_a_connection_that_waits_two_turns_is_a_miss(bench):
    for at, text in ((256, "256"), (2000, "2,000")):
        what = f"longest wait of a connection for its turn at {text} connections, in turns"
        for turns, verdict in ((1.9, "PASS"), (2.1, "MISS")):
            assert verdicts(bench, made_up(bench, ours={f"label_turns_{at}": turns}))[what] == verdict


def test_a_target_without_figures_is_open(bench):
    found = verdicts(bench, bench.results.Results(1, "bin/bench"))
    assert set(found.values()) == {"OPEN", "INFO"}
    assert found.keys() == verdicts(bench, made_up(bench)).keys()


def test_the_table_names_the_best_peer_of_each_figure_without_and_with_log_and_metrics(bench):
    results = made_up(
        bench,
        rsgi_granian={"label_cpu_16": 50.0},
        our_bjoern={"label_cpu_16": 80.0},
        mosec={"start": 0.1},
        # Neither two workers nor a loop with a fixed response is a peer.
        gunicorn2={"label_cpu_16": 1.0},
        bare={"label_cpu_16": 1.0},
    )
    lines = {line[0]: line[1:] for line in bench.best_peers.lines(results)}
    with_log, without = ["our application on bjoern", "80", "1.25"], ["msgspec on granian (RSGI)", "50", "2.00"]
    assert lines["CPU µs of a request"] == ["100", *with_log, *without, "100"]
    assert lines["first response s"][4:] == ["mosec", "0.10", "2.00", "0.20"]
    text = bench.report.text(results)
    assert "* msgspec on granian (RSGI) is ahead of iris_wsgi: CPU µs of a request.\n" in text
    assert "* mosec is ahead of iris_wsgi: first response s.\n" in text
    assert "* our application on bjoern is ahead of iris_wsgi: CPU µs of a request.\n" in text
    assert "No peer" not in text


def test_the_text_states_that_no_peer_is_ahead(bench):
    text = bench.report.text(made_up(bench))
    for which in ("without", "with"):
        assert f"* No peer {which} log and metrics is ahead of iris_wsgi in these figures.\n" in text
    assert "is ahead of iris_wsgi:" not in text


def test_a_percentile_without_starving_connections_is_not_the_best(bench):
    for unanswered, verdict in ((0, "MISS"), (7, "PASS")):
        results = made_up(bench, wsgi_granian={"label_p99_256": 5.0, "label_unanswered_256": unanswered})
        assert verdicts(bench, results)["p99 at 256 connections"] == verdict


def test_a_report_of_some_servers_has_no_rows_of_the_others(bench):
    results = bench.results.Results(1, "bin/bench --only ours")
    results.add("ours", USUAL)
    text = bench.report.text(results)
    assert "| iris_wsgi |" in text and "\n| mosec " not in text


def test_the_longest_wait_is_one_turn_if_the_connections_are_served_in_turn(bench):
    wait = bench.load.longest_wait
    assert wait([1, 2, 3] * 5, [1, 2, 3]) == 1
    # Connection 1 waits for four responses, which are two turns of two connections.
    assert wait([1, 2, 2, 2, 1, 2], [1, 2]) == 2
    # A connection without any response waits during the whole window.
    assert wait([1] * 9, [1, 2]) == 5
    assert wait([], [1]) == 1


@contextmanager
def bare_server():
    """Runs the bare loop, and yields its port and its pid."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(BENCH / "baseline_epoll.py"), str(port)])

    def is_up():
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(is_up, "the bare loop accepts a connection")
        yield port, process.pid
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("one_by_one", [False, True])
def test_the_load_generator_gets_responses_on_every_connection(bench, one_by_one):
    with bare_server() as (port, pid):
        phase = {"port": port, "pid": pid, "connections": 20, "first": 0, "warm": 40, "requests": 400, "seconds": 60.0}
        found = bench.load.measure(phase | {"one_by_one": one_by_one}, [b"GET / HTTP/1.1\r\n\r\n"])
    assert found["failures"] == found["unanswered"] == 0
    assert found["requests"] >= 400 and 1 <= found["turns"] < 20


def test_connections_that_open_one_by_one_have_a_response_before_the_next_one_opens(bench):
    with bare_server() as (port, _):
        load = bench.load.LoadGenerator(port, [b"GET / HTTP/1.1\r\n\r\n"], 0)
        load.connect_all(5, True)
        assert load.order == list(load.sockets) and load.sent_at.keys() == load.sockets.keys()
        load.close()


def test_only_fast_servers_get_the_window_of_2000_connections(bench):
    context = SimpleNamespace(effort=bench.main.FULL)
    windows = {
        server.name: [at for kind, at, _ in bench.load_windows.plan_windows(server, context, 1, 1, 0) if kind == "label"]
        for server in bench.servers.SERVERS
    }
    assert windows["ours"] == windows["bjoern"] == [1, 16, 256, 2000]
    assert windows["mosec"] == [1, 16, 256]


@pytest.fixture
def history(bench, tmp_path, monkeypatch):
    """Repository with one commit, in which setup.cfg has the text "before". The benchmark takes it for this project."""
    require_program("git")
    root, home = tmp_path / "project", tmp_path / "home"
    root.mkdir()
    (root / "setup.cfg").write_text("before")
    author = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "One"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    (root / "setup.cfg").write_text("after")
    monkeypatch.setattr(bench.earlier, "ROOT", root)
    monkeypatch.setattr(bench.earlier, "HOME", home)
    return subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


def parse(bench, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    return bench.main.parse_options()


def test_an_earlier_commit_is_a_row_after_ours_with_its_own_files_and_target(bench, history, monkeypatch):
    options = parse(bench, monkeypatch, "--against", "HEAD", "--only", "ours,asgi", "--rounds", "2")
    assert options.servers == ["ours", "asgi", "earlier"] and options.sections == ["servers"] and options.out is None
    assert options.command == "bin/bench --only ours,asgi --against HEAD --rounds 2"
    ours, earlier = bench.servers.SERVERS[:2]
    title = f"iris_wsgi at {history[:7]}"
    assert earlier == ours._replace(name="earlier", title=title, environment="earlier", note=earlier.note)
    (source,) = bench.environments.PACKAGES["earlier"]
    with open(f"{source}/setup.cfg") as file:
        assert file.read() == "before"
    for cpu, verdict in ((170.0, "PASS"), (160.0, "MISS")):
        results = made_up(bench, earlier={"label_cpu_16": cpu})
        assert verdicts(bench, results)[f"CPU of a request, relative to {title}"] == verdict


def test_without_an_earlier_commit_there_is_no_row_and_no_target_of_it(bench, monkeypatch):
    options = parse(bench, monkeypatch, "--only", "servers")
    assert "earlier" not in options.servers and options.out == ROOT / "docs"
    assert not any("iris_wsgi at" in line for line in bench.targets.lines(made_up(bench)))


def test_an_unknown_commit_ends_with_the_reason(bench, history, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        parse(bench, monkeypatch, "--against", "0123456")
    assert "--against 0123456: git failed: " in capsys.readouterr().err
