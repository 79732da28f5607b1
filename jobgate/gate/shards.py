"""
The CommandQueues of one named queue.

Workers of one shard never take from another, so what has the same key keeps its order. Must not
know what becomes of commands.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING
from zlib import crc32

from jobgate.gate.batch_queue import BatchQueue
from jobgate.gate.batching import Batching
from jobgate.gate.queues import CommandQueue

if TYPE_CHECKING:
    from collections.abc import Iterable

    from twisted.internet.interfaces import IReactorTime

    from jobgate.command import Command
    from jobgate.config import QueueConfig

__all__ = ["Shards"]


class Shards(list[CommandQueue]):
    """
    As many CommandQueues as the configuration says.

    A list, since the usual one shard is asked for at every command.

    Args:
        config: The queue's configuration.
        clock: Seconds and timers.

    Attributes:
        batching: When batches go, if there are any.
    """

    def __init__(self, config: QueueConfig, clock: IReactorTime) -> None:
        self.batching = batching = Batching(config.batch) if config.batch.size > 1 else None
        super().__init__(
            CommandQueue(config.size, clock)
            if batching is None
            else BatchQueue(config.size, clock, batching)
            for _ in range(config.shards)
        )

    def of(self, key: str) -> CommandQueue:
        """The same key always gets the same shard; without a key the shortest does."""
        if len(self) == 1:
            return self[0]
        if key:
            return self[crc32(key.encode()) % len(self)]
        return min(self, key=lambda shard: (not shard.free_now, len(shard)))

    @property
    def waiting(self) -> int:
        """How many commands wait."""
        return sum(map(len, self))

    @property
    def calls(self) -> int:
        """How many of them are calls."""
        return sum(shard.calls for shard in self)

    @property
    def jobs(self) -> int:
        """How many of them are jobs."""
        if len(self) == 1:
            # Asked for every job.
            return self[0].pending.jobs
        return sum(shard.pending.jobs for shard in self)

    @property
    def size_bytes(self) -> int:
        """The bodies of what waits, together."""
        if len(self) == 1:
            # Asked for every job, likewise.
            return self[0].bytes_waiting
        return sum(shard.bytes_waiting for shard in self)

    @property
    def paused(self) -> bool:
        """Whether an operator has stopped them."""
        return self[0].paused

    def pause(self) -> None:
        """Let nothing leave until `resume`."""
        for shard in self:
            shard.pause()

    def resume(self) -> None:
        """Let commands leave again."""
        for shard in self:
            shard.resume()

    def commands(self) -> list[Command]:
        """All that waits now."""
        return list(chain.from_iterable(shard.pending for shard in self))

    def resize(self, size: int) -> None:
        """As many calls may wait from now on."""
        for shard in self:
            shard.size = size

    def take_over(self, before: Shards, running: Iterable[Command]) -> None:
        """
        Be used instead of others, which are used no more.

        Args:
            before: The others: what waits there waits here, in the same order.
            running: What was taken from them, and may come back.
        """
        waiting = before.commands()
        for command in waiting:
            command.shard.discard(command)
        before.close()
        if before.paused:
            self.pause()
        for command in (*waiting, *running):
            command.shard = self.of((command.headers or {}).get("jobgate-key", ""))
        for command in reversed(waiting):
            if self.batching is None:
                command.batch = None
            command.shard.put_back(command)

    def close(self) -> None:
        """Stop the clocks: nothing is left."""
        for shard in self:
            shard.close()
