"""
Who waits to hear of a job or a graph.

Must not know stores or HTTP: whoever learns of something tells it here, once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from twisted.logger import Logger

from jobgate.jobs.lots import ids_of

if TYPE_CHECKING:
    from jobgate.jobs.job import Change

__all__ = ["Watcher", "Watches"]


class Watcher(Protocol):
    """What can be told."""

    def changed(self, change: Change) -> None:
        """It is in another state."""

    def progressed(self, attempt: int, done: float, total: float | None, note: str | None) -> None:
        """Its worker has said how far it is; the store may not have told of that attempt yet."""

    def chunk(self, attempt: int, data: bytes | bytearray) -> None:
        """A part of its reply has come; likewise."""


class Watches:
    """Watchers by the id of what they watch."""

    _log = Logger()

    def __init__(self) -> None:
        self._watchers: dict[str, list[Watcher]] = {}

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
