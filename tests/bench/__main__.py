"""The benchmark: all servers side by side, in turns; bin/bench starts it."""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import environments
import report
import rows
from bench import Bench, Effort, environ
from environments import HOME, ROOT, Unavailable
from outcome import Outcome
from rounds import ALONE, measure_round, say
from servers import PEERS, SERVERS

KNOWN = [*(server.name for server in SERVERS), ALONE]
FULL, QUICK = Effort(20_000, 2.0, 2_000), Effort(2_000, 0.6, 2_000)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bin/bench", description="Compares this server with others, side by side.")
    parser.add_argument("--only", metavar="NAME,NAME", help=f"measure these alone: {', '.join(KNOWN)}")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds whose medians are shown (default 5; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="few requests: shows that all works, its figures are rough")
    parser.add_argument("--pin", action="store_true", help="one CPU for a server of one worker and another for the load")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where to write (default: docs; nowhere with --quick or --only)"
    )
    given = parser.parse_args()
    given.command = f"bin/bench{' --quick' * given.quick}{f' --only {given.only}' if given.only else ''}"
    given.command += " --pin" * given.pin
    given.command += f" --rounds {given.rounds}" if given.rounds else ""
    if given.out is None and not given.quick and not given.only:
        given.out = ROOT / "docs"
    given.only = given.only.split(",") if given.only else KNOWN
    if unknown := set(given.only) - set(KNOWN):
        parser.error(f"no such server: {', '.join(sorted(unknown))}; there are {', '.join(KNOWN)}")
    given.rounds = max(1, given.rounds or (1 if given.quick else 5))
    return given


def main() -> None:
    given = options()
    # Servers are ended by finally clauses, which a bare SIGTERM would skip.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if 0 < hard < 16_384 else 16_384, hard))
    chosen = [server for server in SERVERS if server.name in given.only]
    broken = prepared(["ours", "chart", *(server.environment for server in chosen)])
    if "ours" in broken:
        sys.exit(f"bin/bench: the package itself is {broken['ours']}")
    outcome = Outcome(given.rounds, given.command)
    outcome.reasons |= {server.name: broken[server.environment] for server in chosen if server.environment in broken}
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
        bench = make_bench(scratch, QUICK if given.quick else FULL, given.pin)
        for number in range(1, given.rounds + 1):
            measure_round(number, given.only, bench, outcome)
    (HOME / "last.json").write_text(json.dumps(vars(outcome), indent=1))
    text = report.text(outcome)
    print(text)
    if given.out:
        report.write(given.out, text, outcome, None if "chart" in broken else environments.python("chart"))
        say(f"wrote {'benchmark.md' if 'chart' in broken else 'benchmark.md and benchmark.png'} to {given.out}")


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


def make_bench(scratch: str, effort: Effort, pin: bool) -> Bench:
    """The CPUs at hand, and a sample of rows with the labels that onnxruntime gives them."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    sample = rows.drawn(200, 3)
    asked = {"input": json.dumps(sample), "capture_output": True, "text": True, "timeout": 60, "env": environ(scratch)}
    done = subprocess.run([environments.python("ours"), f"{PEERS}/classifier.py"], check=True, **asked)
    return Bench(cpus, scratch, sample, json.loads(done.stdout), effort, pin)


if __name__ == "__main__":
    main()
