"""
Starts workers: one at every post that is to be filled, and others beside those who are to go.

Who dies is replaced at once; in a crash loop one worker is tried at a time, later and later. Must
not know why a post is empty or who is to go: that is the Supervisor's.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from jobgate.pool.backoff import Backoff
from jobgate.pool.post import Post
from jobgate.pool.process import WorkerProcess

if TYPE_CHECKING:
    from jobgate.pool.headcount import Headcount
    from jobgate.pool.member import Member
    from jobgate.pool.roles import Foreman, GroupOwner
    from jobgate.pool.rollout import Rollouts

__all__ = ["PROBATION", "Recruiter"]

PROBATION = 1.0
"""Seconds within which a death with nothing in hand counts towards a crash loop."""


class Recruiter:
    """
    Fills the posts of one queue.

    Args:
        queue: Its name.
        reactor: Time, timers and processes.
        foreman: Told when a crash loop may have begun.
        headcount: Which posts are to be filled.
        rollouts: How workers are started now.
        owner: Told what becomes of them.

    Attributes:
        posts: All that are to be filled, and those whose workers have not all gone yet.
        causes: How many workers were started in place of another, by why.
        last_cause: Why the last worker that did not go by plan ended.
    """

    _log = Logger()

    def __init__(
        self,
        queue: str,
        reactor: Any,  # noqa: ANN401 (IReactorTime and IReactorProcess: no type can say both)
        foreman: Foreman,
        headcount: Headcount,
        rollouts: Rollouts,
        owner: GroupOwner,
    ) -> None:
        self._queue = queue
        self._reactor = reactor
        self._foreman = foreman
        self._headcount = headcount
        self._rollouts = rollouts
        self._owner = owner
        self._backoff = Backoff()
        self._first_outcome: list[Deferred[None]] = []
        self.posts: list[Post] = []
        self.causes: Counter[str] = Counter()
        self.last_cause = ""

    @property
    def dying(self) -> bool:
        """Whether the last worker that was started has died."""
        return self._backoff.deaths > 0

    @property
    def looping(self) -> bool:
        """Whether they keep dying."""
        return self._backoff.looping

    @property
    def backing_off(self) -> list[Post]:
        """The posts that stand empty because workers keep dying, until it is time to try again."""
        if not self._backoff.looping:
            return []
        return [post for post in self.posts if self._is_wanted(post) and not post.everyone]

    @property
    def retry_in(self) -> float:
        """Seconds until the next start."""
        now = self._reactor.seconds()
        waits = [post.restart.getTime() - now for post in self.posts if post.restart is not None]
        return max(0.0, min(waits, default=1.0))

    # --- posts

    def start(self) -> Deferred[None]:
        """Fill all posts; fires when the first worker is ready or has failed to be."""
        started: Deferred[None] = Deferred()
        self._first_outcome.append(started)
        if not self._headcount.wanted:
            self.first_known()
        self.fill_all()
        return started

    def fill_all(self) -> None:
        """Start a worker at every empty post."""
        for number in self._headcount.wanted - {post.number for post in self.posts}:
            self.posts.append(Post(number, f"{self._queue}-{number + 1}"))
        self.posts.sort(key=lambda post: post.number)
        for post in self.posts:
            self.fill(post, 0.0)

    def fill(self, post: Post, wait: float) -> None:
        """Start a worker at an empty post; in the next turn at the earliest, never nested."""
        if self._backoff.looping and any(other.trying for other in self.posts):
            # In a crash loop one worker is tried at a time; the others follow if it lives.
            return
        if post.worker is None and post.restart is None and self._is_wanted(post):
            post.restart = self._reactor.callLater(wait, self._start, post)

    def fill_anew(self) -> None:
        """Whatever kept workers from living may be mended: try all places at once."""
        self._backoff.lived()
        for post in self.posts:
            self.give_up(post)
            post.not_before = 0.0
        self.fill_all()

    def give_up(self, post: Post) -> None:
        """Start nobody there."""
        if post.restart is not None:
            post.restart.cancel()
            post.restart = None

    def succeed(self, post: Post, cause: str) -> bool:
        """Start somebody who is to take over from a post's worker; whether that could be done."""
        post.next = worker = self._new(post, cause)
        if not self._spawned(worker):
            post.next = None
            return False
        return True

    def drop_vacant(self) -> None:
        """Drop posts that are no more."""
        self.posts = [post for post in self.posts if self._is_wanted(post) or post.everyone]

    # --- who lives, and who does not

    def lives(self) -> None:
        """Workers can live: a crash loop is over, and every place is to be filled."""
        was_looping = self._backoff.looping
        self._backoff.lived()
        if was_looping:
            self.fill_all()

    def lost(self, worker: Member) -> float:
        """A worker is lost; returns the seconds to wait before the next start."""
        if self._headcount.closed:
            return 0.0
        if worker.ready_at is None or (
            worker.idle and self._reactor.seconds() - worker.ready_at < PROBATION
        ):
            return self._died()
        self.lives()
        return 0.0

    def first_known(self) -> None:
        """The first worker is ready, or has failed to be."""
        waiting, self._first_outcome = self._first_outcome, []
        for started in waiting:
            started.callback(None)

    # --- inside

    def _is_wanted(self, post: Post) -> bool:
        return post.number in self._headcount.wanted

    def _start(self, post: Post) -> None:
        post.restart = None
        if post.worker is None and self._is_wanted(post):
            # It must hold the post before it starts: it may be dead before that returns.
            last, post.last = post.last, None
            post.worker = worker = self._new(post, "" if last is None else last.lost_by)
            if not self._spawned(worker):
                post.worker = None
                self.fill(post, self._died())

    def _new(self, post: Post, cause: str) -> WorkerProcess:
        if cause:
            post.causes[cause] += 1
            self.causes[cause] += 1
        terms = self._rollouts.terms
        worker = WorkerProcess(post.name, self._queue, terms, self._reactor, self._owner)
        worker.generation = self._rollouts.generation
        return worker

    def _spawned(self, worker: WorkerProcess) -> bool:
        try:
            worker.start()
        except OSError as error:
            self.last_cause = f"cannot start a process: {error.strerror}"
            self._log.error("{worker}: {cause}", worker=worker.name, cause=self.last_cause)
            return False
        return True

    def _died(self) -> float:
        wait = self._backoff.died()
        if self._backoff.looping:
            self._log.error(
                "workers of {queue} keep dying ({cause}); next try in {wait:.1f} s",
                queue=self._queue,
                cause=self.last_cause or "see the log above",
                wait=wait,
            )
        self.first_known()
        self._foreman.pool_changed()
        return wait
