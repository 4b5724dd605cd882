"""Router of paths and path templates, and the path prefix of clients behind a proxy."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from iris_wsgi.errors import BadRequest
from iris_wsgi.roles import ROLES
from iris_wsgi.setting_types import FORWARDED, fixed_prefix

T = TypeVar("T")
Parameters = Mapping[str, str]
Prefix = Callable[[Mapping[str, Any]], str]

NO_PARAMETERS: Parameters = MappingProxyType({})
INVALID_PREFIX = (
    "X-Forwarded-Prefix must be a path such as /iris: segments of letters, digits and - . _ ~, 200 characters at most. "
    "The proxy in front of this server sets it."
)
parameter = re.compile(r"\{(\w+)\}")
doubled = re.compile("//+").sub
# A path that is longer is not a mistyped one, and its comparison would take long.
MAX_SIMILAR = 64
# The similarity of two paths, from 0 to 1, as difflib measures it: /predit is similar to /predict.
MIN_SIMILARITY = 0.8


class Router(Generic[T]):
    """Maps paths to resources. A parameter is a non-empty part of one segment; a literal path wins over a template."""

    def __init__(self, resources: Mapping[str, T], default: T) -> None:
        """Raises ValueError for two templates that differ only in parameter names."""
        self.default = (default, NO_PARAMETERS)
        self.literal = {path: (found, NO_PARAMETERS) for path, found in resources.items() if not names_of(path)}
        templates = sorted((path for path in resources if names_of(path)), key=specificity)
        for template, following in pairwise(templates):
            if parameter.sub("{}", template) == parameter.sub("{}", following):
                raise ValueError(f"two templates match the same paths: {template} and {following}")
        # Each template is a group around the groups of its parameters. The last group that ends shows which template matched.
        self.match = re.compile("|".join(f"({''.join(expression(path))})" for path in templates) or r"(?!)").fullmatch
        # For similar(): of two paths that differ in the final slash, the one without it.
        self.plain = {plain(path): path for path in sorted(self.literal, reverse=True) if path.startswith("/")}
        self.segments = {path: path.split("/") for path in templates}
        self.templates: dict[int, tuple[T, list[str]]] = {}
        group = 1
        for path in templates:
            names = names_of(path)
            self.templates[group] = resources[path], names
            group += 1 + len(names)

    def find(self, path: str) -> tuple[T, Parameters]:
        """Returns the resource of a path, and its parameters. The path is latin-1 (PEP 3333); the parameters are UTF-8."""
        return self.literal.get(path) or self.find_template(path)

    def find_template(self, path: str) -> tuple[T, Parameters]:
        found = self.match(path)
        if found is None or found.lastindex is None:
            return self.default
        resource, names = self.templates[found.lastindex]
        return resource, {name: decoded(found[found.lastindex + i]) for i, name in enumerate(names, 1)}

    def similar(self, path: str) -> str | None:
        """Returns the path or template that a client may have meant by an unknown path, or None.

        Slashes and the case of letters do not matter, and a few letters may differ. The cost has a limit for any path.
        """
        if len(path) > MAX_SIMILAR:
            return None
        # Only a client that mistypes a path needs it.
        from difflib import get_close_matches

        wanted = plain(path)
        values = wanted.split("/")
        filled = {fill(parts, values): path for path, parts in self.segments.items() if len(parts) == len(values)}
        candidates = {**filled, **self.plain}
        found = [wanted] if wanted in candidates else get_close_matches(wanted, candidates, 1, MIN_SIMILARITY)
        return candidates[found[0]] if found else None


def role_of(path: str, served: Iterable[str]) -> str | None:
    """Returns the role that has this path, by the example requests, for a role that serves the paths `served` only.

    It is the role whose example has this path, or the first one whose example has the first segment, which no served path has.
    """
    examples = {name: role.example[0] for name, role in ROLES.items() if name not in ("all", "worker")}
    same_path = next((name for name, example in examples.items() if example == path), None)
    segment = first_segment(path)
    if same_path or segment in map(first_segment, served):
        return same_path
    # The roles of the protocol v1 serve v2 too.
    segment = "v1" if segment == "v2" else segment
    return next((name for name, example in examples.items() if first_segment(example) == segment), None)


def first_segment(path: str) -> str:
    return path.removeprefix("/").partition("/")[0]


def plain(path: str) -> str:
    """Returns a path in lower case with single slashes, and none at its end."""
    return doubled("/", path).rstrip("/").lower()


def fill(segments: Sequence[str], values: Sequence[str]) -> str:
    """Returns the path of a template with the segments of another path as values.

    A value ends where the rest of its segment begins, as in {model}:predict.
    """
    pairs = zip(segments, (value.partition(":")[0] for value in values), strict=True)
    return "/".join(value.join(parameter.split(segment)[::2]) for segment, value in pairs)


def names_of(path: str) -> list[str]:
    """Returns the parameter names of a template; a literal path has none."""
    return parameter.findall(path)


def specificity(path: str) -> tuple[list[int], str]:
    """Returns the sort key of a template: in each segment, a literal comes first, and a whole parameter last."""
    segments = [0 if not names_of(s) else 2 if parameter.fullmatch(s) else 1 for s in path.split("/")]
    return segments, parameter.sub("{}", path)


def expression(path: str) -> Iterator[str]:
    for i, part in enumerate(parameter.split(path)):
        yield "([^/]+)" if i % 2 else re.escape(part)


def decoded(value: str) -> str:
    return value if value.isascii() else value.encode("latin-1", "replace").decode("utf-8", "replace")


def mounted(environ: Mapping[str, Any]) -> str:
    """Returns SCRIPT_NAME (PEP 3333) as a URI reference: empty, or with a slash at the start and none at the end."""
    name = environ.get("SCRIPT_NAME")
    if not name:
        return ""
    # Two slashes at the start would be the name of another host.
    return doubled("/", "/" + quote(name.encode("latin-1", "replace"), safe="/-._~!$&'()*+,;=:@")).rstrip("/")


def prefix_of(setting: str) -> Prefix:
    """Returns the function that finds the prefix: the path of IRIS_URL_PREFIX or X-Forwarded-Prefix, then SCRIPT_NAME."""
    if setting == FORWARDED:
        return lambda environ: forwarded(environ) + mounted(environ)
    return lambda environ: setting + mounted(environ) if setting else mounted(environ)


def forwarded(environ: Mapping[str, Any]) -> str:
    """Returns the path in X-Forwarded-Prefix. Raises BadRequest if it is not a path, because responses contain it."""
    # Some proxies write a final slash.
    path = environ.get("HTTP_X_FORWARDED_PREFIX", "").removesuffix("/")
    try:
        return fixed_prefix(path)
    except ValueError:
        raise BadRequest(INVALID_PREFIX) from None
