"""
A worker that parses JSON and writes it again: what most real workers do first and last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobgate.worker import serve

if TYPE_CHECKING:
    from jobgate.worker import Command


def echo(command: Command) -> object:
    """
    Answer with the command's document, parsed here and written by the SDK.
    """
    return command.json()


if __name__ == "__main__":
    serve(echo)
