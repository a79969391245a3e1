"""Puts the present counts of lines into docs/reading_the_code.md.

    python scripts/reading.py          # after the code on the path has changed

The page names code by its file and its name, and says how many lines of code that has; the test of
the page compares it with what this program would write. Where in the file it stands is not said: a
line added above it, which is no change of the path, would make the page wrong.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reading_the_code.md"
PLACE = re.compile(r"`([\w/]+\.py)` \| `((?:[A-Z]\w*\.)?\w+)` \| \d+")
TOTAL = re.compile(r"\*\*\d+ lines of code\*\*")

Definition = ast.FunctionDef | ast.ClassDef


def find(path: str, name: str) -> Definition:
    """The definition of a function, a class, or `Class.method` in a file."""
    node: ast.AST = ast.parse((ROOT / path).read_text())
    for part in name.split("."):
        body = getattr(node, "body", [])
        found = [n for n in body if isinstance(n, Definition) and n.name == part]
        if not found:
            raise LookupError(f"{path}: expected a definition of {name}, got none")
        node = found[0]
    assert isinstance(node, Definition)
    return node


def lines_of_code(path: str, node: Definition) -> set[int]:
    """The numbers of its lines that hold code: no docstring, comment or blank line."""
    text = (ROOT / path).read_text()
    no_code = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    code = {
        line
        for token in tokens
        if token.type not in no_code
        for line in range(token.start[0], token.end[0] + 1)
    }
    for part in ast.walk(node):
        if isinstance(part, Definition) and ast.get_docstring(part) is not None:
            words = part.body[0]
            code -= set(range(words.lineno, (words.end_lineno or words.lineno) + 1))
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return code & set(range(first, (node.end_lineno or node.lineno) + 1))


def refreshed(text: str) -> tuple[str, int]:
    """The page with present numbers, and the lines of code on the path."""
    path: set[tuple[str, int]] = set()

    def present(match: re.Match[str]) -> str:
        file, name = match[1], match[2]
        node = find(file, name)
        code = lines_of_code(file, node)
        path.update((file, line) for line in code)
        return f"`{file}` | `{name}` | {len(code)}"

    text = PLACE.sub(present, text)
    return TOTAL.sub(f"**{len(path)} lines of code**", text), len(path)


if __name__ == "__main__":
    new, total = refreshed(PAGE.read_text())
    PAGE.write_text(new)
    print(f"{PAGE.relative_to(ROOT)}: {total} lines of code")
