"""
What a host takes from a virtual machine's CPUs for others (``steal`` in proc(5)).
"""

from __future__ import annotations

import psutil

__all__ = ["Stolen"]


class Stolen:
    """
    Watches the clocks of all CPUs together, from when it is made.
    """

    def __init__(self) -> None:
        self._began = psutil.cpu_times()

    @property
    def share(self) -> float:
        """
        The share of the CPUs' time that has been taken since; 0 where nobody counts it.
        """
        now = psutil.cpu_times()
        # What is a guest's is counted as user time, too (proc(5)).
        passed = sum(now[:8]) - sum(self._began[:8])
        stolen = getattr(now, "steal", 0.0) - getattr(self._began, "steal", 0.0)
        return float(stolen / max(passed, 1e-9))
