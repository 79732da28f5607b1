"""
How many workers one queue is to have, and at which places.

Measures what the Scaler decides by: who rests, who waits, and whether the machine has CPU to
spare. Must not know how workers are started or let go: that is the Supervisor's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobgate.pool.lifecycle import State
from jobgate.pool.machine import Appetite
from jobgate.pool.scaling import Place, Scaler, Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobgate.config import QueueConfig
    from jobgate.pool.machine import Machine
    from jobgate.pool.post import Post

__all__ = ["Headcount"]


class Headcount:
    """
    Which places are to be filled now.

    Args:
        machine: Says whether there is CPU to spare.

    Attributes:
        wanted: The numbers of those places.
        closed: No place will ever be filled again.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._appetite = Appetite()
        self._scaler: Scaler | None = None
        self.wanted: set[int] = set()
        self.closed = False

    @property
    def is_fixed(self) -> bool:
        """Whether the number does not depend on the load."""
        return self._scaler is None or self._scaler.is_fixed

    @property
    def pace(self) -> float:
        """Seconds: the shortest delay in scaling; infinite without any."""
        if self._scaler is None or self._scaler.is_fixed:
            return float("inf")
        return self._scaler.pace

    def take_on(self, config: QueueConfig) -> None:
        """Follow another configuration; places that are filled stay as far as they fit."""
        if self.closed or not config.command:
            self._scaler = None
            self.wanted = set()
        else:
            self._scaler = Scaler(config.scale, config.shards, config.idle_shutdown)
            self.wanted = set(self._scaler.must(sorted(self.wanted)))

    def close(self) -> None:
        """Want nobody any more."""
        self.closed = True
        self._scaler = None
        self.wanted = set()

    def step(
        self, now: float, posts: Sequence[Post], waits: Sequence[float | None], *, dying: bool
    ) -> Step:
        """
        Change what is wanted by one step, if the load asks for it.

        Args:
            now: The time in seconds.
            posts: All of the queue's own.
            waits: For each shard how long its first command has waited; None if none waits.
            dying: The last worker that was started has died.

        Returns:
            What has changed.
        """
        if self._scaler is None or self._scaler.is_fixed:
            return Step()
        workers = [worker for post in posts for worker in post.everyone]
        alive = [worker for worker in workers if worker.state is State.READY]
        # Workers that only wait need no CPU; and where they die, more of them are no help.
        spare = (self._appetite.is_small(alive) or self._machine.spare()) and not dying
        places = [_place(post, now) for post in posts if post.number in self.wanted]
        step = self._scaler.decide(now, places, waits, spare=spare)
        self.wanted.update(step.start)
        self.wanted.difference_update(step.retire)
        return step


def _place(post: Post, now: float) -> Place:
    worker = post.worker
    rests = worker is not None and worker.state is State.READY and worker.idle
    if worker is None or not rests or post.next is not None:
        return Place(post.number, None, post.trying)
    return Place(post.number, now - worker.idle_since)
