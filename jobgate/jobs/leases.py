"""
What pullers have: commands that are theirs for good, or for the time of a lease.

Jobs under a lease live in the journal alone: any gate that has it could take the reply. A
call under a lease has its caller waiting here. Must not know HTTP.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, ClassVar, Final

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from jobgate import errors
from jobgate.command import DONE, RUNNING
from jobgate.command import Reply as CallReply
from jobgate.jobs.job import Ending, Reply, State
from jobgate.jobs.lots import ids_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twisted.internet.interfaces import IDelayedCall, IReactorTime
    from twisted.python.failure import Failure

    from jobgate.command import Command
    from jobgate.gate.road import Road
    from jobgate.jobs.jobs import Jobs
    from jobgate.jobs.journal import Leased, LeaseTerms

__all__ = ["Lapse", "Leases"]

_DONE: Final = Ending(State.SUCCEEDED)
_REMEMBERED: Final = 10_000
"""Calls that a puller had, and leases of calls: who comes late or again is told what he is."""


class Lapse:
    """How a call's puller was lost, in the terms in which a Road hears of losses."""

    kind = "died"
    exit_status: int | None = None
    signal: str | None = None

    def __init__(self, cause: str) -> None:
        self.cause = cause


class _Lent:
    """A call that a puller has: its Road, and the lease that it is under, if any."""

    def __init__(self, road: Road, command: Command, lease: str) -> None:
        self.road = road
        self.command = command
        self.attempt = command.attempt
        self.lease = lease
        self.timer: IDelayedCall | None = None

    @property
    def over(self) -> bool:
        """Whether its caller does not wait for this puller any more."""
        return self.command.state is DONE or self.command.attempt != self.attempt


