"""Copies a model of the user for an image: the files that golden.json names, and the companions that belong to the model."""

from collections.abc import Callable, Iterator
from pathlib import Path

from iris_wsgi.codec.model_schema import CLASSIFIER
from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import FAST_FOLDER, member_folders, read_all, read_file
from iris_wsgi.model.companions import load_fast, load_members
from iris_wsgi.model.golden import load_verified_model
from iris_wsgi.patterns.prep_pred.halves import PRED, PREP, load_pair


def copy(folder: Path, out: Path) -> list[str]:
    """Tests the model of a folder, and copies it to `out`. Returns a line for each group of companions that is left out.

    Raises BadModel.
    """
    full, golden, _ = load_verified_model(folder)
    copy_files(folder, out)
    members = member_folders(folder)
    groups: list[tuple[list[Path], Callable[[], object]]] = [
        ([folder / FAST_FOLDER], lambda: load_fast(folder, full, full.outputs)),
        ([*members.values()], lambda: load_members(folder, full)),
        ([folder / PREP, folder / PRED], lambda: load_pair(folder, full, golden)),
    ]
    if full.outputs.kind != CLASSIFIER:
        # Only the fast model has another kind than classifier.
        groups = groups[:1]
    return list(copy_companions(folder, out, groups))


def copy_companions(folder: Path, out: Path, groups: list[tuple[list[Path], Callable[[], object]]]) -> Iterator[str]:
    """Copies each group of companions that belongs to the model, and yields a line for each other one."""
    for folders, load in groups:
        existing = [one for one in folders if one.exists()]
        if not existing:
            continue
        names = ", ".join(str(one.relative_to(folder)) for one in existing)
        try:
            load()
        except BadModel as error:
            yield f"{names} is left out: {error}"
            continue
        for one in existing:
            copy_files(one, out / one.relative_to(folder))


def copy_files(folder: Path, out: Path) -> None:
    """Copies golden.json and the files that it names, after comparing the SHA-256 of each. Raises BadModel."""
    _, files = read_all(lambda name: read_file(folder / name), str(folder))
    out.mkdir(parents=True)
    for name, content in files.items():
        (out / name).write_bytes(content)
    for path in (out, *out.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
