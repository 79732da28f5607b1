"""
Ids: opaque, URL-safe, unguessable, sortable by time behind the gate's name.
"""

from __future__ import annotations

import os
import time
from typing import Final

__all__ = ["IdMaker"]

_RANDOM: Final = 16
"""Random bytes of an id: 128 bits."""
_AHEAD: Final = 512
"""Ids for which random bytes are drawn at once: a system call each costs more than the id."""
_PLACES: Final = tuple(f"{place:03x}" for place in range(1 << 12))
"""Tell apart, and in order, what is made in one millisecond."""
_LAST: Final = len(_PLACES) - 1


class IdMaker:
    """
    Makes ids `<name>-<milliseconds, 12 hex digits><place, 3><128 random bits, 32>`.

    Each is greater than the one before, also within a millisecond, or when the clock was set back;
    only those that are asked for together have their place in common.

    Args:
        name: The gate's name, so that a balancer can route by it.
    """

    __slots__ = ("_at", "_millisecond", "_name", "_place", "_prefix", "_random")

    def __init__(self, name: str) -> None:
        self._name = name
        self._prefix = ""
        self._millisecond = 0
        self._place = _LAST
        self._random = ""
        self._at = 0

    def make(self) -> str:
        """One more id."""
        at = self._at
        if at == len(self._random):
            self._random = os.urandom(_RANDOM * _AHEAD).hex()
            at = 0
        self._at = stop = at + 2 * _RANDOM
        return self._next() + self._random[at:stop]

    def some(self, count: int) -> list[str]:
        """So many more, of one moment: alike but for their random parts."""
        random = os.urandom(_RANDOM * count).hex()
        start, size = self._next(), 2 * _RANDOM
        return [start + random[at : at + size] for at in range(0, size * count, size)]

    def _next(self) -> str:
        """How the next id begins."""
        millisecond = int(time.time() * 1000)
        if millisecond > self._millisecond or self._place == _LAST:
            self._millisecond = millisecond = max(millisecond, self._millisecond + 1)
            self._prefix = f"{self._name}-{millisecond:012x}"
            self._place = -1
        self._place = place = self._place + 1
        return self._prefix + _PLACES[place]
