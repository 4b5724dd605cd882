"""Checks, before the sources are removed, that the image has every module that its modules import."""

import ast
import sys
from collections.abc import Iterator, Sequence
from importlib.util import resolve_name
from pathlib import Path

# Folders of modules, in the image and in each part of it.
FOLDERS = ("usr/lib/python3.13", "usr/lib/python3.13/lib-dynload", "usr/local/lib/python3.13/dist-packages")
# Modules whose names differ from their files.
WITHOUT_FILE = {"os.path", "collections.abc", "_frozen_importlib", "_frozen_importlib_external", *sys.builtin_module_names}


def main(parts: list[Path], without: Sequence[str] = ()) -> int:
    """Prints the missing imports and returns 1 if there are any. The parts overlay each other.

    In the last part, our code, imports in functions count too. `without` names what the image does not have: optional packages,
    and modules of our code that need an extra.
    """
    missing = [
        f"{path.relative_to(part)} imports {name}"
        for part in parts
        for path in sorted(part.rglob("*.py"))
        if part != parts[-1] or path.stem not in without
        for name in sorted(imported(path, package_of(path, part), everywhere=part == parts[-1]))
        if not {name.partition(".")[0], name.rpartition(".")[2]} & {*without}
        and not any(has_module(other, name) for other in parts)
    ]
    print(*missing, sep="\n", file=sys.stderr)
    return len(missing) > 0


def package_of(path: Path, part: Path) -> str:
    """Returns the dotted name of the package of the file, or an empty string at the top."""
    folder = max((f for f in FOLDERS if path.is_relative_to(part / f)), key=len)
    return ".".join(path.parent.relative_to(part / folder).parts)


def imported(path: Path, package: str, everywhere: bool) -> Iterator[str]:
    """Yields the modules that the file imports at its own import: not in a function, an `if`, or a `try`."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield resolve_name("." * node.level + (node.module or ""), package)


def has_module(part: Path, name: str) -> bool:
    if name in WITHOUT_FILE:
        return True
    bases = [part / folder / name.replace(".", "/") for folder in FOLDERS]
    return any(base.is_dir() or base.with_suffix(".py").exists() or any(base.parent.glob(f"{base.name}.*so")) for base in bases)


if __name__ == "__main__":
    words = sys.argv[1:]
    # imports.py PART… [without NAME…]
    end = words.index("without") if "without" in words else len(words)
    sys.exit(main([Path(part) for part in words[:end]], words[end + 1 :]))
