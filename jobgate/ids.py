"""
Ids: opaque, URL-safe, unguessable, sortable by time behind the gate's name.
"""

from __future__ import annotations

import os
import time

__all__ = ["IdMaker"]

_RANDOM = 16
"""Random bytes of an id: 128 bits."""
_AHEAD = 512
"""Ids for which random bytes are drawn at once: a system call each costs more than the id."""


class IdMaker:
    """
    Makes ids `<name>-<milliseconds, 12 hex digits><128 random bits, 32 hex digits>`.

    Args:
        name: The gate's name, so that a balancer can route by it.
    """

    __slots__ = ("_at", "_millisecond", "_name", "_prefix", "_random")

    def __init__(self, name: str) -> None:
        self._name = name
        self._prefix = ""
        self._millisecond = 0
        self._random = ""
        self._at = 0

    def make(self) -> str:
        """One more id."""
        at = self._at
        if at == len(self._random):
            self._random = os.urandom(_RANDOM * _AHEAD).hex()
            at = 0
        self._at = stop = at + 2 * _RANDOM
        return self._now() + self._random[at:stop]

    def some(self, count: int) -> list[str]:
        """So many more, of one moment."""
        random = os.urandom(_RANDOM * count).hex()
        prefix, size = self._now(), 2 * _RANDOM
        return [prefix + random[at : at + size] for at in range(0, size * count, size)]

    def _now(self) -> str:
        millisecond = int(time.time() * 1000)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            self._prefix = f"{self._name}-{millisecond:012x}"
        return self._prefix
