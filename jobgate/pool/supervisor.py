"""
Keeps the workers of one queue alive, as many as are needed.

One place for a worker, a Post, outlives the workers that hold it: its name, its count of
restarts and its last crash report stay. How many posts there are, `scaling` decides; when
a worker has served for long enough, its `lifespan` says. Must not know commands or queues;
it says who can work (`Foreman`) and the gate does the rest.

Workers that come by themselves are `Guests`: it counts them in, and starts none in their place.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from jobgate.pool.backoff import Backoff
from jobgate.pool.guests import Guests
from jobgate.pool.lifecycle import State
from jobgate.pool.machine import Appetite, Machine
from jobgate.pool.member import RETIRED, Member
from jobgate.pool.post import Post
from jobgate.pool.process import WorkerProcess
from jobgate.pool.roles import Loss
from jobgate.pool.rollout import ENOUGH, Rollout
from jobgate.pool.scaling import Place, Scaler
from jobgate.pool.watch import Watch

if TYPE_CHECKING:
    from jobgate.config import QueueConfig
    from jobgate.pool.report import Report, Slow
    from jobgate.pool.roles import Foreman

__all__ = ["Groups", "Supervisor"]

_PROBATION = 1.0
"""Seconds within which a death with nothing in hand counts towards a crash loop."""
_AGAIN = 1.0
"""Seconds at least between two attempts to replace a worker that has served long enough."""


class Groups(Protocol):
    """Who must know which process groups live, in case the gate is killed."""

    def group_started(self, pgid: int) -> None:
        """A process group lives."""

    def group_ended(self, pgid: int) -> None:
        """The process group has been killed."""


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
        last_cause: Why the last worker that did not go by plan ended.
        posts: The posts of its children.
        guests: The workers that came by themselves.
        causes: How many workers were started in place of another, by why.
        rollout: The last replacement of all workers, or the present one.
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
        self._machine = machine or Machine()
        self._appetite = Appetite()
        self._backoff = Backoff()
        self._watch = Watch(self, reactor)
        self._stopping = False
        self._generation = 0
        self._wanted: set[int] = set()
        self._all_gone: list[Deferred[None]] = []
        self._first_outcome: list[Deferred[None]] = []
        self.last_cause = ""
        self.posts: list[Post] = []
        self.causes: Counter[str] = Counter()
        self.rollout: Rollout | None = None
        self.guests = Guests(config, reactor, foreman, self._sweep)
        self._take_on(config)

    # --- what others ask

    @property
    def stopping(self) -> bool:
        """Whether it takes nobody on any more."""
        return self._stopping

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
        return len(self._wanted)

    @property
    def crash_loop(self) -> bool:
        """Whether no worker lives because they keep dying."""
        return self._backoff.looping and not self.alive

    @property
    def retry_in(self) -> float:
        """Seconds until the next start."""
        now = self._reactor.seconds()
        waits = [post.restart.getTime() - now for post in self.posts if post.restart is not None]
        return max(0.0, min(waits, default=1.0))

    def post(self, name: str) -> Post | None:
        """The post of that name."""
        return next((post for post in self.places if post.name == name), None)

    # --- what others tell it

    def start(self) -> Deferred[None]:
        """Start the workers; fires when the first is ready or has failed to be."""
        started: Deferred[None] = Deferred()
        self._first_outcome.append(started)
        if not self._wanted:
            self._first_known()
        self._fill_all()
        return started

    def needed(self) -> None:
        """A command waits, and there may be nobody to run it."""
        if not self._wanted:
            self.scale()

    def recycle(self, post: Post, cause: str = "recycle") -> None:
        """Replace a post's worker: the new one starts before the old one goes."""
        if self._stopping:
            return
        if post in self.guests.posts:
            self.guests.recycle(post)
            return
        if post.number not in self._wanted:
            return
        if post.next is not None:
            if not self._is_stale(post.next):
                return
            late, post.next = post.next, None
            post.leaving.append(late)
            late.retire()
        if post.worker is None:
            self._fill(post, 0.0)
        else:
            post.next = worker = self._new(post, cause)
            if not self._spawned(worker):
                post.next = None
                self._not_replaced(post, self.last_cause, 0.0)

    def reload(self) -> None:
        """Replace every worker, one by one, a canary first; the new ones start before."""
        if self._stopping:
            return
        self._generation += 1
        self._mended()
        self._roll_out("reload")
        for post in self.guests.posts:
            self.guests.recycle(post)

    def reconfigure(self, config: QueueConfig) -> None:
        """
        Take on another configuration.

        Workers are replaced, as `reload` does it, if how they are started has changed;
        posts come and go with `workers`. The old workers serve until the new ones are ready.
        """
        self._take_on(config)
        self._mended()
        for post in self.posts:
            if post.number not in self._wanted:
                self._retire(post)
        self._roll_out("config")
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
        if self._stopping or self._scaler.is_fixed or not self._config.command:
            return
        now = self._reactor.seconds()
        # Workers that only wait need no CPU; and where they die, more of them are no help.
        cpu = self._appetite.is_small(self.alive) or self._machine.spare()
        spare = cpu and not self._backoff.deaths
        places = [self._place(post, now) for post in self.posts if post.number in self._wanted]
        step = self._scaler.decide(now, places, self._foreman.waits(), spare=spare)
        if step.start:
            self._wanted.update(step.start)
            self._fill_all()
        for post in self.posts:
            if post.number in step.retire:
                self._wanted.discard(post.number)
                self._retire(post)

    def outlived(self, post: Post, cause: str) -> None:
        """The post's worker has served for long enough."""
        if post.next is None and self._reactor.seconds() >= post.not_before:
            self.recycle(post, cause)

    # --- what its workers tell it: the Owner protocol

    def worker_ready(self, worker: Member) -> None:
        """It can take commands: whoever it replaces may go now, or when it has stood its trial."""
        post = self._post_of(worker)
        rollout = self.rollout
        on_trial = worker is post.next and rollout is not None and rollout.wants_canary
        if isinstance(worker, WorkerProcess):
            worker.call_at = ENOUGH if on_trial else worker.lifespan.commands
        self._reactor.callLater(_PROBATION, self._passed, worker)
        self._foreman.worker_ready(worker, post.number)
        if on_trial:
            assert rollout is not None, "asked above"
            rollout.trial = worker
        elif worker is post.next:
            self._promote(post)
        self._first_known()
        self._foreman.pool_changed()
        self._roll()

    def worker_counted(self, worker: WorkerProcess) -> None:
        """It has answered enough to have stood its trial, or to be replaced."""
        if self.rollout is not None and self.rollout.trial is worker:
            self._stood_trial(worker)
        cause = worker.lifespan.over(worker.conversation.done, 0.0, 0)
        post = self._post_of(worker)
        if cause and worker is post.worker:
            self.outlived(post, cause)

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
                wait = self._judge(worker)
                if post.next is not None and post.next.state is State.READY:
                    post.worker, post.next = post.next, None
                self._fill(post, wait)
        elif worker is post.next:
            post.next = None
            post.leaving.append(worker)
            if worker.state is not State.DRAINING:
                self._judge(worker)
        self._foreman.worker_leaving(worker)
        self._foreman.pool_changed()

    def worker_gone(self, worker: Member, report: Report) -> None:
        """It has been reaped."""
        post = self._post_of(worker)
        if report.cause != RETIRED:
            self._keep_report(post, worker, report)
        if worker is post.worker:
            post.worker, post.last = None, worker
            self._fill(post, self._judge(worker))
        elif worker is post.next:
            post.next = None
            wait = self._judge(worker)
            self._not_replaced(post, report.cause, wait)
            self._fill(post, wait)
        else:
            post.leaving.remove(worker)
            post.count(worker)
        if self.rollout is not None and self.rollout.trial is worker:
            if report.cause == RETIRED:
                self.rollout.trial = None
            else:
                self._not_replaced(post, report.cause, 0.0)
        self._sweep()
        self._roll()

    def group_started(self, pgid: int) -> None:
        """A process group lives."""
        self._groups.group_started(pgid)

    def group_ended(self, pgid: int) -> None:
        """The process group has been killed."""
        self._groups.group_ended(pgid)

    # --- inside: how many

    def _take_on(self, config: QueueConfig) -> None:
        self._config = config
        self._terms = config.worker()
        self._scaler = Scaler(config.scale, config.shards, config.idle_shutdown)
        plans = bool(config.command) and not self._stopping
        self._wanted = set(self._scaler.must(sorted(self._wanted))) if plans else set()
        if plans:
            scales = not self._scaler.is_fixed
            self._watch.follow(config, self._scaler.pace if scales else float("inf"))
        else:
            self._watch.stop()

    def _stop_planning(self) -> None:
        self._stopping = True
        self._wanted.clear()
        self._watch.stop()

    def _place(self, post: Post, now: float) -> Place:
        worker = post.worker
        rests = worker is not None and worker.state is State.READY and worker.idle
        if worker is None or not rests or post.next is not None:
            return Place(post.number, None, post.trying)
        return Place(post.number, now - worker.idle_since)

    def _post_of(self, worker: Member) -> Post:
        return next(post for post in self.posts if worker in post.everyone)

    def _fill_all(self) -> None:
        for number in self._wanted - {post.number for post in self.posts}:
            self.posts.append(Post(number, f"{self._config.name}-{number + 1}"))
        self.posts.sort(key=lambda post: post.number)
        for post in self.posts:
            self._fill(post, 0.0)

    def _fill(self, post: Post, wait: float) -> None:
        """Start a worker at an empty post; in the next turn at the earliest, never nested."""
        if self._backoff.looping and any(other.trying for other in self.posts):
            # In a crash loop one worker is tried at a time; the others follow if it lives.
            return
        if post.worker is None and post.restart is None and post.number in self._wanted:
            post.restart = self._reactor.callLater(wait, self._start, post)

    def _start(self, post: Post) -> None:
        post.restart = None
        if post.worker is None and post.number in self._wanted:
            # It must hold the post before it starts: it may be dead before that returns.
            last, post.last = post.last, None
            post.worker = worker = self._new(post, "" if last is None else last.lost_by)
            if not self._spawned(worker):
                post.worker = None
                self._fill(post, self._died())

    def _new(self, post: Post, cause: str) -> WorkerProcess:
        if cause:
            post.causes[cause] += 1
            self.causes[cause] += 1
        worker = WorkerProcess(post.name, self._config.name, self._terms, self._reactor, self)
        worker.generation = self._generation
        return worker

    def _spawned(self, worker: WorkerProcess) -> bool:
        try:
            worker.start()
        except OSError as error:
            self.last_cause = f"cannot start a process: {error.strerror}"
            self._log.error("{worker}: {cause}", worker=worker.name, cause=self.last_cause)
            return False
        return True

    def _retire(self, post: Post) -> None:
        self._cancel_restart(post)
        for worker in post.everyone:
            worker.retire()

    @staticmethod
    def _cancel_restart(post: Post) -> None:
        if post.restart is not None:
            post.restart.cancel()
            post.restart = None

    # --- inside: replacing

    def _is_stale(self, worker: Member) -> bool:
        """Whether it was started for what is no more: other settings, or before a reload."""
        generation = getattr(worker, "generation", 0)
        return worker.config != self._terms or generation < self._generation

    def _stale(self) -> list[Post]:
        return [
            post
            for post in self.posts
            if post.number in self._wanted
            and post.worker is not None
            and self._is_stale(post.worker)
        ]

    def _mended(self) -> None:
        """Whatever kept workers from living may be mended: try all places at once."""
        self._backoff.lived()
        for post in self.posts:
            self._cancel_restart(post)
            post.not_before = 0.0
        self._fill_all()

    def _roll_out(self, cause: str) -> None:
        stale = self._stale()
        if not stale:
            return
        trial = self.rollout.trial if self.rollout is not None else None
        self.rollout = Rollout(cause, len(stale))
        if trial is not None and not self._is_stale(trial):
            # What it was started for holds: it is the canary of this rollout as well.
            self.rollout.trial = trial
        self._roll()

    def _roll(self) -> None:
        """Go on with the rollout, if there is one and nothing is under way."""
        rollout = self.rollout
        if rollout is None or rollout.over or rollout.trial is not None or self._stopping:
            return
        if any(post.next is not None and not self._is_stale(post.next) for post in self.posts):
            return
        stale = self._stale()
        if stale:
            self.recycle(stale[0], rollout.cause)
        else:
            rollout.finished()

    def _promote(self, post: Post) -> None:
        """The new one takes the old one's place."""
        old, post.worker, post.next = post.worker, post.next, None
        if old is not None:
            post.leaving.append(old)
            old.retire()

    def _stood_trial(self, worker: WorkerProcess) -> None:
        """The canary can serve: its old one goes, and the others follow."""
        assert self.rollout is not None, "it is on trial"
        self.rollout.passed()
        worker.call_at = worker.lifespan.commands
        post = self._post_of(worker)
        if worker is post.next:
            self._promote(post)
        self._roll()

    def _not_replaced(self, post: Post, cause: str, wait: float) -> None:
        """A new worker has failed."""
        self._log.error(
            "{post}: the new worker failed ({cause}); the old one stays",
            post=post.name,
            cause=cause,
        )
        post.not_before = self._reactor.seconds() + max(_AGAIN, wait)
        if self.rollout is not None and not self.rollout.over:
            self.rollout.stopped(f"{post.name}: {cause}")

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

    def _judge(self, worker: Member) -> float:
        """How long to wait before the next start, now that this worker is lost."""
        if self._stopping:
            return 0.0
        if worker.ready_at is None or (
            worker.idle and self._reactor.seconds() - worker.ready_at < _PROBATION
        ):
            return self._died()
        self._well()
        return 0.0

    def _well(self) -> None:
        """Workers can live: a crash loop is over, and every place is to be filled."""
        was_looping = self._backoff.looping
        self._backoff.lived()
        if was_looping:
            self._fill_all()

    def _died(self) -> float:
        wait = self._backoff.died()
        if self._backoff.looping:
            self._log.error(
                "workers of {queue} keep dying ({cause}); next try in {wait:.1f} s",
                queue=self._config.name,
                cause=self.last_cause or "see the log above",
                wait=wait,
            )
        self._first_known()
        self._foreman.pool_changed()
        return wait

    def _passed(self, worker: Member) -> None:
        """A second after HELLO and still alive: whatever was wrong is over."""
        if worker.state is not State.READY:
            return
        self._well()
        if self.rollout is not None and self.rollout.trial is worker:
            if worker.idle and isinstance(worker, WorkerProcess):
                self._stood_trial(worker)
            else:
                # Its first command is not over; that, too, has an end.
                self._reactor.callLater(_PROBATION, self._passed, worker)

    def _first_known(self) -> None:
        """The first worker is ready, or has failed to be."""
        waiting, self._first_outcome = self._first_outcome, []
        for started in waiting:
            started.callback(None)

    def _sweep(self) -> None:
        """Drop posts that are no more; say when nobody is left."""
        self.posts = [post for post in self.posts if post.number in self._wanted or post.everyone]
        self._foreman.pool_changed()
        if self._stopping and not self.workers:
            waiting, self._all_gone = self._all_gone, []
            for gone in waiting:
                gone.callback(None)
