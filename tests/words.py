"""Lint of words: docstrings, comments, messages and pages say things in plain, standard terms.

`python -m tests.words PATH...` prints each finding as `file:line: text`; without a path it reads all of `CLEAN`.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

#: All that is read without a path: whole folders, so that no new file escapes.
CLEAN = (
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "sim", "models", "scenarios", "traces/README.md", "benchmarks",
    "tests",
)  # fmt: skip

#: Files that quote the words below.
QUOTING = ("tests/words.py", "tests/docs/test_words.py")

#: Pages made from code that is read itself.
MADE = ("docs/reference/scenario.md",)

#: A docstring begins with a noun or a verb.
OPENING = re.compile(r"(What|Who|Whom|Whose|Those|Of|That)\b")

#: House dialect, and the plain word.
DIALECT = {
    r"\bdoubts?\b": "extrapolation warning",
    r"\bgrants?\b": "service interval",
    r"\brooms?\b": "capacity, space",
    r"\b(the|an|no|its) account\b": "time breakdown",
    r"\bproducts? by weights\b": "weight matmul",
    r"\b(is|are|was|were|be) (told(?! from)|said)\b|\btold (of|what|who|how|which|before)\b": "is reported, is given",
    r"\btells? (of|more)\b": "describes",
    r"\bfor there (is|are|was|were)\b|, for (it|they) (is|are|was|were|has|have|does|do|can|will|may)\b": "because",
    r"\b(not to|to|can|cannot|could not) be had\b": "is available",
    r"\b(what|who|that) came of\b": "results",
    r"\bto blame\b": "what each wait was caused by",
    r"\bnobody\b": "no task, no request",
    r"(?<!people )(?<!users )(?<!user )(?<!readers )(?<!reader )(?<!anyone )(?<!someone )(?<!person )\bwho(m|ever)?\b":
        "a task, sequence or request is 'it', 'which', 'that'",
    r"\b\w*(colour|favour|behaviour|neighbour|utilis|optimis|serialis|quantis|recognis|normalis|modelled|modelling|labelled\b)\w*":
        "American spelling",
}  # fmt: skip
_DIALECT = [(re.compile(pattern, re.IGNORECASE), plain) for pattern, plain in DIALECT.items()]

READ = {".py", ".md", ".js", ".css", ".html", ".yaml"}

_CODE = re.compile(r"``[^`]*``|`[^`]*`|\]\([^)]*\)|https?://\S+")  # a name in backticks, a link's target
_NAME = re.compile(r"[\w.\-/\[\]*?:{}=]*")  # a key, a path: no prose
_FENCE = re.compile(r"```")
_SCRIPT_TEXT = re.compile(r"//(.*)$|/\*+(.*)$|\"([^\"]*)\"|`([^`]*)`")  # of JavaScript and CSS: comments and strings


class Text(NamedTuple):
    """A piece of prose; opens: whether it is the first line of a docstring."""

    line: int
    text: str
    opens: bool = False


def findings(paths: Iterable[str | Path]) -> list[str]:
    """Findings in files and folders, as `file:line: text  (what to write)`."""
    found = []
    for path in _files(paths):
        name = path.relative_to(ROOT).as_posix()
        for piece in texts(path):
            found += [f"{name}:{piece.line}: {piece.text.strip()}  ({plain})" for plain in advice(piece)]
    return found


def advice(piece: Text) -> list[str]:
    """Advice for each word or opening of a text that should be another."""
    prose = _CODE.sub("", piece.text)
    found = [plain for pattern, plain in _DIALECT if pattern.search(prose)]
    if piece.opens and OPENING.match(prose.lstrip()):
        found.append("begin with a noun or a verb")
    return found


def texts(path: Path) -> Iterator[Text]:
    """Prose of a file, line by line."""
    source = path.read_text()
    if path.suffix == ".py":
        yield from _python(source, messages=not path.is_relative_to(ROOT / "tests"))
    elif path.suffix == ".md":
        yield from _markdown(source)
    elif path.suffix in {".js", ".css"}:
        for number, line in enumerate(source.splitlines(), 1):
            for match in _SCRIPT_TEXT.finditer(line):
                text = re.sub(r"\$\{[^}]*\}", "", next(filter(None, match.groups()), ""))
                if not _NAME.fullmatch(text):
                    yield Text(number, text)
    else:
        yield from (Text(number, line) for number, line in enumerate(source.splitlines(), 1))


def _python(source: str, *, messages: bool) -> Iterator[Text]:
    """Docstrings and comments; messages: other strings, too (tests quote those of others)."""
    tree = ast.parse(source)
    opened = [node.body[0].value for node in ast.walk(tree)
              if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
              and ast.get_docstring(node, clean=False) is not None
              and isinstance(node.body[0], ast.Expr)]  # fmt: skip
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or _NAME.fullmatch(node.value):
            continue
        if messages or node in opened:
            for offset, line in enumerate(node.value.splitlines()):
                yield Text(node.lineno + offset, line, opens=offset == 0 and node in opened)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not re.match(r"#\s*(noqa|type:|fmt:)", token.string):
            yield Text(token.start[0], token.string.lstrip("#: "), opens=token.string.startswith("#:"))


def _markdown(source: str) -> Iterator[Text]:
    """Lines outside of fenced blocks: those hold commands and what they print."""
    fenced = False
    for number, line in enumerate(source.splitlines(), 1):
        if _FENCE.match(line.strip()):
            fenced = not fenced
        elif not fenced:
            yield Text(number, line)


def _files(paths: Iterable[str | Path]) -> Iterator[Path]:
    skipped = [ROOT / each for each in (*QUOTING, *MADE)]
    for each in paths:
        whole = (ROOT / each).resolve()
        inside = sorted(whole.rglob("*")) if whole.is_dir() else [whole]
        for path in inside:
            left_out = any(path.is_relative_to(skip) and not whole.is_relative_to(skip) for skip in skipped)
            if (
                path.suffix in {".py", ".md", ".js", ".css", ".html", ".yaml"}
                and not left_out
                and not path.name.endswith(".min.js")
            ):
                yield path


if __name__ == "__main__":
    found = findings(sys.argv[1:] or CLEAN)
    print("\n".join(found))
    sys.exit(bool(found))
