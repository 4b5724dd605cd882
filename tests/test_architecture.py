"""Which module imports which: what a role loads, which way imports point, and that nothing is there that nobody uses."""

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

from iris_wsgi.catalogue import ROLES

PACKAGE = ROOT / "iris_wsgi"
# The modules of the package by what wants them. A new one has its line here: who loads it?
EVERY_SERVER = """
    __main__ answers arguments asking board bodies casts catalogue cgroups channel codings companions console cores cpus
    deadline documents errors folder golden hosts http1 launch listener log metrics model observer openapi ops pace packages
    parts paths payload predictors prefix processes reader roles routes routes.page routes.single routes.training server
    settings tracing training validators watch wsgi
"""
FAMILIES = {
    "protocol": "kserve members oip oip_answers oip_schemas routes.v1 routes.v2 servable tally tensors",
    "jobs": """
        job_metrics leases queues records routes.hybrid routes.jobs stores stores.choice stores.clock stores.jobs stores.database
        breaker stores.files stores.schema stores.sqlite sweeper worker
    """,
    "prediction cache": """
        cache_control cache_metrics cache_status cached caching flights known routes.cache rowbytes shared shelf stores
        stores.choice stores.jobs breaker
    """,
    "items": """
        cache_control flights items items.cache items.choice items.entries items.marks items.metrics items.parts items.reader
        items.seed items.sqlite items.store items.texts routes.items shelf stores stores.choice stores.clock stores.jobs
        stores.database stores.files breaker
    """,
    "others": """
        members oip remote remote.budget remote.call remote.exchange remote.inference remote.metrics remote.peer remote.reply
        remote.target remote.watcher breaker tensors
    """,
    "ensemble": "ensemble ensembles routes.gateway",
}
FAMILIES_OF = {
    "all": ("protocol", "jobs", "prediction cache", "items", "ensemble"),
    "web_single": (),
    "synchronous": ("protocol",),
    "asynchronous": ("jobs",),
    "worker": ("jobs",),
    "sync_async": ("jobs",),
    "prediction_cache": ("prediction cache",),
    "data_cache": ("items",),
    "prep": ("others",),
    "pred": ("protocol",),
    "gateway": ("others", "ensemble"),
    "member": ("protocol",),
}
OF_ONE_ROLE = {"prep": "halves remote.predictor", "gateway": "remote.panel"}
NEEDED = {
    "prep": {"pred_url": "http://127.0.0.1:9"},
    "gateway": {"members": "setosa=http://127.0.0.1:9"},
    "member": {"member": "setosa"},
}
START = """
import os, sys
from iris_wsgi.__main__ import parser, read_settings
import iris_wsgi.launch, iris_wsgi.server
from iris_wsgi.log import Log
from iris_wsgi.roles import build
parser(["serve"])
build(read_settings({}, dict(zip(sys.argv[1::2], sys.argv[2::2]))), Log(2))
print(*(name.removeprefix("iris_wsgi.") for name in sys.modules if name.startswith("iris_wsgi.")), flush=True)
os._exit(0)
"""
# What knows nothing of who serves it.
LOW = ("errors", "payload", "model", "wsgi", "http1", "reader", "settings")
HIGH = (
    "roles",
    "parts",
    "stores",
    "server",
    "channel",
    "launch",
    "workers",
    "items",
    "remote",
    "routes",
    "batch",
    "edge",
    "shared",
)


@cache
def modules() -> dict[str, ast.Module]:
    """The syntax of each module by its name within the package."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        found[name] = ast.parse(path.read_text())
    return found


@cache
def imports(name: str) -> frozenset[str]:
    """The modules of the package that this one imports, at its head or later, or by the catalogue; not what only types name."""
    tree = modules()[name]
    typing = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and isinstance(test.test, ast.Name) and test.test.id == "TYPE_CHECKING"
        for node in ast.walk(test)
    }
    named = {place.partition(":")[0] for role in ROLES.values() for place in (role.routes, role.core)}
    found = named - {"roles"} if name == "roles" else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("iris_wsgi") and id(node) not in typing:
            below = (node.module or "").removeprefix("iris_wsgi").lstrip(".")
            inside = {f"{below}.{one.name}".lstrip(".") for one in node.names}
            found |= {one for one in inside if one in modules()} or {below}
    return frozenset(found - {""})


def reached(name: str) -> set[str]:
    """Those that it imports, and what those import."""
    found, new = set(), {name}
    while new:
        found |= new
        new = {one for known in new for one in imports(known)} - found
    return found - {name}


@pytest.mark.long
@pytest.mark.parametrize("role", ROLES)
def test_a_role_loads_what_it_uses_and_nothing_else(role, tmp_path):
    settings = {"role": role, "model_dir": str(MODEL), "state_dir": str(tmp_path), **NEEDED.get(role, {})}
    words = [word for pair in settings.items() for word in pair]
    told = subprocess.run([sys.executable, "-c", START, *words], capture_output=True, text=True, check=True, cwd=ROOT)
    families = " ".join(FAMILIES[family] for family in FAMILIES_OF[role])
    assert sorted(told.stdout.split()) == sorted({*f"{EVERY_SERVER} {families} {OF_ONE_ROLE.get(role, '')}".split()})


@pytest.mark.long
def test_the_application_the_model_and_the_bodies_know_nothing_of_roles_stores_and_the_server():
    for name in LOW:
        assert not [one for one in reached(name) if one.partition(".")[0] in HIGH], name


def test_only_the_start_puts_roles_together():
    assert {name for name in modules() if "roles" in imports(name)} == {"", "launch"}
    starts = {"launch", "server", "workers"}
    assert {name for name in modules() if starts & imports(name)} == {"__main__", "launch", "workers"}


def test_no_modules_import_each_other_in_a_circle():
    assert not [name for name in modules() if name in {one for each in imports(name) for one in reached(each) | {each}}]


def test_each_module_has_a_docstring_of_one_sentence():
    for name, tree in modules().items():
        told = ast.get_docstring(tree) or ""
        assert re.fullmatch(r"[^.]*(?:\.[^ \n][^.]*)*\.", told) or name in ("", "edge"), (name, told)


def test_nothing_is_defined_that_nobody_uses():
    text = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    # Python's logging calls emit().
    once = {word for word, times in Counter(re.findall(r"\w+", text)).items() if times == 1} - {"emit"}
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                assert node.name.startswith("__") or node.name not in once, f"{name}: {node.name}"


def test_what_the_benchmark_the_soak_and_the_builds_take_from_the_package_is_there():
    for path in [*ROOT.glob("tests/bench/**/*.py"), *ROOT.glob("tests/soak/*.py"), *ROOT.glob("bin/*.d/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "iris_wsgi":
                given = import_module(node.module)
                for one in node.names:
                    beside = Path(given.__file__).with_name(f"{one.name}.py")
                    assert hasattr(given, one.name) or beside.exists(), f"{path}: {one.name}"


def test_no_function_is_long_but_those_that_have_a_reason():
    # Routes are closures over what they share, with their table below; the others are one thing told from its start to its end.
    reasons = {"routes", "split", "measured"}
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 40:
                assert node.name in reasons, f"{name}: {node.name}"
