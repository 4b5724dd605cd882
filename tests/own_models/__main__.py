"""Judge of own models: packs every kind of model and compares every prediction with the library; .ci/own-models starts it."""

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

from given_folders import judge_folder  # noqa: E402
from judge import Verdict, judge  # noqa: E402
from kinds import KINDS  # noqa: E402
from own_model import ROWS, Kind  # noqa: E402
from predictions import application, server  # noqa: E402


def main() -> int:
    options = parse_options()
    if options.list:
        print("\n".join(map(line_of, KINDS)))
        return 0
    warnings.simplefilter("ignore")
    began, verdicts = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="own-models-") as scratch:
        print(f"{'kind':42} {'packed as':10} {'outcome':8} {'worst':8} seconds")
        for verdict in verdicts_of(options, Path(scratch)):
            verdicts.append(verdict)
            print(row_of(verdict), flush=True)
            if options.verbose and verdict.refusal:
                print(f"    {verdict.refusal.strip()}")
    failed = [verdict for verdict in verdicts if verdict.faults]
    for verdict in failed:
        print(f"\nFAILED: {verdict.kind} ({verdict.packed_as})")
        for fault in verdict.faults:
            print(f"    {fault}")
    refused = sum(bool(verdict.refusal) for verdict in verdicts)
    print(
        f"\n{len({verdict.kind for verdict in verdicts})} kinds, {len(verdicts)} models packed: {len(verdicts) - refused} served,"
        f" {refused} refused, {len(failed)} failed, in {time.monotonic() - began:.0f} s"
    )
    return 1 if failed else 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=".ci/own-models", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="names of kinds (default: all)")
    parser.add_argument("--fast", action="store_true", help="the half of the kinds that CI runs")
    parser.add_argument("--live", action="store_true", help="start a server process for each model")
    parser.add_argument("--pack-rows", type=int, default=ROWS, metavar="N", help=f"rows that pack sees, of {ROWS} (default all)")
    parser.add_argument("--list", action="store_true", help="print the kinds and their required outcomes, and end")
    parser.add_argument(
        "--folders", type=Path, metavar="DIR", help="judge the models in the folders of DIR in place of the kinds"
    )
    parser.add_argument("--verbose", action="store_true", help="print the message of each refusal")
    options = parser.parse_args()
    if unknown := set(options.kinds) - {kind.name for kind in KINDS} if options.folders is None else None:
        parser.error(f"unknown kinds: {', '.join(sorted(unknown))}")
    return options


def verdicts_of(options: argparse.Namespace, scratch: Path) -> Iterator[Verdict]:
    serve = server if options.live else application
    if options.folders is not None:
        for folder in sorted(path.parent for path in options.folders.glob("*/model.onnx")):
            if not options.kinds or folder.name in options.kinds:
                yield judge_folder(folder, scratch, serve)
        return
    for kind in KINDS:
        if (kind.name in options.kinds) if options.kinds else not (options.fast and kind.slow):
            yield from judge(kind, scratch, serve, options.pack_rows)


def line_of(kind: Kind) -> str:
    outcome = "served" if not kind.refused else "served or refused" if kind.may_serve else "refused"
    return f"{kind.name:42} {outcome:18} {'' if kind.slow else 'fast':5} {kind.summary}"


def row_of(verdict: Verdict) -> str:
    outcome = "FAILED" if verdict.faults else "refused" if verdict.refusal else "served"
    worst = "" if verdict.refusal else f"{verdict.worst:.1e}"
    return f"{verdict.kind:42} {verdict.packed_as:10} {outcome:8} {worst:8} {verdict.seconds:7.1f}"


if __name__ == "__main__":
    sys.exit(main())
