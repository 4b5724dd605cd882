"""Builds the root file system of the image, inside the build stage: only the files that the server needs, and their licenses."""

import argparse
import gzip
import inspect
import os
import py_compile
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

PYTHON = "usr/lib/python3.13"
PACKAGES = "usr/local/lib/python3.13/dist-packages"
DATA = ("usr/lib/os-release", "etc/debian_version")
LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "etc/os-release": "../usr/lib/os-release"}
PRUNED = Path(__file__).with_name("pruned.txt")
# numpy's wheel has OpenBLAS, 24 MB for matrices that no code here multiplies. It gets the reference BLAS of Debian instead,
# whose functions have other names. This module replaces LAPACK.
NO_LAPACK = '''"""Replacement for LAPACK, which this image does not have."""


def __getattr__(name: str) -> object:
    raise ImportError("numpy in this image has no LAPACK: numpy.linalg cannot decompose, invert, or solve")
'''
BLAS = "libblas64.so.3"
# Modules that become empty: two that attach docstrings to numpy's compiled functions at each start, and the asyncio part of
# redis-py, which requires the module ssl.
EMPTIED = ("numpy/_core/_add_newdocs.py", "numpy/_core/_add_newdocs_scalars.py", "redis/asyncio/__init__.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    for run in (base, additions, bytecode, folder):
        command = commands.add_parser(run.__name__, help=(run.__doc__ or "").splitlines()[0])
        command.set_defaults(run=run)
        for name in inspect.signature(run).parameters:
            command.add_argument(name, type=Path)
    options = vars(parser.parse_args())
    options.pop("run")(**options)


def base(debs: Path, wheels: Path, stdlib: Path, root: Path) -> None:
    """Builds the root file system without the code of the server and its model."""
    unpacked = root.with_name("unpacked")
    for deb in sorted(debs.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", deb, unpacked], check=True)
    copy_stdlib(unpacked, root, stdlib)
    copy_packages(wheels, root / PACKAGES)
    # The server sends the files of the API page as they are. The notices are a third of a megabyte of text.
    compress_files(root / PACKAGES / "flask_swagger_ui/dist", "*.css", "*.js")
    compress_files(root / PACKAGES / "onnxruntime", "ThirdPartyNotices.txt")
    replace_openblas(root / PACKAGES / "numpy")
    copy_file(unpacked / "usr/bin/python3.13", root / "usr/bin/python3.13")
    copy_libraries(unpacked, root)
    copy_data(unpacked, root)
    copy_notices(debs, unpacked, root)


def additions(first: Path, debs: Path, wheels: Path, stdlib: Path, root: Path) -> None:
    """Builds a second root file system with more packages and modules, without the files of the first one."""
    unpacked = first.with_name("unpacked")
    copy_stdlib(unpacked, root, stdlib)
    copy_packages(wheels, root / PACKAGES)
    link_ssl_with_psycopg_openssl(root)
    copy_libraries(unpacked, root)
    copy_notices(debs, unpacked, root)
    for path in [*root.rglob("*")]:
        if not path.is_dir() and os.path.lexists(first / path.relative_to(root)):
            path.unlink()


def bytecode(root: Path) -> None:
    """Replaces each module by its .pyc, and resets the times of all files."""
    for path in sorted(root.rglob("*.py")):
        # numpy modifies its docstrings, and our code runs as it is tested. The other packages lose docstrings and asserts.
        level = 0 if {"numpy", "iris_wsgi"} & {*path.parts} else 2
        source_name = f"/{path.relative_to(root)}"
        # The header has the hash of the source, which is not checked, instead of its time.
        py_compile.compile(
            str(path),
            f"{path}c",
            source_name,
            doraise=True,
            optimize=level,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
        path.unlink()
    for path in [root, *root.rglob("*")]:
        os.utime(path, (0, 0), follow_symlinks=False)


def folder(path: Path) -> None:
    """Creates an empty folder that only its owner can access."""
    path.mkdir(parents=True, mode=0o700)
    for each in (path, path.parent):
        os.utime(each, (0, 0))


def read_words(file: Path) -> list[list[str]]:
    """Returns the words of each line that is not a comment."""
    return [line.split() for line in file.read_text().splitlines() if not line.startswith("#")]


def pruned_patterns(package: str) -> list[str]:
    return [pattern for name, *patterns in read_words(PRUNED) for pattern in patterns if name == package]


def copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def copy_stdlib(unpacked: Path, root: Path, modules: Path) -> None:
    """Copies the listed modules. A missing one ends the build."""
    source, target = unpacked / PYTHON, root / PYTHON
    names = [name for line in read_words(modules) for name in line]
    # The name of one module contains the name of the architecture.
    found = [path.stem for name in names if "*" in name for path in source.glob(f"{name}.py")]
    for name in [*(name for name in names if "*" not in name), *found]:
        base = source / name.replace(".", "/")
        extensions = [*source.glob(f"lib-dynload/{name}.cpython-*.so")]
        if base.is_dir():
            shutil.copytree(base, target / base.relative_to(source), ignore=shutil.ignore_patterns(*pruned_patterns("*")))
        elif base.with_suffix(".py").exists():
            for path in {base.with_suffix(".py"), base.parent / "__init__.py"} if "." in name else {base.with_suffix(".py")}:
                copy_file(path, target / path.relative_to(source))
        elif extensions:
            copy_file(extensions[0], target / "lib-dynload" / extensions[0].name)
        elif name not in sys.builtin_module_names:
            sys.exit(f"{modules}: the standard library has no module {name}")


def copy_packages(wheels: Path, target: Path) -> None:
    """Copies the packages without the pruned files, and of pip's files about each only its METADATA and licenses."""
    for package in wheels.iterdir():
        name = package.name
        if name.endswith(".dist-info") or name == "bin":
            continue
        shutil.copytree(package, target / name, ignore=shutil.ignore_patterns(*pruned_patterns("*")))
        for pattern in pruned_patterns(name):
            for path in [*(target / name).glob(pattern)]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in EMPTIED:
        if (target / name).exists():
            (target / name).write_text("")
    for info in wheels.glob("*.dist-info"):
        for path in info.rglob("*"):
            if path.is_file() and (path.name == "METADATA" or "licen" in str(path).lower()):
                copy_file(path, target / path.relative_to(wheels))


def compress_files(folder: Path, *patterns: str) -> None:
    """Replaces the files by their gzip form."""
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        path.unlink()


def replace_openblas(numpy: Path) -> None:
    """Links numpy with the BLAS of Debian, and replaces its LAPACK module."""
    (module,) = numpy.glob("_core/_multiarray_umath.*.so")
    openblas = next(name for name in linked_libraries(module) if "openblas" in name)
    symbols = subprocess.run(["nm", "-D", "--undefined-only", module], check=True, capture_output=True, text=True).stdout.split()
    # scipy_cblas_sdot64_ is cblas_sdot in Debian's library. Both take 64-bit sizes.
    renamed = {s: s.removeprefix("scipy_").removesuffix("64_") for s in symbols if s.startswith("scipy_cblas_")}
    names = module.with_name("names")
    names.write_text("".join(f"{old} {new}\n" for old, new in renamed.items()))
    subprocess.run(
        ["patchelf", "--replace-needed", openblas, BLAS, "--rename-dynamic-symbols", names, "--remove-rpath", module], check=True
    )
    names.unlink()
    subprocess.run(["strip", module], check=True)
    (numpy / "linalg/_umath_linalg.py").write_text(NO_LAPACK)


def link_ssl_with_psycopg_openssl(root: Path) -> None:
    """Links Python's ssl module, which psycopg and redis-py need, with the OpenSSL of psycopg's wheel instead of Debian's."""
    (module,) = root.glob(f"{PYTHON}/lib-dynload/_ssl.*.so")
    libraries = next((root / PACKAGES).glob("psycopg_binary.libs"))
    words = ["--set-rpath", f"$ORIGIN/{os.path.relpath(libraries, module.parent)}"]
    for name in ("libssl.so.3", "libcrypto.so.3"):
        (bundled,) = libraries.glob(f"{name.partition('.')[0]}-*.so.3")
        words += ["--replace-needed", name, bundled.name]
    subprocess.run(["patchelf", *words, module], check=True)


def linked_libraries(binary: Path) -> list[str]:
    """Returns the libraries that an ELF file is linked with."""
    return subprocess.run(["patchelf", "--print-needed", binary], check=True, capture_output=True, text=True).stdout.split()


def elf_files(root: Path) -> Iterator[Path]:
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.read_bytes()[:4] == b"\x7fELF":
            yield path


def copy_libraries(unpacked: Path, root: Path) -> None:
    """Copies the libraries of the binaries, and their libraries in turn, under their sonames into one folder."""
    folder = next((unpacked / "usr/lib").glob("*-linux-gnu"))
    available = {path.name: path for path in (unpacked / "usr/lib").rglob("*.so*") if path.is_file()}
    required = {name for path in elf_files(root) for name in linked_libraries(path)}
    # Libraries inside a wheel.
    copied = {path.name for path in (root / PACKAGES).rglob("*.libs/*")}
    while required - copied:
        name = min(required - copied)
        copied.add(name)
        if name not in available:
            sys.exit(f"no locked Debian package has {name}")
        copy_file(available[name].resolve(), root / "usr/lib" / folder.name / name)
        required.update(linked_libraries(available[name]))
    for loader in (unpacked / "usr/lib64").glob("ld-linux*"):
        (root / "usr/lib64").mkdir(parents=True, exist_ok=True)
        (root / "usr/lib64" / loader.name).symlink_to(f"../lib/{folder.name}/{loader.name}")


def copy_data(unpacked: Path, root: Path) -> None:
    """Writes the files of every system: its release, its users, a folder for temporary files."""
    for name in DATA:
        copy_file(unpacked / name, root / name)
    for name, target in LINKS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n")
    (root / "etc/group").write_text("root:x:0:\nnonroot:x:65532:\n")
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)


def copy_notices(debs: Path, unpacked: Path, root: Path) -> None:
    """Writes the control fields of each used package, where scanners look for them, and its license."""
    present = {path.name for path in root.rglob("*") if not path.is_dir()}
    for deb in sorted(debs.glob("*.deb")):
        content = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], check=True, capture_output=True).stdout
        with tarfile.open(fileobj=BytesIO(content)) as archive:
            names = {Path(member.name).name for member in archive if not member.isdir() and "/share/doc/" not in member.name}
        if names & present:
            package = deb.name.split("_")[0]
            status = root / "var/lib/dpkg/status.d" / package
            status.parent.mkdir(parents=True, exist_ok=True)
            status.write_bytes(subprocess.run(["dpkg-deb", "-f", deb], check=True, capture_output=True).stdout)
            copy_license((unpacked / "usr/share/doc" / package / "copyright").resolve(), root / "usr/share/doc" / package)


def copy_license(source: Path, folder: Path) -> None:
    """Copies the license of a package, or links to the same text of another package."""
    for other in folder.parent.glob("*/copyright"):
        if not other.is_symlink() and other.read_bytes() == source.read_bytes():
            folder.mkdir()
            (folder / "copyright").symlink_to(f"../{other.parent.name}/copyright")
            return
    copy_file(source, folder / "copyright")


if __name__ == "__main__":
    main()
