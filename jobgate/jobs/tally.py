"""
One queue's jobs, counted: how many there are in which state, and what has become of the others.

What is accepted has ended, or waits, or runs, at any moment. Must not know where jobs are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobgate.jobs.job import TERMINAL, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobgate.gate.road import Road

__all__ = ["Tally"]


class Tally:
    """
    The counters of one queue's jobs; those that have ended are counted where calls are.

    Args:
        road: The queue's, with what is counted of it.

    Attributes:
        open: Jobs that have not ended, by state (blocked, scheduled, queued, running).
    """

    def __init__(self, road: Road) -> None:
        self.open = [0, 0, 0, 0]
        self._road = road

    @property
    def waiting(self) -> int:
        """Everything that waits in the queue: calls, and jobs wherever they are."""
        blocked, scheduled, queued, _ = self.open
        return self._road.calls[0] + blocked + scheduled + queued

    @property
    def running(self) -> int:
        """Everything that runs."""
        return self._road.calls[1] + self.open[State.RUNNING]

    def take_up(self, counts: Sequence[int]) -> None:
        """So many, by state, have been found at the start."""
        self.open = list(counts[:TERMINAL])
        self._road.stats.accepted += sum(counts)

    def count(self, state: State, before: State | None, size: int) -> None:
        """So many are in another state than before; None: they are new."""
        stats = self._road.stats
        if before is None or before >= TERMINAL:
            stats.accepted += size
            if before is not None:
                stats.retried += size
        else:
            self.open[before] -= size
        if state < TERMINAL:
            self.open[state] += size
        elif state == State.SUCCEEDED:
            stats.succeeded += size
        elif state == State.CANCELLED:
            stats.cancelled += size
        else:
            stats.failed += size

    def refuse(self, size: int) -> None:
        """So many could not be stored: refused is accepted, then shed."""
        stats = self._road.stats
        stats.accepted += size
        stats.shed += size

    def move(self, road: Road) -> None:
        """The queue has another Road, where nothing has been counted yet."""
        self._road = road
        road.stats.accepted += sum(self.open)
