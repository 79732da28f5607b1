"""
Who waits to hear of a job or a graph, and for how long.

Must not know stores or HTTP: whoever learns of something tells it here, once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from twisted.logger import Logger

from jobgate.jobs.lots import ids_of

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from jobgate.jobs.job import Change
    from jobgate.jobs.waiting import Ended

__all__ = ["Watcher", "Watches"]


class Watcher(Protocol):
    """What can be told."""

    def changed(self, change: Change) -> None:
        """It is in another state."""

    def progressed(self, attempt: int, done: float, total: float | None, note: str | None) -> None:
        """Its worker has said how far it is; the store may not have told of that attempt yet."""

    def chunk(self, attempt: int, data: bytes | bytearray) -> None:
        """A part of its reply has come; likewise."""


class Waiter(Protocol):
    """Somebody who waits."""

    def end(self) -> None:
        """Wait no longer."""


class Watches:
    """
    Watchers by the id of what they watch.

    Args:
        clock: Seconds and timers.

    Attributes:
        waiting: Who waits for something and is to be sent away when the gate stops.
    """

    _log: ClassVar = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._watchers: dict[str, list[Watcher]] = {}
        self._held = False
        self.waiting: set[Waiter] = set()

    def __len__(self) -> int:
        return len(self._watchers)

    def add(self, name: str, watcher: Watcher) -> None:
        """Tell this one, too, from now on."""
        self._watchers.setdefault(name, []).append(watcher)

    def remove(self, name: str, watcher: Watcher) -> None:
        """Tell it no more; harmless if it was not told."""
        watchers = self._watchers.get(name)
        if watchers is None or watcher not in watchers:
            return
        watchers.remove(watcher)
        if not watchers:
            del self._watchers[name]

    async def linger(self, ended: Ended, seconds: float) -> None:
        """Wait for an end for at most so many seconds, and no longer than the gate runs."""
        if self._held:
            return
        self.waiting.add(ended)
        try:
            await ended.within(seconds, self._clock)
        finally:
            self.waiting.discard(ended)

    def hold(self) -> None:
        """Keep nobody waiting, from now on."""
        self._held = True
        for waiter in tuple(self.waiting):
            waiter.end()

    def changed(self, change: Change) -> None:
        """A job has come into another state: its watchers and its graph's hear of it."""
        for name in (*ids_of(change), change.graph):
            for watcher in tuple(self._watchers.get(name, ())):
                try:
                    watcher.changed(change)
                except Exception:  # noqa: BLE001 (one watcher's trouble is not another's)
                    self._log.failure("a watcher of {name} failed", name=name)

    def progressed(
        self, name: str, attempt: int, done: float, total: float | None, note: str | None
    ) -> None:
        """Its worker has said how far it is."""
        for watcher in tuple(self._watchers.get(name, ())):
            watcher.progressed(attempt, done, total, note)

    def chunk(self, name: str, attempt: int, data: bytes | bytearray) -> None:
        """A part of its reply has come."""
        for watcher in tuple(self._watchers.get(name, ())):
            watcher.chunk(attempt, data)
