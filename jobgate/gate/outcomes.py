"""
How commands end: each once, counted, written down, and told to whoever waits for it.

Must not know where commands wait, who runs them, nor why one of them is to fail: that is decided
by the Road, and by what follows from time in `overdue`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from jobgate.command import DONE, RUNNING, WAITING
from jobgate.errors import Purged
from jobgate.gate.deadlines import Deadlines

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobgate.command import Batch, Command, Reply
    from jobgate.errors import JobgateError
    from jobgate.gate.audit import Audit
    from jobgate.gate.batching import Batching
    from jobgate.gate.stats import QueueStats

__all__ = ["Outcomes"]


class Outcomes:
    """
    The ends of one queue's commands.

    Args:
        seconds: The time.
        stats: Where they are counted.
        audit: Where outcomes are written down, if anywhere.
        waiting: Says how many commands wait.

    Attributes:
        audit: As given; a reload may bring another.
        batching: Is told how long batches took, if there are any.
        running: The commands that are with a worker and not settled.
    """

    batching: Batching | None = None

    def __init__(
        self,
        seconds: Callable[[], float],
        stats: QueueStats,
        audit: Audit | None,
        waiting: Callable[[], int],
    ) -> None:
        self._seconds = seconds
        self._stats = stats
        self.audit = audit
        self._waiting = waiting
        self.running: set[Command] = set()
        self._quiet: list[Deferred[None]] = []

    def __repr__(self) -> str:
        return f"<Outcomes running={len(self.running)}>"

    # --- what the Runners report

    def succeeded(self, command: Command, reply: Reply, now: float) -> None:
        """Its worker has answered."""
        Deadlines.remove(command)
        stats, began, batch = self._stats, command.began, command.batch
        if batch is None:
            stats.measure(began - command.accepted, now - began)
        else:
            self._member_answered(command, batch, now)
        if command.state is DONE:
            return
        self.settled(command, now)
        if not command.job:
            stats.succeeded += 1
            if self.audit is not None:
                self.audit.ended(command, reply)
        if command.stream is None:
            command.reply.callback(reply)
        else:
            command.stream.end()

    def failed(self, command: Command, error: JobgateError, now: float) -> None:
        """Its worker has said FAIL."""
        Deadlines.remove(command)
        if command.batch is None:
            self._stats.measure(command.began - command.accepted, now - command.began)
        else:
            self._member_answered(command, command.batch, now)
        if command.state is not DONE:
            self.fail(command, error, now)

    def streaming(self, command: Command, reply: Reply) -> None:
        """The first part of its reply has come; the rest follows in `command.stream`."""
        if command.state is not DONE:
            command.reply.callback(reply)

    def unfit(self, command: Command, error: JobgateError) -> None:
        """It cannot be written as its worker's protocol wants it: nobody has seen it."""
        Deadlines.remove(command)
        command.attempt -= 1
        if command.state is not DONE:
            self.fail(command, error, self._seconds())

    # --- other ends

    def fail(self, command: Command, error: JobgateError, now: float) -> None:
        """Settle it with a problem."""
        error = _honest(error, command)
        self.settled(command, now)
        if not command.job:
            self._stats.failed += 1
            if self.audit is not None:
                self.audit.ended(command, error)
        if command.stream is None:
            command.reply.errback(Failure(error))
        else:
            command.stream.end(Failure(error))

    def left(self, command: Command) -> None:
        """Its caller is gone."""
        if command.state is WAITING:
            self.take_out(command)
            self._cancelled(command)
        elif command.state is RUNNING:
            self._cancelled(command)
            if command.worker is not None:
                command.worker.cancel(command)

    def purged(self, command: Command) -> None:
        """An operator has thrown it out."""
        self._cancelled(command)
        command.reply.errback(Failure(_honest(Purged(""), command)))

    def settled(self, command: Command, now: float) -> None:
        """It is over here, whatever its caller is told."""
        self.running.discard(command)
        command.state = DONE
        command.ended = now
        if self._quiet:
            self._tell_if_quiet()

    @staticmethod
    def take_out(command: Command) -> None:
        """It waits no longer; what becomes of it is to follow."""
        command.shard.discard(command)
        Deadlines.remove(command)

    def when_quiet(self) -> Deferred[None]:
        """Fires when nothing waits and nothing runs; cancel it to stop waiting."""
        quiet: Deferred[None] = Deferred(self._quiet.remove)
        self._quiet.append(quiet)
        self._tell_if_quiet()
        return quiet

    # --- inside

    def _member_answered(self, command: Command, batch: Batch, now: float) -> None:
        """Measure one of a batch; with the last of them the batch. It leaves it."""
        began, together = command.began, len(batch.members)
        # Who kept those who keep it would be left to the garbage collector.
        command.batch = None
        self._stats.measure(began - command.accepted, now - began, together)
        if not batch.left:
            self._stats.measure_batch(together)
            if self.batching is not None:
                self.batching.measured(together, now - began)

    def _cancelled(self, command: Command) -> None:
        self.settled(command, self._seconds())
        if command.job:
            return
        self._stats.cancelled += 1
        if self.audit is not None:
            self.audit.ended(command, None)

    def _tell_if_quiet(self) -> None:
        if not self.running and not self._waiting():
            told, self._quiet = self._quiet, []
            for quiet in told:
                quiet.callback(None)


def _honest(error: JobgateError, command: Command) -> JobgateError:
    """What has been started before may have run, however it ends now."""
    if command.attempt and error.executed == "no":
        error.executed = "maybe"
    return error
