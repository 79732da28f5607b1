"""
Who takes over from whom: a new worker is started beside the old one, which goes when it can.

Because a worker has served for long enough, or because all are to be replaced: whose turn it is
then, `rollout` says. Must not know what happens to workers that die, nor who runs commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.logger import Logger

from jobgate.pool.process import WorkerProcess
from jobgate.pool.rollout import ENOUGH

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from jobgate.pool.headcount import Headcount
    from jobgate.pool.member import Member
    from jobgate.pool.post import Post
    from jobgate.pool.recruiter import Recruiter
    from jobgate.pool.rollout import Rollouts

__all__ = ["Succession"]

_AGAIN = 1.0
"""Seconds at least between two attempts to replace a worker that has served long enough."""


class Succession:
    """
    Replaces the workers of one queue that live.

    Args:
        clock: Seconds and timers.
        headcount: Which posts are to be filled.
        rollouts: Who is to be replaced by a newer one.
        recruiter: Starts workers.
    """

    _log = Logger()

    def __init__(
        self, clock: IReactorTime, headcount: Headcount, rollouts: Rollouts, recruiter: Recruiter
    ) -> None:
        self._clock = clock
        self._headcount = headcount
        self._rollouts = rollouts
        self._recruiter = recruiter

    # --- what is to be done

    def replace(self, post: Post, cause: str) -> None:
        """Start somebody who is to take over from a post's worker, unless that is under way."""
        if post.number not in self._headcount.wanted:
            return
        if post.next is not None:
            if not self._rollouts.is_stale(post.next):
                return
            late, post.next = post.next, None
            post.leaving.append(late)
            late.retire()
        if post.worker is None:
            self._recruiter.fill(post, 0.0)
        elif not self._recruiter.succeed(post, cause):
            self.failed(post, self._recruiter.last_cause, 0.0)

    def outlived(self, post: Post, cause: str) -> None:
        """The post's worker has served for long enough."""
        if post.next is None and self._clock.seconds() >= post.not_before:
            self.replace(post, cause)

    def roll_out(self, cause: str) -> None:
        """Replace everybody who was started for what is no more."""
        if self._rollouts.begin(cause, self._recruiter.posts, self._headcount.wanted):
            self.roll()

    def roll(self) -> None:
        """Go on with the rollout, if there is one and nothing is under way."""
        if self._headcount.closed:
            return
        post = self._rollouts.turn(self._recruiter.posts, self._headcount.wanted)
        if post is not None:
            self.replace(post, self._rollouts.cause)

    # --- what has happened

    def about_to_serve(self, worker: Member, post: Post) -> None:
        """It is ready, and has been given nothing yet."""
        if isinstance(worker, WorkerProcess):
            on_trial = self._is_candidate(worker, post)
            worker.call_at = ENOUGH if on_trial else worker.lifespan.commands

    def serves(self, worker: Member, post: Post) -> None:
        """It can take commands: whoever it replaces may go now, or when it has stood its trial."""
        if self._is_candidate(worker, post):
            self._rollouts.put_on_trial(worker)
        elif worker is post.next:
            self._take_over(post)

    def counted(self, worker: WorkerProcess, post: Post) -> None:
        """It has answered enough to have stood its trial, or to be replaced."""
        if self._rollouts.trial is worker:
            self.stood_trial(worker, post)
        cause = worker.lifespan.over(worker.conversation.done, 0.0, 0)
        if cause and worker is post.worker:
            self.outlived(post, cause)

    def stood_trial(self, worker: WorkerProcess, post: Post) -> None:
        """The canary can serve: its old one goes, and the others follow."""
        self._rollouts.passed()
        worker.call_at = worker.lifespan.commands
        if worker is post.next:
            self._take_over(post)
        self.roll()

    def failed(self, post: Post, cause: str, wait: float) -> None:
        """A new worker has failed."""
        self._log.error(
            "{post}: the new worker failed ({cause}); the old one stays",
            post=post.name,
            cause=cause,
        )
        post.not_before = self._clock.seconds() + max(_AGAIN, wait)
        self._rollouts.failed(f"{post.name}: {cause}")

    # --- inside

    def _is_candidate(self, worker: Member, post: Post) -> bool:
        """Whether it is to show that it can serve before anybody goes."""
        return worker is post.next and self._rollouts.wants_canary

    def _take_over(self, post: Post) -> None:
        """The new one takes the old one's place."""
        old, post.worker, post.next = post.worker, post.next, None
        if old is not None:
            post.leaving.append(old)
            old.retire()
