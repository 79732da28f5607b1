"""
The `jobgate` command, for people and scripts.

Commands that talk to a gate import the standard library only: they start quickly and run
wherever Python does. Those that start workers import the rest of jobgate when they are called.
The web side is never imported: what a gate can do is asked over HTTP.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING

from jobgate import __version__
from jobgate.cli.exits import BROKEN_PIPE, DONE, INTERRUPTED, USAGE, CliError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "call": "have a command run and print its reply",
    "push": "leave a command, or one for each line, and print its id",
    "pull": "take commands and print them",
    "jobs": "list jobs; show, cancel or retry one, or print its result",
    "graph": "submit jobs that need each other",
    "write": "push a file line by line, and mark its end",
    "read": "pull lines into a file until the mark",
    "generate": "print numbered lines",
    "top": "show queues and workers, again and again",
    "run": "without a gate: lines in, replies out, in order",
    "check": "validate a configuration and print the effective one",
    "check-worker": "does this program speak the protocol?",
}
"""Every command and what it does; each is a module here with `arguments(parser)`, `run(args)`."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit as `exits` says."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        status = _run(*given[:1], arguments=given[1:])
        sys.stdout.flush()
    except CliError as error:
        sys.stderr.write(f"jobgate: {error}\n")
        status = error.status
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        # Whatever is still buffered goes nowhere; the interpreter must not complain of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = BROKEN_PIPE
    raise SystemExit(status)


def _run(name: str = "--help", *, arguments: Sequence[str]) -> int:
    if name in ("--help", "-h", "help"):
        sys.stdout.write(_overview())
        return DONE
    if name == "--version":
        sys.stdout.write(f"jobgate {__version__}\n")
        return DONE
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        wanted = f"{near[0]!r} perhaps" if near else f"one of {', '.join(COMMANDS)}"
        raise CliError(f"found no command {name!r}, wanted {wanted}", USAGE)
    command = import_module(f"jobgate.cli.{name.replace('-', '_')}")
    parser = ArgumentParser(
        prog=f"jobgate {name}",
        description=command.__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    command.arguments(parser)
    status: int = command.run(parser.parse_args(arguments))
    return status


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{what}\n" for name, what in COMMANDS.items()]
    return (
        "usage: jobgate COMMAND [ARGUMENTS], jobgate COMMAND --help, jobgate --version\n\n"
        f"{''.join(lines)}\nA gate is found at the URL given first, else at JOBGATE_URL, else at"
        " http://127.0.0.1:8080.\nJOBGATE_TOKEN is shown to it.\n"
    )
