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
_NEVER = float("inf")


class Lifespan:
    """
    The bounds of one worker.

    Workers that were started together must not all be replaced together, so each has its
    own bounds, up to a tenth above or below what the configuration says.

    Args:
        config: How the worker is started and limited.
        random: Where the jitter comes from; given by tests.

    Attributes:
        commands: Answers after which it is to be replaced; infinite: any number.
        age: Seconds after which it is, likewise.
        memory: Bytes of RSS over which it is, likewise.
        fatal: Bytes of RSS over which it is killed.
    """

    def __init__(self, config: WorkerConfig, random: Random | None = None) -> None:
        random = random or Random()  # noqa: S311 (jitter is no secret)
        factor = random.uniform(1 - _JITTER, 1 + _JITTER)
        most, age, memory = config.max_commands, config.max_age, config.max_memory
        self.commands = max(1, round(most * factor)) if most else _NEVER
        self.age = age * factor if age else _NEVER
        self.memory = memory or _NEVER
        self.fatal = 2 * self.memory

    def over(self, done: int, age: float, rss: int) -> str:
        """Why a worker that has come so far is to be replaced, in a word; "" while it is not."""
        if done >= self.commands:
            return "max_commands"
        if rss > self.memory:
            return "max_memory"
        return "max_age" if age >= self.age else ""
