"""
The Dispatcher: from a queue's name to its Road.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from jobgate.errors import UnknownQueue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobgate.gate.road import Road

__all__ = ["Dispatcher"]


class Dispatcher:
    """
    The queues by name.

    Attributes:
        roads: Name to Road.
        reserved: The same for queues of the gate's own, which callers cannot send to.
    """

    def __init__(self) -> None:
        self.roads: dict[str, Road] = {}
        self.reserved: dict[str, Road] = {}

    def __iter__(self) -> Iterator[Road]:
        return chain(self.roads.values(), self.reserved.values())

    def __getitem__(self, name: str) -> Road:
        """
        The Road of that name.

        Raises:
            UnknownQueue: There is none.
        """
        road = self.roads.get(name)
        if road is None:
            message = f"no queue is called {name!r}"
            raise UnknownQueue(message)
        return road

    def get(self, name: str) -> Road | None:
        """The Road of that name, the gate's own included; None if there is none."""
        return self.roads.get(name) or self.reserved.get(name)

    def any(self, name: str) -> Road:
        """
        The same, for operators.

        Raises:
            UnknownQueue: There is none.
        """
        return self.get(name) or self[name]
