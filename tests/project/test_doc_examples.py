"""The examples of all documents: every command works and has the shown output."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields

import pytest
from doc_examples import (
    DOCUMENTS,
    FENCES,
    LANGUAGES,
    OTHER_PLACES,
    README,
    commands_for,
    matches_shown,
    run_command,
    with_test_server,
)
from optional_programs import require_package, require_program
from project import ROOT
from server_process import ServerProcess
from terminal_process import TerminalProcess

from iris_wsgi.settings import Settings, flag_of, name_of

PERFORMANCE = (ROOT / "docs/performance.md").read_text()
FENCES_OF_README = [fence for fence in FENCES if fence.document == ROOT / "README.md"]
HERE = commands_for("here")
# tests/spark and tests/live/test_ray.py run the examples that need Spark and Ray.
PYTHON = [fence for fence in FENCES if fence.language == "python" and not re.search("pyspark|import ray", fence.text)]
# Start of a line that a user could type.
TYPED = r"^\s*(\$ |\w+=\S+ \S|bin/|curl |docker |export |git |kubectl |minikube |pip |podman |python\S* )"


def test_every_fence_has_a_language_and_commands_are_in_sh_fences_only():
    assert {fence.language for fence in FENCES} <= LANGUAGES
    for fence in FENCES:
        if fence.language not in ("sh", "python"):
            assert not re.search(TYPED, fence.text, re.MULTILINE), fence


def test_every_place_of_skipped_commands_is_still_in_use():
    for place in OTHER_PLACES:
        assert commands_for(place), f"no command is left for {place}"
    assert {fence.document.name for fence in commands_for("first")} == {"README.md", "README.ja.md"}
    assert "bin/test\n" in (ROOT / ".ci/run").read_text()


def test_the_first_screen_has_the_two_commands_and_a_curl_line():
    first, second = FENCES_OF_README[:2]
    assert [line.split()[0] for line in first.text.splitlines()] == ["bin/serve", "bin/test"]
    assert second.text.startswith("curl -s http://127.0.0.1:8000/predict/label ") and json.loads(second.output) == {
        "prediction": "setosa"
    }
    assert README.index("bin/serve") < README.index("bin/test") < README.index("curl ") < README.index("| pattern |")


@pytest.fixture(scope="module")
def readme_server(tmp_path_factory) -> Iterator[ServerProcess]:
    """bin/serve on a free port."""
    command = ["bin/serve", "--port", "0", "--state-dir", str(tmp_path_factory.mktemp("state"))]
    process = TerminalProcess(command, cwd=ROOT, stderr=subprocess.PIPE)
    server = ServerProcess(process)
    yield server
    server.stop()


@pytest.mark.parametrize("item", HERE, ids=[f"{item.document.name} {item.text.strip()[:60]}" for item in HERE])
def test_every_command_works_and_has_the_shown_output(readme_server, item, tmp_path):
    require_program("curl")
    text = run_command(["sh", "-ec", with_test_server(item.text, readme_server.port, tmp_path)], tmp_path)
    if item.kind == "json":
        assert almost_equal(json.loads(text), json.loads(item.output)), text
    else:
        assert matches_shown(text, item.output) if item.output else text, text


@pytest.mark.parametrize("item", PYTHON, ids=[item.document.name for item in PYTHON])
def test_every_example_in_python_works_and_has_the_shown_output(readme_server, item, tmp_path):
    if "iris_wsgi.pack" in item.text or "pandas" in item.text:
        require_package("pandas")
    (tmp_path / "model").symlink_to(ROOT / "model")
    text = run_command([sys.executable, "-c", with_test_server(item.text, readme_server.port, tmp_path)], tmp_path, tmp_path)
    assert matches_shown(text, item.output), text


def almost_equal(a, b) -> bool:
    """Returns whether two values are equal, with a tolerance of 1e-6, because the last bits depend on the processor."""
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(almost_equal(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(almost_equal, a, b))
    return abs(a - b) < 1e-6 if isinstance(a, float) and isinstance(b, float) else a == b


def test_a_different_output_is_found():
    assert matches_shown('{"a": 1,\n "b": 25}\n', '{"a":1, "b": 2…}') and not matches_shown(
        '{"a": 1, "b": 3}', '{"a": 1, "b": 2…}'
    )
    assert (
        not matches_shown("setosa more", "setosa")
        and almost_equal([1.0000001], [1.0])
        and not almost_equal({"a": 1.1}, {"a": 1.0})
    )


def test_the_readme_has_at_most_a_thousand_words():
    for document in (README, (ROOT / "README.ja.md").read_text()):
        assert len(document.split()) <= 1000


def test_the_readme_links_every_page_of_the_folder_docs():
    for path in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{path.name})" in README


def test_the_documents_use_one_name_of_the_product():
    for document in DOCUMENTS:
        prose = re.sub(r"^```.*?^```$|`[^`]*`|\]\([^)]*\)", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
        # The command and its folders have a hyphen.
        assert {*re.findall(r"iris[ _-]?wsgi", prose, re.IGNORECASE)} <= {"iris_wsgi", "iris-wsgi"}, document


def shown(default: object) -> str:
    return "empty" if default == "" else f"`{default}`"


def test_the_page_of_settings_lists_every_setting():
    rows = [
        f"| `{name_of(field.name)}` | `{flag_of(field.name)}` | {shown(field.default)} | {field.metadata['help']} |"
        for field in fields(Settings)
    ]
    assert sorted(re.findall(r"^\| `IRIS_.*$", (ROOT / "docs/settings.md").read_text(), re.MULTILINE)) == sorted(rows)


# Location of each figure of docs/performance.md in docs/benchmark.md.
FIGURES = [
    [
        r"^\| iris_wsgi, /v2, binary in and out +\| +([\d,]+) \|",
        r"in binary over 1 connection, relative to the protocol's JSON: ([\d.]+);",
    ],
    [r"p99 of one row during JSON: ([\d.]+) ms more", r"p99 of one row during JSON with FastAPI: ([\d.]+) ms more"],
    [
        rf"PASS {benchmark_name}: CPU of a hit in memory, relative to no cache: ([\d.]+) "
        for benchmark_name in ("the Iris SVM", r"GET /items/\{id\}")
    ],
    [rf"^\| {store} +\| +1 \| +[\d,]+ \| +([\d,]+) \|" for store in ("SQLite", "Redis")],
    [
        rf"added by the {benchmark_name} at 1 connection: ([\d,]+) µs"
        for benchmark_name in ("hop from prep to pred", "fan-out to three members")
    ],
    [r"^\| iris_wsgi, 1 process +\| CSV +\| +([\d,]+) \| +([\d.]+) \|.*\| +(\d+) \| +[\d.]+ \|$"],
    [r"^\| the command, 2 processes +\| one Parquet file +\| +[\d.]+ \| +([\d,]+) \| +([\d.]+) \| +[\d.]+ \| +(\d+) \|$"],
]


def test_the_figures_of_the_documents_are_those_of_the_last_benchmark_report():
    report = (ROOT / "docs/benchmark.md").read_text()
    rows = re.findall(r"^\| .* \| (.*) \| `bin/bench(?: --only [\w,]+)?` \|$", PERFORMANCE, re.MULTILINE)
    measured = [[figure for place in row for figure in re.search(place, report, re.MULTILINE).groups()] for row in FIGURES]
    assert [re.findall(r"\d[\d,.]*\d|\d", row) for row in rows] == measured


def test_the_table_of_the_ways_of_batch_has_the_figures_of_the_last_benchmark_report():
    report = (ROOT / "docs/benchmark.md").read_text().partition("## Ten million rows")[2].partition("\n* ")[0]
    measured = [re.split(r" +\| +", line.strip("| ")) for line in report.splitlines() if line.startswith("|")][3:]
    table = (ROOT / "docs/patterns.md").read_text().partition("## Batch: which way")[2].partition("\n\n")[2].partition("\n\n")[0]
    shown = [re.split(r" +\| +", line.strip("| ")) for line in table.splitlines()][2:]
    # Seconds, CPU, and memory.
    assert len(shown) == 5 and [line[-3:] for line in shown] == [[line[2], line[5], line[6]] for line in measured]


def test_the_documents_name_the_best_peers_of_the_last_benchmark_report():
    report = (ROOT / "docs/benchmark.md").read_text().partition("## The best peers")[2].partition("##")[0]
    _, _, *lines = (line.strip("|").split("|") for line in report.splitlines() if line.startswith("|"))
    expected = []
    for line in lines:
        figure, ours, with_log, with_figure, _, without, without_figure, _, fastapi = (cell.strip() for cell in line)
        best = f"{with_figure} ({with_log.removesuffix(' with log and metrics')}) | {without_figure} ({without})"
        expected.append(f"| {figure} | {ours} | {best} | {fastapi} |")
    header = (
        "| one worker | iris_wsgi | best peer with log and metrics | best peer without log and metrics | FastAPI on uvicorn |"
    )
    tables = [
        text.partition(f"{header}\n|---|---|---|---|---|\n")[2].partition("\n\n")[0].splitlines()
        for text in (PERFORMANCE, README)
    ]
    assert expected and tables[0] == expected
    # The README has some of the rows, in their order.
    assert tables[1] and tables[1] == [line for line in expected if line in tables[1]]


def test_the_size_and_the_start_in_the_points_of_the_readme_are_measured():
    size = re.search(r"\| (\d+) MB instead of", PERFORMANCE)[1]
    start = float(re.search(r"^\| first response s \| ([\d.]+) \|", PERFORMANCE, re.MULTILINE)[1])
    assert f"an image of {size} MB, and the first response {start:.1f} seconds after the start." in README
    assert f"イメージは {size} MB、起動から最初の応答までは {start:.1f} 秒です。" in (ROOT / "README.ja.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_has_a_target(document):
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", document.read_text()):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, link


@pytest.mark.parametrize("name", ["serve", "test", "check", "train", "bench", "batch", "edge", "image", "setup"])
def test_every_script_in_bin_is_executable(name):
    path = ROOT / "bin" / name
    assert path.stat().st_mode & 0o111
    assert any(re.search(rf"`bin/{name}[` ]|^bin/{name} ", document.read_text(), re.MULTILINE) for document in DOCUMENTS)
    subprocess.run(["sh", "-n", str(path)], check=True)
