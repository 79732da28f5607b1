"""
What the machine says: CPU to spare, and the memory of a process.
"""

from __future__ import annotations

import os

import psutil

__all__ = ["Machine", "rss"]

_SPARE = 0.25
"""Cores that must have been idle for one more worker to be of use."""
_SHORTEST = 0.2
"""Seconds that a measurement must cover: the kernel counts in hundredths."""


class Machine:
    """
    Tells whether there is CPU to spare.

    Measures from one question to the next, so it must be asked every now and then.
    """

    def __init__(self) -> None:
        self._cores = os.cpu_count() or 1
        self._all, self._idle = _times()
        self._spare = True

    def spare(self) -> bool:
        """Whether a part of a core has been idle since this was asked before."""
        everything, idle = _times()
        passed = (everything - self._all) / self._cores
        if passed >= _SHORTEST:
            self._spare = idle - self._idle >= _SPARE * passed
            self._all, self._idle = everything, idle
        return self._spare


def _times() -> tuple[float, float]:
    """Seconds since the boot of all cores together: all, and idle."""
    times = psutil.cpu_times()
    # What guests use is in `user` and `nice` already.
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return sum(times) - guests, times.idle + getattr(times, "iowait", 0.0)


def rss(pid: int | None) -> int | None:
    """The resident memory of a process in bytes; None if there is no such process."""
    try:
        return int(psutil.Process(pid).memory_info().rss) if pid else None
    except psutil.Error:
        return None
