"""
Replies that bring further jobs for their job's graph, on their way to the store.

What they bring is read and checked first, which may have to ask the store, or take a thread's
time: until then their jobs run. Must not know what jobs may be brought.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from jobgate import errors
from jobgate.jobs.job import Ending, State, document

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from twisted.internet.interfaces import IReactorTime

    from jobgate.command import Command
    from jobgate.jobs.job import NewJob, Reply, Taken

__all__ = ["Growing"]

_AGAIN: Final = 1.0
"""Seconds after which a store that could not be asked is asked again."""


class Growing:
    """
    Has replies stored together with the jobs that they bring.

    Args:
        clock: Seconds and timers.
        finish: Stores what became of a command.
        failed: Told of what went wrong otherwise.

    Attributes:
        growth: Makes jobs of what a job's worker wants its graph to grow by.
    """

    growth: Callable[[Taken, bytes], Awaitable[tuple[NewJob, ...]]]

    def __init__(
        self,
        clock: IReactorTime,
        finish: Callable[[Command, Ending], Deferred[bool]],
        failed: Callable[[Failure, Command, Taken], None],
    ) -> None:
        self._clock = clock
        self._finish = finish
        self._failed = failed
        self._under_way: set[Deferred[None]] = set()

    def add(self, reply: Reply, jobs: bytes, command: Command, taken: Taken) -> None:
        """Store a reply together with the jobs that it brings, or that they are none."""

        def over(_: object) -> None:
            self._under_way.discard(growing)

        growing = Deferred.fromCoroutine(self._grow(reply, jobs, command, taken))
        self._under_way.add(growing)
        growing.addBoth(over)

    def stop(self) -> None:
        """Leave what is under way to the next start: its jobs run still."""
        for growing in tuple(self._under_way):
            growing.cancel()

    async def _grow(self, reply: Reply, jobs: bytes, command: Command, taken: Taken) -> None:
        try:
            await self._store(reply, jobs, command, taken)
        except (errors.StoreUnavailable, CancelledError):
            pass  # the gate stops
        except Exception:  # noqa: BLE001 (whatever it is, the job must not run for ever)
            self._failed(Failure(), command, taken)

    async def _store(self, reply: Reply, jobs: bytes, command: Command, taken: Taken) -> None:
        try:
            brought = await self._brought(jobs, taken)
            await self._finish(command, Ending(State.SUCCEEDED, reply=reply, jobs=brought))
        except (errors.BadRequest, errors.Unprocessable) as refusal:
            message = f"the jobs that it brought cannot be added to its graph: {refusal.detail}"
            place = refusal.extra.get("path")
            error = errors.WorkerProtocolError(message, executed="yes", path=place)
            await self._finish(command, Ending(State.FAILED, error=document(error)))

    async def _brought(self, jobs: bytes, taken: Taken) -> tuple[NewJob, ...]:
        while True:
            try:
                return await self.growth(taken, jobs)
            except errors.StoreUnavailable:
                await deferLater(self._clock, _AGAIN)
