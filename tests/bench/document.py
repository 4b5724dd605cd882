"""docs/benchmark.md: one part for each section, so that a run replaces those it measured and keeps the others."""

import re
from collections.abc import Iterable, Mapping, Sequence

import machine
from results import Outcome

TITLE = "# Benchmark\n"
MADE = """\
The figures are medians of {rounds}. In each round every server is started again, in turn. The command was
`{command}` on {machine}.
"""


def merged(document: str, parts: Mapping[str, str], order: Sequence[str]) -> str:
    """The document with these parts in place of its own of the same names; what stands before the first mark is not kept."""
    _, *told = re.split(r"^<!-- (\w+) -->\n", document, flags=re.MULTILINE)
    texts = dict(zip(told[::2], told[1::2], strict=True)) | parts
    return "\n".join([TITLE, *(f"<!-- {name} -->\n{texts[name].strip()}\n" for name in order if name in texts)])


def framed(outcome: Outcome, heading: str, tables: str, method: str, verdicts: Iterable[str], environments: Sequence[str]) -> str:
    """A section: how it was made, what was found, what went wrong, how it was measured, and the targets."""
    rounds = "one round" if outcome.rounds == 1 else f"{outcome.rounds} rounds"
    parts = [f"## {heading}\n", MADE.format(rounds=rounds, command=outcome.command, machine=machine.line(environments)), tables]
    if missing := outcome.notes | outcome.reasons:
        parts += ["What went wrong:\n", "".join(f"* {name}: {what}\n" for name, what in missing.items())]
    return "\n".join([*parts, method, "".join(f"* {line}\n" for line in verdicts)])
