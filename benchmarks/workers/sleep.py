"""
A worker that is busy for ever: what is called behind it waits in the queue.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from jobgate.worker import serve

if TYPE_CHECKING:
    from jobgate.worker import Command


def sleep(_command: Command) -> bytes:
    """
    Sleep for longer than any benchmark lasts.
    """
    time.sleep(3600)
    return b""


if __name__ == "__main__":
    serve(sleep)
