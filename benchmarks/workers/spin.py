"""
A worker that is busy for a while: ``spin.py MILLISECONDS``.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from jobgate.worker import serve

if TYPE_CHECKING:
    from jobgate.worker import Command

SECONDS = float(sys.argv[1]) / 1000


def spin(_command: Command) -> bytes:
    """
    Work, then answer.
    """
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        pass
    return b"ok"


if __name__ == "__main__":
    serve(spin)
