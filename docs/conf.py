"""How Sphinx builds these pages (`make docs`). They are plain Markdown; a docstring is, too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import rlpg

project = "rlpg"
copyright = "the rlpg authors"
version = release = rlpg.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"rlpg {release}"
html_show_copyright = False

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_use_type_comments = False
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False

SECTION = re.compile(r"(Args|Returns|Raises|Yields):")


def tables_of_contents(text: str) -> str:
    """index.md with a hidden table of contents for the list of links below each heading.

    Pages that the lists leave out come last.
    """
    linked = {f"{name}.md" for name in re.findall(r"\]\(([\w/]+)\.md\)", text)} | {"index.md"}
    others = sorted(page.name for page in Path(__file__).parent.glob("*.md"))
    text += "\n## More\n\n" * bool(set(others) - linked)
    text += "\n".join(f"- [{name}]({name})" for name in others if name not in linked)

    def with_contents(section: re.Match[str]) -> str:
        names = "\n".join(re.findall(r"\]\(([\w/]+)\.md\)", section[2]))
        return (
            f"{section[0]}\n\n```{{toctree}}\n:hidden:\n:caption: {section[1]}\n\n{names}\n```\n\n"
        )

    return re.sub(r"^## (.+)\n((?:(?!^## ).*\n?)*)", with_contents, text, flags=re.MULTILINE)


def to_restructured_text(lines: list[str]) -> list[str]:
    """A docstring: `code` in single backticks, and indented blocks, which are code or formulas."""
    out: list[str] = []
    literal: int | None = None  # indentation of the block of code
    base = 0  # indentation of the paragraph before
    for line in lines:
        indent = len(line) - len(line.lstrip())
        after_blank = bool(out) and not out[-1].strip()
        if not line.strip():
            out.append("")
            continue
        if literal is not None and indent < literal:
            literal = None
        if literal is None and after_blank and indent > base:
            literal = indent
            out += [" " * base + "::", ""]
        if literal is not None:
            out.append(line)
            continue
        base = indent + 4 if SECTION.fullmatch(line.strip()) else indent
        parts = re.split(r"(`+[^`]+`+)", line)
        parts[::2] = [re.sub(r"([*|\\]|_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
        parts[1::2] = [f"``{part.strip('`')}``\\ " for part in parts[1::2]]
        out.append("".join(parts))
    return out


def setup(app: Any) -> None:
    def read(app: Any, name: str, source: list[str]) -> None:
        source[0] = source[0].replace("](../README.md", "](index.md")  # it has the same headings
        if name == "index":
            source[0] = tables_of_contents(source[0])

    def document(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
        lines[:] = to_restructured_text(lines)

    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", document, priority=400)  # before napoleon