class Leases:
    """
    The commands that pullers have.

    Args:
        jobs: The gate's.
        clock: Seconds and timers.

    Attributes:
        stale: Replies to attempts that were over, dropped.
    """

    _log: ClassVar = Logger()

    def __init__(self, jobs: Jobs, clock: IReactorTime) -> None:
        self.stale = 0
        self._jobs = jobs
        self._outcomes = jobs.outcomes
        self._clock = clock
        self._calls: dict[str, _Lent] = {}
        self._over: OrderedDict[str, str] = OrderedDict()
        self._acked: OrderedDict[str, str] = OrderedDict()

    def queue_of(self, name: str) -> str | None:
        """The queue of a call that a puller has, or had lately; None for anything else."""
        lent = self._calls.get(name)
        return lent.command.queue if lent is not None else self._over.get(name)

    def close(self) -> None:
        """Nobody waits for anything any more."""
        for name, lent in list(self._calls.items()):
            self._forget(name, lent)

    def over(self, command: Command) -> None:
        """A call that a puller has needs its reply no more."""
        lent = self._calls.get(command.id)
        if lent is not None:
            self._forget(command.id, lent)

    # --- handing over

    def lend(self, road: Road, commands: Sequence[Command], terms: LeaseTerms) -> Deferred[None]:
        """
        Put commands under a lease, before their puller has them.

        Args:
            road: Whose they are.
            commands: What a Pull has taken.
            terms: The lease.

        Returns:
            Fires when it is stored, or fails with StoreUnavailable, and nothing is.
        """
        jobs = [command for command in commands if command.job]

        def lent(_: object) -> None:
            for command in commands:
                if command.job:
                    self._over.pop(command.id, None)
                elif command.state is RUNNING:
                    self._lend_call(road, command, terms)
                else:
                    self._remember(command)
            if jobs:
                # Not as they were asked for: a lot may have been parted meanwhile.
                self._outcomes.release(road, [command for command in commands if command.job])
                self._jobs.sweep_in(terms.seconds)

        if not jobs:
            lent(None)
            return succeed(None)
        return self._jobs.journal.lease(_starts(jobs), terms).addCallback(lent)

    def hand_over(self, road: Road, commands: Sequence[Command]) -> None:
        """Commands that their puller has now, for good: jobs have ended so, calls await a reply."""
        jobs = [command for command in commands if command.job]
        for command in commands:
            if command.state is RUNNING and not command.job:
                self._calls[command.id] = _Lent(road, command, "")
                road.overdue.began(command, self._clock.seconds())
            elif not command.job:
                self._remember(command)
        if jobs:
            self._outcomes.release(road, jobs)
            self._jobs.journal.consume(_starts(jobs)).addErrback(self._bug)

    # --- what pullers say

    async def reply(self, name: str, lease: str, reply: Reply) -> None:
        """
        A command's result.

        Args:
            name: The command's id.
            lease: The lease it is under.
            reply: The result.

        Raises:
            UnknownJob: There is none of that id.
            StaleAttempt: The lease is over, or the command has had its reply.
        """
        lent = self._take_call(name, lease)
        if lent is not None:
            answer = CallReply(reply.body, reply.content_type, reply.status)
            lent.road.outcomes.succeeded(lent.command, answer, self._clock.seconds())
            return
        await self._finish(name, lease, Ending(State.SUCCEEDED, reply=reply))

    async def fail(self, name: str, lease: str, error: errors.CommandFailed) -> State:
        """A command's puller could not do it: what becomes of it; errors as for `reply`."""
        lent = self._take_call(name, lease)
        if lent is not None:
            lent.road.outcomes.failed(lent.command, error, self._clock.seconds())
            return State.FAILED
        return await self._not_done(name, lease, error)

    async def decline(self, name: str, lease: str) -> State:
        """A command's puller will not have it: what becomes of it; errors as for `reply`."""
        lent = self._take_call(name, lease)
        if lent is not None:
            worker = lent.command.worker
            assert worker is not None, "it was lent to somebody"
            lent.road.declined(lent.command, worker)
            return State.QUEUED
        return await self._not_done(name, lease, errors.NoWorker("its puller declined it"))

    async def extend(self, lease: str, seconds: float) -> Leased | None:
        """
        Let a lease last for so many seconds from now.

        Raises:
            StaleAttempt: It is over.
        """
        mine = self._under(lease)
        for lent in mine:
            self._arm(lent, seconds)
        leased = await self._jobs.journal.extend(lease, seconds)
        if leased is not None:
            self._jobs.sweep_in(seconds)
        elif not mine:
            raise self._stale("that lease is over")
        return leased

    async def extend_one(self, name: str, lease: str, seconds: float) -> Leased | None:
        """
        Likewise, for somebody who names a command under it.

        Raises:
            UnknownJob: There is none of that id.
            StaleAttempt: It is not under that lease (any more).
        """
        if not any(lent.command.id == name for lent in self._under(lease)):
            leased = await self._jobs.journal.leased(lease)
            if leased is None or name not in dict(leased.jobs):
                await self._known(name)
                raise self._stale("it is not under that lease (any more)", name)
        return await self.extend(lease, seconds)

    def finish(self, lease: str, error: errors.CommandFailed | None) -> Deferred[None]:
        """
        All that is under a lease has been done, or has failed.

        Returns:
            Fails with StaleAttempt if the lease had run out.
        """
        mine = self._under(lease)
        for lent in mine:
            self._forget(lent.command.id, lent)
            if lent.over:
                continue
            now = self._clock.seconds()
            if error is None:
                done = CallReply(b"", "application/octet-stream")
                lent.road.outcomes.succeeded(lent.command, done, now)
            else:
                lent.road.outcomes.failed(lent.command, error, now)

        def finished(done_all: bool) -> None:  # noqa: FBT001 (what the journal says)
            again = error is None and lease in self._acked
            if not done_all and not mine and not again:
                raise self._stale("that lease is over")

        if error is None:
            if mine:
                _keep(self._acked, lease, "")
            done_all = self._jobs.journal.finish_lease(lease, _DONE)
        else:
            done_all = Deferred.fromCoroutine(self._fail_all(lease, error))
        return done_all.addCallback(finished)

    # --- inside

    def _under(self, lease: str) -> list[_Lent]:
        """The calls under a lease."""
        if not self._calls:
            return []
        return [lent for lent in self._calls.values() if lease and lent.lease == lease]

    def _stale(self, why: str, name: str | None = None) -> errors.StaleAttempt:
        """The answer to what comes too late (for this command); it is counted."""
        self.stale += 1
        return errors.StaleAttempt(why, id=name)

    async def _known(self, name: str) -> None:
        """Raise UnknownJob unless there is, or lately was, such a command."""
        if name not in self._over:
            await self._jobs.get(name)

    async def _fail_all(self, lease: str, error: errors.CommandFailed) -> bool:
        leased = await self._jobs.journal.leased(lease)
        ended = False
        for name, attempt in leased.jobs if leased is not None else ():
            job = await self._jobs.get(name)
            ending = self._outcomes.ending_of(job.queue, job.spent, job.attempts, error, lease)
            ended |= await self._jobs.journal.finish(name, attempt, ending)
            if ending.state == State.SCHEDULED:
                self._jobs.sweep_in(ending.delay)
        return ended

    async def _not_done(self, name: str, lease: str, error: errors.JobgateError) -> State:
        """A job goes on as its queue's rules say."""
        job = await self._jobs.get(name)
        ending = self._outcomes.ending_of(job.queue, job.spent, job.attempts, error)
        await self._finish(name, lease, ending)
        return ending.state

    async def _finish(self, name: str, lease: str, ending: Ending) -> None:
        journal = self._jobs.journal
        leased = await journal.leased(lease)
        attempt = dict(leased.jobs).get(name) if leased is not None else None
        if attempt is None or not await journal.finish(name, attempt, ending):
            await self._known(name)
            raise self._stale("it is not under that lease (any more)", name)
        if ending.state == State.SCHEDULED:
            self._jobs.sweep_in(ending.delay)

    def _lend_call(self, road: Road, command: Command, terms: LeaseTerms) -> None:
        lent = self._calls[command.id] = _Lent(road, command, terms.id)
        road.overdue.began(command, self._clock.seconds())
        self._arm(lent, terms.seconds)

    def _arm(self, lent: _Lent, seconds: float) -> None:
        if lent.timer is not None and lent.timer.active():
            lent.timer.cancel()
        lent.timer = self._clock.callLater(seconds, self._lapsed, lent)

    def _lapsed(self, lent: _Lent) -> None:
        command = lent.command
        self._forget(command.id, lent)
        if not lent.over:
            lent.road.lost(
                command, Lapse("its puller did not reply in time"), begun=True, alone=False
            )

    def _take_call(self, name: str, lease: str) -> _Lent | None:
        """A call that waits for this very reply; it is forgotten here."""
        lent = self._calls.get(name)
        if lent is None:
            if name in self._over:
                raise self._stale("its caller does not wait any more", name)
            return None
        self._check_call(lent, lease)
        self._forget(name, lent)
        return lent

    def _check_call(self, lent: _Lent, lease: str) -> None:
        if lent.over:
            self._forget(lent.command.id, lent)
            raise self._stale("its caller does not wait any more", lent.command.id)
        if lent.lease and lease != lent.lease:
            raise self._stale("it is not under that lease", lent.command.id)

    def _forget(self, name: str, lent: _Lent) -> None:
        if self._calls.get(name) is lent:
            del self._calls[name]
            self._remember(lent.command)
        if lent.timer is not None and lent.timer.active():
            lent.timer.cancel()

    def _remember(self, command: Command) -> None:
        """Nobody waits for this call's reply any more, which its puller may not know."""
        _keep(self._over, command.id, command.queue)

    def _bug(self, failure: Failure) -> None:
        self._log.failure("the journal lost an operation", failure=failure)


def _keep(remembered: OrderedDict[str, str], name: str, what: str) -> None:
    remembered[name] = what
    while len(remembered) > _REMEMBERED:
        remembered.popitem(last=False)


def _starts(commands: Sequence[Command]) -> list[tuple[Sequence[str], int]]:
    return [(ids_of(command), command.attempt) for command in commands]
