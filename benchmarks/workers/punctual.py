"""
Sleeping for exactly as long as was asked for.
"""

from __future__ import annotations

import ctypes

__all__ = ["punctual"]

TIMERSLACK = 29
"""prctl(2): how late the kernel may wake a thread; 50 microseconds unless told otherwise."""


def punctual() -> None:
    """
    Have this thread woken in time: what it sleeps for stands for work, which takes no longer.
    """
    ctypes.CDLL(None).prctl(TIMERSLACK, 1, 0, 0, 0)
