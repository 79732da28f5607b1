"""
What a job needed, put beside its body before it goes down its Road.

Small inputs come out of the store together with their jobs. Replies may be as large as a
frame, and hundreds of jobs may wait for their turn: large inputs are fetched for one job at
a time, and only while little waits. Must not know what a job's queue is for, nor HTTP.
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
    from collections.abc import Callable, Sequence

    from twisted.internet.interfaces import IDelayedCall, IReactorTime
    from twisted.python.failure import Failure

    from jobgate.command import Command
    from jobgate.gate.road import Road
    from jobgate.jobs.job import Ending, Taken
    from jobgate.jobs.journal import Journal

__all__ = ["Feeder", "as_input", "give"]

_WAITING: Final = 16 * 1024 * 1024
"""Bytes of bodies and inputs that wait in a queue, beyond which no more inputs are fetched."""
_AGAIN: Final = 1.0
"""Seconds after which a store that could not be asked is asked again."""
_PROBLEM: Final = "application/problem+json"
_OCTETS: Final = "application/octet-stream"


class Feeder:
    """
    Fetches the large inputs of one queue's jobs.

    Args:
        journal: Where the replies are.
        road: Where the jobs are about to go.
        clock: Seconds and timers.
        fed: Takes a job that has its inputs.
        failed: Takes one that cannot be given them.

    Attributes:
        road: As given; the queue may come to have another.
        hungry: Those that wait for their inputs, by id.
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
        self.hungry: dict[str, tuple[Command, Taken]] = {}
        self._feeding = False
        self._room: Deferred[None] | None = None
        self._again: IDelayedCall | None = None

    def add(self, command: Command, taken: Taken) -> None:
        """Fetch what this one needed, in its turn."""
        self.hungry[command.id] = command, taken
        if self._again is None:
            self._start()

    def room(self) -> None:
        """Something has left the queue."""
        if self._room is not None and self.road.bytes_waiting < _WAITING:
            room, self._room = self._room, None
            room.callback(None)

    def clear(self) -> list[Command]:
        """Let all go that wait; they."""
        gone = [command for command, _ in self.hungry.values()]
        for command in gone:
            command.state = DONE
        self.hungry.clear()
        if self._again is not None:
            self._again.cancel()
            self._again = None
        return gone

    def _start(self) -> None:
        self._again = None
        if not self._feeding:
            self._feeding = True
            Deferred.fromCoroutine(self._feed()).addErrback(self._bug)

    async def _feed(self) -> None:
        try:
            while self.hungry:
                command, taken = next(iter(self.hungry.values()))
                while command.state is WAITING and self.road.bytes_waiting >= _WAITING:
                    self._room = Deferred()
                    await self._room
                ids = [job for _, job in taken.inputs]
                found = await self._journal.endings(list(dict.fromkeys(ids)), MAX_FRAME)
                if self.hungry.pop(command.id, None) is None or command.state is not WAITING:
                    continue
                if all(job in found for job in ids):
                    give(command, taken, [found[job] for job in ids])
                    self._fed(command, taken)
                else:
                    message = f"its inputs are larger than a frame, which holds {MAX_FRAME} bytes"
                    self._failed(command, taken, Unprocessable(message))
        except StoreUnavailable:
            if self.hungry:
                self._again = self._clock.callLater(_AGAIN, self._start)
        finally:
            self._feeding = False

    def _bug(self, failure: Failure) -> None:
        self._log.failure("inputs could not be fetched", failure=failure)


def give(command: Command, taken: Taken, endings: Sequence[Ending]) -> None:
    """Put how the needs of a job have ended, in their order, beside the body of its command."""
    command.inputs = tuple(
        [as_input(name, ending) for (name, _), ending in zip(taken.inputs, endings, strict=True)]
    )
    command.extra = sum([len(its.body) for its in command.inputs])


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
