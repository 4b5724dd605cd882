"""Tables of a run in Markdown, and charts."""

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import best_peers
import machine
import targets
from environments import BENCH, HOME
from results import Results
from servers import SERVERS, Server

INTRO = """\
This page compares several servers with the same model in one run, with {rounds} over all servers in turn. Each server was
started again in each round, and the figures are medians. The command was `{command}`. Ratios of one run can be compared, but not
figures of two runs or two machines.
"""
METHOD = """\
## How it is measured

* One request is `POST /predict/label` with `{"data": [[5.1, 3.5, 1.4, 0.2]]}`. Each request has another row of 20,000. First,
  the responses to 200 rows and to a batch are compared with onnxruntime's own results. A response other than 200 invalidates
  its window.
* Servers and load generator share two CPUs, as the kernel schedules them. `--pin` gives a server of one worker the first CPU
  and the load the second. This costs a server of several processes requests/s. It saves a server of several threads most of the
  CPU that it uses when the threads pass work to each other across CPUs.
* The load is a closed loop over epoll: each keep-alive connection has one request in progress.
* CPU is the user and system time of all processes and threads of the server, by the clocks of the kernel, divided by the
  requests of a window. It is for 16 connections unless stated otherwise. Memory is the proportional set size of all processes,
  in 10^6 bytes.
* Windows with 256 and 2,000 connections are twice as long as the others. Of 2,000 connections, each has had a response before
  the next one opens, and all are open before the load starts. stock waitress and the frameworks do not have
  this window, except for FastAPI on uvicorn.
* The longest wait is the maximum number of responses from one response on a connection to the next one, divided by the number
  of connections. It is 1.00 if the server serves all connections strictly in turn. Below 2.00, no connection waits two turns
  while another is served twice.
* Batches have 1,000 rows and come over 4 connections.
* Every server runs onnxruntime with one thread, in sequence, without spinning. Output goes to /dev/null. All peers decode and
  validate the body. iris_wsgi, and our application on other servers, count and log each request. Peers with log and metrics
  do this too, as their users would add it. The other peers do neither, which favors them.
* granian has its own threads in addition to its worker, so it can use more than one CPU. Its CPU of a request can be compared,
  but not its requests/s.
"""
Cell = Callable[[Server], str]


def text(results: Results) -> str:
    """Returns the section about all servers."""
    rounds = "one round" if results.rounds == 1 else f"{results.rounds} rounds"
    parts = [INTRO.format(rounds=rounds, command=results.command)]
    parts += ["![CPU of a request and requests per second](benchmark.png)\n"]
    if lines := best_peers.lines(results):
        compared = "\n".join(f"* {sentence}" for sentence in best_peers.sentences(results))
        parts.append(f"## The best peers\n\n{compared}\n\n{markdown_table(best_peers.HEADINGS, lines)}")
    for heading, columns, limits in tables(results):
        lines = [
            [title(server), *(cell(server) for _, cell in columns)] for server in SERVERS if server.name in results.by_server
        ]
        lines = [line for line in lines if set(line[1:]) - {""}]
        parts.append(f"## {heading}\n\n{markdown_table(['server', *(name for name, _ in columns)], lines)}{limits}")
    missing = results.warnings | results.failures
    if missing:
        problems = [[title(server), missing[server.name]] for server in SERVERS if server.name in missing]
        parts.append(f"## What went wrong\n\n{markdown_table(['server', 'what'], problems)}")
    notes = [[title(server), server.note] for server in SERVERS if server.name in results.by_server]
    parts += [METHOD, markdown_table(["server", "how it was set up"], notes), f"## The machine\n\n{machine.lines()}"]
    verdicts = "\n".join(f"* {line}" for line in targets.lines(results))
    return "\n".join([*parts, f"## Targets\n\nTargets compare medians of this run, one worker with one worker.\n\n{verdicts}\n"])


