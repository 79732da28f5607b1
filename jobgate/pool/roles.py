"""
Who a worker deals with, and how it can be lost: what `process` and its neighbours agree on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from jobgate.command import Worker
from jobgate.pool.conversation import Taker

if TYPE_CHECKING:
    from jobgate.command import Command
    from jobgate.pool.member import Member
    from jobgate.pool.process import WorkerProcess
    from jobgate.pool.report import Report, Slow

__all__ = ["Crew", "Foreman", "GroupOwner", "Groups", "Hand", "Loss", "Owner"]


class Loss:
    """
    How a worker was lost with commands in hand.

    Attributes:
        kind: "died", "protocol", "timeout", "memory" (it held more than twice `max_memory`) or
            "stopped" (the gate ended it for its own reasons).
        cause: In words.
        exit_status: What it exited with, if it did.
        signal: The name of the signal that ended it, if one did.
    """

    __slots__ = ("cause", "exit_status", "kind", "signal")

    def __init__(
        self, kind: str, cause: str, exit_status: int | None = None, signal_name: str | None = None
    ) -> None:
        self.kind = kind
        self.cause = cause
        self.exit_status = exit_status
        self.signal = signal_name


class Crew(Taker, Protocol):
    """The gate's side of one worker: its Runner."""

    def stop(self) -> None:
        """Hand the worker no more commands."""

    def lost(self, command: Command, loss: Loss, *, begun: bool, alone: bool) -> None:
        """The worker is lost, and had this command."""


class Hand(Worker, Protocol):
    """A worker that tells its Runner what becomes of commands."""

    def hire(self, crew: Crew) -> None:
        """Give it its Runner."""


class Owner(Protocol):
    """Who keeps the worker."""

    def worker_ready(self, worker: Member) -> None:
        """It can take commands."""

    def worker_leaving(self, worker: Member) -> None:
        """It will take no more commands, whatever becomes of it."""

    def worker_gone(self, worker: Member, report: Report) -> None:
        """It has ended, and what it was has been cleared away."""


class Groups(Protocol):
    """Who must know which process groups live, in case the gate is killed."""

    def group_started(self, pgid: int) -> None:
        """A process group lives."""

    def group_ended(self, pgid: int) -> None:
        """The process group has been killed."""


class GroupOwner(Owner, Groups, Protocol):
    """Who keeps a worker that is a child: the Supervisor."""

    def worker_counted(self, worker: WorkerProcess) -> None:
        """It has answered as many commands as its `call_at` says."""

    def worker_slow(self, worker: WorkerProcess, slow: Slow) -> None:
        """A command runs longer than `soft_timeout`, and goes on."""


class Foreman(Protocol):
    """Who puts workers to work: the gate's Road."""

    def worker_ready(self, worker: Hand, post: int) -> None:
        """A worker can take commands."""

    def worker_leaving(self, worker: Worker) -> None:
        """It takes no more commands."""

    def pool_changed(self) -> None:
        """Workers have come or gone, or a crash loop has begun or ended."""

    def waits(self) -> list[float | None]:
        """For each shard, seconds that its first command has waited; None where none does."""
