"""The commands of bin/image: build, report, verify, sbom, compare, lock."""

import argparse
import subprocess
import sys
from pathlib import Path

import archive
import compare
import container_engine
import lockfile
import report
import sbom

ROOT = Path(__file__).resolve().parent.parent.parent
IMAGE = "model-in-image-pattern:v1.0"
# Targets, and the required file that is not in the repository, if any. bin/edge build writes it.
TARGETS = {"default": None, "full": None, "edge": "dist/edge/manifest.json"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bin/image", description="Builds the image and reports its contents.")
    parser.add_argument(
        "--with", dest="tool", choices=container_engine.TOOLS, help="build with this (default: the first that works)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run in COMMANDS.items():
        command = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        command.set_defaults(run=run)
        if run in (build, print_report, verify, write_sbom):
            command.add_argument(
                "--target",
                choices=tuple(TARGETS),
                default="default",
                help="full has the packages of other roles, edge a bundle for devices",
            )
            command.add_argument("--tag", help=f"the image's name (default {IMAGE}, for another target {IMAGE}-TARGET)")
        if run is write_sbom:
            command.add_argument("--out", type=Path, help="the file to write (default dist/sbom.cdx.json)")
        if run is compare_with_tutorial:
            command.add_argument("--rounds", type=int, default=7, help="how many times to start each image (default 7)")
    options = parser.parse_args()
    try:
        if options.run in (build, verify) and (file := TARGETS[options.target]) and not (ROOT / file).exists():
            raise container_engine.EngineError(f"{file} is not there; bin/edge build writes it")
        options.tool = options.tool or container_engine.first_working_tool()
        return options.run(options)
    except container_engine.EngineError as error:
        print(f"bin/image: {error}", file=sys.stderr)
    except subprocess.CalledProcessError as error:
        print(f"bin/image: {' '.join(map(str, error.cmd[:3]))}… failed with status {error.returncode}", file=sys.stderr)
    return 1


def tag_of(options: argparse.Namespace) -> str:
    if options.tag:
        # Podman does not accept an archive of an image whose name has no version.
        return options.tag if ":" in options.tag else f"{options.tag}:latest"
    return IMAGE if options.target == "default" else f"{IMAGE}-{options.target}"


def build(options: argparse.Namespace) -> int:
    """build the image"""
    container_engine.build(options.tool, ROOT, options.target, tag_of(options))
    print(f"{tag_of(options)} {archive.normalize(options.tool, tag_of(options))}")
    return 0


def print_report(options: argparse.Namespace) -> int:
    """print the parts of the image: bytes by part, compressed size, files"""
    print(report.text(tag_of(options), archive.read(options.tool, tag_of(options))))
    return 0


def verify(options: argparse.Namespace) -> int:
    """build twice from scratch and compare; compare with the lock too"""
    ids = []
    for _ in range(2):
        container_engine.build(options.tool, ROOT, options.target, tag_of(options), fresh=True)
        ids.append(archive.normalize(options.tool, tag_of(options)))
    print(*ids, sep="\n")
    mismatches = lockfile.differences(archive.read(options.tool, tag_of(options)), Path(__file__).parent)
    print(*mismatches, sep="\n", end="\n" if mismatches else "")
    same = ids[0] == ids[1]
    print("both builds gave the same image" if same else "the two builds differ")
    return 0 if same and not mismatches else 1


def write_sbom(options: argparse.Namespace) -> int:
    """write the contents of the image as a CycloneDX document"""
    out = options.out or ROOT / "dist" / ("sbom.cdx.json" if options.target == "default" else f"sbom-{options.target}.cdx.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(sbom.text(tag_of(options), archive.read(options.tool, tag_of(options))))
    print(out)
    return 0


def compare_with_tutorial(options: argparse.Namespace) -> int:
    """start this image and that of the usual tutorial in turn; compare size, time to the first response, and memory"""
    return compare.main(options.tool, ROOT, IMAGE, options.rounds)


def lock(options: argparse.Namespace) -> int:
    """look up today's Debian packages and wheels and write the lock files"""
    lockfile.write(options.tool, Path(__file__).parent)
    return 0


COMMANDS = {
    "build": build,
    "report": print_report,
    "verify": verify,
    "sbom": write_sbom,
    "compare": compare_with_tutorial,
    "lock": lock,
}

if __name__ == "__main__":
    sys.exit(main())
