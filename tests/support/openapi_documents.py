"""References, schemas, and examples in OpenAPI documents."""

from typing import Any


def resolved(document: dict[str, Any], item: Any) -> Any:
    """Returns the item, or what it refers to."""
    while isinstance(item, dict) and "$ref" in item:
        found: Any = document
        for part in item["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        item = found
    return item


def schema_in(document: dict[str, Any], media_type: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns the schema of a media type, with the named schemas to which it refers."""
    return None if media_type is None else {**media_type["schema"], "components": document["components"]}


def example_in(document: dict[str, Any], media_type: dict[str, Any]) -> Any:
    """Returns the first example of a media type, or None."""
    if "examples" in media_type:
        return resolved(document, next(iter(media_type["examples"].values())))["value"]
    return media_type.get("example")


def parameters_of(document: dict[str, Any], operation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the parameters of an operation by name."""
    parameters = [resolved(document, parameter) for parameter in operation["parameters"]]
    return {parameter["name"]: parameter for parameter in parameters}
