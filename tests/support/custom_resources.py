"""Schemas of custom resources, from the type declarations of the npm packages @kubernetes-models.

Their authors generate the declarations from the Go types of the operators. The API server drops unknown fields of custom
resources, and these schemas reject them. The schemas have neither patterns nor bounds of numbers.
"""

import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from optional_programs import skip_or_fail
from project import ROOT

sys.path.insert(0, str(ROOT / "bin/edge.d"))
from npm import DownloadError, get_archive

LOCKFILE = ROOT / "tests/support/custom_resources.lock.json"
CACHE = ROOT / "dist/npm"
SCALARS = {"string": str, "number": (int, float), "boolean": bool}


class Interface(NamedTuple):
    """Fields of an object, by name: the type of each field, and whether it is required."""

    parents: list[str]
    fields: dict[str, tuple[str, bool]]


class Schemas(NamedTuple):
    """Declarations by name: objects, and names for other types."""

    interfaces: dict[str, Interface]
    aliases: dict[str, str]

    def errors(self, kind: str, value: Any, path: str = "") -> Iterator[str]:
        """Yields what is wrong in a value of a type. Types that no package declares may have any value."""
        if kind in SCALARS:
            if not isinstance(value, SCALARS[kind]) or (isinstance(value, bool) and kind != "boolean"):
                yield f"{path}: {value!r} is not a {kind}"
        elif kind in self.interfaces:
            yield from self.errors_of_object(kind, value, path)
        elif kind in self.aliases:
            yield from self.errors(self.aliases[kind], value, path)
        elif found := re.fullmatch(r"Array<(.*)>|\{ \[key: string\]: (.*); \}", kind):
            if not isinstance(value, list if found[1] else dict):
                yield f"{path}: {value!r} is not {kind}"
                return
            for key, item in enumerate(value) if found[1] else value.items():
                yield from self.errors(found[1] or found[2], item, f"{path}/{key}")
        elif " | " in kind or kind.startswith('"'):
            # A literal is written as in JSON.
            choices = kind.split(" | ")
            if json.dumps(value) not in choices and all(
                any(self.errors(choice, value)) for choice in choices if choice[0] != '"'
            ):
                yield f"{path}: {value!r} is not {kind}"

    def errors_of_object(self, name: str, value: Any, path: str) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{path}: {value!r} is not an object"
            return
        fields = self.fields(name)
        yield from (f"{path}: {key} is missing" for key, (_, required) in fields.items() if required and key not in value)
        for key, item in value.items():
            if key in fields:
                yield from self.errors(fields[key][0], item, f"{path}/{key}")
            else:
                yield f"{path}: {key} is unknown"

    def fields(self, name: str) -> dict[str, tuple[str, bool]]:
        """Returns the fields of an object, with those that it inherits."""
        interface = self.interfaces[name]
        inherited = {
            key: field for parent in interface.parents if parent in self.interfaces for key, field in self.fields(parent).items()
        }
        return inherited | interface.fields


def parse_declarations(text: str) -> Schemas:
    """Parses a file of type declarations, as @kubernetes-models/crd-generate writes it."""
    text = " ".join(re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL).split())
    interfaces = {}
    for name, parents, body in re.findall(r"export interface (\w+)(?: extends ([\w, ]+))? \{ (.*?) \} (?=export )", text):
        fields = re.findall(r'"([^"]+)"(\??): ((?:\{.*?\}|[^;{])+);', body)
        interfaces[name] = Interface(parents.split(", "), {key: (kind, not optional) for key, optional, kind in fields})
    aliases = dict(re.findall(r"export type (I\w+) = ([^;]+);", text))
    # Other files use the long names.
    for short, long in re.findall(r"export type \{ (\w+) as (\w+)", text):
        if short in interfaces:
            interfaces[long] = interfaces.pop(short)
        elif short in aliases:
            aliases[long] = aliases.pop(short)
    return Schemas(interfaces, aliases)


@cache
def schemas() -> Schemas:
    """Returns the schemas of the locked packages. Without a network, skips the test on a laptop and fails it in CI."""
    result = Schemas({}, {})
    for package in json.loads(LOCKFILE.read_text())["packages"].values():
        try:
            content = get_archive(package["resolved"], package["integrity"], CACHE)
        except DownloadError as error:
            skip_or_fail(str(error))
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".d.ts"):
                    declared = parse_declarations(archive.extractfile(member).read().decode())
                    result.interfaces.update(declared.interfaces)
                    result.aliases.update(declared.aliases)
    return result


def errors_in(obj: dict) -> list[str]:
    """Returns what is wrong in a custom resource."""
    literals = {"apiVersion": json.dumps(obj["apiVersion"]), "kind": json.dumps(obj["kind"])}
    (name,) = [
        name
        for name, interface in schemas().interfaces.items()
        if all(interface.fields.get(key, ("",))[0] == literal for key, literal in literals.items())
    ]
    return list(schemas().errors(name, obj))


def is_custom(obj: dict) -> bool:
    """Returns whether an object is a custom resource: its group is not one of Kubernetes itself."""
    return obj["apiVersion"].partition("/")[0] in {"monitoring.coreos.com", "gateway.networking.k8s.io", "keda.sh"}
