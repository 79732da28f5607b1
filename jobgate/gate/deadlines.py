"""
One timer for every deadline there is.

Commands are kept in buckets of ten milliseconds, so that adding and removing one
costs the same with ten or a hundred thousand of them, and the reactor holds one
timer instead of one for each. A far deadline waits in a bucket of a second until it
is near, so there are never more than a few thousand. Must not know what happens at a
deadline.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from jobgate.command import Command

__all__ = ["Deadlines"]

_PER_SECOND: Final = 100
"""Buckets a second: no deadline is noticed later than one bucket, none earlier."""
_FAR: Final = 5.0
"""Seconds from which a deadline first waits in a bucket of a second."""
_FARTHEST: Final = 7200.0
"""Seconds to the farthest bucket: what is due later is looked at then, and waits on."""


class Deadlines:
    """
    Calls `expired` for every command whose `due` has passed.

    Whoever is called removes the command or gives it a later `due` and adds it again.

    Args:
        clock: Seconds and timers.
        expired: Called with the command and the time.
    """

    def __init__(self, clock: IReactorTime, expired: Callable[[Command, float], None]) -> None:
        self._clock = clock
        self._expired = expired
        self._buckets: dict[int, set[Command]] = {}
        self._order: list[int] = []
        self._timer: IDelayedCall | None = None
        self._timer_for = 0

    def add(self, command: Command, now: float) -> None:
        """Keep it until `command.due`."""
        due = command.due
        if due - now > _FAR:
            farthest = now + _FARTHEST
            bucket = int(due if due < farthest else farthest) * _PER_SECOND
        else:
            bucket = int(due * _PER_SECOND) + 1
        members = self._buckets.get(bucket)
        if members is None:
            members = self._open(bucket)
        members.add(command)
        command.bucket = members

    @staticmethod
    def remove(command: Command) -> None:
        """Forget it; harmless if it is not kept."""
        if command.bucket is not None:
            command.bucket.discard(command)

    def move(self, command: Command, due: float, now: float) -> None:
        """Give it another moment."""
        self.remove(command)
        command.due = due
        self.add(command, now)

    def stop(self) -> None:
        """Never call again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._buckets.clear()
        self._order.clear()

    def _open(self, bucket: int) -> set[Command]:
        """Begin a bucket."""
        members: set[Command] = set()
        self._buckets[bucket] = members
        heappush(self._order, bucket)
        if self._timer is None or bucket < self._timer_for:
            self._arm()
        return members

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._order:
            self._timer_for = self._order[0]
            wait = max(0.0, self._timer_for / _PER_SECOND - self._clock.seconds())
            self._timer = self._clock.callLater(wait, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._call(self._clock.seconds())

    def _call(self, now: float) -> None:
        """Those whose moment has come, which may set the timer (so `_fire` cannot look at it)."""
        while self._order and self._order[0] / _PER_SECOND <= now:
            members = self._buckets[self._order[0]]
            # One at a time: what is done about one may remove others.
            while members:
                command = members.pop()
                if command.due > now:
                    self.add(command, now)
                else:
                    self._expired(command, now)
            del self._buckets[heappop(self._order)]
        if self._timer is None:
            self._arm()
