"""
Jobs: commands that outlive their request, kept in the journal and run on the Roads.

Everybody who puts a job, asks for one or waits for one does it through this class. How jobs
set out is in `departures`, what becomes of them in `outcomes`, and what follows from that in
`changes`. Must not know HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twisted.internet.defer import CancelledError, fail, succeed

from jobgate import errors
from jobgate.jobs import auditing
from jobgate.jobs.backlog import Backlog
from jobgate.jobs.changes import Changes
from jobgate.jobs.departures import Departures
from jobgate.jobs.inputs import Feeder
from jobgate.jobs.job import TERMINAL, taken
from jobgate.jobs.lots import size_of
from jobgate.jobs.outcomes import Outcomes
from jobgate.jobs.sweeping import Sweeper
from jobgate.jobs.waiting import Ended
from jobgate.jobs.watches import Watches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure

    from jobgate.gate.audit import Audit
    from jobgate.gate.road import Road
    from jobgate.jobs.job import Job, NewJob
    from jobgate.jobs.journal import Due, Journal, Key, Stored

__all__ = ["Jobs"]

_FOREVER: Final = float("inf")


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
        clock: As given.
        backlogs: The windows by queue.
        watches: Who waits to hear of a job or graph.
        outcomes: What becomes of those that have set out.
        calls: Calls that are kept here and counted on their Roads, by id.
        sweep_in: Has the journal do what time demands, not later than in so many seconds.
    """

    def __init__(
        self,
        journal: Journal,
        clock: IReactorTime,
        road_for: Callable[[str], Road],
        audit: Audit | None = None,
    ) -> None:
        self.journal = journal
        self.clock = clock
        self.backlogs: dict[str, Backlog] = {}
        self.watches = Watches(clock)
        self._road_for = road_for
        self._sweeper = Sweeper(journal, clock, self._swept)
        self.sweep_in = self._sweeper.sweep_in
        self.outcomes = Outcomes(
            self.backlogs, self._backlog_for, journal, clock, self.watches, self.sweep_in
        )
        self._departures = Departures(self.backlogs, journal, clock, self.outcomes)
        self._changes = Changes(
            self.backlogs,
            self._backlog_for,
            self.watches,
            self.outcomes.deaths,
            self.sweep_in,
            audit,
        )
        self.calls = self._changes.calls
        self._opened = False
        self._held = False
        self._closed = False

    @property
    def audit(self) -> Audit | None:
        """Where acceptance and outcome are written down; a reload may bring another."""
        return self._changes.audit

    @audit.setter
    def audit(self, audit: Audit | None) -> None:
        self._changes.audit = audit

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
        return self.journal.open(self._changes.stored).addCallback(self._take_up)

    def _take_up(self, found: dict[str, list[int]]) -> None:
        for queue, counts in found.items():
            self._backlog_for(queue).take_up(counts)
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
        self.watches.hold()

    def close(self) -> Deferred[None]:
        """Store what is under way, then close the journal; again: harmless."""
        if self._closed:
            return succeed(None)
        self._closed = True
        self.hold()
        self._sweeper.stop()
        self.outcomes.growing.stop()
        return self.journal.close()

    def adopt(self, road: Road) -> Backlog:
        """A queue has come, or has another Road: its jobs run on this one from now on."""
        name = road.config.name
        backlog = self.backlogs.get(name)
        if backlog is not None:
            backlog.move(road)
        else:
            departures = self._departures
            feeder = Feeder(self.journal, road, self.clock, departures.fed, departures.not_fed)
            backlog = Backlog(road, self.journal, departures.run, feeder, self.sweep_in)
            self.backlogs[name] = backlog
        if self._held:
            backlog.close()
        return backlog

    def abandon(self, queue: str) -> None:
        """A queue is no more: there are no jobs of it, nor does anybody wait for any."""
        self.backlogs.pop(queue).close()

    def _backlog_for(self, queue: str) -> Backlog:
        self._road_for(queue)
        return self.backlogs[queue]

    def _swept(self, due: Due) -> None:
        self.outcomes.overdue(due)
        for backlog in tuple(self.backlogs.values()):
            backlog.fill()

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
        arrivals = backlog.arrivals
        recalls = arrivals.recalls
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
                arrivals.arrived([taken(job, now) for job in jobs[:claim]], recalls)
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
                backlog.tally.refuse(size_of(job))
            if self.audit is not None:
                auditing.refused(self.audit, job, error)

    # --- those that are there

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
                    await self.watches.linger(ended, seconds)
                job = await self.get(name)
            return job
        finally:
            self.watches.remove(name, ended)

    def purge(self, queue: str) -> Deferred[int]:
        """Cancel all jobs that wait in a queue; how many."""
        backlog = self.backlogs[queue]
        backlog.clear()
        return self.journal.purge(queue)
