"""Checks, before the sources go, that no module of the image imports what the image does not have."""

import ast
import sys
from collections.abc import Iterator, Sequence
from importlib.util import resolve_name
from pathlib import Path

# Where modules are, in the image and in each part of it.
FOLDERS = ("usr/lib/python3.13", "usr/lib/python3.13/lib-dynload", "usr/local/lib/python3.13/dist-packages")
# What interpreters have under another name than their files.
ELSEWHERE = {"os.path", "collections.abc", "_frozen_importlib", "_frozen_importlib_external", *sys.builtin_module_names}


def main(parts: list[Path], without: Sequence[str] = ()) -> int:
    """The parts lie over each other; in the last one, our own code, what a function imports when it is called counts as well.

    There a module may have the name of an extra that the image is `without`: it is the one that needs it, and not imported.
    """
    lost = [
        f"{path.relative_to(part)} imports {name}"
        for part in parts
        for path in sorted(part.rglob("*.py"))
        if part != parts[-1] or path.stem not in without
        for name in sorted(imported(path, package_of(path, part), everywhere=part == parts[-1]))
        if not any(has_module(other, name) for other in parts)
    ]
    print(*lost, sep="\n", file=sys.stderr)
    return len(lost) > 0


def package_of(path: Path, part: Path) -> str:
    """The dotted name of the package whose folder the file is in; empty at the top."""
    folder = max((f for f in FOLDERS if path.is_relative_to(part / f)), key=len)
    return ".".join(path.parent.relative_to(part / folder).parts)


def imported(path: Path, package: str, everywhere: bool) -> Iterator[str]:
    """Names of modules that the file imports whenever it is imported itself: not in a function, an `if` or a `try`."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield resolve_name("." * node.level + (node.module or ""), package)


def has_module(part: Path, name: str) -> bool:
    if name in ELSEWHERE:
        return True
    bases = [part / folder / name.replace(".", "/") for folder in FOLDERS]
    return any(base.is_dir() or base.with_suffix(".py").exists() or any(base.parent.glob(f"{base.name}.*so")) for base in bases)


if __name__ == "__main__":
    words = sys.argv[1:]
    # imports.py PART… [without EXTRA…]
    end = words.index("without") if "without" in words else len(words)
    sys.exit(main([Path(part) for part in words[:end]], words[end + 1 :]))
