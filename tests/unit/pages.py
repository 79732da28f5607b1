"""
The pages of the documentation, as text that can be asked: sections, tables, links, documents.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *sorted(DOCS.glob("*.md")),
    *sorted(ROOT.glob("examples/*/README.md")),
    ROOT / "benchmarks" / "README.md",
]

_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text(page: Path) -> str:
    """A page as it is written."""
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without what stands in fences."""
    return _FENCE.sub("", text(page))


def sections(page: Path) -> dict[str, str]:
    """What stands below each heading, down to the next one of any depth; without fences."""
    parts = re.split(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(part: str) -> list[list[str]]:
    """The cells of all tables, without their heads."""
    found: list[list[str]] = []
    for line in part.splitlines():
        if line.startswith("|---"):
            found.pop()
        elif line.startswith("|"):
            found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    kept = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in kept}


def documents(page: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects that begin a line in the fences of a page, and what lies in them."""
    whole = text(page)
    for start in re.finditer(r"^\{", whole, re.MULTILINE):
        try:
            found, _ = json.JSONDecoder().raw_decode(whole, start.start())
        except ValueError:  # a configuration, a program, or a document that is cut short
            continue
        yield found
        for value in found.values():
            if isinstance(value, list):
                yield from (one for one in value if isinstance(one, dict))
