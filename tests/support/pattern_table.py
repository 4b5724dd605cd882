"""Tables of patterns: the routes and the overlays of each role in docs/routes.md, and the tables of both READMEs."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from project import ROOT

Route = tuple[str, str]
ROUTES = ROOT / "docs/routes.md"


def table_cells(document: Path) -> list[list[str]]:
    """Returns the cells of the first table of a document, by row."""
    table = re.search(r"^\|.*\n\|[-|]+\n((?:\|.*\n)+)", document.read_text(), re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]


class Row(NamedTuple):
    pattern: str
    roles: list[str]
    # Text about the routes of each role.
    routes_text: dict[str, str]
    overlays: list[str]


def row_of(cells: list[str]) -> Row:
    pattern, roles, routes, overlays = cells
    names = re.findall(r"`([a-z_]+)`", roles)
    by_role = {role: text for role in names for text in routes.split("; ") if text.startswith(f"`{role}`: ")}
    # Text without the name of a role belongs to the first role. The other roles of the row then have no text.
    first, *others = names or [""]
    return Row(
        # The name may be a link to the folder of the pattern.
        re.sub(r"\[(.*)\]\(.*\)", r"\1", pattern),
        names,
        {**dict.fromkeys(others, ""), **({} if by_role else {first: routes}), **by_role},
        re.findall(r"\(\.\./manifests/([\w/]+)\)", overlays),
    )


ROWS = [row_of(cells) for cells in table_cells(ROUTES)]


def routes_in(text: str) -> set[Route]:
    """Returns the routes named in a text, and the routes of the roles named in it."""
    routes = set(re.findall(r"`([A-Z]+) (/[^`]*)`", text))
    if "`/versions/{version}`" in text:
        routes |= {(method, path.replace("{model}", "{model}/versions/{version}")) for method, path in routes}
    for role in re.findall(r"those of `(\w+)`", text):
        routes |= routes_of(role)
    if "all the rows above" in text:
        routes |= {route for role in DOCUMENTED_ROLES if role != "all" for route in routes_of(role)}
    return normalized(routes)


def routes_of(role: str) -> set[Route]:
    """Returns the routes of a role in its first row."""
    return routes_in(next(row.routes_text[role] for row in ROWS if role in row.roles))


def normalized(routes: Iterable[Route]) -> set[Route]:
    """Removes trailing slashes, and replaces the routes of all edge files by one route, like the table does."""
    merged = (("GET", "/edge") if (method, path[:6]) == ("GET", "/edge/") else (method, path) for method, path in routes)
    return {(method, path.rstrip("/") or "/") for method, path in merged}


DOCUMENTED_ROLES = list(dict.fromkeys(role for row in ROWS for role in row.roles))
COMMON_ROUTES = routes_in(re.search(r"^Every role also has .*", ROUTES.read_text(), re.MULTILINE)[0])
