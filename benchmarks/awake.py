"""
CPUs that never fall asleep.

A virtual CPU that has nothing to do gives its place on the host away, and must wait for another
one once there is something: servers and callers that wait for each other, as they do all the time,
then measure the host's other guests. Where each CPU always has something to do, be it nothing but
counting at the priority of SCHED_IDLE (sched(7)), which gives way to everything at once, the
places are kept.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["awake"]

COUNT = """
import os, sys
parent = int(sys.argv[1])
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""
"""Ends with who has started it."""


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """
    Keep all CPUs of this process awake for as long as it is entered.
    """
    with contextlib.ExitStack() as stack:
        for _ in os.sched_getaffinity(0):
            argv = [sys.executable, "-IS", "-c", COUNT, str(os.getpid())]
            counter = stack.enter_context(subprocess.Popen(argv))
            stack.callback(counter.kill)
        yield
