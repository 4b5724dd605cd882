"""The benchmark: all servers side by side, in turns; bin/bench starts it."""

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
import environments
import rows
from bench import Bench, Effort, known
from environments import HOME, ROOT, Unavailable
from results import Outcome
from runner import ALONE, say
from sections import SECTIONS
from servers import SERVERS

KNOWN = [*(server.name for server in SERVERS), ALONE]
FULL, QUICK = Effort(20_000, 2.0, 2_000), Effort(2_000, 0.6, 2_000)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bin/bench", allow_abbrev=False, description="Compares this server with others, side by side."
    )
    named = f"the sections {', '.join(SECTIONS)}; or servers of the first: {', '.join(KNOWN)}"
    parser.add_argument("--only", metavar="NAME,NAME", help=f"measure these alone: {named}")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds whose medians are shown (default 5; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="few requests: shows that all works, its figures are rough")
    parser.add_argument("--pin", action="store_true", help="one CPU for a server of one worker and another for the load")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where to write what was measured (default: docs; nowhere with --quick or parts of a section)",
    )
    given = parser.parse_args()
    given.command = f"bin/bench{' --quick' * given.quick}{f' --only {given.only}' if given.only else ''}"
    given.command += " --pin" * given.pin
    given.command += f" --rounds {given.rounds}" if given.rounds else ""
    only = given.only.split(",") if given.only else list(SECTIONS)
    if unknown := set(only) - {*KNOWN, *SECTIONS}:
        parser.error(f"no such section or server: {', '.join(sorted(unknown))}; there are {', '.join([*SECTIONS, *KNOWN])}")
    given.servers = KNOWN if "servers" in only else [name for name in only if name in KNOWN]
    given.sections = [name for name in SECTIONS if name in only or (name == "servers" and given.servers)]
    if given.out is None and not given.quick and set(only) <= set(SECTIONS):
        given.out = ROOT / "docs"
    given.rounds = max(1, given.rounds or (1 if given.quick else 5))
    return given


def main() -> None:
    given = options()
    # Servers are ended by finally clauses, which a bare SIGTERM would skip.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if 0 < hard < 16_384 else 16_384, hard))
    servers = {name: given.servers if name == "servers" else SECTIONS[name].servers for name in given.sections}
    used = [one.environment for one in SERVERS if any(one.name in names for names in servers.values())]
    broken = prepared(["ours", *used, *(name for section in given.sections for name in SECTIONS[section].environments)])
    if "ours" in broken:
        sys.exit(f"bin/bench: the package itself is {broken['ours']}")
    outcomes = {section: Outcome(given.rounds, given.command) for section in given.sections}
    for section, outcome in outcomes.items():
        absent = [one for one in SERVERS if one.environment in broken and one.name in servers[section]]
        outcome.reasons |= {one.name: broken[one.environment] for one in absent}
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
        bench = make_bench(scratch, QUICK if given.quick else FULL, given)
        for number in range(1, given.rounds + 1):
            for section, outcome in outcomes.items():
                SECTIONS[section].measure_round(number, bench, outcome)
    (HOME / "last.json").write_text(json.dumps({section: vars(outcome) for section, outcome in outcomes.items()}, indent=1))
    write(given.out, outcomes, "chart" not in broken)


def write(folder: Path | None, outcomes: Mapping[str, Outcome], charts: bool) -> None:
    """Prints the sections, and puts them into benchmark.md in place of what they said before; draws their charts."""
    texts = {section: SECTIONS[section].text(outcome) for section, outcome in outcomes.items()}
    print("\n".join(texts.values()))
    if folder is None:
        return
    folder.mkdir(exist_ok=True)
    file = folder / "benchmark.md"
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    file.write_text(document.merged(before, texts, list(SECTIONS)), encoding="utf-8")
    for section, outcome in outcomes.items():
        if charts and (draw := SECTIONS[section].draw):
            draw(folder, outcome, environments.python("chart"))
    say(f"wrote {', '.join(texts)} to {file}")


def prepared(names: Sequence[str]) -> dict[str, str]:
    """Makes the environments; gives the reason for each that could not be made."""
    reasons = {}
    for name in dict.fromkeys(names):
        try:
            environments.ensure(name)
        except Unavailable as error:
            reasons[name] = str(error)
            say(f"{name}: {error}")
    return reasons


def make_bench(scratch: str, effort: Effort, given: argparse.Namespace) -> Bench:
    """The CPUs at hand, and a sample of rows with the labels that onnxruntime gives them."""
    sample = rows.drawn(200, 3)
    return Bench(sorted(os.sched_getaffinity(0))[:2], scratch, sample, known(sample, scratch), effort, given.pin, given.servers)


if __name__ == "__main__":
    main()