def tables(results: Results) -> list[tuple[str, list[tuple[str, Cell]], str]]:
    """Returns the heading, the columns, and the closing lines of each table."""

    def plain(figure: str, pattern: str = "{:,.0f}", factor: float = 1.0) -> Cell:
        return lambda server: format_value(results.value(server.name, figure), pattern, factor)

    def ratio(figure: str) -> Cell:
        return lambda server: format_value(results.ratio((server.name, figure), ("ours", figure)), "{:.2f}")

    rates = [(f"requests/s at {at}", plain(f"label_rate_{at}")) for at in (1, 16, 256)]
    latencies = [(f"{p} at {at}", plain(f"label_{p}_{at}", "{:.2f}")) for at in (1, 16, 256) for p in ("p50", "p99")]
    throughput = [("CPU µs", plain("label_cpu_16")), ("to ours", ratio("label_cpu_16")), rates[0], rates[1]]
    throughput += [("to ours", ratio("label_rate_16")), rates[2], ("to ours", ratio("label_rate_256"))]
    start = [("first response s", plain("start", "{:.2f}")), ("to ours", ratio("start")), ("idle MB", plain("memory_idle"))]
    start += [("to ours", ratio("memory_idle")), ("after load MB", plain("memory_loaded"))]
    start += [("rows/s of batches", plain("batch_rate_4", "{:,.0f}", 1_000)), ("to ours", ratio("batch_rate_4"))]
    by_load = [(f"at {at}", plain(f"label_cpu_{at}")) for at in (1, 16, 256)]
    by_load += [("16, none idle", plain("idle_cpu_0")), ("16 and 2,000 idle", plain("idle_cpu_2000"))]
    by_load += [("idle still open", plain("idle_idle_open_2000"))]
    many = [("requests/s at 2,000", plain("label_rate_2000")), ("CPU µs at 2,000", plain("label_cpu_2000"))]
    many += [(f"{p} ms at 2,000", plain(f"label_{p}_2000", "{:.2f}")) for p in ("p50", "p99")]
    many += [(f"longest wait at {at:,}, turns", plain(f"label_turns_{at}", "{:.2f}")) for at in (256, 2_000)]
    return [
        ("CPU of a request, and requests per second", throughput, limits(results)),
        ("Latency in ms by connections", latencies, ""),
        ("Many connections", many, ""),
        ("Start, memory, and batches of 1,000 rows", start, ""),
        ("CPU µs of a request by connections", by_load, ""),
    ]


def limits(results: Results) -> str:
    """Returns the lines about the limits of the first table: the application itself, and the load generator."""
    alone = format_value(results.value("alone", "cpu"), "{:.1f} CPU µs") or "an unknown time"
    multiple = format_value(results.ratio(("ours", "label_cpu_16"), ("alone", "cpu")), ", and {:.2f} times that with our server")
    busy = {server.name: results.value(server.name, "label_busy_16") or 0.0 for server in SERVERS if server.checked}
    busiest = max(busy, key=busy.__getitem__)
    return (
        f"\nThe application alone, called without a server, takes {alone}{multiple}.\n"
        f"The load generator was busy for at most {busy[busiest]:.0%} of its time ({busiest}), so it did not limit any server.\n"
    )


def title(server: Server) -> str:
    return server.title if server.workers == 1 else f"{server.title}, {server.workers} workers"


def format_value(value: float | None, pattern: str, factor: float = 1.0) -> str:
    return "" if value is None else pattern.format(value * factor)


def markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table with aligned columns: words to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(headings, *lines, strict=True)]
    right = [all(not line[i] or line[i][0].isdigit() for line in lines) for i in range(len(headings))]
    rule = ["-" * (width - 1) + (":" if figures else "-") for width, figures in zip(widths, right, strict=True)]
    aligned = [
        [cell.rjust(width) if figures else cell.ljust(width) for cell, width, figures in zip(line, widths, right, strict=True)]
        for line in (headings, rule, *lines)
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in aligned)


def draw(folder: Path, results: Results, python: str) -> None:
    """Draws the chart with the Python that has matplotlib."""
    bars = [
        {
            # The color of the bar shows the log and the metrics.
            "title": title(server).removesuffix(" with log and metrics"),
            "group": "without log and metrics"
            if not server.logs
            else "others with log and metrics"
            if server.peer
            else "iris_wsgi",
            "cpu": results.value(server.name, "label_cpu_16"),
            "rate": results.value(server.name, "label_rate_16"),
        }
        for server in SERVERS
        # Without the bare loop, which is a limit and not a peer, and would make the other bars too long.
        if server.name in results.by_server and server.checked
    ]
    draw_chart("chart.py", folder / "benchmark.png", bars, python)


def draw_chart(script: str, file: Path, what: object, python: str) -> None:
    """Runs a script that gets the name of the file as its argument, and the data as JSON."""
    environ = {**os.environ, "MPLCONFIGDIR": str(HOME / "matplotlib")}
    command = [python, "-B", str(BENCH / script), str(file)]
    subprocess.run(command, input=json.dumps(what), env=environ, text=True, timeout=120, check=True)
