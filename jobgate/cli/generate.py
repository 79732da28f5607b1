"""
Print N numbered lines, to have something to write, read or run.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from jobgate.cli.exits import DONE, USAGE, CliError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

__all__ = ["arguments", "run"]

_AT_ONCE = 10_000
"""Lines that are put together before they are written."""


def arguments(parser: ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("count", type=int, metavar="N", help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first number (1)")
    parser.add_argument(
        "--size", type=int, default=0, metavar="BYTES", help="fill each up with dots"
    )


def run(args: Namespace) -> int:
    """Do it."""
    if args.count < 0:
        raise CliError(f"found {args.count} lines, wanted 0 or more", USAGE)
    out = sys.stdout
    last = args.first + args.count
    for start in range(args.first, last, _AT_ONCE):
        numbers = range(start, min(start + _AT_ONCE, last))
        out.write("".join([f"{str(number).ljust(args.size, '.')}\n" for number in numbers]))
    return DONE
