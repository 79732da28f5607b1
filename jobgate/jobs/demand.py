"""
How many of one queue's jobs are wanted here, between the journal and the Road.

As many as the queue's own workers keep busy with, or as those who pull would take: what nobody
takes had better stay in the journal. Must not know how jobs come or go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobgate.gate.road import Road
    from jobgate.jobs.arrivals import Arrivals
    from jobgate.jobs.inputs import Feeder

__all__ = ["BYTES", "Demand"]

_WINDOW: Final = 1024
"""
Jobs that wait here for the queue's own workers.

So large that a burst need not go through the journal's backlog: what comes by that way is read
again, and costs half as much again.
"""
BYTES: Final = 16 * 1024 * 1024
"""Their bodies, together, about."""
_LINGER: Final = 5.0
"""Seconds for which a queue that was pulled from keeps what comes at hand: who pulls comes back."""
_AT_HAND: Final = 256
_AT_HAND_BYTES: Final = 64 * 1024
"""As long as it is all that is queued, and no more than so many jobs and bytes of bodies."""


class Puller(Protocol):
    """Somebody from outside who waits for commands."""

    def end(self) -> None:
        """Wait no longer."""


class Demand:
    """
    Who takes the jobs of one queue, and how many.

    Args:
        road: Where they run.
        feeder: Has those that wait for their inputs before they get there.
        arrivals: Those that are on their way here.
        now: Seconds since the epoch.

    Attributes:
        road: As given; the queue may come to have another.
        wanted: How many somebody else than the queue's workers would take.
        pulls: Who that is.
        closed: Nothing more is wanted.
    """

    def __init__(
        self, road: Road, feeder: Feeder, arrivals: Arrivals, now: Callable[[], float]
    ) -> None:
        self.road = road
        self.wanted = 0
        self.pulls: set[Puller] = set()
        self.closed = False
        self._hungry = feeder.hungry
        self._arrivals = arrivals
        self._now = now
        self._pulled = -_LINGER

    @property
    def once(self) -> bool:
        """Whether a job's start must be stored before it starts, as it must never be repeated."""
        return self.road.config.retry == "never"

    @property
    def room(self) -> int:
        """How many more jobs may come here."""
        road = self.road
        if self.closed or road.draining:
            return 0
        most = self.wanted
        if road.staffed:
            most += road.free if self.once else _WINDOW
        if not most:
            return 0
        here = road.jobs_waiting
        if here and road.bytes_waiting >= BYTES:
            return 0
        return max(0, most - here - len(self._hungry) - self._arrivals.coming)

    @property
    def idle(self) -> int:
        """How many are here, or about to be, for nobody who waits; workers are as good as such."""
        road = self.road
        if road.staffed:
            return 0
        return road.jobs_waiting + len(self._hungry) + self._arrivals.coming - self.wanted

    @property
    def lingers(self) -> float:
        """Seconds for which those who have pulled are still expected to come again."""
        return self._pulled + _LINGER - self._now()

    def pulled(self) -> None:
        """Somebody else than the queue's workers has come for some, and may come again."""
        self._pulled = self._now()

    def too_many(self, count: int = 0, size_bytes: int = 0) -> bool:
        """Whether what is here, and so many more, is too much to keep for nobody who waits."""
        return self.idle + count > _AT_HAND or self.road.bytes_waiting + size_bytes > _AT_HAND_BYTES

    def send_away(self) -> None:
        """Nobody is to wait any longer."""
        for pull in tuple(self.pulls):
            pull.end()
