"""Prose linter: compares the text of this repository with the reject list in prose.toml.

Usage: prose.py [--fix | --pending] [FILE...]

Without arguments the linter checks every file that is not listed in prose_pending.txt. With FILE it checks these files only.
--fix removes the entries of prose_pending.txt that are no longer needed. --pending rewrites the list from scratch.
"""

import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PENDING = HERE / "prose_pending.txt"
FOLDERS = (".ci", ".github", "bin", "charts", "compose", "docs", "examples", "iris_wsgi", "manifests", "model", "tests")
KINDS = ("docstring", "comment", "message", "document")
# A string with two words is prose. Other strings are names, paths, and keys.
TWO_WORDS = re.compile(r"\w,? \w")
INDENT = re.compile(r"\n[ \t]+")
CODE = re.compile(r"``?[^`\n]+``?")
# Strings that Python 3.12 splits into several tokens.
FSTRING = {getattr(tokenize, f"FSTRING_{part}", -1) for part in ("START", "MIDDLE", "END")}
BREAK = re.compile(r"\n\s*(?=\n|[-*|#>] |\d+\. |\|)|\s\|\s")
SENTENCE_END = re.compile(r"[.!?]['\")\]*]*(?=\s|$)")
WORD = re.compile(r"(?<!\w)[^\W\d][\w'’-]*")


class Rule(NamedTuple):
    """Entry of the reject list: a pattern, the advice for the author, and the kinds of text to which the rule applies."""

    pattern: re.Pattern[str]
    advice: str
    kinds: tuple[str, ...]


class Rules(NamedTuple):
    """Reject list and the maximum number of words in a sentence."""

    reject: tuple[Rule, ...]
    max_words: int


class Text(NamedTuple):
    """Piece of prose with its kind and the line on which it starts."""

    line: int
    kind: str
    text: str


def load_rules(path: Path = HERE / "prose.toml") -> Rules:
    """Reads the reject list."""
    table = tomllib.loads(path.read_text())
    reject = tuple(
        Rule(re.compile(entry["pattern"], re.IGNORECASE), entry["advice"], tuple(entry.get("in", KINDS)))
        for entry in table["reject"]
    )
    return Rules(reject, table["max_words"])


def files() -> Iterator[Path]:
    """Yields every file that may contain prose, in order."""
    inside = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    for path in sorted([*ROOT.glob("*"), *inside]):
        if reader(path) and path.is_file() and path != PENDING and "__pycache__" not in path.parts:
            yield path


def reader(path: Path) -> Callable[[str], Iterator[Text]] | None:
    """Returns the function that extracts the prose of the file, or None for a file without prose."""
    if path.suffix:
        return READERS.get(path.suffix)
    return shell_texts if path.name == "Dockerfile" or path.parent.name in (".ci", "bin") else None


def python_texts(source: str) -> Iterator[Text]:
    """Yields docstrings, blocks of comments, and string literals with spaces."""
    comments: list[Text] = []
    column = -1
    strings: list[str] = []
    first = 0
    opens_statement = docstring = True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if comments and (token.start[0] != comments[-1].line + 1 or token.start[1] != column):
                yield block(comments)
                comments = []
            column = token.start[1]
            comments.append(Text(token.start[0], "comment", token.string.lstrip("#").strip()))
        elif token.type == tokenize.STRING or token.type in FSTRING:
            if not strings:
                first, docstring = token.start[0], opens_statement
            strings.append(literal(token.string) if token.type == tokenize.STRING else token.string.lstrip("rRbBfF").strip("\"'"))
        elif token.type != tokenize.NL:
            if strings:
                yield from string_text(first, "".join(strings), docstring and token.type == tokenize.NEWLINE)
                strings = []
            opens_statement = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    if comments:
        yield block(comments)


def string_text(line: int, text: str, docstring: bool) -> Iterator[Text]:
    """Yields the text of a string literal if the literal is prose."""
    if docstring:
        yield Text(line, "docstring", text)
    elif TWO_WORDS.search(text):
        yield Text(line, "message", text)


def literal(token: str) -> str:
    """Returns the text between the quotes, with placeholders in f-strings, and without escapes."""
    prefix = token[: min(token.index(quote) for quote in "\"'" if quote in token)].lower()
    token = token[len(prefix) :]
    quotes = 3 if token[:3] in ('"""', "'''") else 1
    text = token[quotes:-quotes]
    if "r" not in prefix:
        text = text.replace("\\\n", "").replace("\\n", "\n").replace("\\", "")
    return re.sub(r"\{[^{}]*\}", "{}", text) if "f" in prefix else text


def block(comments: list[Text]) -> Text:
    """Joins the lines of a comment."""
    return Text(comments[0].line, "comment", "\n".join(comment.text for comment in comments))


def commented(source: str, pattern: str) -> Iterator[Text]:
    """Yields the comments that the pattern finds. Comments on consecutive lines form a block."""
    found: list[Text] = []
    for match in re.finditer(pattern, source, re.MULTILINE | re.DOTALL):
        line = source.count("\n", 0, match.start(1)) + 1
        if found and line != found[-1].line + 1:
            yield block(found)
            found = []
        found.append(Text(line, "comment", match[1].strip()))
    if found:
        yield block(found)


def matches(source: str, pattern: str, kind: str) -> Iterator[Text]:
    """Yields the first group of each match with two words or more."""
    for match in re.finditer(pattern, source, re.MULTILINE):
        if TWO_WORDS.search(match[1]):
            yield Text(source.count("\n", 0, match.start(1)) + 1, kind, match[1])


