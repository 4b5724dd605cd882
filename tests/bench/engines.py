"""Ten million rows through each way to score many: the command, shards, a table, Ray, and Spark."""

import functools
import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import batch
import environments
import processes
from batch import ALONE
from bench import MODEL, Bench, TrialFailed, environ
from document import section_text
from report import format_value, markdown_table
from results import Results
from runner import log, run_trial
from targets import at_least

HEADING = "Ten million rows"
USED = ("batch", "scripts", "ray", "spark")
# Multiples of the requests of the effort, and the files into which the rows are divided for engines.
ROWS, FILES = 500, 10
SAMPLE_SECONDS = 0.1
WAIT_SECONDS = 1800
METHOD = """\
* The rows are random, with four decimals. They are in one Parquet file, in ten for Ray and Spark, and in a table of SQLite. The
  outputs have the id, the label, and three probabilities. Each way has two CPUs: two processes of the command, two shards of one
  process each, a Ray cluster of two CPUs, and `local[2]` of Spark. A table has one process, because SQLite has one writer.
* Seconds are those of the whole command, with the start of its processes and of its engine. CPU is that of all its processes,
  read from their clocks every 100 ms. Memory is the maximum sum of the proportional set sizes of all processes, in 10^6 bytes.
* After each run each label and each probability is compared with the output of the command, by id.
"""


# Title of each way, and what it reads.
WAYS = {
    "command": ("the command, 2 processes", "one Parquet file"),
    "shards": ("two shards, like an Indexed Job", "one Parquet file"),
    "ray": ("Ray, 2 CPUs", "ten Parquet files"),
    "spark": ("Spark, `local[2]`", "ten Parquet files"),
    "table": ("a table, 1 process", "SQLite"),
}
# The files of each output.
OUTPUTS = {"command": "command.parquet", "shards": "shard*.parquet", "ray": "ray/*.parquet", "spark": "spark/*.parquet"}


def commands(name: str, bench: Bench) -> list[list[str]]:
    """Returns the commands of a way, which run at the same time."""
    folder = bench.scratch
    one, many, out = f"{folder}/rows.parquet", f"{folder}/rows", f"{folder}/engines"
    words = ["-m", "iris_wsgi", "batch", "--model-dir", MODEL, "--quiet"]
    python, keep = environments.python("batch"), ["--keep", "id", "--force"]
    if name == "command":
        return [[python, *words, one, f"{out}-command.parquet", *keep, "--workers", "2"]]
    if name == "shards":
        last = [*keep, "--workers", "1", "--shard"]
        return [[python, *words, one, f"{out}-shard{i}.parquet", *last, f"{i}/2"] for i in range(2)]
    if name == "ray":
        return [[environments.python("ray"), *words, many, f"{out}-ray", *keep, "--engine", "ray", "--workers", "2"]]
    if name == "spark":
        return [[environments.python("spark"), f"{environments.ROOT}/examples/spark_batch.py", many, f"{out}-spark"]]
    return [[python, *words, "--table", "flowers", "--database", f"sqlite:///{folder}/rows.db"]]


def row_count(bench: Bench) -> int:
    return bench.effort.requests * ROWS


@functools.cache
def write_inputs(scratch: str, count: int) -> None:
    log(f"writing {count:,} rows")
    batch.run_helper(scratch, "write-engines", scratch, str(count), str(FILES))


def measure_round(number: int, bench: Bench, results: Results) -> None:
    results.add("machine", {"rows": row_count(bench)})
    run_trial(ALONE, number, results, functools.partial(batch.alone, bench))
    for name in WAYS:
        run_trial(name, number, results, functools.partial(trial, name, bench))


def trial(name: str, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Scores all rows, and compares the output with that of the command. Raises TrialFailed."""
    write_inputs(bench.scratch, row_count(bench))
    with sqlite3.connect(f"{bench.scratch}/rows.db") as database:
        for table in ("flowers_prediction", "flowers_run"):
            database.execute(f"DROP TABLE IF EXISTS {table}")
    seconds, cpu, memory = run_measured(commands(name, bench), bench)
    batch.run_helper(bench.scratch, "compare-engines", bench.scratch, OUTPUTS.get(name, ""))
    for path in Path(bench.scratch).glob("engines-*"):
        if path.name != "engines-command.parquet":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    rows = row_count(bench)
    return {"rows_rate": rows / seconds, "cpu_row": cpu / rows * 1e6, "memory": memory / 1e6, "seconds": seconds}, []


def run_measured(commands: Sequence[Sequence[str]], bench: Bench) -> tuple[float, float, int]:
    """Runs commands at the same time. Returns their seconds, CPU seconds, and peak memory. Raises TrialFailed."""
    environment = environ(bench.scratch) | {
        "PYSPARK_SUBMIT_ARGS": "--master local[2] --conf spark.ui.enabled=false pyspark-shell",
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    times: dict[int, int] = {}
    peak = 0
    began = time.perf_counter()
    started = [
        subprocess.Popen(
            command,
            env=environment,
            cwd=bench.scratch,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, bench.cpus),
        )
        for command in commands
    ]
    said = [b""] * len(started)

    def read(i: int) -> None:
        said[i] = started[i].stderr.read()

    readers = [threading.Thread(target=read, args=(i,), daemon=True) for i in range(len(started))]
    for reader in readers:
        reader.start()
    while any(process.poll() is None for process in started):
        trees = [pid for process in started for pid in processes.tree(process.pid)]
        times |= processes.cpu_times(trees)
        peak = max(peak, sum(processes.memory(process.pid) for process in started))
        if time.perf_counter() - began > WAIT_SECONDS:
            for process in started:
                os.killpg(process.pid, signal.SIGKILL)
        time.sleep(SAMPLE_SECONDS)
    seconds = time.perf_counter() - began
    for i, process in enumerate(started):
        readers[i].join(10)
        if process.returncode:
            lines = said[i].decode(errors="replace").strip().splitlines()
            raise TrialFailed(f"exited with status {process.returncode}: {(lines or ['no reason given'])[-1][:150]}")
    return seconds, sum(times.values()) / 1e9, peak


def text(results: Results) -> str:
    lines = [[ALONE, "", "", format_value(results.value(ALONE, "rows_rate"), "{:,.0f}"), "1.00"]]
    lines[0] += [format_value(results.value(ALONE, "cpu_row"), "{:.2f}"), ""]
    for name, (title, reads) in WAYS.items():
        lines.append([title, reads, format_value(results.value(name, "seconds"), "{:.1f}")])
        lines[-1] += [format_value(results.value(name, "rows_rate"), "{:,.0f}")]
        lines[-1] += [format_value(results.ratio((name, "rows_rate"), (ALONE, "rows_rate")), "{:.2f}")]
        lines[-1] += [format_value(results.value(name, "cpu_row"), "{:.2f}")]
        lines[-1] += [format_value(results.value(name, "memory"), "{:.0f}")]
    rows = f"{results.value('machine', 'rows') or 0:,.0f} rows"
    headings = [rows, "reads", "seconds", "rows/s", "to the model alone", "CPU µs per row", "peak MB"]
    return section_text(results, HEADING, markdown_table(headings, lines), METHOD, targets(results), USED)


def targets(results: Results) -> Iterator[str]:
    ratio = results.ratio(("command", "rows_rate"), (ALONE, "rows_rate"))
    yield at_least("Parquet: rows/s of the command, relative to the model alone in one thread", ratio, 0.5)
