"""
Replacing all workers of a queue, a canary first.

Pure state: who is to be replaced next, which step it is at and how it ended; the Supervisor
takes the steps. The first new worker, the canary, works beside the one it shall replace. Only
when it has shown that it can serve does the old one go, and the others follow one by one::

    canary --served--> rolling --nobody left--> done

A new worker that fails leads from either of the first two to `stopped`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from jobgate.config import WorkerConfig
    from jobgate.pool.member import Member
    from jobgate.pool.post import Post

__all__ = ["ENOUGH", "Rollout", "Rollouts"]

ENOUGH = 3
"""Answers by which a canary has shown that it can serve; else it has a second to fail in."""


class Rollout:
    """
    One replacement of all workers: where it is, and how it went.

    Attributes:
        cause: What it was begun for: "reload" or "config".
        total: How many workers were to be replaced.
        state: "canary", "rolling", "done" or "stopped".
        why: Why it was stopped, in words.
        trial: The canary while it serves on trial.
    """

    def __init__(self, cause: str, total: int) -> None:
        self.cause = cause
        self.total = total
        self.state = "canary"
        self.why = ""
        self.trial: Member | None = None

    def __repr__(self) -> str:
        return f"<Rollout {self.cause} {self.state} {self.why}>"

    @property
    def over(self) -> bool:
        """Whether nothing more will be done."""
        return self.state in ("done", "stopped")

    @property
    def wants_canary(self) -> bool:
        """Whether the next worker that becomes ready in another's place is on trial."""
        return self.state == "canary" and self.trial is None

    def passed(self) -> None:
        """The canary can serve: the others follow."""
        self.trial = None
        self.state = "rolling"

    def finished(self) -> None:
        """Nobody is left to be replaced."""
        self.trial = None
        self.state = "done"

    def stopped(self, why: str) -> None:
        """A new worker has failed: the old ones stay."""
        self.trial = None
        self.state, self.why = "stopped", why


class Rollouts:
    """
    Who of a queue's workers is to be replaced, and whose turn it is.

    Args:
        terms: How workers are started, spoken to and limited now.

    Attributes:
        terms: Likewise; a worker with others is stale.
        generation: How many reloads there have been; a worker from before the last is stale.
        last: The last replacement of all workers, or the present one.
    """

    def __init__(self, terms: WorkerConfig) -> None:
        self.terms = terms
        self.generation = 0
        self.last: Rollout | None = None

    @property
    def wants_canary(self) -> bool:
        """Whether the next worker that becomes ready in another's place is on trial."""
        return self.last is not None and self.last.wants_canary

    @property
    def cause(self) -> str:
        """What the last one was begun for."""
        return "" if self.last is None else self.last.cause

    @property
    def trial(self) -> Member | None:
        """The canary while it serves on trial."""
        return None if self.last is None else self.last.trial

    def is_stale(self, worker: Member) -> bool:
        """Whether it was started for what is no more: other settings, or before a reload."""
        generation = getattr(worker, "generation", 0)
        return worker.config != self.terms or generation < self.generation

    def begin(self, cause: str, posts: Iterable[Post], wanted: Container[int]) -> bool:
        """Begin another rollout for whoever is stale; False if nobody is."""
        stale = self._stale(posts, wanted)
        if not stale:
            return False
        trial = self.trial
        self.last = Rollout(cause, len(stale))
        if trial is not None and not self.is_stale(trial):
            # What it was started for holds: it is the canary of this rollout as well.
            self.last.trial = trial
        return True

    def turn(self, posts: Iterable[Post], wanted: Container[int]) -> Post | None:
        """
        Whose turn it is to be replaced.

        Args:
            posts: All of the queue's own.
            wanted: The numbers of those that are to be filled.

        Returns:
            None if nothing is to be done, or not before something else has happened.
        """
        rollout = self.last
        if rollout is None or rollout.over or rollout.trial is not None:
            return None
        if any(post.next is not None and not self.is_stale(post.next) for post in posts):
            return None
        stale = self._stale(posts, wanted)
        if not stale:
            rollout.finished()
            return None
        return stale[0]

    def put_on_trial(self, worker: Member) -> None:
        """The canary is ready: it works beside the one it shall replace."""
        assert self.last is not None, "it wants a canary"
        self.last.trial = worker

    def passed(self) -> None:
        """The canary can serve: the others follow."""
        assert self.last is not None, "it is on trial"
        self.last.passed()

    def withdrawn(self) -> None:
        """The canary has gone by plan: another one may follow."""
        assert self.last is not None, "it is on trial"
        self.last.trial = None

    def failed(self, why: str) -> None:
        """A new worker has failed: whoever has not been replaced yet stays."""
        if self.last is not None and not self.last.over:
            self.last.stopped(why)

    def _stale(self, posts: Iterable[Post], wanted: Container[int]) -> list[Post]:
        return [
            post
            for post in posts
            if post.number in wanted and post.worker is not None and self.is_stale(post.worker)
        ]
