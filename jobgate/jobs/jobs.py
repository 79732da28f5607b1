"""
Jobs: what stands between the journal and the Roads.

A job is a command whose caller is the journal: it enters a Road like any other, and what
it ends with is judged and stored here. Everybody who asks for a job, waits for one or
changes one does it through this class. Must not know HTTP.
"""

from __future__ import annotations

from functools import partial
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Protocol

import msgspec
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from jobgate import errors
from jobgate.command import DONE, Command, Lot
from jobgate.config import Backoff
from jobgate.jobs import auditing
from jobgate.jobs.backlog import Backlog
from jobgate.jobs.endings import after_failure
from jobgate.jobs.errand import Errand
from jobgate.jobs.growing import Growing
from jobgate.jobs.inputs import Feeder, give
from jobgate.jobs.job import TERMINAL, Ending, Reply, State, Taken, document, taken
from jobgate.jobs.lots import ids_of, parted, size_of
from jobgate.jobs.sweeping import Sweeper
from jobgate.jobs.waiting import Ended, Gathering
from jobgate.jobs.watches import Watches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.internet.interfaces import IReactorTime

    from jobgate import command as travelling
    from jobgate.gate.audit import Audit
    from jobgate.gate.road import Road
    from jobgate.jobs.job import Change, Job, NewJob
    from jobgate.jobs.journal import Due, Journal, Key, Stored

__all__ = ["Jobs"]

_FOREVER = float("inf")
_LAST_WORDS = 8192
"""Characters of a worker's last output that are kept with an attempt."""
_decode = msgspec.json.Decoder(dict[str, str]).decode


class Ender(Protocol):
    """Somebody who waits."""

    def end(self) -> None:
        """Wait no longer."""


