"""
Keeps the workers of one queue alive.

One place for a worker, a Post, outlives the workers that hold it: its name, its count of
restarts and its last crash report stay. Must not know commands or queues; it says who
can work (`Foreman`) and the gate does the rest.

Workers that come by themselves are `Guests`: it counts them in, and starts none in their place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from jobgate.pool.backoff import Backoff
from jobgate.pool.guests import Guests
from jobgate.pool.lifecycle import State
from jobgate.pool.member import RETIRED, Member
from jobgate.pool.post import Post
from jobgate.pool.process import WorkerProcess
from jobgate.pool.roles import Loss

if TYPE_CHECKING:
    from jobgate.config import QueueConfig
    from jobgate.pool.report import Report
    from jobgate.pool.roles import Foreman

__all__ = ["Groups", "Supervisor"]

_PROBATION = 1.0
"""Seconds within which a death with nothing in hand counts towards a crash loop."""


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

    Attributes:
        posts: The posts of its children.
        guests: The workers that came by themselves.
        last_cause: Why the last worker died.
    """

    _log = Logger()

    def __init__(self, config: QueueConfig, reactor: Any, foreman: Foreman, groups: Groups) -> None:  # noqa: ANN401 (IReactorTime and IReactorProcess: no type can say both)
        self._config = config
        self._reactor = reactor
        self._foreman = foreman
        self._groups = groups
        self._backoff = Backoff()
        self._stopping = False
        self._all_gone: list[Deferred[None]] = []
        self._first_outcome: list[Deferred[None]] = []
        self.last_cause = ""
        self.posts: list[Post] = []
        self.guests = Guests(config, reactor, foreman, self._sweep)

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
        if not self._config.command:
            self._first_known()
        self._fill_all()
        return started

    def recycle(self, post: Post) -> None:
        """Replace a post's worker: the new one starts before the old one goes."""
        if self._stopping:
            return
        if post in self.guests.posts:
            self.guests.recycle(post)
            return
        if post.next is not None:
            if post.next.config == self._config.worker():
                return
            late, post.next = post.next, None
            post.leaving.append(late)
            late.retire()
        if post.worker is None:
            self._fill(post, 0.0)
        else:
            post.next = worker = self._new(post)
            if not self._spawned(worker):
                post.next = None

    def recycle_all(self) -> None:
        """Replace every worker."""
        for post in self.posts:
            if post.number < self._size:
                self.recycle(post)
        for post in self.guests.posts:
            self.guests.recycle(post)

    def reconfigure(self, config: QueueConfig) -> None:
        """
        Take on another configuration.

        Workers are replaced if how they are started has changed; posts come and go
        with `workers`. The old workers serve until the new ones are ready.
        """
        self._config = config
        self._backoff.lived()
        for post in self.posts:
            self._cancel_restart(post)
        for post in self.posts:
            if post.worker is not None and post.worker.config != config.worker():
                self.recycle(post)
        self._fill_all()
        for post in self.posts:
            if post.number >= self._size:
                self._retire(post)
        self.guests.reconfigure(config)

    def stop(self) -> Deferred[None]:
        """
        End all workers; fires when the last is reaped.

        Those that still have a command nobody waits for are not waited for either.
        """
        self._stopping = True
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
        self._stopping = True
        for worker in self.workers:
            worker.hurry()

    # --- what its workers tell it: the Owner protocol

    def worker_ready(self, worker: Member) -> None:
        """It can take commands: whoever it replaces may go now."""
        post = self._post_of(worker)
        old = None
        if worker is post.next:
            old, post.worker, post.next = post.worker, worker, None
        self._reactor.callLater(_PROBATION, self._passed, worker)
        self._foreman.worker_ready(worker, post.number)
        if old is not None:
            post.leaving.append(old)
            old.retire()
        self._first_known()
        self._foreman.pool_changed()

    def worker_leaving(self, worker: Member) -> None:
        """It takes no more commands; unless that was planned, another starts."""
        post = self._post_of(worker)
        if worker is post.worker:
            post.worker = None
            post.leaving.append(worker)
            if worker.state is not State.DRAINING:
                self._fill(post, self._judge(worker))
        self._foreman.worker_leaving(worker)
        self._foreman.pool_changed()

    def worker_gone(self, worker: Member, report: Report) -> None:
        """It has been reaped."""
        post = self._post_of(worker)
        if report.cause != RETIRED:
            post.report = report
            self.last_cause = report.cause
            self._log.warn(
                "{worker} (pid {pid}) has ended: {cause}; it had {running}",
                worker=worker.name,
                pid=report.pid,
                cause=report.cause,
                running=", ".join(report.running) or "nothing in hand",
            )
        if worker is post.worker:
            post.worker = None
            self._fill(post, self._judge(worker))
        elif worker is post.next:
            post.next = None
            self._log.error(
                "{post}: the new worker failed ({cause}); the old one stays",
                post=post.name,
                cause=report.cause,
            )
            self._fill(post, self._judge(worker))
        else:
            post.leaving.remove(worker)
        self._sweep()

    def group_started(self, pgid: int) -> None:
        """A process group lives."""
        self._groups.group_started(pgid)

    def group_ended(self, pgid: int) -> None:
        """The process group has been killed."""
        self._groups.group_ended(pgid)

    # --- inside

    @property
    def _size(self) -> int:
        return self._config.workers if self._config.command and not self._stopping else 0

    def _post_of(self, worker: Member) -> Post:
        return next(post for post in self.posts if worker in post.everyone)

    def _fill_all(self) -> None:
        numbers = {post.number for post in self.posts}
        for number in range(self._size):
            if number not in numbers:
                self.posts.append(Post(number, f"{self._config.name}-{number + 1}"))
        self.posts.sort(key=lambda post: post.number)
        for post in self.posts:
            self._fill(post, 0.0)

    def _fill(self, post: Post, wait: float) -> None:
        """Start a worker at an empty post; in the next turn at the earliest, never nested."""
        if self._backoff.looping and any(other.trying for other in self.posts):
            # In a crash loop one worker is tried at a time; the others follow if it lives.
            return
        if post.worker is None and post.restart is None and post.number < self._size:
            post.restart = self._reactor.callLater(wait, self._start, post)

    def _start(self, post: Post) -> None:
        post.restart = None
        if post.worker is None and post.number < self._size:
            # It must hold the post before it starts: it may be dead before that returns.
            post.worker = worker = self._new(post)
            if not self._spawned(worker):
                post.worker = None
                self._fill(post, self._died())

    def _new(self, post: Post) -> WorkerProcess:
        post.restarts += 1
        return WorkerProcess(
            post.name, self._config.name, self._config.worker(), self._reactor, self
        )

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
        if worker.state is State.READY:
            self._well()

    def _first_known(self) -> None:
        """The first worker is ready, or has failed to be."""
        waiting, self._first_outcome = self._first_outcome, []
        for started in waiting:
            started.callback(None)

    def _sweep(self) -> None:
        """Drop posts that are no more; say when nobody is left."""
        self.posts = [post for post in self.posts if post.number < self._size or post.everyone]
        self._foreman.pool_changed()
        if self._stopping and not self.workers:
            waiting, self._all_gone = self._all_gone, []
            for gone in waiting:
                gone.callback(None)
