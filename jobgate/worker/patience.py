"""
What a worker does while it cannot reach its gate: says so once, and waits before it tries again.

Runs in the worker and imports the standard library only. Must not know what is tried.
"""

from __future__ import annotations

import sys
from _thread import allocate_lock
from random import uniform

__all__ = ["Patience"]

_FIRST, _FACTOR, _MOST = 0.1, 2.0, 10.0
"""Seconds before the first new attempt, their growth, and the longest."""
_JITTER = 0.5
"""The random share of that, so that a restarted gate does not see all its workers at once."""


class Patience:
    """Waits longer each time, until all is well; a signal ends the waiting."""

    def __init__(self) -> None:
        self._next = _FIRST
        self._pause = allocate_lock()
        self._pause.acquire()
        self._last_said = ""

    def renew(self) -> None:
        """All is well: the next wait is short again."""
        self._next = _FIRST

    def rest(self, after: float = 0.0) -> None:
        """Wait before the next attempt: `after` seconds at least, if the gate has said so."""
        if after:
            pause = after + max(after, self._next) * uniform(0, _JITTER)  # noqa: S311
        else:
            pause = self._next * uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311
        self._next = min(_MOST, self._next * _FACTOR)
        self.wait(pause)

    def wait(self, seconds: float) -> None:
        """Wait just so long."""
        self._pause.acquire(timeout=seconds)

    def end(self) -> None:
        """Wait no more; called once."""
        self._pause.release()

    def say(self, text: str) -> None:
        """Tell what has changed, on stderr."""
        if text != self._last_said:
            self._last_said = text
            sys.stderr.write(f"jobgate.worker: {text}\n")
            sys.stderr.flush()
