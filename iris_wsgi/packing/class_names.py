"""Names of the classes: label.json or the names of the caller, compared with the classes of the graph."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import read_file, read_object
from iris_wsgi.model.session import listed

Names = Mapping[str, str] | Sequence[str]


def read_names(path: Path) -> dict[str, str]:
    """Returns the object of a label.json. Raises BadModel, also for a key that occurs twice."""
    content = read_file(path)
    names = read_object(content, str(path))
    pairs = json.loads(content, object_pairs_hook=lambda found: found)
    if len(pairs) > len(names):
        raise BadModel(f"{path} has a key twice: {listed([key for key, _ in pairs])}")
    if wrong := [key for key, name in names.items() if not isinstance(name, str) or not name]:
        raise BadModel(f"{path} must map each class to a name; the name of {wrong[0]} is {names[wrong[0]]!r}")
    return names


def class_names(classes: Sequence[Any], given: Names | None, where: str) -> tuple[str, ...]:
    """Returns the names of the classes in their order. Raises BadModel if the given names do not fit the classes.

    `given` is a sequence in the order of the classes, or a mapping from their positions or from their values.
    """
    own = tuple(map(str, classes))
    if given is None:
        return own
    names = by_mapping(own, given, where) if isinstance(given, Mapping) else tuple(map(str, given))
    if len(names) != len(own):
        many = "too many" if len(names) > len(own) else "too few"
        raise BadModel(f"{where} has {many} names: {both(own, names)}")
    if len(set(names)) < len(names):
        raise BadModel(f"{where} gives two classes one name: {both(own, names)}")
    explicit = isinstance(given, Mapping) and set(given) == set(own) and set(own) != positions(len(own))
    if set(names) == set(own) and names != own:
        raise BadModel(f"{where} has the labels in another order than the graph: {both(own, names)}")
    if explicit:
        if wrong := [name for name, label in zip(names, own, strict=True) if name != label and name in own]:
            raise BadModel(f"{where} gives a class the name {wrong[0]}, which is the label of another class: {both(own, names)}")
    elif names != own:
        check_own_names(classes, own, names, where)
    return names


def check_own_names(classes: Sequence[Any], own: Sequence[str], names: Sequence[str], where: str) -> None:
    """Refuses names by position that are nearly the labels of the graph, and other names for strings. Raises BadModel."""
    has_strings = any(isinstance(value, str) for value in classes)
    if has_strings or set(names) & set(own):
        wrong = next(name for name in names if name not in own)
        hint = f'; to rename labels, write {{"{own[0]}": "…", …}} with every label of the graph as a key' if has_strings else ""
        raise BadModel(f"{where} has the name {wrong}, which is not a label of the graph: {both(own, names)}{hint}")


def by_mapping(own: Sequence[str], given: Mapping[str, str], where: str) -> tuple[str, ...]:
    """Returns the names of a mapping whose keys are all positions, or all labels of the graph. Raises BadModel."""
    keys = list(map(str, given))
    names = {str(key): str(name) for key, name in given.items()}
    as_positions, as_labels = set(keys) == positions(len(keys)), set(keys) == set(own)
    if as_positions and as_labels and list(own) != [str(i) for i in range(len(own))]:
        raise BadModel(
            f"{where} is ambiguous: its keys can be positions, and they can be the labels of the graph, {listed(own)}."
            " Name the classes in the training instead"
        )
    if as_labels:
        return tuple(names[label] for label in own)
    if as_positions:
        return tuple(names[str(i)] for i in range(len(keys)))
    many = "too many" if len(keys) > len(own) else "too few" if len(keys) < len(own) else "other"
    raise BadModel(f"{where} has {many} keys: the labels of the graph are {listed(own)}, and the keys are {listed(keys)}")


def positions(count: int) -> set[str]:
    return {str(i) for i in range(count)}


def both(own: Sequence[str], names: Sequence[str]) -> str:
    return f"the labels of the graph are {listed(own)}, and the names are {listed(names)}"
