"""
A worker that gives back the bytes it was given, without looking at them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobgate.worker import serve

if TYPE_CHECKING:
    from jobgate.worker import Command


def echo(command: Command) -> bytes:
    """
    Answer with the command's own body.
    """
    return command.body


if __name__ == "__main__":
    serve(echo)
