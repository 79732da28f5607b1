"""
What becomes of jobs that have set out: it is judged, and told to the journal.

Here workers' replies and losses end, and so does what time alone has ended. By which rules a job
is tried again is in `endings`. Must not know HTTP.
"""

from __future__ import annotations

from random import Random, SystemRandom
from typing import TYPE_CHECKING, ClassVar, Final

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from jobgate import errors
from jobgate.config import Backoff
from jobgate.jobs.endings import after_failure
from jobgate.jobs.growing import Growing
from jobgate.jobs.job import TERMINAL, Ending, Reply, State, document
from jobgate.jobs.waiting import Gathering, unattended

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure

    from jobgate import command as travelling
    from jobgate.command import Command
    from jobgate.gate.road import Road
    from jobgate.jobs.backlog import Backlog
    from jobgate.jobs.job import Job, Taken
    from jobgate.jobs.journal import Due, Journal
    from jobgate.jobs.watches import Watches

__all__ = ["Outcomes"]

_LAST_WORDS: Final = 8192
"""Characters of a worker's last output that are kept with an attempt."""


class Outcomes:
    """
    Settles jobs; each is told of here by its Errand.

    Args:
        backlogs: The windows by queue.
        backlog_for: Finds or makes the window of a queue that has jobs.
        journal: Where it is stored what became of them.
        clock: Seconds and timers.
        watches: Who hears how far they are.
        sweep_in: Has the journal do what time demands, not later than in so many seconds.

    Attributes:
        deaths: Workers that jobs have killed alone, by the jobs' ids, while these are tried again.
        growing: Replies that bring further jobs.
    """

    _log: ClassVar = Logger()

    def __init__(
        self,
        backlogs: Mapping[str, Backlog],
        backlog_for: Callable[[str], Backlog],
        journal: Journal,
        clock: IReactorTime,
        watches: Watches,
        sweep_in: Callable[[float], None],
    ) -> None:
        self._backlogs = backlogs
        self._backlog_for = backlog_for
        self._journal = journal
        self._clock = clock
        self._watches = watches
        self._sweep_in = sweep_in
        self._random = SystemRandom().random
        self.deaths: dict[str, int] = {}
        self.growing = Growing(clock, self.finish, self.not_replied)

    # --- on its way

    def started(self, command: Command) -> None:
        """A command of ours has begun."""
        worker = command.worker
        assert worker is not None, "somebody has begun it"
        command.recorded = command.attempt
        self._journal.note_start(command.id, command.attempt, worker.name)

    def progressed(
        self, command: Command, done: float, total: float | None, note: str | None
    ) -> None:
        """The worker of a command of ours has said how far it is."""
        command.progress = done, total, note
        self._watches.progressed(command.id, command.attempt, done, total, note)

    # --- as its worker ends it: the Errand's Sender

    def replied(self, reply: travelling.Reply, command: Command, taken: Taken) -> None:
        """A job's worker has answered."""
        stream = reply.stream
        if stream is None:
            stored = Reply(reply.status, reply.content_type, bytes(reply.body))
            self._succeeded(stored, reply.jobs, command, taken)
            return

        def gathered(body: bytes | None, failure: Failure | None) -> None:
            if body is not None:
                stored = Reply(reply.status, reply.content_type, body)
                self._succeeded(stored, stream.jobs, command, taken)
            elif failure is not None:
                self.not_replied(failure, command, taken)

        def part(data: bytes | bytearray) -> None:
            self._watches.chunk(command.id, command.attempt, data)

        gathering = Gathering(part, gathered)
        stream.read(gathering.chunk, gathering.end)

    def not_replied(self, failure: Failure, command: Command, taken: Taken) -> None:
        """A job has failed, or has been taken off its Road."""
        error = failure.value
        if isinstance(error, CancelledError):
            self._left(command)
            return
        if not isinstance(error, errors.JobgateError):
            self._log.failure("{command!r} failed", failure=failure, command=command)
            error = errors.InternalError("the gate's log has the details")
        self._failed(command, taken, error)

    # --- as others end it

    def finish(self, command: Command, ending: Ending) -> Deferred[bool]:
        """
        Store what became of a command of ours; it is here no more.

        Args:
            command: The command.
            ending: How its attempt ended, or its waiting.
        """
        if command.recorded:
            stored = self._journal.finish(command.id, command.recorded, ending)
        else:
            stored = self._journal.finish_waiting(command.id, ending)
        self._left(command)
        return stored

    def forget(self, command: Command, ended: Deferred[bool]) -> None:
        """A call of ours has ended without having been begun: as if it had never been."""
        unattended(ended)
        unattended(self._journal.forget(command.id))

    def release(self, road: Road, commands: Sequence[Command]) -> None:
        """Commands of ours are with somebody outside now: what becomes of them is told here."""
        road.release(commands)
        backlog = self._backlogs.get(road.config.name)
        if backlog is not None:
            backlog.left(*commands)

    def overdue(self, due: Due) -> None:
        """Pullers have not said anything in time, and jobs have waited for too long."""
        for job in due.lapsed:
            self._lapsed(job)
        for job in due.expired:
            error = errors.Expired(f"it waited for longer than {job.expires - job.created:g} s")
            ending = Ending(State.DEAD, error=document(error), spent=False)
            unattended(self._journal.finish_waiting(job.id, ending))

    def ending_of(
        self, queue: str, spent: int, attempts: int, error: errors.JobgateError, together: str = ""
    ) -> Ending:
        """
        How an attempt that somebody outside has failed ends its job, by its queue's rules.

        Args:
            queue: The job's.
            spent: Attempts used up before this one.
            attempts: How many may be.
            error: What went wrong.
            together: Those for whom this is the same have the same jitter, and so keep their order.
        """
        config = self._backlog_for(queue).road.config
        return after_failure(
            error,
            spent=spent,
            attempts=attempts,
            once=config.retry == "never",
            backoff=config.backoff,
            random=Random(together).random if together else self._random,  # noqa: S311 (no secret)
        )

    # --- inside

    def _succeeded(self, reply: Reply, jobs: bytes, command: Command, taken: Taken) -> None:
        if jobs:
            self.growing.add(reply, jobs, command, taken)
        else:
            self._ended(command, Ending(State.SUCCEEDED, reply=reply))

    def _failed(self, command: Command, taken: Taken, error: errors.JobgateError) -> None:
        """An attempt has failed: the job ends, or waits for its next attempt."""
        backlog = self._backlogs.get(command.queue)
        if backlog is not None and isinstance(error, errors.ShuttingDown) and not command.began:
            backlog.give_back(command)
            return
        deaths = command.deaths
        if backlog is not None and deaths >= taken.attempts and not taken.once:
            backlog.road.poison.add(command, self._clock.seconds())
            error = errors.PoisonCommand(f"it has killed {deaths} workers", attempt=command.attempt)
        ending = after_failure(
            error,
            spent=taken.spent,
            attempts=taken.attempts,
            once=taken.once,
            backoff=backlog.road.config.backoff if backlog is not None else Backoff(),
            random=self._random,
            output=command.worker.output[-_LAST_WORDS:] if command.worker is not None else "",
        )
        if deaths and ending.state < TERMINAL:
            self.deaths[command.id] = deaths
        self._ended(command, ending)

    def _lapsed(self, job: Job) -> None:
        """A puller has not said anything in time."""
        error = errors.LeaseLapsed(f"{job.worker or 'its puller'} did not reply in time")
        ending = self.ending_of(job.queue, job.spent, job.attempts, error, f"{job.until}")
        self._journal.note_finish(job.id, job.attempt, ending)
        if ending.state == State.SCHEDULED:
            self._sweep_in(ending.delay)

    def _ended(self, command: Command, ending: Ending) -> None:
        """As `finish`, where nobody waits for it; or it is to be tried again."""
        if not command.recorded:
            if ending.state >= TERMINAL:
                unattended(self.finish(command, ending))
                return
            # All declined it before any began: only what has started can be put off.
            command.recorded = command.attempt + 1
            self._journal.note_start(command.id, command.recorded, "")
        self._journal.note_finish(command.id, command.recorded, ending)
        if ending.state == State.SCHEDULED:
            self._sweep_in(ending.delay)
        self._left(command)

    def _left(self, command: Command) -> None:
        backlog = self._backlogs.get(command.queue)
        if backlog is not None:
            backlog.left(command)
