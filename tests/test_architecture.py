"""Import rules: the modules of each role, the direction of imports, and unused definitions."""

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from project import MODEL, ROOT

from iris_wsgi.roles import ROLES

PACKAGE = ROOT / "iris_wsgi"
# A package, or a module at the top level, imports lower ranks and itself only.
RANKS = {
    "errors": 0,
    "setting_types": 0,
    "http": 0,
    "console": 1,
    "roles": 1,
    "settings": 2,
    "cpu_limits": 3,
    "observability": 3,
    "resilience": 4,
    "codec": 4,
    "storage": 5,
    "model": 6,
    "wsgi": 7,
    "tabular": 7,
    "services": 8,
    "scorer": 8,
    "client": 9,
    "patterns": 10,
    "factory": 11,
    "server": 12,
    "packing": 12,
    "cli": 13,
    "__main__": 14,
}
# Patterns that use another pattern: it submits jobs, or it serves the same routes.
USES_PATTERN = {("sync_async", "asynchronous"), ("prep_pred", "web_single")}
# Packages of an extra, each imported by one module.
OPTIONAL = {
    "redis": {"storage.redis"},
    "psycopg": {"storage.postgres"},
    "pyarrow": {"tabular.parquet"},
    "ray": {"patterns.batch.ray_engine"},
    "tqdm": {"console"},
    "fsspec": {"storage.remote_files"},
    "joblib": {"packing.from_estimator"},
    "onnx": {"packing.graphs"},
    "onnxmltools": {"packing.conversion"},
    "pandas": {"packing.sample"},
    "skl2onnx": {"packing.conversion"},
}
# Packages that convert bytes into values without I/O.
PURE = ("codec", "http")
IMPURE = {"select", "selectors", "threading", "time", "subprocess", "os", "asyncio", "concurrent"}
# Modules of the package by their users. Each new module has an entry here.
EVERY_SERVER = """
    cli.main codec.json_documents codec.model_schema codec.rows console cpu_limits errors factory
    http.cache_headers http.request_head http.request_parser model.artifact model.golden model.graph_signature model.predictor
    model.session observability.log observability.metrics observability.shared_memory observability.trace_context
    patterns.web_single.page
    resilience.background roles server.connection server.event_loop server.fast_path server.listener server.serve
    services setting_types settings wsgi.application wsgi.body wsgi.browser_security wsgi.conditional wsgi.health_routes
    wsgi.openapi wsgi.request_observer wsgi.routing
"""
FAMILIES = {
    "web single": """
        patterns.web_single.role
    """,
    "protocol": """
        codec.decimals codec.v2_request codec.v2_response codec.v2_tensors patterns.synchronous.role
        patterns.synchronous.schemas patterns.synchronous.served_model
        patterns.synchronous.v1_routes patterns.synchronous.v2_routes
    """,
    "jobs": """
        patterns.asynchronous.job patterns.asynchronous.job_codec patterns.asynchronous.metrics patterns.asynchronous.role
        patterns.asynchronous.routes patterns.asynchronous.sqlite_store
        patterns.asynchronous.worker resilience.circuit_breaker storage.sqlite
    """,
    "hybrid": "model.companions patterns.sync_async.role",
    "prediction cache": """
        patterns.prediction_cache.cache patterns.prediction_cache.role
        patterns.prediction_cache.store resilience.single_flight storage.lru
    """,
    "items": """
        patterns.data_cache.cache patterns.data_cache.item_store patterns.data_cache.read_through
        patterns.data_cache.role patterns.data_cache.routes patterns.data_cache.sqlite_store
        resilience.circuit_breaker resilience.single_flight storage.lru storage.sqlite
    """,
    "client": """
        client.call client.endpoint client.inference client.prober client.v2_messages
        codec.v2_request codec.v2_tensors http.response_parser resilience.circuit_breaker
    """,
    "ensemble": "model.companions patterns.horizontal.role patterns.horizontal.routes patterns.horizontal.voting",
    "halves": "model.companions patterns.prep_pred.halves",
    "prep": "patterns.prep_pred.role",
    "gateway": "patterns.horizontal.remote_members",
}
FAMILIES_OF = {
    "all": ("web single", "protocol", "jobs", "hybrid", "prediction cache", "items", "ensemble", "halves"),
    "web_single": ("web single",),
    "synchronous": ("protocol",),
    "asynchronous": ("jobs",),
    "worker": ("jobs",),
    "sync_async": ("jobs", "hybrid"),
    "prediction_cache": ("web single", "prediction cache"),
    "data_cache": ("items",),
    "prep": ("web single", "client", "halves", "prep"),
    "pred": ("protocol",),
    "gateway": ("client", "ensemble", "gateway"),
    "member": ("protocol",),
}
NEEDED = {
    "prep": {"pred_url": "http://127.0.0.1:9"},
    "gateway": {"members": "setosa=http://127.0.0.1:9"},
    "member": {"member": "setosa"},
}
START = """
import os, sys
from iris_wsgi.cli.main import parser, read_settings
import iris_wsgi.server.serve, iris_wsgi.server.event_loop
from iris_wsgi.observability.log import Log
from iris_wsgi.factory import build
parser(["serve"])
build(read_settings({}, dict(zip(sys.argv[1::2], sys.argv[2::2]))), Log(2))
print(*(name.removeprefix("iris_wsgi.") for name in sys.modules if name.startswith("iris_wsgi.")), flush=True)
os._exit(0)
"""


