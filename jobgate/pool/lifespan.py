"""
How long one worker may serve: `max_commands`, `max_age` and `max_memory`.

Pure: what is known of a worker goes in, why it is to be replaced comes out.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobgate.config import WorkerConfig

__all__ = ["Lifespan"]

_JITTER = 0.1
"""The share by which bounds differ from worker to worker."""
_NEVER = float("inf")


class Lifespan:
    """
    The bounds of one worker.

    Workers that were started together must not all be replaced together, so each has its
    own bounds: up to a tenth above or below what the configuration says, of commands up to a
    tenth below, since it is never given more than `max_commands`.

    Args:
        config: How the worker is started and limited.
        random: Where the jitter comes from; given by tests.

    Attributes:
        most: Commands that it is given at the most; infinite: any number.
        commands: Commands after which another is to take over, likewise.
        age: Seconds after which it is to be replaced, likewise.
        memory: Bytes of RSS over which it is, likewise.
        fatal: Bytes of RSS over which it is killed.
    """

    def __init__(self, config: WorkerConfig, random: Random | None = None) -> None:
        random = random or Random()  # noqa: S311 (jitter is no secret)
        factor = random.uniform(1 - _JITTER, 1 + _JITTER)
        age, memory = config.max_age, config.max_memory
        self.most = config.max_commands or _NEVER
        self.commands = self.most
        if config.max_commands:
            self.commands = max(1, round(self.most * random.uniform(1 - _JITTER, 1)))
        self.age = age * factor if age else _NEVER
        self.memory = memory or _NEVER
        self.fatal = 2 * self.memory

    def next_look(self, done: int, reach: int) -> float:
        """
        After how many answers something changes for a worker.

        Args:
            done: How many it has given.
            reach: How many it may have in hand: once no more than those are left to it, each
                answer makes a difference.
        """
        if done + reach >= self.most:
            return done + 1
        milestones = self.commands - reach, self.commands, self.most - reach
        return min(at for at in milestones if at > done)

    def over(self, given: int, age: float, rss: int) -> str:
        """Why a worker that has come so far is to be replaced, in a word; "" while it is not."""
        if given >= self.commands:
            return "max_commands"
        if rss > self.memory:
            return "max_memory"
        return "max_age" if age >= self.age else ""
