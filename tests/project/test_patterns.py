"""The tables of patterns, the roles, their routes, and the overlays are complete and consistent."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import pytest
from applications import RecordingLog
from doc_examples import fences_of
from edge_bundles import write_bundle
from kustomize_overlays import MANIFESTS, OVERLAYS, containers, environment_of, kustomize, our_pods, our_servers, settings_of
from optional_programs import require_program
from pattern_table import COMMON_ROUTES, DOCUMENTED_ROLES, ROWS, normalized, routes_in, routes_of, table_cells
from project import MODEL, ROOT

from iris_wsgi.cli.tour import PATTERNS
from iris_wsgi.factory import build
from iris_wsgi.roles import ROLES
from iris_wsgi.settings import Settings

# Settings that some roles require.
ASKED = {
    "prep": {"pred_url": "http://127.0.0.1:1"},
    "gateway": {"members": "setosa=http://127.0.0.1:1"},
    "member": {"member": "setosa"},
}


@pytest.fixture
def served_routes(tmp_path):
    """Function that returns the routes of a server with these settings, without the common routes."""
    write_bundle(tmp_path / "edge")

    def get(settings: Settings):
        settings = replace(settings, model_dir=str(MODEL), model_seal="", state_dir=str(tmp_path), redis_url="", database_url="")
        table = build(replace(settings, edge_dir=settings.edge_dir and str(tmp_path / "edge")), RecordingLog()).app.table
        routes = normalized((method, path) for path, on_path in table.items() for method in on_path)
        assert routes >= COMMON_ROUTES
        # The files of the API page come with it.
        return {(method, path) for method, path in routes - COMMON_ROUTES if not path.startswith("/docs/")}

    return get


def test_the_table_has_every_role_with_its_routes(served_routes):
    assert sorted(DOCUMENTED_ROLES) == sorted(ROLES)
    for role in ROLES:
        assert served_routes(Settings(role=role, **ASKED.get(role, {}))) == routes_of(role), role


@pytest.mark.long
def test_the_table_has_every_overlay_and_each_serves_the_routes_of_its_row(served_routes):
    require_program("kubectl")
    assert sorted(overlay for row in ROWS for overlay in row.overlays) == sorted(OVERLAYS)
    assert [row.pattern for row in ROWS if not row.overlays] == ["all of them"]
    for row in ROWS:
        found = [
            (pod, objects) for objects in (kustomize(MANIFESTS / name) for name in row.overlays) for pod in our_pods(objects)
        ]
        roles = set()
        for template, objects in found:
            (container,) = containers(template, "containers")
            if template not in our_servers(objects):
                # This pod runs the command of the row.
                assert f"`bin/{container['args'][0]}`" in row.routes_text[""] and not row.roles
                continue
            settings = settings_of(container, objects)
            roles.add(settings.role)
            assert served_routes(settings) == routes_in(row.routes_text[settings.role]), row.pattern
        assert roles == set(row.roles if row.overlays else ())
        assert found or not row.overlays


def add(file: Path, after: str, text: str) -> None:
    """Inserts a text after another one, which must occur once in the file."""
    content = file.read_text()
    assert content.count(after) == 1
    file.write_text(content.replace(after, after + text))


def test_a_new_pattern_is_one_folder_a_line_in_each_table_and_one_overlay(tmp_path, run):
    """The files of CONTRIBUTING.md are added to a copy of the package and of the manifests."""
    require_program("kubectl")
    require_program("curl")
    document = ROOT / "CONTRIBUTING.md"
    texts = [fence.text for fence in fences_of(document)]
    (file,) = (text for text in texts if "def route(" in text)
    (role,) = (text for text in texts if text.startswith('"shadow": Role('))
    (function,) = (text for text in texts if text.startswith("def shadow("))
    (entry,) = (text for text in texts if text == '"shadow": shadow,\n')
    package = shutil.copytree(ROOT / "iris_wsgi", tmp_path / "iris_wsgi", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "patterns/shadow").mkdir()
    (package / "patterns/shadow/__init__.py").touch()
    (package / "patterns/shadow/role.py").write_text(file)
    add(package / "roles.py", "ROLES = {\n", f"    {role}")
    add(package / "factory.py", "ROUTES: dict[str, Routes] = {\n", f"    {entry}")
    add(package / "factory.py", 'Kind = TypeVar("Kind")\n', f"\n\n{function}\n\n")
    for name, copy in (("base", "base"), ("synchronous", "shadow")):
        shutil.copytree(MANIFESTS / name, tmp_path / "manifests" / copy)
    overlay = tmp_path / "manifests/shadow/kustomization.yml"
    overlay.write_text(overlay.read_text().replace("value: synchronous", "value: shadow"))
    objects = kustomize(overlay.parent)
    (container,) = containers(our_pods(objects)[0], "containers")
    server = run("--role", environment_of(container, objects)["IRIS_ROLE"], cwd=tmp_path)
    tried = subprocess.run(server.startup_lines[-1].removeprefix("try: "), shell=True, capture_output=True, text=True, check=True)
    assert json.loads(tried.stdout) == {"prediction": "setosa"}
    assert 'shadow_agreements_total{agrees="yes"} 1' in urlopen(f"{server.url}/metrics").read().decode()


def test_every_command_of_the_table_is_a_script_in_bin():
    for name in re.findall(r"`(bin/\w+)`", "".join(text for row in ROWS for text in row.routes_text.values())):
        assert (ROOT / name).exists()


def links_in(cell: str) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", cell)


def test_the_readme_has_every_pattern_of_the_tour_with_its_purpose_and_a_link_to_its_section():
    rows = table_cells(ROOT / "README.md")
    assert [(name, when) for name, when, _ in rows] == [(pattern.name, pattern.when) for pattern in PATTERNS]
    for name, _, more in rows:
        for link in links_in(more):
            assert link.startswith(f"docs/patterns.md#{name.split()[0].lower()}"), link


def test_the_japanese_readme_has_the_same_structure_commands_figures_and_links():
    english, japanese = ROOT / "README.md", ROOT / "README.ja.md"
    assert "(README.ja.md)" in english.read_text() and "(README.md)" in japanese.read_text()
    fences = [
        [(item.language, re.sub(r" *#.*", "", item.text), item.output) for item in fences_of(document)]
        for document in (english, japanese)
    ]
    assert fences[0] == fences[1]
    pages = [re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.M | re.S) for document in (english, japanese)]
    for pattern in (r"^#+ ", r"^\|[^|]*(\| [\d,.]+ \|.*)$", r"\]\(((?!README)[^)]+)\)"):
        ours, theirs = (re.findall(pattern, page, re.MULTILINE) for page in pages)
        assert ours and ours == theirs
    names = [cells[0] for cells in table_cells(japanese)]
    assert len(set(names)) == len(names) and all(re.search("[ぁ-んァ-ヶ一-龠]", name) for name in names)