@cache
def modules() -> dict[str, ast.Module]:
    """Returns the syntax tree of each module by its name within the package."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        found[name] = ast.parse(path.read_text())
    return found


@cache
def typing_only(name: str) -> frozenset[int]:
    """Yields the nodes of a module that only a type checker executes."""
    return frozenset(
        id(node)
        for test in ast.walk(modules()[name])
        if isinstance(test, ast.If) and isinstance(test.test, ast.Name) and test.test.id == "TYPE_CHECKING"
        for node in ast.walk(test)
    )


@cache
def imports(name: str) -> frozenset[str]:
    """Returns the modules of the package that a module imports, at its top or in a function, except for type checking."""
    found = set()
    for node in ast.walk(modules()[name]):
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").split(".")[0] == "iris_wsgi"
            and id(node) not in typing_only(name)
        ):
            package = (node.module or "").removeprefix("iris_wsgi").lstrip(".")
            inside = {f"{package}.{alias.name}".lstrip(".") for alias in node.names}
            found |= {module for module in inside if module in modules()} or {package}
    return frozenset(found - {""})


@cache
def foreign_imports(name: str) -> frozenset[str]:
    """Returns the top-level packages outside iris_wsgi that a module imports, at its top or in a function."""
    found = set()
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and id(node) not in typing_only(name):
            found.add((node.module or "").partition(".")[0])
    return frozenset(found - {"iris_wsgi"})


def reached(name: str) -> set[str]:
    """Returns the modules that a module imports directly or indirectly."""
    found, new = set(), {name}
    while new:
        found |= new
        new = {imported for module in new for imported in imports(module)} - found
    return found - {name}


def top(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.long
@pytest.mark.parametrize("role", ROLES)
def test_a_role_loads_the_listed_modules_only(role, tmp_path):
    settings = {"role": role, "model_dir": str(MODEL), "state_dir": str(tmp_path), **NEEDED.get(role, {})}
    words = [word for pair in settings.items() for word in pair]
    loaded = subprocess.run([sys.executable, "-c", START, *words], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    families = " ".join(FAMILIES[family] for family in FAMILIES_OF[role])
    expected = {*f"{EVERY_SERVER} {families}".split()}
    packages = {name.rpartition(".")[0] for name in expected} | {"patterns"}
    assert sorted(loaded.split()) == sorted((expected | packages) - {""})


def test_the_top_level_has_the_listed_packages_and_modules_only():
    assert {top(name) for name in modules()} - {""} == RANKS.keys()


def test_a_package_imports_lower_ranks_only():
    upward = {
        (name, imported)
        for name in modules()
        if name
        for imported in imports(name)
        if top(imported) != top(name) and RANKS[top(imported)] >= RANKS[top(name)]
    }
    assert not upward


def test_a_pattern_imports_no_other_pattern_except_the_two_named_ones():
    found = {
        (name.split(".")[1], imported.split(".")[1])
        for name in modules()
        for imported in imports(name)
        if name.startswith("patterns.") and imported.startswith("patterns.")
    }
    assert {pair for pair in found if pair[0] != pair[1]} == USES_PATTERN


def test_only_the_factory_and_the_commands_import_patterns():
    importers = {name for name in modules() if top(name) != "patterns" and any(top(item) == "patterns" for item in imports(name))}
    assert importers == {"factory", "cli.main"}


def test_no_module_outside_of_the_batch_pattern_imports_the_scorer_of_tables():
    assert not [name for name in modules() if "scorer" in imports(name) and not name.startswith("patterns.batch.")]


def test_an_optional_package_is_imported_in_one_module():
    found = {package: {name for name in modules() if package in foreign_imports(name)} for package in OPTIONAL}
    assert found == OPTIONAL


def test_the_parsers_and_the_codecs_do_no_io():
    for name in modules():
        if top(name) in PURE:
            assert not foreign_imports(name) & IMPURE, name
            # The conversion of an address to bytes opens no socket.
            attributes = [node for node in ast.walk(modules()[name]) if isinstance(node, ast.Attribute)]
            names = {node.attr for node in attributes if ast.unparse(node.value) == "socket"}
            assert names <= {"inet_pton", "AF_INET6"}, name


def test_no_two_classes_have_one_name():
    names = Counter(node.name for tree in modules().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert not [name for name, times in names.items() if times > 1]


def test_the_package_and_its_core_have_few_modules():
    """Packages without code do not count. The core is what the default role of the image loads."""
    with_code = [name for name, tree in modules().items() if len(tree.body) > 1]
    assert len(with_code) <= 140
    assert len({*EVERY_SERVER.split(), *FAMILIES["web single"].split()}) <= 40


def test_the_application_does_not_import_the_server():
    for name in modules():
        if top(name) not in ("server", "cli", "__main__"):
            assert "server" not in {top(imported) for imported in imports(name)}, name


def test_there_is_no_import_cycle():
    assert not [
        name for name in modules() if name in {item for imported in imports(name) for item in reached(imported) | {imported}}
    ]


def test_each_module_has_a_docstring_of_one_sentence():
    for name, tree in modules().items():
        result = ast.get_docstring(tree) or ""
        assert re.fullmatch(r"[^.]*(?:\.[^ \n][^.]*)*\.", result) or name == "", (name, result)


def test_every_definition_is_used():
    text = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    # The standard library calls these.
    once = {word for word, times in Counter(re.findall(r"\w+", text)).items() if times == 1} - {"emit", "readinto", "seekable"}
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                assert node.name.startswith("__") or node.name not in once, f"{name}: {node.name}"


def test_the_benchmark_the_soak_and_the_builds_import_existing_names():
    for path in [*ROOT.glob("tests/bench/**/*.py"), *ROOT.glob("tests/soak/*.py"), *ROOT.glob("bin/*.d/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "iris_wsgi":
                given = import_module(node.module)
                for name in node.names:
                    beside = Path(given.__file__).with_name(f"{name.name}.py")
                    assert hasattr(given, name.name) or beside.exists(), f"{path}: {name.name}"


def test_no_function_is_long_except_for_the_listed_reasons():
    # Routes are closures over shared state, with their table below. The other functions are one sequence of steps.
    reasons = {"routes", "hybrid_route", "split_model", "measured"}
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 40:
                assert node.name in reasons, f"{name}: {node.name}"
