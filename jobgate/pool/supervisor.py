"""
Keeps the workers of one queue alive, as many as are needed.

One place for a worker, a Post, outlives the workers that hold it: its name, its count of
restarts and its last crash report stay. How many posts there are, `headcount` says; when a
worker has served for long enough, its `lifespan`; who takes over from whom, `succession`; and
`recruiter` starts them. Here is what follows when one is ready, leaves or dies.
Must not know commands or queues; it says who can work (`Foreman`) and the gate does the rest.

Workers that come by themselves are `Guests`: it counts them in, and starts none in their place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from jobgate.pool.guests import Guests
from jobgate.pool.headcount import Headcount
from jobgate.pool.lifecycle import State
from jobgate.pool.machine import Machine
from jobgate.pool.member import RETIRED, Member
from jobgate.pool.process import WorkerProcess
from jobgate.pool.recruiter import PROBATION, Recruiter
from jobgate.pool.roles import Loss
from jobgate.pool.rollout import Rollouts
from jobgate.pool.succession import Succession
from jobgate.pool.watch import Watch

if TYPE_CHECKING:
    from collections import Counter

    from jobgate.config import QueueConfig
    from jobgate.pool.post import Post
    from jobgate.pool.report import Report, Slow
    from jobgate.pool.roles import Foreman, Groups

__all__ = ["Supervisor"]


class Supervisor:
    """
    Keeps as many workers alive as the configuration says.

    Args:
        config: The queue's configuration; `reconfigure` gives another.
        reactor: Time, timers and processes.
        foreman: Told who can work.
        groups: Told which process groups live.
        machine: Says whether there is CPU to spare.

    Attributes:
        queue: The queue's name.
        guests: The workers that came by themselves.
        rollouts: Who is to be replaced by a newer one.
    """

    _log = Logger()

    def __init__(
        self,
        config: QueueConfig,
        reactor: Any,  # noqa: ANN401 (IReactorTime and IReactorProcess: no type can say both)
        foreman: Foreman,
        groups: Groups,
        machine: Machine | None = None,
    ) -> None:
        self._reactor = reactor
        self._foreman = foreman
        self._groups = groups
        self._headcount = Headcount(machine or Machine())
        self._watch = Watch(self, reactor)
        self.queue = config.name
        self._all_gone: list[Deferred[None]] = []
        self.rollouts = Rollouts(config.worker())
        self.guests = Guests(config, reactor, foreman, self._sweep)
        self._recruiter = Recruiter(
            config.name, reactor, foreman, self._headcount, self.rollouts, self
        )
        self._succession = Succession(reactor, self._headcount, self.rollouts, self._recruiter)
        self._take_on(config)

    # --- what others ask

    @property
    def stopping(self) -> bool:
        """Whether it takes nobody on any more."""
        return self._headcount.closed

    @property
    def posts(self) -> list[Post]:
        """The posts of its children."""
        return self._recruiter.posts

    @property
    def places(self) -> list[Post]:
        """All posts, those of guests included."""
        return [*self.posts, *self.guests.posts]

    @property
    def workers(self) -> list[Member]:
        """Everyone, those on their way out included."""
        return [worker for post in self.places for worker in post.everyone]

    @property
    def alive(self) -> list[Member]:
        """Those who can take commands."""
        return [worker for worker in self.workers if worker.state is State.READY]

    @property
    def wanted(self) -> int:
        """How many workers there are to be."""
        return len(self._headcount.wanted)

    @property
    def crash_loop(self) -> bool:
        """Whether no worker lives because they keep dying."""
        return self._recruiter.looping and not self.alive

    @property
    def backing_off(self) -> list[Post]:
        """The posts that stand empty because workers keep dying, until it is time to try again."""
        return self._recruiter.backing_off

    @property
    def last_cause(self) -> str:
        """Why the last worker that did not go by plan ended."""
        return self._recruiter.last_cause

    @last_cause.setter
    def last_cause(self, cause: str) -> None:
        self._recruiter.last_cause = cause

    @property
    def causes(self) -> Counter[str]:
        """How many workers were started in place of another, by why."""
        return self._recruiter.causes

    @property
    def retry_in(self) -> float:
        """Seconds until the next start."""
        return self._recruiter.retry_in

    def post(self, name: str) -> Post | None:
        """The post of that name."""
        return next((post for post in self.places if post.name == name), None)

    # --- what others tell it

    def start(self) -> Deferred[None]:
        """Start the workers; fires when the first is ready or has failed to be."""
        return self._recruiter.start()

    def needed(self) -> None:
        """A command waits, and there may be nobody to run it."""
        if not self._headcount.wanted:
            self.scale()

    def recycle(self, post: Post, cause: str = "recycle") -> None:
        """Replace a post's worker: the new one starts before the old one goes."""
        if self.stopping:
            return
        if post in self.guests.posts:
            self.guests.recycle(post)
            return
        self._succession.replace(post, cause)

    def reload(self) -> None:
        """Replace every worker, one by one, a canary first; the new ones start before."""
        if self.stopping:
            return
        self.rollouts.generation += 1
        self._recruiter.fill_anew()
        self._succession.roll_out("reload")
        for post in self.guests.posts:
            self.guests.recycle(post)

    def reconfigure(self, config: QueueConfig) -> None:
        """
        Take on another configuration.

        Workers are replaced, as `reload` does it, if how they are started has changed;
        posts come and go with `workers`. The old workers serve until the new ones are ready.
        """
        self._take_on(config)
        self._recruiter.fill_anew()
        for post in self.posts:
            if post.number not in self._headcount.wanted:
                self._retire(post)
        self._succession.roll_out("config")
        self.guests.reconfigure(config)

    def stop(self) -> Deferred[None]:
        """
        End all workers; fires when the last is reaped.

        Those that still have a command nobody waits for are not waited for either.
        """
        self._stop_planning()
        for worker in self.workers:
            if not worker.idle:
                worker.stop_by_force(Loss("stopped", "the gate stops"))
        for post in self.places:
            self._retire(post)
        gone: Deferred[None] = Deferred()
        self._all_gone.append(gone)
        self._sweep()
        return gone

    def hurry(self) -> None:
        """End all workers at once."""
        self._stop_planning()
        for worker in self.workers:
            worker.hurry()

    # --- what its Watch tells it

    def scale(self) -> None:
        """See whether the number of workers is right, and go one step if not."""
        if self._headcount.is_fixed:
            return
        step = self._headcount.step(
            self._reactor.seconds(),
            self.posts,
            self._foreman.waits(),
            dying=self._recruiter.dying,
        )
        if step.start:
            self._recruiter.fill_all()
        for post in self.posts:
            if post.number in step.retire:
                self._retire(post)

    def outlived(self, post: Post, cause: str) -> None:
        """The post's worker has served for long enough."""
        self._succession.outlived(post, cause)

    # --- what its workers tell it: the Owner protocol

    def worker_ready(self, worker: Member) -> None:
        """It can take commands: whoever it replaces may go now, or when it has stood its trial."""
        post = self._post_of(worker)
        self._succession.about_to_serve(worker, post)
        self._reactor.callLater(PROBATION, self._passed, worker)
        self._foreman.worker_ready(worker, post.number)
        self._succession.serves(worker, post)
        self._recruiter.first_known()
        self._foreman.pool_changed()
        self._succession.roll()

    def worker_counted(self, worker: WorkerProcess) -> None:
        """It has answered enough to have stood its trial, or to be replaced."""
        self._succession.counted(worker, self._post_of(worker))

    def worker_slow(self, worker: WorkerProcess, slow: Slow) -> None:
        """One of its commands runs longer than `soft_timeout`; it is let run."""
        self._post_of(worker).slow = slow
        self._log.warn(
            "{worker} has run {command} for {ran} s (soft_timeout)",
            worker=worker.name,
            command=slow.command,
            ran=slow.ran,
        )

    def worker_leaving(self, worker: Member) -> None:
        """It takes no more commands; unless that was planned, another starts."""
        post = self._post_of(worker)
        if worker is post.worker:
            post.worker = None
            post.leaving.append(worker)
            if worker.state is not State.DRAINING:
                post.last = worker
                wait = self._recruiter.lost(worker)
                if post.next is not None and post.next.state is State.READY:
                    post.worker, post.next = post.next, None
                self._recruiter.fill(post, wait)
        elif worker is post.next:
            post.next = None
            post.leaving.append(worker)
            if worker.state is not State.DRAINING:
                self._recruiter.lost(worker)
        self._foreman.worker_leaving(worker)
        self._foreman.pool_changed()

    def worker_gone(self, worker: Member, report: Report) -> None:
        """It has been reaped."""
        post = self._post_of(worker)
        if report.cause != RETIRED:
            self._keep_report(post, worker, report)
        if worker is post.worker:
            post.worker, post.last = None, worker
            self._recruiter.fill(post, self._recruiter.lost(worker))
        elif worker is post.next:
            post.next = None
            wait = self._recruiter.lost(worker)
            self._succession.failed(post, report.cause, wait)
            self._recruiter.fill(post, wait)
        else:
            post.leaving.remove(worker)
            post.count(worker)
        if self.rollouts.trial is worker:
            if report.cause == RETIRED:
                self.rollouts.withdrawn()
            else:
                self._succession.failed(post, report.cause, 0.0)
        self._sweep()
        self._succession.roll()

    def group_started(self, pgid: int) -> None:
        """A process group lives."""
        self._groups.group_started(pgid)

    def group_ended(self, pgid: int) -> None:
        """The process group has been killed."""
        self._groups.group_ended(pgid)

    # --- inside: how many

    def _take_on(self, config: QueueConfig) -> None:
        self.rollouts.terms = config.worker()
        self._headcount.take_on(config)
        if config.command and not self.stopping:
            self._watch.follow(config, self._headcount.pace)
        else:
            self._watch.stop()

    def _stop_planning(self) -> None:
        self._headcount.close()
        self._watch.stop()

    def _post_of(self, worker: Member) -> Post:
        return next(post for post in self.posts if worker in post.everyone)

    def _retire(self, post: Post) -> None:
        self._recruiter.give_up(post)
        for worker in post.everyone:
            worker.retire()

    # --- inside: dying

    def _keep_report(self, post: Post, worker: Member, report: Report) -> None:
        post.remember(worker, report, self.places)
        self.last_cause = report.cause
        self._log.warn(
            "{worker} (pid {pid}) has ended: {cause}; it had {running}",
            worker=worker.name,
            pid=report.pid,
            cause=report.cause,
            running=", ".join(report.running) or "nothing in hand",
        )

    def _passed(self, worker: Member) -> None:
        """A second after HELLO and still alive: whatever was wrong is over."""
        if worker.state is not State.READY:
            return
        self._recruiter.lives()
        if self.rollouts.trial is worker:
            if worker.idle and isinstance(worker, WorkerProcess):
                self._succession.stood_trial(worker, self._post_of(worker))
            else:
                # Its first command is not over; that, too, has an end.
                self._reactor.callLater(PROBATION, self._passed, worker)

    def _sweep(self) -> None:
        """Drop posts that are no more; say when nobody is left."""
        self._recruiter.drop_vacant()
        self._foreman.pool_changed()
        if self.stopping and not self.workers:
            waiting, self._all_gone = self._all_gone, []
            for gone in waiting:
                gone.callback(None)
