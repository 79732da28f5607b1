"""
Three workers that make an index of a document together: `python document.py ROLE`.

`split` reads a document in Markdown and cuts it at its headings. What it finds becomes jobs of
its own graph: a section without sections is to be studied, another to be split in its turn.
`study` counts words in one section. `index` is handed what all of them found, and joins it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from functools import partial
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jobgate.worker import Fail, Reply, serve

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jobgate.worker import Command

HEADING = re.compile(r"(#{1,6})\s+(.+?)\s*#*\Z")
FENCE = re.compile(r"\s*(```|~~~)")
WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
COMMON = frozenset(Path(__file__).with_name("common-words.txt").read_text().split())
"""Words that tell nothing about what a section is about."""
TERMS = 60
"""Words that are told of one section; the rest is only counted."""
SAID, INDEXED = 5, 15
"""Words that are said to stand for a section, and those under which it is in the index."""


class Section(NamedTuple):
    """A part of a document."""

    title: str
    text: str


def cut(text: str) -> tuple[str, list[Section]]:
    """
    Cut a text at its highest headings.

    Returns:
        What comes before the first of them, and the sections.
    """
    lines = text.splitlines()
    headings = []
    for at, line in prose(lines):
        if heading := HEADING.match(line):
            headings.append((at, len(heading[1]), heading[2]))
    if not headings:
        return text, []
    highest = min(level for _, level, _ in headings)
    tops = [(at, title) for at, level, title in headings if level == highest]
    ends = [at for at, _ in tops[1:]] + [len(lines)]
    sections = [
        Section(title, "\n".join(lines[at + 1 : end]))
        for (at, title), end in zip(tops, ends, strict=True)
    ]
    return "\n".join(lines[: tops[0][0]]), sections


def prose(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """The lines that are not within a block of code, each with its place."""
    fenced = False
    for at, line in enumerate(lines):
        if FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            yield at, line


def split(command: Command, root: Path) -> Reply:
    """
    Cut a document, or a section of it, and have what is found worked on.

    The body is `{"path": …}`, or for a section what `part` makes. Whatever is found needs this
    job, so that the graph shows what came of what.

    Raises:
        Fail: There is no such document.
    """
    body = command.json()
    number, text = body.get("number", ""), body.get("text")
    if text is None:
        text = read(root, str(body.get("path")))
    own, sections = cut(text)
    parts = [part(f"{number}.{at}", section) for at, section in enumerate(sections, 1)]
    if own.strip() or not sections:
        parts.insert(0, part(f"{number}.0", Section(body.get("title", ""), own)))
    jobs = {
        its["name"]: {
            "queue": "split" if cut(its["text"])[1] else "study",
            "needs": [body.get("name", "split")],
            "body": its,
        }
        for its in parts
    }
    return Reply({"number": number, "parts": list(jobs)}, jobs=jobs)


def part(number: str, section: Section) -> dict[str, str]:
    """What the job for a section is told: the name of that job, too."""
    number = number.lstrip(".")
    title = "".join(filter(str.isprintable, section.title))
    name = f"{number} {title}"[:80].strip()
    return {"name": name, "number": number, **section._asdict()}


def read(root: Path, name: str) -> str:
    """
    A document below the root.

    Raises:
        Fail: There is none, or it is somewhere else.
    """
    path = (root / name).resolve()
    try:
        if path.is_relative_to(root):
            return path.read_text(encoding="utf-8")
        detail = "it is outside of the root"
    except (OSError, UnicodeDecodeError) as error:
        detail = str(error)
    title = f"the document {name!r} cannot be read"
    raise Fail(title, detail, 422, retry=False)


def study(command: Command) -> dict[str, Any]:
    """Count the words of a section, but for those in blocks of code."""
    part = command.json()
    text = "\n".join(line for _, line in prose(part["text"].splitlines()))
    words = [word.lower() for word in WORD.findall(text)]
    telling = Counter(word for word in words if len(word) > 2 and word not in COMMON)
    return {
        "number": part["number"],
        "title": part["title"],
        "words": len(words),
        "terms": dict(telling.most_common(TERMS)),
    }


def index(command: Command) -> dict[str, Any]:
    """Join what was found in all sections: their words, and where each subject is treated."""
    found = [json.loads(one.body) for one in command.inputs.values()]
    studies = [one for one in found if "words" in one]
    studies.sort(key=lambda one: [int(step) for step in one["number"].split(".")])
    everywhere = Counter(term for one in studies for term in one["terms"])

    def weight(term: str, count: int) -> float:
        """How much a word tells sections apart: often here, seldom elsewhere."""
        return count * log((1 + len(studies)) / everywhere[term])

    sections = []
    subjects: dict[str, list[str]] = {}
    for one in studies:
        terms = one["terms"]
        about = sorted(terms, key=lambda term: (-weight(term, terms[term]), term))
        for term in about[:INDEXED]:
            subjects.setdefault(term, []).append(one["number"])
        sections.append(
            {
                "number": one["number"],
                "title": one["title"],
                "words": one["words"],
                "about": about[:SAID],
            }
        )
    return {
        "words": sum(one["words"] for one in studies),
        "sections": sections,
        "index": dict(sorted(subjects.items())),
    }


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description="A jobgate worker of the document pipeline.")
    parser.add_argument("role", choices=("split", "study", "index"))
    parser.add_argument("--root", type=Path, default=Path(), help="where documents are read from")
    arguments = parser.parse_args()
    roles = {"split": partial(split, root=arguments.root.resolve()), "study": study, "index": index}
    serve(roles[arguments.role])


if __name__ == "__main__":
    main()
