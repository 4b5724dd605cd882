"""Document docs/benchmark.md: one part for each section. A run replaces the parts that it measured."""

import re
from collections.abc import Iterable, Mapping, Sequence

import machine
from results import Results

TITLE = "# Benchmark\n"
MADE = """\
The figures are medians of {rounds}. In each round every server is started again, in turn. The command was
`{command}` on {machine}.
"""


def merge_sections(document: str, parts: Mapping[str, str], order: Sequence[str]) -> str:
    """Returns the document with these parts in place of the parts with the same names. Text before the first mark is dropped."""
    _, *marks_and_texts = re.split(r"^<!-- (\w+) -->\n", document, flags=re.MULTILINE)
    texts = dict(zip(marks_and_texts[::2], marks_and_texts[1::2], strict=True)) | parts
    return "\n".join([TITLE, *(f"<!-- {name} -->\n{texts[name].strip()}\n" for name in order if name in texts)])


def section_text(
    results: Results, heading: str, tables: str, method: str, verdicts: Iterable[str], environments: Sequence[str]
) -> str:
    """Returns a section: the command, the tables, the problems, the method, and the targets."""
    rounds = "one round" if results.rounds == 1 else f"{results.rounds} rounds"
    parts = [f"## {heading}\n", MADE.format(rounds=rounds, command=results.command, machine=machine.line(environments)), tables]
    if missing := results.warnings | results.failures:
        parts += ["What went wrong:\n", "".join(f"* {name}: {what}\n" for name, what in missing.items())]
    return "\n".join([*parts, method, "".join(f"* {line}\n" for line in verdicts)])
