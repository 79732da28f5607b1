"""
A worker whose run takes 10 ms, however many commands are in it: what a model on a GPU is like.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from punctual import punctual

from jobgate.worker import serve

if TYPE_CHECKING:
    from jobgate.worker import Command

SECONDS = 0.01


def run(commands: list[Command]) -> list[bytes]:
    """
    Give every command its own body back, all after the same time.
    """
    time.sleep(SECONDS)
    return [command.body for command in commands]


if __name__ == "__main__":
    punctual()
    serve(run, batch=True)
