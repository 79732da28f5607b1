"""
One operation on its way through the store: a step, what it asks of the store, what it came to.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from jobgate.enums import plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred

__all__ = ["Kind", "Operation"]


@plain
class Kind(Enum):
    """What an operation asks of the store."""

    READ = auto()
    WRITE = auto()
    LASTING = auto()
    """It is tried until it is stored."""
    HOLD = auto()
    """It stores nothing, but what follows it will."""
    UPKEEP = auto()
    """It often finds nothing to store."""


class Operation:
    """
    One operation on its way through the store.

    Attributes:
        step: What is called with the ledger and `args`.
        kind: What it asks of the store.
        deferred: Whom to tell, if anybody.
        size: Bytes it keeps in RAM.
        outcome: What it came to.
    """

    __slots__ = ("args", "deferred", "kind", "outcome", "size", "step")

    def __init__(
        self,
        step: Callable[..., object],
        args: tuple[object, ...],
        kind: Kind,
        deferred: Deferred[Any] | None,
        size: int = 0,
    ) -> None:
        self.step = step
        self.args = args
        self.kind = kind
        self.deferred = deferred
        self.size = size
        self.outcome: object = None

    def __repr__(self) -> str:
        return f"<Operation {self.step.__name__} {self.args[:1]}>"
