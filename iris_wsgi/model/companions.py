"""Models in the folder of the full model: the fast model, and the members of the ensemble, refused if they belong to another."""

from collections.abc import Sequence
from pathlib import Path

from iris_wsgi.codec.model_schema import CLASSIFIER, OutputSchema
from iris_wsgi.console import script
from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import FAST_FOLDER, GOLDEN, member_folders
from iris_wsgi.model.golden import load_verified_model
from iris_wsgi.model.session import Graph, Model, listed


def load_fast(whole: Path, full: Graph, outputs: OutputSchema) -> Model:
    """Loads the fast model of the full one, whose outputs are `outputs`. Raises BadModel if there is none that belongs to it."""
    folder = whole / FAST_FOLDER
    if not folder.exists():
        hint = f"pack one by {script('pack')} MODEL --rows rows.csv --out {folder}"
        raise BadModel(f"{folder / GOLDEN} cannot be read: there is no fast model; {hint}")
    fast, _, _ = load_verified_model(folder)
    if difference := difference_of(fast, full, outputs):
        raise foreign(folder, fast, full, difference)
    return fast


def load_members(whole: Path, full: Graph) -> dict[str, Model]:
    """Loads the members of the ensemble, by species. Raises BadModel if there are none, or if one does not belong to `full`."""
    members = {}
    for name, folder in member_folders(whole).items():
        member, _, _ = load_verified_model(folder)
        if difference := member_difference(member, name, full):
            raise foreign(folder, member, full, difference)
        members[name] = member
    if not members:
        raise BadModel(f"{whole}/members has no models of one species each")
    return members


def foreign(folder: Path, model: Graph, full: Graph, difference: str) -> BadModel:
    names = f"{model.name} {model.version}, which does not belong to {full.name} {full.version}"
    return BadModel(f"{folder} has the model {names}: {difference}")


def difference_of(fast: Model, full: Graph, outputs: OutputSchema) -> str:
    """Returns how the features or the outputs of both models differ, or an empty string."""
    pairs = (
        ("gives", [fast.outputs.kind], [outputs.kind]),
        ("has the classes", fast.labels, full.labels),
        ("has the columns", fast.outputs.columns, outputs.columns),
    )
    differences = (f"it {what} {listed(a)}; the full model {what} {listed(b)}" for what, a, b in pairs if list(a) != list(b))
    return next(differences, "") or feature_difference(fast, full)


def member_difference(member: Model, name: str, full: Graph) -> str:
    """Returns why a model is not the member for the species `name` of the full model, or an empty string."""
    if member.outputs.kind != CLASSIFIER:
        return f"it gives {member.outputs.name}; a member gives probabilities"
    return label_difference(member.labels, name, full) or feature_difference(member, full)


def label_difference(labels: Sequence[str], name: str, full: Graph) -> str:
    """Returns why these are not the labels of the member for the species `name` of the full model, or an empty string."""
    if len(labels) != 2 or labels[1] != name:
        return f"it is for {listed(labels)}; it must have two classes, with {name} as the last"
    if name not in full.labels:
        return f"{name} is not one of the classes {listed(full.labels)} of the full model"
    return ""


def feature_difference(companion: Graph, full: Graph) -> str:
    """Returns how the names, the types, or the missing values of the features differ, or an empty string."""
    names, wanted = ([f"{one.name} ({one.type})" for one in model.features] for model in (companion, full))
    if names != wanted:
        return f"it takes {listed(names)}; the full model takes {listed(wanted)}"
    for one, other in zip(companion.features, full.features, strict=True):
        if one.missing and not other.missing:
            return f"its feature {one.name} may be missing; that of the full model may not"
    return ""
