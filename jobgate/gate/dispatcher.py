"""
The Dispatcher: from a queue's name to its Road.
"""

from __future__ import annotations

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
    """

    def __init__(self) -> None:
        self.roads: dict[str, Road] = {}

    def __iter__(self) -> Iterator[Road]:
        return iter(self.roads.values())

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
