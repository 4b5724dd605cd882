"""Whole files: the batch command, compared with the usual pandas script and with the model alone."""

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
from bench import MODEL, Bench, TrialFailed, environ
from document import section_text
from report import format_value, markdown_table
from results import Results
from runner import log, run_trial
from targets import at_least, at_most

HEADING = "Whole files"
USED = ("batch", "scripts")
ALONE, ALONE_ROWS = "the model alone on an array", 10_000
FORMATS = {"csv": "CSV", "jsonl": "JSON lines", "parquet": "Parquet"}
# Rows of the small, the usual, and the large file, as multiples of the requests of the effort. The usual file measures speed, the
# others memory.
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
    """Returns the title of each way to score a file by its name."""
    return {"one": "iris_wsgi, 1 process", "all": f"iris_wsgi, {bench_cpus} processes", "script": "script with pandas"}


def measure_round(number: int, bench: Bench, results: Results) -> None:
    results.add("machine", {"cpus": len(bench.cpus), "rows": file_sizes(bench)[1]})
    run_trial(ALONE, number, results, functools.partial(alone, bench))
    for kind in FORMATS:
        for way in ways(0):
            run_trial(f"{kind} {way}", number, results, functools.partial(trial, kind, way, bench))
    for kind in FORMATS:
        run_trial(f"{kind} sizes", number, results, functools.partial(measure_memory_by_size, kind, bench))


def file_sizes(bench: Bench) -> list[int]:
    return [int(bench.effort.requests * share) for share in (SMALL, USUAL, LARGE)]


@functools.cache
def input_files(scratch: str, *counts: int) -> Path:
    """Returns the folder of the input files, which a run of the benchmark writes once."""
    log(f"writing files of {', '.join(f'{count:,}' for count in counts)} rows")
    run_helper(scratch, "write", scratch, *map(str, counts))
    return Path(scratch)


