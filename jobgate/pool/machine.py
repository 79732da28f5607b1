"""
What the machine says: CPU to spare, and what a process takes of CPU and memory.
"""

from __future__ import annotations

import os
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jobgate.pool.member import Member

__all__ = ["Appetite", "Machine", "peak", "rss"]

_SPARE = 0.25
"""Cores that must have been idle for one more worker to be of use."""
_SMALL = 0.2
"""Cores per worker up to which one more does no harm on a machine that is busy otherwise."""
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


class Appetite:
    """
    Tells whether the workers of a queue want CPU while they have work, or only wait.

    Measures from one question to the next.
    """

    def __init__(self) -> None:
        self._before: dict[int, tuple[float, float]] = {}
        self._small = False

    def is_small(self, workers: Iterable[Member]) -> bool:
        """Whether these took next to no CPU while they had work; in doubt, no."""
        now = {}
        for worker in workers:
            used = None if worker.pid is None else _cpu(worker.pid)
            if worker.pid is not None and used is not None:
                now[worker.pid] = used, worker.conversation.busy
        cpu = busy = 0.0
        for pid, (cpu_before, busy_before) in self._before.items():
            if pid in now:
                cpu += now[pid][0] - cpu_before
                busy += now[pid][1] - busy_before
        if busy >= _SHORTEST or not self._before.keys() & now.keys():
            self._before = now
            self._small = busy >= _SHORTEST and cpu < _SMALL * busy
        return self._small


def _cpu(pid: int) -> float | None:
    """Seconds of CPU that a process has used; None if there is no such process."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)


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


def peak() -> int:
    """
    The most memory in bytes that was ever resident in this process.

    On Linux not getrusage(2), which counts what the process had before it was executed, too:
    all the memory of whoever started it.
    """
    try:
        status = Path("/proc/self/status").read_bytes()
    except OSError:
        return getrusage(RUSAGE_SELF).ru_maxrss  # bytes on macOS, the only one without /proc here
    return int(status.partition(b"\nVmHWM:")[2].split(maxsplit=1)[0]) << 10