class Jobs:
    """
    All jobs of a gate.

    Args:
        journal: Where they are kept.
        clock: Seconds and timers.
        road_for: Makes or finds the Road of a queue, for jobs that are found at the opening.
        audit: Where acceptance and outcome are written down, if anywhere.

    Attributes:
        journal: As given.
        calls: Calls that are kept here and counted on their Roads, by id.
        watches: Who waits to hear of a job or graph.
        backlogs: The windows by queue.
        audit: As given; a reload may bring another.
        clock: As given.
        waiting: Who waits for something and is to be sent away when the gate stops.
        sweep_in: Has the journal do what time demands, not later than in so many seconds.
        stale: Replies to attempts that were over, dropped.
        growing: Replies that bring further jobs.
    """

    _log = Logger()

    def __init__(
        self,
        journal: Journal,
        clock: IReactorTime,
        road_for: Callable[[str], Road],
        audit: Audit | None = None,
    ) -> None:
        self.journal = journal
        self.watches = Watches()
        self.backlogs: dict[str, Backlog] = {}
        self.calls: dict[str, Command] = {}
        self.audit = audit
        self.stale = 0
        self.clock = clock
        self._road_for = road_for
        self._random = SystemRandom().random
        # Bound once: there is one job after another.
        self._on_start = self.started
        self._on_progress = self.progressed
        self._deaths: dict[str, int] = {}
        self._sweeper = Sweeper(journal, clock, self._swept)
        self.sweep_in = self._sweeper.sweep_in
        self.growing = Growing(clock, self.finish, self.not_replied)
        self._opened = False
        self._held = False
        self._closed = False
        self.waiting: set[Ender] = set()

    # --- its life

    def open(self) -> Deferred[None]:
        """
        Open the journal, if that has not been done, and take up what it holds.

        Raises:
            ConfigError: It cannot be opened; the message says why.
        """
        if self._opened:
            return succeed(None)
        self._opened = True
        return self.journal.open(self._changed).addCallback(self._take_up)

    def _take_up(self, found: dict[str, list[int]]) -> None:
        for queue, counts in found.items():
            self._road_for(queue)
            backlog = self.backlogs[queue]
            backlog.open = counts[:TERMINAL]
            backlog.stored = counts[State.QUEUED]
            backlog.road.stats.accepted += sum(counts)
            backlog.fill()
        self.sweep_in(0.0)

    @property
    def held(self) -> bool:
        """Whether nothing more is started."""
        return self._held

    def hold(self) -> None:
        """
        Start nothing more, and keep nobody waiting.

        What waits stays in the journal for the next start.
        """
        self._held = True
        for backlog in self.backlogs.values():
            backlog.close()
        for waiter in tuple(self.waiting):
            waiter.end()

    def close(self) -> Deferred[None]:
        """Store what is under way, then close the journal; again: harmless."""
        if self._closed:
            return succeed(None)
        self._closed = True
        self.hold()
        self._sweeper.stop()
        self.growing.stop()
        return self.journal.close()

    def adopt(self, road: Road) -> Backlog:
        """A queue has come, or has another Road: its jobs run on this one from now on."""
        name = road.config.name
        backlog = self.backlogs.get(name)
        if backlog is not None:
            backlog.move(road)
        else:
            feeder = Feeder(self.journal, road, self.clock, self._fed, self._not_fed)
            backlog = Backlog(road, self.journal, self._run, feeder, self.sweep_in)
            self.backlogs[name] = backlog
        if self._held:
            backlog.close()
        return backlog

    def abandon(self, queue: str) -> None:
        """A queue is no more: there are no jobs of it, nor does anybody wait for any."""
        self.backlogs.pop(queue).close()

    # --- in

    def put(
        self, jobs: Sequence[NewJob], *, key: Key | None = None, graph: str = ""
    ) -> Deferred[Stored]:
        """
        Store jobs, all or none; those that can run at once do.

        Args:
            jobs: Of one queue, or those of one graph.
            key: Their idempotency key.
            graph: The id of the graph they form.

        Raises:
            StoreUnavailable: The store cannot keep them.
            QueueFull: As many wait as may.
        """
        if self._held:
            closing = errors.ShuttingDown("the gate finishes what it has and takes nothing new")
            self._refused(jobs, closing)
            return fail(closing)
        queue = jobs[0].queue
        backlog = self.backlogs.get(queue) or self._backlog_for(queue)
        claim = coming = 0
        if graph:
            # One of them may have been given up since the graph was checked.
            queues = {job.queue for job in jobs}
            limits = {queue: self._backlog_for(queue).road.config.max_backlog for queue in queues}
        else:
            limits = {queue: backlog.road.config.max_backlog}
            claimed, others = backlog.claim(jobs)
            if claimed:
                jobs = [*claimed, *others]
                claim, coming = len(claimed), sum([len(job.ids) or 1 for job in claimed])
        recalls = backlog.recalls
        stored = self.journal.put(jobs, claim=claim, key=key, graph=graph, limits=limits)
        soonest = _FOREVER
        for job in jobs:
            if job.delay or job.expires:
                soonest = min(soonest, job.delay or _FOREVER, job.expires or _FOREVER)

        def put(stored: Stored) -> Stored:
            if stored.kept is not None:
                backlog.not_coming(coming)
                return stored
            if claim:
                now = self.journal.now()
                backlog.arrived([taken(job, now) for job in jobs[:claim]], recalls)
            if soonest != _FOREVER:
                self.sweep_in(soonest)
            return stored

        def not_put(failure: Failure) -> Failure:
            error = failure.value
            if isinstance(error, CancelledError):
                # Whoever pushed waits no more, but the store goes on.
                backlog.unclaim(jobs[:claim])
                if soonest != _FOREVER:
                    self.sweep_in(soonest)
            backlog.not_coming(coming)
            if isinstance(error, errors.QueueFull):
                count = sum([size_of(job) for job in jobs if job.queue == error.queue])
                error.retry_after = self.backlogs[error.queue].road.room_in(count)
            if isinstance(error, errors.JobgateError):
                self._refused(jobs, error)
            return failure

        return stored.addCallbacks(put, not_put)

    def _refused(self, jobs: Sequence[NewJob], error: errors.JobgateError) -> None:
        """Refused is accepted, then shed."""
        for job in jobs:
            backlog = self.backlogs.get(job.queue)
            if backlog is not None:
                stats, size = backlog.road.stats, size_of(job)
                stats.accepted += size
                stats.shed += size
            if self.audit is not None:
                auditing.refused(self.audit, job, error)

    # --- one of them

    def get(self, name: str) -> Deferred[Job]:
        """
        A job.

        Raises:
            UnknownJob: There is none of that id.
        """

        def found(job: Job | None) -> Job:
            if job is None:
                message = f"no job is called {name!r}"
                raise errors.UnknownJob(message)
            return job

        return self.journal.get(name).addCallback(found)

    async def wait(self, name: str, seconds: float, *, to_the_end: bool = False) -> Job:
        """
        A job, once it has ended, or as it is when the time is up.

        Args:
            name: Its id.
            seconds: How long to wait.
            to_the_end: Wait on while the gate finishes what it has.

        Raises:
            UnknownJob: There is none of that id.
        """
        ended = Ended()
        self.watches.add(name, ended)
        try:
            job = await self.get(name)
            if job.state < TERMINAL and seconds > 0:
                if to_the_end:
                    await ended.within(seconds, self.clock)
                else:
                    await self.linger(ended, seconds)
                job = await self.get(name)
            return job
        finally:
            self.watches.remove(name, ended)

    async def linger(self, ended: Ended, seconds: float) -> None:
        """Wait for an end for at most so many seconds, and no longer than the gate runs."""
        if self._held:
            return
        self.waiting.add(ended)
        try:
            await ended.within(seconds, self.clock)
        finally:
            self.waiting.discard(ended)

    def purge(self, queue: str) -> Deferred[int]:
        """Cancel all jobs that wait in a queue; how many."""
        backlog = self.backlogs[queue]
        backlog.clear()
        return self.journal.purge(queue)

    def started(self, command: Command) -> None:
        """A command of ours has begun."""
        worker = command.worker
        assert worker is not None, "somebody has begun it"
        command.recorded = command.attempt
        self.journal.note_start(command.id, command.attempt, worker.name)

    def finish(self, command: Command, ending: Ending) -> Deferred[bool]:
        """
        Store what became of a command of ours; it is here no more.

        Args:
            command: The command.
            ending: How its attempt ended, or its waiting.
        """
        if command.recorded:
            stored = self.journal.finish(command.id, command.recorded, ending)
        else:
            stored = self.journal.finish_waiting(command.id, ending)
        self._left(command)
        return stored

    def _ended(self, command: Command, ending: Ending) -> None:
        """As `finish`, where nobody waits for it; or it is to be tried again."""
        if not command.recorded:
            if ending.state >= TERMINAL:
                self._keep(self.finish(command, ending))
                return
            # All declined it before any began: only what has started can be put off.
            command.recorded = command.attempt + 1
            self.journal.note_start(command.id, command.recorded, "")
        self.journal.note_finish(command.id, command.recorded, ending)
        if ending.state == State.SCHEDULED:
            self.sweep_in(ending.delay)
        self._left(command)

    def forget(self, command: Command, ended: Deferred[bool]) -> None:
        """A call of ours has ended without having been begun: as if it had never been."""
        self._keep(ended)
        self._keep(self.journal.forget(command.id))

    def _failed(self, command: Command, taken: Taken, error: errors.JobgateError) -> None:
        """An attempt has failed: the job ends, or waits for its next attempt."""
        backlog = self.backlogs.get(command.queue)
        if backlog is not None and isinstance(error, errors.ShuttingDown) and not command.began:
            backlog.give_back(command)
            return
        deaths = command.deaths
        if backlog is not None and deaths >= taken.attempts and not taken.once:
            backlog.road.poison.add(command, self.clock.seconds())
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
            self._deaths[command.id] = deaths
        self._ended(command, ending)

    def progressed(
        self, command: Command, done: float, total: float | None, note: str | None
    ) -> None:
        """The worker of a command of ours has said how far it is."""
        command.progress = done, total, note
        self.watches.progressed(command.id, command.attempt, done, total, note)

    def release(self, road: Road, commands: Sequence[Command]) -> None:
        """Commands of ours are with somebody outside now: what becomes of them is told here."""
        road.release(commands)
        backlog = self.backlogs.get(road.config.name)
        if backlog is not None:
            backlog.left(*commands)

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

    def _run(self, taken: Taken) -> None:
        """Send a job, or a lot, down its Road."""
        backlog = self.backlogs[taken.queue]
        self._enter(self._command(taken, backlog), taken, backlog)

    def _command(self, taken: Taken, backlog: Backlog) -> Command:
        """What it is on its Road, which is to expect it; it is here from now on."""
        accepted = self.clock.seconds() - max(0.0, self.journal.now() - taken.created)
        ids = taken.ids
        command: Command
        if ids:
            command = Lot(
                taken.queue,
                ids,
                taken.body,
                taken.content_type,
                taken.priority,
                accepted,
                partial(self._parts, taken, backlog),
            )
            backlog.window.update(dict.fromkeys(ids, command))
        else:
            command = Command(
                taken.queue,
                taken.id,
                taken.body,
                taken.content_type,
                taken.priority,
                accepted,
                _FOREVER,
            )
            backlog.window[taken.id] = command
        command.attempt = taken.attempt
        command.deaths = self._deaths.get(taken.id, 0)
        command.caller = taken.caller
        command.graph = taken.graph
        command.on_start = self._on_start
        command.on_progress = self._on_progress
        if taken.headers:
            command.headers = _decode(taken.headers)
        command.reply = Errand(self, command, taken)
        backlog.road.expect(command)
        return command

    def _parts(self, taken: Taken, backlog: Backlog, starts: Sequence[int]) -> list[Command]:
        """What the parts of a lot are on its Road."""
        return [self._command(each, backlog) for each in parted(taken, starts)]

    def _enter(self, command: Command, taken: Taken, backlog: Backlog) -> None:
        road = backlog.road
        if road.poison and road.poison.knows(
            command.queue, command.content_type, command.body, self.clock.seconds()
        ):
            error = errors.PoisonCommand(
                "a command with this body has killed workers within the last hour", executed="no"
            )
            self.clock.callLater(0, road.refuse, command, error)
        elif taken.inputs and not taken.fed:
            backlog.feeder.add(command, taken)
        else:
            if taken.fed:
                give(command, taken, taken.fed)
            self._set_out(command, taken, backlog)

    def _fed(self, command: Command, taken: Taken) -> None:
        """It has its inputs."""
        backlog = self.backlogs[taken.queue]
        self._set_out(command, taken, backlog)
        backlog.fed()

    def _not_fed(self, command: Command, taken: Taken, error: errors.Unprocessable) -> None:
        """It cannot be given them."""
        backlog = self.backlogs[taken.queue]
        backlog.road.refuse(command, error)
        backlog.fed()

    def _set_out(self, command: Command, taken: Taken, backlog: Backlog) -> None:
        road = backlog.road
        key = command.headers.get("jobgate-key", "") if command.headers else ""
        if not taken.once:
            road.enter(command, key=key)
            return
        command.recorded = command.attempt + 1
        backlog.starting += 1

        def enter(_: None) -> None:
            road.enter(command, key=key)
            backlog.started()

        self._keep(self.journal.start(command.id, command.recorded, "").addCallback(enter))

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
            self.watches.chunk(command.id, command.attempt, data)

        gathering = Gathering(part, gathered)
        stream.read(gathering.chunk, gathering.end)

    def _succeeded(self, reply: Reply, jobs: bytes, command: Command, taken: Taken) -> None:
        if jobs:
            self.growing.add(reply, jobs, command, taken)
        else:
            self._ended(command, Ending(State.SUCCEEDED, reply=reply))

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

    def _left(self, command: Command) -> None:
        backlog = self.backlogs.get(command.queue)
        if backlog is not None:
            backlog.left(command)

    def _changed(self, changes: Sequence[Change]) -> None:
        """The journal has stored these."""
        backlogs, calls, audit = self.backlogs, self.calls, self.audit
        watches = self.watches
        watched = bool(watches)
        fill: set[Backlog] = set()
        kept: set[Backlog] = set()
        for change in changes:
            backlog = backlogs.get(change.queue) or self._backlog_for(change.queue)
            state, before, size = change.state, change.before, len(change.ids) or 1
            if not calls or change.id not in calls:
                _count(backlog, state, before, size)
                if audit is not None:
                    auditing.changed(audit, change)
            if state is State.QUEUED:
                if not change.claimed:
                    backlog.stored += size
                    fill.add(backlog)
            elif state >= TERMINAL:
                if state is not State.DEAD:
                    kept.add(backlog)
                here = backlog.window
                if calls or self._deaths or (here and (change.ids or change.id in here)):
                    self._look_for(change, backlog)
            elif state is State.SCHEDULED and before is State.BLOCKED:
                # Nobody has been told yet when its time is.
                self.sweep_in(0.0)
            if watched:
                watches.changed(change)
        for backlog in kept:
            self.sweep_in(backlog.road.config.result_ttl)
        for backlog in fill:
            backlog.fill()

    def _look_for(self, change: Change, backlog: Backlog) -> None:
        """Jobs have ended that may be here still."""
        ids = ids_of(change)
        for id_ in ids:
            self._deaths.pop(id_, None)
            command = self.calls.pop(id_, None) or backlog.window.get(id_)
            if command is None or command.state == DONE:
                continue
            if isinstance(command, Lot):
                _part_off(command, ids)
                command = backlog.window[id_]
            _ended_elsewhere(command)

    def _backlog_for(self, queue: str) -> Backlog:
        self._road_for(queue)
        return self.backlogs[queue]

    # --- time

    def _swept(self, due: Due) -> None:
        for job in due.lapsed:
            self._lapsed(job)
        for job in due.expired:
            error = errors.Expired(f"it waited for longer than {job.expires - job.created:g} s")
            ending = Ending(State.DEAD, error=document(error), spent=False)
            self._keep(self.journal.finish_waiting(job.id, ending))
        for backlog in tuple(self.backlogs.values()):
            backlog.fill()

    def _lapsed(self, job: Job) -> None:
        """A puller has not said anything in time."""
        error = errors.LeaseLapsed(f"{job.worker or 'its puller'} did not reply in time")
        ending = self.ending_of(job.queue, job.spent, job.attempts, error, f"{job.until}")
        self.journal.note_finish(job.id, job.attempt, ending)
        if ending.state == State.SCHEDULED:
            self.sweep_in(ending.delay)

    def _keep(self, stored: Deferred[bool] | Deferred[None]) -> None:
        """What nobody waits for: only a bug, or the end of the gate, can make it fail."""
        stored.addErrback(self._lost)

    def _lost(self, failure: Failure) -> None:
        if not self._closed:
            self._log.failure("the journal lost an operation", failure=failure)


def _part_off(lot: Lot, ids: Sequence[str]) -> None:
    """Part a lot where those that have ended are followed by others, or the other way round."""
    over = set(ids)
    ended = [id_ in over for id_ in lot.ids]
    starts = [at for at in range(1, len(ended)) if ended[at] != ended[at - 1]]
    if starts:
        lot.part(starts)


def _ended_elsewhere(command: Command) -> None:
    """It has been ended from outside: whoever has it need not go on."""
    if command.forget is None:
        # It has not set out yet, or has been refused.
        command.state = DONE
    elif command.stream is None:
        command.reply.cancel()
    else:
        command.leave()
        command.stream.end(Failure(CancelledError()))


def _count(backlog: Backlog, state: State, before: State | None, size: int) -> None:
    """Keep the counters true: what is accepted has ended, or waits, or runs."""
    stats = backlog.road.stats
    if before is None or before >= TERMINAL:
        stats.accepted += size
        if before is not None:
            stats.retried += size
    else:
        backlog.open[before] -= size
    if state < TERMINAL:
        backlog.open[state] += size
    elif state == State.SUCCEEDED:
        stats.succeeded += size
    elif state == State.CANCELLED:
        stats.cancelled += size
    else:
        stats.failed += size
