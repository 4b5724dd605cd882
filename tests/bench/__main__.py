"""Benchmark: compares all servers in one run; bin/bench starts it."""

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import document
import earlier
import environments
import rows
from bench import Bench, Effort, expected_labels
from environments import HOME, ROOT, Unavailable
from results import Results
from runner import ALONE, log
from sections import SECTIONS
from servers import SERVERS

FULL, QUICK = Effort(20_000, 2.0, 2_000), Effort(2_000, 0.6, 2_000)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bin/bench",
        allow_abbrev=False,
        description="Compares this server with others, side by side.",
        epilog="bjoern is compiled here: it needs a C compiler and the headers of libev (Debian: apt install gcc libev-dev).",
    )
    named = f"sections ({', '.join(SECTIONS)}) or servers of the first section ({', '.join(known_servers())})"
    parser.add_argument("--only", metavar="NAME,NAME", help=f"measure only these: {named}")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="number of rounds; the figures are their medians (default 5; 1 with --quick)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="send few requests: shows that everything works; the figures are rough"
    )
    parser.add_argument(
        "--against", metavar="COMMIT", help="add this project at a commit of git to the servers, and the target relative to it"
    )
    parser.add_argument("--pin", action="store_true", help="give a server of one worker one CPU and the load another")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder of the report (default: docs; no report with --quick or for parts of a section)",
    )
    options = parser.parse_args()
    options.command = command_line(options)
    if options.against:
        try:
            earlier.add_row(options.against)
        except Unavailable as error:
            parser.error(f"--against {options.against}: {error}")
    return complete(options, parser)


def command_line(options: argparse.Namespace) -> str:
    """Returns the command for the report."""
    command = f"bin/bench{' --quick' * options.quick}{f' --only {options.only}' if options.only else ''}"
    command += f" --against {options.against}" if options.against else ""
    return command + " --pin" * options.pin + (f" --rounds {options.rounds}" if options.rounds else "")


def known_servers() -> list[str]:
    return [*(server.name for server in SERVERS), ALONE]


def complete(options: argparse.Namespace, parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Adds the sections, the servers, and the defaults of the other options."""
    known = known_servers()
    only = options.only.split(",") if options.only else list(SECTIONS)
    if unknown := set(only) - {*known, *SECTIONS}:
        parser.error(f"unknown section or server: {', '.join(sorted(unknown))}; known are {', '.join([*SECTIONS, *known])}")
    options.servers = known if "servers" in only else [name for name in only if name in known]
    options.servers += [earlier.NAME] if options.against and earlier.NAME not in options.servers else []
    options.sections = [name for name in SECTIONS if name in only or (name == "servers" and options.servers)]
    if options.out is None and not options.quick and set(only) <= set(SECTIONS):
        options.out = ROOT / "docs"
    options.rounds = max(1, options.rounds or (1 if options.quick else 5))
    return options


def main() -> None:
    options = parse_options()
    # The finally clauses that stop the servers do not run on a plain SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if 0 < hard < 16_384 else 16_384, hard))
    servers = {name: options.servers if name == "servers" else SECTIONS[name].servers for name in options.sections}
    used = [one.environment for one in SERVERS if any(one.name in names for names in servers.values())]
    broken = prepared(["ours", *used, *(name for section in options.sections for name in SECTIONS[section].environments)])
    if "ours" in broken:
        sys.exit(f"bin/bench: the package itself is {broken['ours']}")
    all_results = {section: Results(options.rounds, options.command) for section in options.sections}
    for section, results in all_results.items():
        absent = [one for one in SERVERS if one.environment in broken and one.name in servers[section]]
        results.failures |= {one.name: broken[one.environment] for one in absent}
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
        bench = make_bench(scratch, QUICK if options.quick else FULL, options)
        for number in range(1, options.rounds + 1):
            for section, results in all_results.items():
                SECTIONS[section].measure_round(number, bench, results)
    (HOME / "last.json").write_text(json.dumps({section: vars(results) for section, results in all_results.items()}, indent=1))
    write(options.out, all_results, "chart" not in broken)


def write(folder: Path | None, all_results: Mapping[str, Results], charts: bool) -> None:
    """Prints the sections, replaces them in benchmark.md, and draws their charts."""
    texts = {section: SECTIONS[section].text(results) for section, results in all_results.items()}
    print("\n".join(texts.values()))
    if folder is None:
        return
    folder.mkdir(exist_ok=True)
    file = folder / "benchmark.md"
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    file.write_text(document.merge_sections(before, texts, list(SECTIONS)), encoding="utf-8")
    for section, results in all_results.items():
        if charts and (draw := SECTIONS[section].draw):
            draw(folder, results, environments.python("chart"))
    log(f"wrote {', '.join(texts)} to {file}")


def prepared(names: Sequence[str]) -> dict[str, str]:
    """Creates the environments, and returns the reason for each that cannot be created."""
    reasons = {}
    for name in dict.fromkeys(names):
        try:
            environments.ensure(name)
        except Unavailable as error:
            reasons[name] = str(error)
            log(f"{name}: {error}")
    return reasons


def make_bench(scratch: str, effort: Effort, options: argparse.Namespace) -> Bench:
    """Returns the available CPUs, and a sample of rows with the labels that onnxruntime computes."""
    sample = rows.random_rows(200, 3)
    return Bench(
        sorted(os.sched_getaffinity(0))[:2],
        scratch,
        sample,
        expected_labels(sample, scratch),
        effort,
        options.pin,
        options.servers,
    )


if __name__ == "__main__":
    main()
