"""
The workers of one queue that came by themselves.

Each has a Post like those that the Supervisor starts; who comes again by the same name takes
up the one he left, with its count of restarts and its last report. Must not know who may come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from jobgate.pool.member import RETIRED, Member
from jobgate.pool.post import Post
from jobgate.pool.remote import RemoteWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from jobgate.config import QueueConfig
    from jobgate.pool.report import Report
    from jobgate.pool.roles import Foreman

__all__ = ["Guests"]

_VACANT = 100
"""Posts that are kept for workers that have gone, for the sake of their reports."""


class Guests:
    """
    Keeps the posts of workers that came by themselves.

    Args:
        config: The queue's configuration; `reconfigure` gives another.
        reactor: Time and timers.
        foreman: Told who can work.
        changed: Called when somebody has gone.

    Attributes:
        posts: Everyone's post, and the last ones of those who have gone.
    """

    _log = Logger()

    def __init__(
        self,
        config: QueueConfig,
        reactor: Any,  # noqa: ANN401 (IReactorTime)
        foreman: Foreman,
        changed: Callable[[], None],
    ) -> None:
        self._config = config
        self._reactor = reactor
        self._foreman = foreman
        self._changed = changed
        self.posts: list[Post] = []

    def admit(
        self,
        name: str,
        taken: Callable[[str], bool],
        transport: Any,  # noqa: ANN401 (TCP, UNIX or TLS: no type says all)
        address: str,
        numbers: Collection[int],
    ) -> RemoteWorker:
        """
        Make somebody a worker of this queue.

        Args:
            name: What it would like to be called, or "".
            taken: Whether somebody else has a name.
            transport: The connection to it.
            address: Where it comes from.
            numbers: The numbers of other posts; the lowest that is free decides its shard.
        """
        post = self._post(name, taken)
        post.number = _lowest({*numbers, *(p.number for p in self.posts if p.everyone)})
        post.worker = worker = RemoteWorker(
            post.name,
            self._config.name,
            self._config.worker(),
            self._reactor,
            self,
            transport,
            address,
        )
        return worker

    def reconfigure(self, config: QueueConfig) -> None:
        """Take on another configuration; those for whom it means a change must come again."""
        before, self._config = self._config, config
        if _spoken(before) != _spoken(config):
            for post in self.posts:
                self.recycle(post)

    def recycle(self, post: Post) -> None:
        """Send a worker away when it has finished what it has; it may come again."""
        for worker in post.everyone:
            worker.retire()

    # --- what its workers tell it: the Owner protocol

    def worker_ready(self, worker: Member) -> None:
        """It has been welcomed."""
        self._log.info(
            "{worker} has registered from {address}", worker=worker.name, address=worker.address
        )
        self._foreman.worker_ready(worker, self._post_of(worker).number)
        self._foreman.pool_changed()

    def worker_leaving(self, worker: Member) -> None:
        """It takes no more commands."""
        self._foreman.worker_leaving(worker)
        self._foreman.pool_changed()

    def worker_gone(self, worker: Member, report: Report) -> None:
        """Its connection has ended."""
        post = self._post_of(worker)
        post.worker = None
        post.count(worker)
        if report.cause == RETIRED:
            self._log.info("{worker} has left", worker=worker.name)
        else:
            post.remember(worker, report, self.posts)
            self._log.warn(
                "{worker} is lost: {cause}; it had {running}",
                worker=worker.name,
                cause=report.cause,
                running=", ".join(report.running) or "nothing in hand",
            )
        # The last to go is the last to be forgotten.
        self.posts.remove(post)
        self.posts.append(post)
        vacant = [post for post in self.posts if not post.everyone]
        for old in vacant[:-_VACANT]:
            self.posts.remove(old)
        self._changed()

    # --- inside

    def _post_of(self, worker: Member) -> Post:
        return next(post for post in self.posts if post.worker is worker)

    def _post(self, name: str, taken: Callable[[str], bool]) -> Post:
        """The post of that name if nobody holds it, else one with a name of its own."""
        number = 1
        wanted = name or f"{self._config.name}~1"
        while True:
            post = next((post for post in self.posts if post.name == wanted), None)
            if post is not None and not post.everyone:
                post.causes["return"] += 1
                return post
            if post is None and not taken(wanted):
                self.posts.append(Post(0, wanted))
                return self.posts[-1]
            # No name that is asked for, and none of a child, has a tilde in it.
            number += 1
            wanted = f"{name or self._config.name}~{number}"


def _lowest(numbers: set[int]) -> int:
    number = 0
    while number in numbers:
        number += 1
    return number


def _spoken(config: QueueConfig) -> tuple[object, ...]:
    """The part of a configuration that a worker from outside notices."""
    return config.in_flight, config.timeout, config.cancel
