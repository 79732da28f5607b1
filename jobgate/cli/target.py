"""
Which gate a command talks to, and what it is asked about: the words of its command line.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import quote

from jobgate.cli.client import Client
from jobgate.cli.exits import USAGE, CliError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable

__all__ = ["DEFAULT_URL", "client", "expect", "plain", "segment", "words"]

DEFAULT_URL = "http://127.0.0.1:8080"


def expect(parser: ArgumentParser, *names: str) -> None:
    """Take these words, and a URL before them; a name in brackets may be missing."""
    parser.usage = " ".join([parser.prog, "[URL]", *names, "[OPTIONS]"])
    parser.add_argument("words", nargs="*", help=" ".join(["[URL]", *names]))
    parser.set_defaults(names=names)


def words(args: Namespace) -> list[str]:
    """
    The words but the URL, as many as were named; a missing one is "".

    Raises:
        CliError: There are too few or too many.
    """
    given: list[str] = args.words[_has_url(args) :]
    names: tuple[str, ...] = args.names
    least = sum(not name.startswith("[") for name in names)
    if not least <= len(given) <= len(names):
        found = " ".join(map(repr, given)) or "nothing"
        raise CliError(f"found {found}, wanted {' '.join(['[URL]', *names])}", USAGE)
    return given + [""] * (len(names) - len(given))


def client(
    args: Namespace, patience: float = 0, told: Callable[[str], None] = lambda _: None
) -> Client:
    """
    The gate at the URL of the command line, else at JOBGATE_URL, else on this machine.

    Raises:
        CliError: URL or token make no sense.
    """
    url = args.words[0] if _has_url(args) else os.environ.get("JOBGATE_URL") or DEFAULT_URL
    return Client(url, os.environ.get("JOBGATE_TOKEN", ""), patience, told)


def segment(name: str) -> str:
    """A name as a part of a path."""
    return quote(name, safe="")


def plain(number: float) -> str:
    """A number as a header or a query has it: without an exponent."""
    return f"{number:.3f}".rstrip("0").rstrip(".")


def _has_url(args: Namespace) -> bool:
    return bool(args.words) and args.words[0].startswith(("http://", "https://"))
