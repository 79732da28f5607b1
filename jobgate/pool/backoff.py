"""
When to start the next worker after one has died.

Pure: deaths in, seconds out.
"""

from __future__ import annotations

from random import Random

__all__ = ["Backoff"]

_IN_A_ROW = 5
"""Deaths in a row that make a crash loop."""
_FIRST, _FACTOR, _MAX, _JITTER = 0.5, 2.0, 30.0, 0.2
"""Seconds before the first restart in a crash loop, growth, longest, and random share."""


class Backoff:
    """
    Counts deaths in a row and tells how long to wait before the next start.

    Up to the fifth death a worker is replaced at once; from then on it is a crash
    loop, and the wait doubles up to half a minute. A worker that lives ends the row.

    Args:
        random: Where the jitter comes from; given by tests.
    """

    def __init__(self, random: Random | None = None) -> None:
        self._random = random or Random()  # noqa: S311 (jitter is no secret)
        self.deaths = 0

    @property
    def looping(self) -> bool:
        """Whether this is a crash loop."""
        return self.deaths >= _IN_A_ROW

    def died(self) -> float:
        """One more death in a row; returns the seconds to wait before the next start."""
        self.deaths += 1
        if not self.looping:
            return 0.0
        # A worker that has been broken for days would overflow a float's exponent.
        wait = min(_MAX, _FIRST * _FACTOR ** min(self.deaths - _IN_A_ROW, 16))
        return wait * (1 + self._random.uniform(-_JITTER, _JITTER))

    def lived(self) -> None:
        """A worker has shown that it lives."""
        self.deaths = 0
