"""
What a job needed, put beside its body before it goes down its Road.

Replies may be as large as a frame, and hundreds of jobs may wait for their turn, so inputs
are fetched only while little waits, and for several jobs with one question where they are
small. Must not know what a job's queue is for, nor HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from jobgate.command import DONE, WAITING, Input
from jobgate.errors import StoreUnavailable, Unprocessable
from jobgate.wire.frames import MAX_FRAME

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twisted.internet.interfaces import IDelayedCall, IReactorTime
    from twisted.python.failure import Failure

    from jobgate.command import Command
    from jobgate.gate.road import Road
    from jobgate.jobs.job import Ending, Taken
    from jobgate.jobs.journal import Journal

__all__ = ["Feeder", "as_input"]

_TOGETHER: Final = 4 * 1024 * 1024
"""Bytes of inputs that are fetched with one question."""
_WAITING: Final = 16 * 1024 * 1024
"""Bytes of bodies and inputs that wait in a queue, beyond which no more inputs are fetched."""
_AGAIN: Final = 1.0
"""Seconds after which a store that could not be asked is asked again."""
_PROBLEM: Final = "application/problem+json"
_OCTETS: Final = "application/octet-stream"


class Feeder:
    """
    Fetches the inputs of one queue's jobs.

    Args:
        journal: Where the replies are.
        road: Where the jobs are about to go.
        clock: Seconds and timers.
        fed: Takes a job that has its inputs.
        failed: Takes one that cannot be given them.

    Attributes:
        road: As given; the queue may come to have another.
    """

    _log = Logger()

    def __init__(
        self,
        journal: Journal,
        road: Road,
        clock: IReactorTime,
        fed: Callable[[Command, Taken], None],
        failed: Callable[[Command, Taken, Unprocessable], object],
    ) -> None:
        self._journal = journal
        self.road = road
        self._clock = clock
        self._fed = fed
        self._failed = failed
        self._hungry: dict[str, tuple[Command, Taken]] = {}
        self._feeding = False
        self._room: Deferred[None] | None = None
        self._again: IDelayedCall | None = None

    @property
    def hungry(self) -> int:
        """How many jobs wait for their inputs."""
        return len(self._hungry)

    def add(self, command: Command, taken: Taken) -> None:
        """Fetch what this one needed, in its turn."""
        self._hungry[command.id] = command, taken
        self._start()

    def room(self) -> None:
        """Something has left the queue."""
        if self._room is not None and self.road.bytes_waiting < _WAITING:
            room, self._room = self._room, None
            room.callback(None)

    def clear(self) -> list[str]:
        """Let all go that wait; their ids."""
        ids = list(self._hungry)
        for command, _ in self._hungry.values():
            command.state = DONE
        self._hungry.clear()
        if self._again is not None:
            self._again.cancel()
            self._again = None
        return ids

    def _start(self) -> None:
        self._again = None
        if not self._feeding:
            self._feeding = True
            Deferred.fromCoroutine(self._feed()).addErrback(self._bug)

    async def _feed(self) -> None:
        try:
            while self._hungry:
                batch = [*self._hungry.values()]
                found = await self._ask([job for _, t in batch for _, job in t.inputs], _TOGETHER)
                for command, taken in batch:
                    if not self._give(command, taken, found):
                        await self._feed_alone(command, taken)
        except StoreUnavailable:
            if self._hungry:
                self._again = self._clock.callLater(_AGAIN, self._start)
        finally:
            self._feeding = False

    async def _feed_alone(self, command: Command, taken: Taken) -> None:
        """One whose inputs are large."""
        while command.state is WAITING and self.road.bytes_waiting >= _WAITING:
            self._room = Deferred()
            await self._room
        found = await self._ask([job for _, job in taken.inputs], MAX_FRAME)
        if not self._give(command, taken, found):
            del self._hungry[command.id]
            message = f"its inputs are larger than a frame, which holds {MAX_FRAME} bytes"
            self._failed(command, taken, Unprocessable(message))

    def _give(self, command: Command, taken: Taken, found: Mapping[str, Ending]) -> bool:
        """Give it its inputs, if all of them were found; it may be wanted no more."""
        if command.state is not WAITING:
            self._hungry.pop(command.id, None)
            return True
        if any(job not in found for _, job in taken.inputs):
            return False
        command.inputs = tuple([as_input(name, found[job]) for name, job in taken.inputs])
        command.extra = sum([len(its.body) for its in command.inputs])
        del self._hungry[command.id]
        self._fed(command, taken)
        return True

    async def _ask(self, ids: list[str], most: int) -> dict[str, Ending]:
        return await self._journal.endings(list(dict.fromkeys(ids)), most)

    def _bug(self, failure: Failure) -> None:
        self._log.failure("inputs could not be fetched", failure=failure)


def as_input(name: str, ending: Ending) -> Input:
    """
    What became of a job, for those that need it: its reply, or the problem it ended with.

    A problem is a document as RFC 9457 has it, but for the status, which is HTTP's.
    """
    if ending.reply is not None:
        return Input(name, ending.reply.content_type, ending.reply.body)
    if ending.error is not None:
        slug = ending.error.get("slug", "")
        rest = {member: value for member, value in ending.error.items() if member != "slug"}
        problem = {"type": f"/problems/{slug}", **rest}
        return Input(name, _PROBLEM, msgspec.json.encode(problem))
    return Input(name, _OCTETS, b"")
