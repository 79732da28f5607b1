"""
A worker that ignores what it is given and answers the same 1 MiB each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobgate.worker import serve

if TYPE_CHECKING:
    from jobgate.worker import Command

BODY = b"\xa5" * 2**20


def constant(_command: Command) -> bytes:
    """
    Answer with the constant.
    """
    return BODY


if __name__ == "__main__":
    serve(constant)
