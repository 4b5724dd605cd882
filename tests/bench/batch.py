"""Whole files: the command batch beside the script with pandas that people write, and beside the model alone."""

import functools
import hashlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import environments
import processes
from bench import MODEL, Bench, Failed, environ
from document import framed
from report import shown, table
from results import Outcome
from runner import attempt, say
from targets import at_least, at_most

HEADING = "Whole files"
USED = ("batch", "scripts")
ALONE, ALONE_ROWS = "the model alone on an array", 10_000
FORMATS = {"csv": "CSV", "jsonl": "JSON lines", "parquet": "Parquet"}
# Rows of the files: for the memory of a small one, for all else, for the memory of a large one; by the requests of the effort.
SMALL, USUAL, LARGE = 0.5, 50, 150
SAMPLE_SECONDS = 0.05
METHOD = """\
* A file of an `id` and four features is scored into one of `id`, label, and three probabilities, in the same format. Our
  command is `python -m iris_wsgi batch --keep id`, with checkpoints each second and all fsyncs, as by default. One process is
  `--workers 1`. It predicts while the parent reads and writes.
* The script is `tests/bench/peers/pandas_script.py`. It uses `read_csv` in chunks of 50,000 rows, one `run` for each with
  onnxruntime's default options (a thread for each CPU), and `to_csv`. Its variants use `read_json(lines=True)` and `to_json`,
  and `iter_batches` and pyarrow's writer. It has no checkpoints, and one bad row ends it.
* The model alone is `session.run` of 10,000 rows in memory, repeated in one thread, with our session options. On a shared
  machine, CPU is more reliable than seconds.
* Seconds and CPU are those of the whole command from its start, with all imports. CPU is the user and system time of the
  process and of all its children, from wait4.
* Memory is the maximum sum of the proportional set sizes of all processes of the run, in 10^6 bytes, read from
  `/proc/*/smaps_rollup` every 50 ms. It does not include the page cache.
* Both outputs are compared. Keys and labels are equal. Probabilities are within 10^-6, because pandas rounds the decimals that
  it reads and writes (ours reads back as the same 32-bit float). With several processes the output is the same as with one,
  byte for byte.
"""


def ways(bench_cpus: int) -> dict[str, str]:
    """Who scores a file: name and title."""
    return {"one": "iris_wsgi, 1 process", "all": f"iris_wsgi, {bench_cpus} processes", "script": "script with pandas"}


def measure_round(number: int, bench: Bench, outcome: Outcome) -> None:
    outcome.add("machine", {"cpus": len(bench.cpus), "rows": sizes(bench)[1]})
    attempt(ALONE, number, outcome, functools.partial(alone, bench))
    for kind in FORMATS:
        for way in ways(0):
            attempt(f"{kind} {way}", number, outcome, functools.partial(trial, kind, way, bench))
    for kind in FORMATS:
        attempt(f"{kind} sizes", number, outcome, functools.partial(by_size, kind, bench))


def sizes(bench: Bench) -> list[int]:
    return [int(bench.effort.requests * share) for share in (SMALL, USUAL, LARGE)]


@functools.cache
def files(scratch: str, *counts: int) -> Path:
    """The folder of the input, written once for a run of the benchmark."""
    say(f"writing files of {', '.join(f'{count:,}' for count in counts)} rows")
    helped(scratch, "write", scratch, *map(str, counts))
    return Path(scratch)


def helped(scratch: str, *words: str) -> None:
    """Raises Failed with what the other Python says."""
    command = [environments.python("scripts"), "-B", str(environments.BENCH / "batch_files.py"), *words]
    path = {"PYTHONPATH": str(environments.BENCH)}
    done = subprocess.run(command, env=environ(scratch) | path, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or ["no reason told"])[-1])


def alone(bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Rows/s and CPU of the model in a process of its own."""
    command = [environments.python("ours"), "-B", str(environments.BENCH / "inprocess_model.py")]
    command += [MODEL, str(bench.effort.seconds), f"{bench.scratch}/alone"]
    done = subprocess.run(command, env=environ(bench.scratch), capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout)
    return {"rows_rate": found["rate"] * ALONE_ROWS, "cpu_row": found["cpu"] / ALONE_ROWS * 1e6}, []


def command_for(way: str, kind: str, rows: int, bench: Bench) -> tuple[list[str], Path]:
    """How a file is scored, and where its answers come to be."""
    source, target = files(bench.scratch, *sizes(bench)) / f"{rows}.{kind}", Path(bench.scratch) / f"out_{way}.{kind}"
    if way == "script":
        script = Path(environments.BENCH) / "peers" / "pandas_script.py"
        return [environments.python("scripts"), str(script), str(source), str(target), MODEL], target
    words = [environments.python("batch"), "-m", "iris_wsgi", "batch", str(source), str(target), "--keep", "id", "--force"]
    return [*words, "--quiet", "--model-dir", MODEL, "--workers", str(1 if way == "one" else len(bench.cpus))], target


def trial(kind: str, way: str, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """One file scored, its answers compared with those of the ways before. Raises Failed."""
    rows = sizes(bench)[1]
    command, target = command_for(way, kind, rows, bench)
    seconds, cpu, memory = spent(command, bench)
    if way == "all" and digest(target) != digest(target.with_name(f"out_one.{kind}")):
        raise Failed("several processes write something else than one")
    if way == "script":
        helped(bench.scratch, "compare", str(target.with_name(f"out_all.{kind}")), str(target))
    return {"rows_rate": rows / seconds, "cpu_row": cpu / rows * 1e6, "memory": memory / 1e6}, []


def by_size(kind: str, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Memory for a small and a large file. Raises Failed."""
    small, _, large = sizes(bench)
    found = {}
    for name, rows in (("small", small), ("large", large)):
        command, target = command_for("all", kind, rows, bench)
        found[f"memory_{name}"] = spent(command, bench)[2] / 1e6
        target.unlink()
    return found, []


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def spent(command: Sequence[str], bench: Bench) -> tuple[float, float, int]:
    """Seconds, seconds of CPU, and the most bytes of memory that a command took with all its processes. Raises Failed."""
    ended, most = threading.Event(), 0

    def watch() -> None:
        nonlocal most
        while not ended.wait(SAMPLE_SECONDS):
            most = max(most, processes.memory(process.pid))

    with open(f"{bench.scratch}/said", "w+b") as said:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            env=environ(bench.scratch),
            cwd=bench.scratch,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            preexec_fn=lambda: os.sched_setaffinity(0, bench.cpus),
        )
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - began
            # So that nothing asks the system about a process that is not there any more.
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            ended.set()
            watcher.join()
            if process.returncode is None:
                process.kill()
                process.wait()
        if process.returncode:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            raise Failed(f"ended with status {process.returncode}: {(lines or ['no reason told'])[-1]}")
    return seconds, usage.ru_utime + usage.ru_stime, most


