"""
An object that keeps what it is told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Recorder"]


class Recorder:
    """
    Stands for any object that is only told things, and keeps what it was told.

    Every method exists, returns None and appends `(name, *arguments)` to `events`;
    arguments given by name follow as one dict.

    Args:
        events: The list to append to; give several recorders one list to compare the order.
        results: What methods return instead of None, by name.

    Attributes:
        events: What it was told, oldest first.
    """

    def __init__(self, events: list[tuple[Any, ...]] | None = None, **results: object) -> None:
        self.events = [] if events is None else events
        self._results = results

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)

        def told(*args: object, **named: object) -> object:
            self.events.append((name, *args, named) if named else (name, *args))
            return self._results.get(name)

        return told

    @property
    def names(self) -> list[str]:
        """The names of the methods that were called, oldest first."""
        return [event[0] for event in self.events]

    def of(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of one method."""
        return [event[1:] for event in self.events if event[0] == name]
