"""The commands of bin/image: build, report, verify, sbom, save, compare, lock."""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import archive
import compare
import container_engine
import lockfile
import model_folder
import report
import sbom

from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import manifest_digest

ROOT = Path(__file__).resolve().parent.parent.parent
IMAGE = "model-in-image-pattern:v1.0"
# Targets, and the required file that is not in the repository, if any. bin/edge build writes it.
TARGETS = {"default": None, "full": None, "edge": "dist/edge/manifest.json"}
# Folder of the copies of other models, which the Dockerfile may copy.
COPIES = ROOT / "dist/image-model"


def main() -> int:
    parser = argparse.ArgumentParser(prog="bin/image", description="Builds the image and reports its contents.")
    parser.add_argument(
        "--with", dest="tool", choices=container_engine.TOOLS, help="build with this (default: the first that works)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run in COMMANDS.items():
        command = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        command.set_defaults(run=run)
        if run in (build, print_report, verify, write_sbom, save):
            command.add_argument(
                "--target",
                choices=tuple(TARGETS),
                default="default",
                help="full has the packages of other roles, edge a bundle for devices",
            )
            command.add_argument("--tag", help=f"the image's name (default {IMAGE}, for another target {IMAGE}-TARGET)")
        if run in (build, verify):
            command.add_argument(
                "--model-dir", type=Path, default=ROOT / container_engine.MODEL, help="folder of the model (default model)"
            )
        if run is write_sbom:
            command.add_argument("--out", type=Path, help="the file to write (default dist/sbom.cdx.json)")
        if run is save:
            command.add_argument("--out", type=Path, help="the file to write (default dist/image.tar, or dist/image-TARGET.tar)")
        if run is compare_with_tutorial:
            command.add_argument("--rounds", type=int, default=7, help="how many times to start each image (default 7)")
    options = parser.parse_args()
    try:
        if options.run in (build, verify) and (file := TARGETS[options.target]) and not (ROOT / file).exists():
            raise container_engine.EngineError(f"{file} is not there; bin/edge build writes it")
        if options.run in (build, verify) and is_own(options) and not options.tag:
            raise container_engine.EngineError("an image with your own model needs a name: add --tag NAME")
        options.tool = options.tool or container_engine.first_working_tool()
        return options.run(options)
    except (container_engine.EngineError, BadModel) as error:
        print(f"bin/image: {error}", file=sys.stderr)
    except subprocess.CalledProcessError as error:
        print(f"bin/image: {' '.join(map(str, error.cmd[:3]))}… failed with status {error.returncode}", file=sys.stderr)
    return 1


def tag_of(options: argparse.Namespace) -> str:
    if options.tag:
        # Podman does not accept an archive of an image whose name has no version.
        return options.tag if ":" in options.tag else f"{options.tag}:latest"
    return IMAGE if options.target == "default" else f"{IMAGE}-{options.target}"


def is_own(options: argparse.Namespace) -> bool:
    return options.model_dir.resolve() != (ROOT / container_engine.MODEL).resolve()


@contextmanager
def model_in_root(options: argparse.Namespace) -> Iterator[str]:
    """Yields the path in the root of the model's folder: that of the project, or a copy of the user's. Raises BadModel."""
    folder = options.model_dir
    if options.target == "edge":
        check_bundle(json.loads((ROOT / TARGETS["edge"]).read_text())["model"], folder)
    if not is_own(options):
        yield container_engine.MODEL
        return
    COPIES.mkdir(parents=True, exist_ok=True)
    copies = Path(tempfile.mkdtemp(dir=COPIES))
    try:
        for line in model_folder.copy(folder, copies / "model"):
            print(f"bin/image: {line}", file=sys.stderr)
        yield str((copies / "model").relative_to(ROOT))
    finally:
        shutil.rmtree(copies)


def check_bundle(model: dict[str, str], folder: Path) -> None:
    """Raises EngineError if the edge bundle is not one of the model in the folder."""
    found, expected = model.get("source", model["digest"]), manifest_digest(folder)
    if found != expected:
        raise container_engine.EngineError(
            f"dist/edge is a bundle of the model {found}, and {folder} has {expected}: run bin/edge build --model-dir {folder}"
        )


def build(options: argparse.Namespace) -> int:
    """build the image, with your own model if --model-dir names its folder"""
    with model_in_root(options) as model:
        container_engine.build(options.tool, ROOT, options.target, tag_of(options), model=model)
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
        with model_in_root(options) as model:
            container_engine.build(options.tool, ROOT, options.target, tag_of(options), fresh=True, model=model)
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


def save(options: argparse.Namespace) -> int:
    """write the image as an archive that clusters load, under the name in the manifests"""
    out = options.out or ROOT / "dist" / ("image.tar" if options.target == "default" else f"image-{options.target}.tar")
    out.parent.mkdir(parents=True, exist_ok=True)
    name = container_engine.full_name(tag_of(options))
    archive.write_normalized(options.tool, tag_of(options), name, out)
    print(f"{out} {name}")
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
    "save": save,
    "compare": compare_with_tutorial,
    "lock": lock,
}

if __name__ == "__main__":
    sys.exit(main())