def run_helper(scratch: str, *words: str) -> None:
    """Runs batch_files.py. Raises TrialFailed with its last line."""
    command = [environments.python("scripts"), "-B", str(environments.BENCH / "batch_files.py"), *words]
    path = {"PYTHONPATH": str(environments.BENCH)}
    done = subprocess.run(command, env=environ(scratch) | path, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise TrialFailed((done.stderr.strip().splitlines() or ["no reason given"])[-1])


def alone(bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Returns rows/s and CPU of the model in a separate process."""
    command = [environments.python("ours"), "-B", str(environments.BENCH / "inprocess_model.py")]
    command += [MODEL, str(bench.effort.seconds), f"{bench.scratch}/alone"]
    done = subprocess.run(command, env=environ(bench.scratch), capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout)
    return {"rows_rate": found["rate"] * ALONE_ROWS, "cpu_row": found["cpu"] / ALONE_ROWS * 1e6}, []


def command_for(way: str, kind: str, rows: int, bench: Bench) -> tuple[list[str], Path]:
    """Returns the command that scores a file, and the path of its output."""
    source, target = input_files(bench.scratch, *file_sizes(bench)) / f"{rows}.{kind}", Path(bench.scratch) / f"out_{way}.{kind}"
    if way == "script":
        script = Path(environments.BENCH) / "peers" / "pandas_script.py"
        return [environments.python("scripts"), str(script), str(source), str(target), MODEL], target
    words = [environments.python("batch"), "-m", "iris_wsgi", "batch", str(source), str(target), "--keep", "id", "--force"]
    return [*words, "--quiet", "--model-dir", MODEL, "--workers", str(1 if way == "one" else len(bench.cpus))], target


def trial(kind: str, way: str, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Scores a file and compares the output with that of the other ways. Raises TrialFailed."""
    rows = file_sizes(bench)[1]
    command, target = command_for(way, kind, rows, bench)
    seconds, cpu, memory = run_measured(command, bench)
    if way == "all" and digest(target) != digest(target.with_name(f"out_one.{kind}")):
        raise TrialFailed("several processes write another output than one process")
    if way == "script":
        run_helper(bench.scratch, "compare", str(target.with_name(f"out_all.{kind}")), str(target))
    return {"rows_rate": rows / seconds, "cpu_row": cpu / rows * 1e6, "memory": memory / 1e6}, []


def measure_memory_by_size(kind: str, bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Returns the memory for a small and a large file. Raises TrialFailed."""
    small, _, large = file_sizes(bench)
    found = {}
    for name, rows in (("small", small), ("large", large)):
        command, target = command_for("all", kind, rows, bench)
        found[f"memory_{name}"] = run_measured(command, bench)[2] / 1e6
        target.unlink()
    return found, []


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_measured(command: Sequence[str], bench: Bench) -> tuple[float, float, int]:
    """Runs a command. Returns its seconds, its CPU seconds, and the peak memory of all its processes. Raises TrialFailed."""
    ended, peak = threading.Event(), 0

    def watch() -> None:
        nonlocal peak
        while not ended.wait(SAMPLE_SECONDS):
            peak = max(peak, processes.memory(process.pid))

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
            # Without it, Popen would wait for the process again.
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
            raise TrialFailed(f"exited with status {process.returncode}: {(lines or ['no reason given'])[-1]}")
    return seconds, usage.ru_utime + usage.ru_stime, peak


def text(results: Results) -> str:
    cpus = int(results.value("machine", "cpus") or 1)
    titles = ways(cpus)
    lines = [[ALONE, "", format_value(results.value(ALONE, "rows_rate"), "{:,.0f}"), "", "1.00"]]
    lines[0] += [format_value(results.value(ALONE, "cpu_row"), "{:.2f}"), "1.00", "", ""]
    for kind, format_ in FORMATS.items():
        for way, title in titles.items():
            name, script = f"{kind} {way}", f"{kind} script"
            rate = results.value(name, "rows_rate")
            lines.append([title, format_, format_value(rate, "{:,.0f}")])
            lines[-1] += [format_value(results.ratio((name, "rows_rate"), (script, "rows_rate")), "{:.2f}")]
            lines[-1] += [format_value(results.ratio((name, "rows_rate"), (ALONE, "rows_rate")), "{:.2f}")]
            lines[-1] += [format_value(results.value(name, "cpu_row"), "{:.2f}")]
            lines[-1] += [format_value(results.ratio((ALONE, "cpu_row"), (name, "cpu_row")), "{:.2f}")]
            lines[-1] += [format_value(results.value(name, "memory"), "{:.0f}")]
            lines[-1] += [format_value(results.ratio((name, "memory"), (script, "memory")), "{:.2f}")]
    rows = f"{results.value('machine', 'rows') or 0:,.0f} rows"
    headings = [rows, "in and out", "rows/s", "to the script", "to the model alone", "CPU µs per row", "model share"]
    headings += ["peak MB", "to the script"]
    tables = markdown_table(headings, lines)
    tables += f"\nPeak memory of iris_wsgi with {cpus} processes, by the size of the file:\n\n" + markdown_table(
        *by_size_table(results)
    )
    return section_text(results, HEADING, tables, METHOD, targets(results, cpus), USED)


def by_size_table(results: Results) -> tuple[list[str], list[list[str]]]:
    usual = results.value("machine", "rows") or 0
    small, large = usual * SMALL / USUAL, usual * LARGE / USUAL
    lines = []
    for kind, format_ in FORMATS.items():
        found = [results.value(f"{kind} sizes", f"memory_{size}") for size in ("small", "large")]
        added = None if None in found else found[1] - found[0]
        lines.append([format_, *(format_value(one, "{:.0f}") for one in found), format_value(added, "{:+.0f}")])
    return ["in and out", f"MB at {small:,.0f} rows", f"MB at {large:,.0f} rows", "added MB"], lines


def targets(results: Results, cpus: int) -> Iterator[str]:
    """Yields the verdicts: faster than the script, with half its memory."""
    for kind, format_ in FORMATS.items():
        for way, count in (("all", cpus), ("one", 1)):
            name, script = f"{kind} {way}", f"{kind} script"
            with_ = f"with {count} process{'es' * (count > 1)}"
            rate = results.ratio((name, "rows_rate"), (script, "rows_rate"))
            memory = results.ratio((name, "memory"), (script, "memory"))
            yield at_least(f"{format_}: rows/s {with_}, relative to the script", rate, 1.0)
            yield at_most(f"{format_}: peak memory {with_}, relative to the script", memory, 0.5)
    for what, over, under in (
        ("rows/s, relative to the model alone in one thread", 1, 0),
        ("the model alone, as a share of all CPU", 0, 1),
    ):
        figure = "rows_rate" if over else "cpu_row"
        ratios = []
        for kind, format_ in FORMATS.items():
            for way, count in (("all", cpus), ("one", 1)):
                both = (ALONE, figure), (f"{kind} {way}", figure)
                ratios.append(f"{format_value(results.ratio(both[over], both[under]), '{:.2f}')} {format_} ({count})")
        yield f"INFO {what}, by format and processes: {', '.join(ratios)}"
