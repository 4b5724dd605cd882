"""Typed accessors of optional members in a client's JSON objects: null counts as absent, and another type is refused."""

from collections.abc import Mapping
from typing import Any

from iris_wsgi.errors import BadRequest

# Sizes and times are unsigned integers of 64 bits.
MAX_NUMBER = 2**64 - 1


def parameters_of(owner: Mapping[str, Any], place: str) -> dict[str, Any]:
    found = owner.get("parameters")
    if found is None:
        return {}
    if type(found) is not dict:
        raise BadRequest(f"{place}/parameters must be an object.")
    return found


def flag(parameters: Mapping[str, Any], name: str, place: str) -> bool | None:
    found = parameters.get(name)
    if found is not None and type(found) is not bool:
        raise BadRequest(f"{place}/{name} must be true or false.")
    return found


def number(parameters: Mapping[str, Any], name: str, place: str) -> int | None:
    found = parameters.get(name)
    if found is not None and (type(found) is not int or not 0 <= found <= MAX_NUMBER):
        raise BadRequest(f"{place}/{name} must be a whole number from 0 to {MAX_NUMBER}.")
    return found


def string(owner: Mapping[str, Any], name: str, place: str) -> str | None:
    """Returns a string that can be sent back. Half of a surrogate pair cannot."""
    found = owner.get(name)
    if found is not None and (type(found) is not str or (not found.isascii() and any("\ud800" <= c <= "\udfff" for c in found))):
        raise BadRequest(f"{place}/{name} must be a string of whole characters.")
    return found
