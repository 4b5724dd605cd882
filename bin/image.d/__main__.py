"""The commands of bin/image: build, report, verify, sbom, compare, lock."""

import argparse
import subprocess
import sys
from pathlib import Path

import archive
import compare
import engine
import lock
import report
import sbom

ROOT = Path(__file__).resolve().parent.parent.parent
IMAGE = "model-in-image-pattern:v1.0"
# Targets, and the required file that is not in the repository, if any. bin/edge build writes it.
TARGETS = {"default": None, "full": None, "edge": "dist/edge/manifest.json"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bin/image", description="Builds the image and reports its contents.")
    parser.add_argument("--with", dest="tool", choices=engine.TOOLS, help="build with this (default: the first that works)")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run in COMMANDS.items():
        command = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        command.set_defaults(run=run)
        if run in (build, show, verify, bill):
            command.add_argument(
                "--target",
                choices=tuple(TARGETS),
                default="default",
                help="full has the packages of other roles, edge a bundle for devices",
            )
            command.add_argument("--tag", help=f"the image's name (default {IMAGE}, for another target {IMAGE}-TARGET)")
        if run is bill:
            command.add_argument("--out", type=Path, help="the file to write (default dist/sbom.cdx.json)")
        if run is against:
            command.add_argument("--rounds", type=int, default=7, help="how many times to start each image (default 7)")
    given = parser.parse_args()
    try:
        if given.run in (build, verify) and (file := TARGETS[given.target]) and not (ROOT / file).exists():
            raise engine.Missing(f"{file} is not there; bin/edge build writes it")
        given.tool = given.tool or engine.first_that_works()
        return given.run(given)
    except engine.Missing as error:
        print(f"bin/image: {error}", file=sys.stderr)
    except subprocess.CalledProcessError as error:
        print(f"bin/image: {' '.join(map(str, error.cmd[:3]))}… failed with status {error.returncode}", file=sys.stderr)
    return 1


def tag_of(given: argparse.Namespace) -> str:
    if given.tag:
        # Podman does not accept an archive of an image whose name has no version.
        return given.tag if ":" in given.tag else f"{given.tag}:latest"
    return IMAGE if given.target == "default" else f"{IMAGE}-{given.target}"


def build(given: argparse.Namespace) -> int:
    """build the image"""
    engine.build(given.tool, ROOT, given.target, tag_of(given))
    print(f"{tag_of(given)} {archive.settle(given.tool, tag_of(given))}")
    return 0


def show(given: argparse.Namespace) -> int:
    """print the parts of the image: bytes by part, compressed size, files"""
    print(report.text(tag_of(given), archive.read(given.tool, tag_of(given))))
    return 0


def verify(given: argparse.Namespace) -> int:
    """build twice from scratch and compare; compare with the lock too"""
    ids = []
    for _ in range(2):
        engine.build(given.tool, ROOT, given.target, tag_of(given), fresh=True)
        ids.append(archive.settle(given.tool, tag_of(given)))
    print(*ids, sep="\n")
    strays = lock.differences(archive.read(given.tool, tag_of(given)), Path(__file__).parent)
    print(*strays, sep="\n", end="\n" if strays else "")
    same = ids[0] == ids[1]
    print("both builds gave the same image" if same else "the two builds differ")
    return 0 if same and not strays else 1


def bill(given: argparse.Namespace) -> int:
    """write the contents of the image as a CycloneDX document"""
    out = given.out or ROOT / "dist" / ("sbom.cdx.json" if given.target == "default" else f"sbom-{given.target}.cdx.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(sbom.text(tag_of(given), archive.read(given.tool, tag_of(given))))
    print(out)
    return 0


def against(given: argparse.Namespace) -> int:
    """start this image and that of the usual tutorial in turn; compare size, time to the first response, and memory"""
    return compare.main(given.tool, ROOT, IMAGE, given.rounds)


def pin(given: argparse.Namespace) -> int:
    """look up today's Debian packages and wheels and write the lock files"""
    lock.write(given.tool, Path(__file__).parent)
    return 0


COMMANDS = {"build": build, "report": show, "verify": verify, "sbom": bill, "compare": against, "lock": pin}

if __name__ == "__main__":
    sys.exit(main())