def shell_texts(source: str) -> Iterator[Text]:
    """Yields the comments of a script or a configuration file, and the messages that a script prints."""
    yield from commented(source, r"(?:^|\s)# ?([^\n!][^\n]*)")
    yield from matches(source, r'(?:echo|why=|fail|die) ?"([^"\n]+)"', "message")


def yaml_texts(source: str) -> Iterator[Text]:
    """Yields the comments of a manifest, and the annotations of alerts."""
    yield from commented(source, r"(?:^|\s)# ?([^\n]+)")
    yield from matches(source, r"^\s*(?:summary|description|action): *(?:>-\n)?((?: {12}[^\n]*\n)+|[^\n]+)", "message")


def lua_texts(source: str) -> Iterator[Text]:
    """Yields the comments of a Lua script."""
    yield from commented(source, r"(?:^|\s)--+ ?([^\n]+)")


def json_texts(source: str) -> Iterator[Text]:
    """Yields the titles and descriptions of a dashboard."""
    yield from matches(source, r'"(?:description|title)": "([^"\n]+)"', "message")


def script_texts(source: str) -> Iterator[Text]:
    """Yields the comments and the strings of a script or a style sheet."""
    yield from commented(source, r"(?:^|\s)// ?([^\n]+)")
    yield from commented(source, r"/\*(.*?)\*/")
    yield from matches(source, r'"([^"\n]+)"', "message")


def page_texts(source: str) -> Iterator[Text]:
    """Yields the text of a page, and the comments and strings of its scripts."""
    code = re.compile(r"<(script|style)\b.*?</\1>", re.DOTALL)
    for match in code.finditer(source):
        start = source.count("\n", 0, match.start())
        yield from (text._replace(line=text.line + start) for text in script_texts(match[0]))
    yield Text(1, "document", re.sub(r"<[^>]*>", lambda tag: "\n" * tag[0].count("\n"), code.sub(blank, source)))


def markdown_texts(source: str) -> Iterator[Text]:
    """Yields a document without its fenced blocks and the targets of its links."""
    text = re.sub(r"^```.*?^```$", blank, source, flags=re.MULTILINE | re.DOTALL)
    yield Text(1, "document", re.sub(r"\]\([^)]*\)", "]", text))


def blank(match: re.Match[str]) -> str:
    """Returns the line breaks of the match, so that the numbers of the lines after the match stay."""
    return "\n" * match[0].count("\n")


READERS = {
    ".py": python_texts,
    ".md": markdown_texts,
    **dict.fromkeys((".yml", ".yaml"), yaml_texts),
    **dict.fromkeys((".cfg", ".conf", ".sh", ".toml", ".txt"), shell_texts),
    **dict.fromkeys((".css", ".js", ".mjs"), script_texts),
    ".html": page_texts,
    ".lua": lua_texts,
    ".json": json_texts,
}


def faults(texts: Iterable[Text], rules: Rules) -> Iterator[tuple[int, str]]:
    """Yields the line and the description of everything that the rules reject."""
    for line, kind, raw in texts:
        text = INDENT.sub("\n", CODE.sub("§", raw))
        one_line = text.replace("\n", " ")
        for rule in rules.reject:
            if kind in rule.kinds:
                for match in rule.pattern.finditer(one_line):
                    yield line + text.count("\n", 0, match.start()), f'"{match[0].strip()}" in a {kind}: {rule.advice}'
        if kind != "message" or not re.search(r"[={}\n]", text):
            for start, count in long_sentences(text, rules.max_words):
                yield line + text.count("\n", 0, start), f"sentence of {count} words in a {kind}: at most {rules.max_words}"


def long_sentences(text: str, max_words: int) -> Iterator[tuple[int, int]]:
    """Yields the position and the number of words of each sentence that is too long."""
    start = 0
    for end in sorted({len(text), *(m.end() for m in BREAK.finditer(text)), *(m.end() for m in SENTENCE_END.finditer(text))}):
        words = WORD.findall(text, start, end)
        if len(words) > max_words:
            yield start + len(text[start:end]) - len(text[start:end].lstrip()), len(words)
        start = end


def check(path: Path, rules: Rules) -> list[str]:
    """Returns a line for each fault of the file."""
    read = reader(path)
    found = sorted(faults(read(path.read_text()), rules)) if read else []
    return [f"{path.relative_to(ROOT)}:{line}: {fault}" for line, fault in found]


def main(words: list[str]) -> int:
    """Prints the faults. Returns 1 if there are any."""
    rules = load_rules()
    names = [word for word in words if not word.startswith("-")]
    if names:
        lines = [line for name in names for line in check(Path(name).resolve(), rules)]
        print(*lines, sep="\n", end="\n" if lines else "")
        return bool(lines)
    found = {str(path.relative_to(ROOT)): check(path, rules) for path in files()}
    failing = [name for name, lines in found.items() if lines]
    pending = PENDING.read_text().split() if PENDING.exists() else []
    stale = [name for name in pending if name not in failing]
    if "--pending" in words or ("--fix" in words and stale):
        pending = failing if "--pending" in words else [name for name in pending if name not in stale]
        PENDING.write_text("".join(f"{name}\n" for name in pending))
        stale = []
    lines = [line for name in failing if name not in pending for line in found[name]]
    lines += [f"{PENDING.relative_to(ROOT)}: {name} passes or is gone; remove it: bin/check --fix" for name in stale]
    if lines:
        print(*lines, sep="\n")
        print(f"{len(lines)} faults. The rules are in bin/check.d/prose.toml. After moving files: bin/check.d/prose.py --pending")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
