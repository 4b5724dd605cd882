"""The prose linter finds each kind of fault in each kind of file, and its list is sound."""

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "bin/check.d"
SPEC = importlib.util.spec_from_file_location("prose", FOLDER / "prose.py")
prose = importlib.util.module_from_spec(SPEC)
sys.modules["prose"] = prose
SPEC.loader.exec_module(prose)
ENTRIES = tomllib.loads((FOLDER / "prose.toml").read_text())["reject"]
RULES = prose.load_rules()
# Matches the first entry about a word. The tests build it, because the linter reads the tests too.
WORD = "heed" + "s"
LONG = "word " * 31


def faults(kind, text):
    return list(prose.faults([prose.Text(1, kind, text)], RULES))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["bad"])
def test_each_entry_rejects_its_bad_example_and_no_entry_rejects_the_good_one(entry):
    assert set(entry) <= {"pattern", "advice", "in", "bad", "good"}
    for kind in entry.get("in", prose.KINDS):
        assert kind in prose.KINDS
        assert any(entry["advice"] in fault for _, fault in faults(kind, entry["bad"]))
        assert faults(kind, entry["good"]) == []


def test_no_entry_and_no_example_stands_twice():
    for field in ("pattern", "bad", "good"):
        assert len({entry[field] for entry in ENTRIES}) == len(ENTRIES)


FILES = {
    "docstring.py": (f'"""Stores a value.\n\nThe cache {WORD} the clock.\n"""\n', 3, "docstring"),
    "function.py": (f'def f():\n    """It {WORD} the clock."""\n', 2, "docstring"),
    "raw.py": (f'def f():\n    r"""It {WORD} the clock."""\n', 2, "docstring"),
    "comment.py": (f"a = 1\n# One line.\n# It {WORD} the clock.\n", 3, "comment"),
    "behind.py": (f"a = 1  # It {WORD} the clock.\n", 1, "comment"),
    "message.py": (f'\nraise ValueError("It {WORD} the clock.")\n', 2, "message"),
    "joined.py": (f'raise ValueError(\n    "It "\n    "{WORD} the clock."\n)\n', 2, "message"),
    "formatted.py": (f'a = f"It {{1 + 1}} {WORD} the clock."\n', 1, "message"),
    "document.md": (f"# Title\n\nIt\n{WORD} the clock.\n", 4, "document"),
    "behind_a_fence.md": (f"```sh\nls\n```\n\nIt {WORD} the clock.\n", 5, "document"),
    "manifest.yml": (f"a: 1\n# It {WORD} the clock.\n", 2, "comment"),
    "rules.yml": (f"a:\n  description: It {WORD} the clock.\n", 2, "message"),
    "dashboard.json": (f'{{"a": 1,\n"title": "It {WORD} the clock"}}\n', 2, "message"),
    "setup.cfg": (f"a = 1\n# It {WORD} the clock.\n", 2, "comment"),
    "page.html": (f"<p>\nIt {WORD} the clock.</p>\n", 2, "document"),
    "script.html": (f"<p>\n<script>\n// It {WORD} the clock.\n</script>\n", 3, "comment"),
    "script.js": (f"/* It {WORD} the clock. */\n", 1, "comment"),
    "text.js": (f'\nconst a = "It {WORD} the clock.";\n', 2, "message"),
    "script.lua": (f"local a = 1\n-- It {WORD} the clock.\n", 2, "comment"),
    "bin/tool": (f"#!/bin/sh\n# It {WORD} the clock.\n", 2, "comment"),
    "bin/loud": (f'#!/bin/sh\necho "It {WORD} the clock."\n', 2, "message"),
    "Dockerfile": (f"FROM scratch\n# It {WORD} the clock.\n", 2, "comment"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_rejected_word_is_found_in_each_kind_of_file_on_its_line(name, tmp_path):
    text, line, kind = FILES[name]
    read = prose.reader(tmp_path / name)
    assert list(prose.faults(read(text), RULES)) == [(line, f'"{WORD}" in a {kind}: write "applies" or "follows"')]


NOT_PROSE = {
    "name.py": f"{WORD} = 1\nprint({WORD!r}, '{WORD}')\n",
    "code.py": f'"""Calls `{WORD}` of the module."""\n',
    "fence.md": f"```text\nIt {WORD} the clock.\n```\n",
    "inline.md": f"The function `{WORD}` follows the clock.\n",
    "link.md": f"The [module](docs/{WORD}.md) follows the clock.\n",
    "key.yml": f"{WORD}: 1\n",
    "lock.json": f'{{"a": "It {WORD}"}}\n',
    "tag.html": f'<p class="{WORD}">The text follows the clock.</p>\n',
}


@pytest.mark.parametrize("name", NOT_PROSE)
def test_code_and_names_are_not_prose(name):
    assert list(prose.faults(prose.reader(Path(name))(NOT_PROSE[name]), RULES)) == []


@pytest.mark.parametrize("kind", prose.KINDS)
def test_a_sentence_that_is_too_long_is_found(kind):
    assert faults(kind, f"Short. {LONG}") == [(1, f"sentence of 31 words in a {kind}: at most {RULES.max_words}")]
    assert faults(kind, LONG.replace("word ", "word. ", 1)) == []


def test_items_cells_and_paragraphs_end_a_sentence():
    half = LONG[: len(LONG) // 2]
    for between in ("\n\n", "\n* ", "\n1. ", " | ", "\n# "):
        assert faults("document", half + between + half) == []
    assert faults("document", f"{half}\n{half}")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Repository with one file that passes, one that fails, and an empty list of pending files."""
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    monkeypatch.setattr(prose, "PENDING", tmp_path / "pending.txt")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/good.md").write_text("The text follows the clock.\n")
    (tmp_path / "docs/bad.md").write_text(f"It {WORD} the clock.\n")
    return tmp_path


def test_a_file_that_fails_is_reported_unless_it_is_pending(tree, capsys):
    assert prose.main([])
    assert f'docs/bad.md:1: "{WORD}" in a document: ' in capsys.readouterr().out
    assert not prose.main(["--pending"])
    assert prose.PENDING.read_text() == "docs/bad.md\n"
    assert not prose.main([])
    # A file that is named is checked although it is pending.
    assert prose.main([str(tree / "docs/bad.md")])
    assert not prose.main([str(tree / "docs/good.md")])


def test_a_pending_entry_that_is_not_needed_any_more_is_refused_until_it_is_removed(tree, capsys):
    prose.main(["--pending"])
    (tree / "docs/bad.md").write_text("The text follows the clock.\n")
    assert prose.main([])
    assert "docs/bad.md passes or is gone" in capsys.readouterr().out
    assert not prose.main(["--fix"])
    assert prose.PENDING.read_text() == ""


def test_a_fix_adds_no_file_to_the_list(tree):
    prose.PENDING.write_text("docs/gone.md\n")
    assert prose.main(["--fix"])
    assert prose.PENDING.read_text() == ""


def test_every_file_of_the_repository_passes_or_is_pending():
    assert "bin/check.d/prose.py" in (ROOT / "bin/check").read_text()
    run = subprocess.run([sys.executable, FOLDER / "prose.py"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
