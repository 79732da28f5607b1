"""
Looks at the workers of a queue now and then.

For whatever no event tells of: memory, age, commands that run for long, commands that
wait for long. Without such bounds in the configuration nothing is looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from jobgate.pool.lifecycle import State
from jobgate.pool.machine import rss
from jobgate.pool.process import WorkerProcess

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure

    from jobgate.config import WorkerConfig
    from jobgate.pool.post import Post

__all__ = ["Watch", "Watched"]

_SHORTEST, _LONGEST = 0.05, 0.5
"""Seconds between two looks, at least and at most."""


class Watched(Protocol):
    """Whose workers are looked at: the Supervisor."""

    @property
    def posts(self) -> list[Post]:
        """The posts of its children."""

    def outlived(self, post: Post, cause: str) -> None:
        """The post's worker has served for long enough."""

    def scale(self) -> None:
        """It is time to see whether the number of workers is right."""


class Watch:
    """
    Looks at one Supervisor's workers.

    Args:
        watched: The Supervisor.
        clock: Time and timers.
    """

    _log = Logger()

    def __init__(self, watched: Watched, clock: IReactorTime) -> None:
        self._watched = watched
        self._seconds = clock.seconds
        self._loop = LoopingCall(self._look)
        self._loop.clock = clock

    def follow(self, config: WorkerConfig, pace: float) -> None:
        """
        Look as often as a configuration asks for.

        Args:
            config: The bounds of each worker.
            pace: Seconds: the shortest delay in scaling; infinite without any.
        """
        self.stop()
        delays = [pace, config.max_age, config.soft_timeout, _LONGEST * bool(config.max_memory)]
        soonest = min((delay for delay in delays if delay), default=pace)
        if soonest < float("inf"):
            every = min(_LONGEST, max(_SHORTEST, soonest / 4))
            self._loop.start(every, now=False).addErrback(self._bug)

    def stop(self) -> None:
        """Look no more."""
        if self._loop.running:
            self._loop.stop()

    def _look(self) -> None:
        now = self._seconds()
        for post in list(self._watched.posts):
            for worker in post.everyone:
                if isinstance(worker, WorkerProcess) and worker.state is not State.GONE:
                    self._look_at(post, worker, now)
        self._watched.scale()

    def _look_at(self, post: Post, worker: WorkerProcess, now: float) -> None:
        held = (rss(worker.pid) or 0) if worker.config.max_memory else 0
        if held > worker.lifespan.fatal:
            worker.burst(held)
            return
        if worker.config.soft_timeout:
            worker.look_for_slow(now)
        if worker is post.worker and worker.state is State.READY:
            why = worker.lifespan.over(worker.conversation.done, worker.age, held)
            if why:
                self._watched.outlived(post, why)

    def _bug(self, failure: Failure) -> None:
        self._log.failure("looking at the workers failed", failure=failure)