def text(outcome: Outcome) -> str:
    cpus = int(outcome.value("machine", "cpus") or 1)
    titles = ways(cpus)
    lines = [[ALONE, "", shown(outcome.value(ALONE, "rows_rate"), "{:,.0f}"), "", "1.00"]]
    lines[0] += [shown(outcome.value(ALONE, "cpu_row"), "{:.2f}"), "1.00", "", ""]
    for kind, format_ in FORMATS.items():
        for way, title in titles.items():
            name, script = f"{kind} {way}", f"{kind} script"
            rate = outcome.value(name, "rows_rate")
            lines.append([title, format_, shown(rate, "{:,.0f}")])
            lines[-1] += [shown(outcome.ratio((name, "rows_rate"), (script, "rows_rate")), "{:.2f}")]
            lines[-1] += [shown(outcome.ratio((name, "rows_rate"), (ALONE, "rows_rate")), "{:.2f}")]
            lines[-1] += [shown(outcome.value(name, "cpu_row"), "{:.2f}")]
            lines[-1] += [shown(outcome.ratio((ALONE, "cpu_row"), (name, "cpu_row")), "{:.2f}")]
            lines[-1] += [shown(outcome.value(name, "memory"), "{:.0f}")]
            lines[-1] += [shown(outcome.ratio((name, "memory"), (script, "memory")), "{:.2f}")]
    rows = f"{outcome.value('machine', 'rows') or 0:,.0f} rows"
    headings = [rows, "in and out", "rows/s", "to the script", "to the model alone", "CPU µs per row", "model share"]
    headings += ["peak MB", "to the script"]
    tables = table(headings, lines)
    tables += f"\nPeak memory of iris_wsgi with {cpus} processes, by the size of the file:\n\n" + table(*by_size_table(outcome))
    return framed(outcome, HEADING, tables, METHOD, targets(outcome, cpus), USED)


def by_size_table(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    usual = outcome.value("machine", "rows") or 0
    small, large = usual * SMALL / USUAL, usual * LARGE / USUAL
    lines = []
    for kind, format_ in FORMATS.items():
        found = [outcome.value(f"{kind} sizes", f"memory_{size}") for size in ("small", "large")]
        added = None if None in found else found[1] - found[0]
        lines.append([format_, *(shown(one, "{:.0f}") for one in found), shown(added, "{:+.0f}")])
    return ["in and out", f"MB at {small:,.0f} rows", f"MB at {large:,.0f} rows", "added MB"], lines


def targets(outcome: Outcome, cpus: int) -> Iterator[str]:
    """Faster than the script, at half its memory."""
    for kind, format_ in FORMATS.items():
        for way, count in (("all", cpus), ("one", 1)):
            name, script = f"{kind} {way}", f"{kind} script"
            with_ = f"with {count} process{'es' * (count > 1)}"
            rate = outcome.ratio((name, "rows_rate"), (script, "rows_rate"))
            memory = outcome.ratio((name, "memory"), (script, "memory"))
            yield at_least(f"{format_}: rows/s {with_}, relative to the script", rate, 1.0)
            yield at_most(f"{format_}: peak memory {with_}, relative to the script", memory, 0.5)
    for what, over, under in (
        ("rows/s, relative to the model alone in one thread", 1, 0),
        ("the model alone, as a share of all CPU", 0, 1),
    ):
        figure = "rows_rate" if over else "cpu_row"
        told = []
        for kind, format_ in FORMATS.items():
            for way, count in (("all", cpus), ("one", 1)):
                both = (ALONE, figure), (f"{kind} {way}", figure)
                told.append(f"{shown(outcome.ratio(both[over], both[under]), '{:.2f}')} {format_} ({count})")
        yield f"INFO {what}, by format and processes: {', '.join(told)}"
