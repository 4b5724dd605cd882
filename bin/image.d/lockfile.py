"""Lock files of the image: Debian packages and wheels by version and SHA-256."""

import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote

import container_engine
from archive import Image
from sbom import debian_packages, python_packages

BASE = "debian:trixie-slim"
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
DEBIAN_PACKAGES = [
    "base-files",
    "gcc-14-base",
    "libblas64-3",
    "libc6",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "libpython3.13-minimal",
    "libpython3.13-stdlib",
    "libsqlite3-0",
    "libstdc++6",
    "python3.13-minimal",
    "zlib1g",
]
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
WHEEL_PACKAGES = {
    "wheels.txt": ["numpy", "onnxruntime", "waitress"],
    "docs.txt": ["flask-swagger-ui"],
    "full.txt": ["psycopg", "psycopg-binary", "redis"],
}
LOOKUP_SCRIPT = """
dpkg --add-architecture {arch}
apt-get -qq update
for name in {names}; do apt-cache show --no-all-versions "$name:{arch}" | grep -E '^(Package|Version|Architecture|SHA256):'; done
"""


def write(tool: str, folder: Path) -> None:
    """Writes the lock files with the current versions of the archives."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT000000Z")
    for arch in ARCHITECTURES:
        lines = [f"# The image's Debian packages on {arch}, as sha256sum checks them; bin/image lock writes this file."]
        lines += [f"# snapshot {stamp}", *debian_lines(container_engine.runner(tool), arch)]
        (folder / f"debian.{arch}.lock").write_text("\n".join(lines) + "\n")
    for name, packages in WHEEL_PACKAGES.items():
        first = (folder / name).read_text().splitlines()[0]
        (folder / name).write_text("\n".join([first, *wheel_lines(packages)]) + "\n")


def debian_lines(runner: str, arch: str) -> list[str]:
    script = LOOKUP_SCRIPT.format(arch=arch, names=" ".join(DEBIAN_PACKAGES))
    command = [runner, "run", "--rm", "--network", "host", BASE, "sh", "-euc", script]
    listing = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    fields = re.findall(r"^(?:Package|Version|Architecture|SHA256): (.+)$", listing, re.MULTILINE)
    # apt encodes the colon of an epoch in file names this way.
    packages = zip(*(fields[i::4] for i in range(4)), strict=True)
    return [
        f"{digest}  {name}_{version.replace(':', '%3a')}_{package_arch}.deb" for name, version, package_arch, digest in packages
    ]


def wheel_lines(packages: list[str]) -> list[str]:
    """Returns the lines of a requirements file with the hashes of the wheels for all architectures."""
    found: dict[str, set[str]] = {}
    for machine in ARCHITECTURES.values():
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--dest",
                folder,
            ]
            command += ["--python-version", "3.13"]
            for platform in PLATFORMS:
                command += ["--platform", f"{platform}_{machine}"]
            subprocess.run([*command, *packages], check=True)
            for wheel in Path(folder).iterdir():
                name, version, *_ = wheel.name.split("-")
                found.setdefault(f"{name.replace('_', '-')}=={version}", set()).add(sha256(wheel.read_bytes()).hexdigest())
    order = sorted(found, key=lambda pinned: packages.index(pinned.partition("==")[0]))
    return [" \\\n".join([name, *(f"    --hash=sha256:{digest}" for digest in sorted(found[name]))]) for name in order]


def differences(image: Image, folder: Path) -> list[str]:
    """Returns a line for each package of the image that differs from the lock."""
    arch = image.config["architecture"]
    locked = re.findall(r"^\w{64}  (.+)_(.+)_\w+\.deb$", (folder / f"debian.{arch}.lock").read_text(), re.MULTILINE)
    expected = {name: unquote(version) for name, version in locked}
    installed = {name: version for name, version, _ in debian_packages(image)}
    texts = [(folder / name).read_text() for name in WHEEL_PACKAGES]
    expected |= {
        name.lower(): version for text in texts for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)
    }
    installed |= {name.lower(): version for name, version in python_packages(image)}
    return [
        f"{name} {installed[name]} is in the image, {expected.get(name)} in the lock"
        for name in installed
        if installed[name] != expected.get(name)
    ]
