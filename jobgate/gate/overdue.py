"""
What follows when a command's time is up: its queue's, its worker's or its caller's.

Must not know why a worker has a command, nor what is told to its caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jobgate.command import DONE, RUNNING, WAITING
from jobgate.errors import QueueTimeout, WorkerTimeout
from jobgate.gate.deadlines import Deadlines

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from jobgate.command import Command, Worker
    from jobgate.errors import JobgateError
    from jobgate.gate.outcomes import Outcomes

__all__ = ["Overdue"]

_FOREVER: Final = float("inf")


class Overdue:
    """
    Ends the commands of one queue whose time is up.

    Args:
        clock: Seconds and timers.
        outcomes: Settles them.
        timeout: Seconds that a command may run; 0: any time.

    Attributes:
        deadlines: Those that are kept until something about them is due.
        timeout: As given; a reload may bring another.
    """

    def __init__(self, clock: IReactorTime, outcomes: Outcomes, timeout: float) -> None:
        self.deadlines = Deadlines(clock, self._look)
        self._outcomes = outcomes
        self.timeout = timeout

    def __repr__(self) -> str:
        return f"<Overdue after {self.timeout:g} s>"

    def began(self, command: Command, now: float) -> None:
        """From now on it runs, for as long as the queue's `timeout` lets it."""
        command.began = now
        if command.on_start is not None:
            command.on_start(command)
        timeout = self.timeout
        if timeout and now + timeout < command.due:
            self.deadlines.move(command, now + timeout, now)

    # --- inside

    def _look(self, command: Command, now: float) -> None:
        """Something about it is due."""
        worker = command.worker
        if command.state is WAITING:
            command.shard.discard(command)
            waited = now - command.accepted
            error = QueueTimeout(f"no worker was free for {waited:.3f} s")
            self._outcomes.fail(command, error, now)
        elif worker is not None:
            self._look_at_run(command, worker, now)

    def _look_at_run(self, command: Command, worker: Worker, now: float) -> None:
        """A worker has it; its run may be over, its caller's time, or neither."""
        timeout = self.timeout
        limit = (command.began or now) + timeout if timeout else _FOREVER
        if now >= limit:
            cause = f"it ran for over {timeout:g} s (timeout of the queue)"
            if command.state is RUNNING:
                self._outcomes.fail(command, WorkerTimeout(cause, attempt=command.attempt), now)
            worker.overran(cause)
            return
        if command.state is RUNNING and now >= command.deadline:
            self._outcomes.fail(command, _too_late(command), now)
            worker.cancel(command)
        command.due = limit if command.state is DONE else min(limit, command.deadline)
        if command.worker is not None and command.due != _FOREVER:
            self.deadlines.add(command, now)


def _too_late(command: Command) -> JobgateError:
    """Its caller's time is up: whether it ran or only waited at a worker makes a difference."""
    cause = f"the caller's {command.deadline - command.accepted:g} s were up"
    if command.began:
        return WorkerTimeout(cause, attempt=command.attempt)
    return QueueTimeout(f"{cause}; a worker had it, but was at another still")
