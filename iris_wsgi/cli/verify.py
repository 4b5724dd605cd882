"""Verification of the companion models in the folder of the whole model: fast model, members, and both halves."""

from collections.abc import Iterator
from pathlib import Path

from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import FAST_FOLDER, member_folders
from iris_wsgi.model.golden import check_shapes, golden_array, load_verified_model, proof_of, self_test
from iris_wsgi.model.session import load, load_model


def verify_companions(whole: Path) -> Iterator[str]:
    """Yields one line of report for each companion model that exists. Raises BadModel."""
    folders = {"fast model": whole / FAST_FOLDER, "pred": whole / "pred"}
    folders |= {f"member {name}": folder for name, folder in member_folders(whole).items()}
    for name, folder in folders.items():
        if folder.exists():
            model, golden, result = load_verified_model(folder)
            yield f"{name} {model.name} {model.version} {model.digest}: {result}; {proof_of(golden.description)}"
    if (whole / "prep").exists():
        yield verify_halves(whole / "prep", whole / "pred")


def verify_halves(first: Path, second: Path) -> str:
    """Tests both halves as one model. Raises BadModel."""
    # Imported here, because it imports the client of upstream servers.
    from iris_wsgi.patterns.prep_pred.role import FirstHalf, JoinedModel

    (prep, pinned), (pred, _) = load(FirstHalf, first, ""), load_model(second)
    if pred.identity.get("pair") != prep.digest:
        raise BadModel(f"{first} and {second} are not the halves of one model: their files name different pairs")
    joined = JoinedModel(pred.outputs, prep.schema, lambda rows: pred.predict(prep.prepare(rows)))
    check_shapes(joined, golden_array(prep, pinned.cases[:1]))
    return f"prep and pred, pair {prep.digest}: {self_test(joined, pinned.cases, pinned.tolerance)}"
