"""
Waiting for a job: for its end, for all parts of a streamed reply, or not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TooLate
from twisted.logger import Logger
from twisted.python.failure import Failure

from jobgate.errors import StoreUnavailable, WorkerProtocolError
from jobgate.jobs.job import TERMINAL
from jobgate.wire.frames import MAX_FRAME

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IReactorTime

    from jobgate.jobs.job import Change

__all__ = ["Ended", "Gathering", "shielded", "unattended"]

_T = TypeVar("_T")
_log = Logger()


def unattended(step: Deferred[_T]) -> None:
    """Let a lasting step go its way: only a bug, or the end of the gate, can make it fail."""
    step.addErrback(_lost)


def _lost(failure: Failure) -> None:
    if not failure.check(StoreUnavailable):
        _log.failure("the journal lost an operation", failure=failure)


def shielded(step: Deferred[_T]) -> Deferred[_T]:
    """What a step comes to; to cancel this is to stop waiting, never to stop the step."""
    waiting: Deferred[_T] = Deferred()

    def tell(result: object) -> None:
        if not waiting.called:
            waiting.callback(result)  # type: ignore[arg-type]

    step.addBoth(tell)
    return waiting


class Ended:
    """A Watcher that waits for the end of what it watches."""

    def __init__(self) -> None:
        self._ended = False
        self._waiting: Deferred[None] | None = None

    @property
    def over(self) -> bool:
        """Whether the end has come."""
        return self._ended

    def changed(self, change: Change) -> None:
        """It is in another state."""
        if change.state >= TERMINAL:
            self.end()

    def progressed(self, attempt: int, done: float, total: float | None, note: str | None) -> None:
        """Not an end."""

    def chunk(self, attempt: int, data: bytes | bytearray) -> None:
        """Nor is this."""

    def end(self) -> None:
        """Wait no longer."""
        self._ended = True
        if self._waiting is not None and not self._waiting.called:
            self._waiting.callback(None)

    async def within(self, seconds: float, clock: IReactorTime) -> bool:
        """Whether the end comes within so many seconds; waits for it that long."""
        if self._ended:
            return True
        self._waiting = Deferred()
        try:
            await self._waiting.addTimeout(seconds, clock)
        except TooLate:
            return False
        return True


class Gathering:
    """
    The parts of a streamed reply as one body, bounded by what a frame can hold.

    Args:
        tell: Told of every part as it comes.
        gathered: Given the whole, or why there is none.
    """

    def __init__(
        self,
        tell: Callable[[bytes | bytearray], None],
        gathered: Callable[[bytes | None, Failure | None], None],
    ) -> None:
        self._tell = tell
        self._gathered = gathered
        self._parts: list[bytes | bytearray] = []
        self._size = 0

    def chunk(self, data: bytes | bytearray) -> None:
        """A part has come."""
        self._size += len(data)
        if self._size <= MAX_FRAME:
            self._parts.append(data)
            self._tell(data)
        else:
            self._parts.clear()

    def end(self, failure: Failure | None) -> None:
        """No more will come."""
        if failure is None and self._size > MAX_FRAME:
            message = f"it streamed {self._size} bytes, where a stored reply has {MAX_FRAME}"
            failure = Failure(WorkerProtocolError(message))
        self._gathered(b"".join(self._parts) if failure is None else None, failure)
