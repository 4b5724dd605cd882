"""The table of patterns at the head of the README, and what it says of roles, routes and overlays."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from project import ROOT

Route = tuple[str, str]


def table_cells(document: Path) -> list[list[str]]:
    """The rows of the first table of a document."""
    table = re.search(r"^\|.*\n\|[-|]+\n((?:\|.*\n)+)", document.read_text(), re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]


class Row(NamedTuple):
    pattern: str
    roles: list[str]
    # What is said of each role's routes, and which of them are meant.
    told: dict[str, str]
    overlays: list[str]


def row_of(cells: list[str]) -> Row:
    pattern, roles, routes, overlays = cells
    names = re.findall(r"`([a-z_]+)`", roles)
    told = {role: text for role in names for text in routes.split("; ") if text.startswith(f"`{role}`: ")}
    # Who has no part of its own in a cell with one for all: the first role has it, and one beside it none.
    first, *others = names or [""]
    return Row(
        # The name may be a link to the folder of the pattern.
        re.sub(r"\[(.*)\]\(.*\)", r"\1", pattern),
        names,
        {**dict.fromkeys(others, ""), **({} if told else {first: routes}), **told},
        re.findall(r"\(manifests/([\w/]+)\)", overlays),
    )


ROWS = [row_of(cells) for cells in table_cells(ROOT / "README.md")]


def routes_in(text: str) -> set[Route]:
    """The routes that a text names, and those of the roles that it names."""
    found = set(re.findall(r"`([A-Z]+) (/[^`]*)`", text))
    if "`/versions/{version}`" in text:
        found |= {(method, path.replace("{model}", "{model}/versions/{version}")) for method, path in found}
    for role in re.findall(r"those of `(\w+)`", text):
        found |= routes_of(role)
    if "all the rows above" in text:
        found |= {one for role in DOCUMENTED_ROLES if role != "all" for one in routes_of(role)}
    return normalized(found)


def routes_of(role: str) -> set[Route]:
    """What the first row with this role says of it."""
    return routes_in(next(row.told[role] for row in ROWS if role in row.roles))


def normalized(routes: Iterable[Route]) -> set[Route]:
    """Without a slash at the end, and with one for all files of the edge: what the table says once for all."""
    files = (("GET", "/edge") if (method, path[:6]) == ("GET", "/edge/") else (method, path) for method, path in routes)
    return {(method, path.rstrip("/") or "/") for method, path in files}


DOCUMENTED_ROLES = list(dict.fromkeys(role for row in ROWS for role in row.roles))
COMMON_ROUTES = routes_in(re.search(r"^Every role also has .*", (ROOT / "README.md").read_text(), re.MULTILINE)[0])
