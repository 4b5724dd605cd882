"""Verification of the companion models in the folder of the whole model: fast model, members, and both halves."""

from collections.abc import Iterator
from pathlib import Path

from iris_wsgi.model.artifact import FAST_FOLDER, ArtifactManifest, member_folders
from iris_wsgi.model.companions import load_fast, load_members
from iris_wsgi.model.golden import load_verified_model, proof_of, self_test
from iris_wsgi.model.session import Model


def verify_companions(whole: Path, full: Model, golden: ArtifactManifest) -> Iterator[str]:
    """Yields one line of report for each companion of the full model that exists. Raises BadModel for those of another model."""
    from iris_wsgi.patterns.prep_pred.halves import PRED, PREP, load_pair

    folders = {"fast model": whole / FAST_FOLDER, "pred": whole / PRED}
    folders |= {f"member {name}": folder for name, folder in member_folders(whole).items()}
    for name, folder in folders.items():
        if folder.exists():
            model, pinned, result = load_verified_model(folder)
            yield f"{name} {model.name} {model.version} {model.digest}: {result}; {proof_of(pinned.description)}"
    if (whole / FAST_FOLDER).exists():
        load_fast(whole, full, full.outputs)
    if member_folders(whole):
        load_members(whole, full)
    if (whole / PREP).exists():
        pair = load_pair(whole, full, golden)
        result = self_test(pair.joined, pair.pinned.cases, pair.pinned.tolerance)
        yield f"prep and pred, pair {pair.prep.digest}: {result}"
