"""
Validate a configuration and print the effective one, as `twistd jobgate --check` does.

A mistake is one line that names file, key, what was found and what is wanted; exit status 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobgate.cli.exits import DONE
from jobgate.options import Options

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

__all__ = ["arguments", "run"]


def arguments(parser: ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("file", nargs="?", help="the file; ./jobgate.toml if it is there")


def run(args: Namespace) -> int:
    """Do it."""
    Options().parseOptions([*(["--config", args.file] if args.file else []), "--check"])
    return DONE
