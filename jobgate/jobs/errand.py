"""
A job on its way down a Road.

It stands where a call has the Deferred of its caller: the Road settles it with the same
three words. One object, and none of what a Deferred brings for those who wait, since at
any time there may be very many. Must not know what becomes of an outcome.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure

if TYPE_CHECKING:
    from jobgate.command import Command, Reply
    from jobgate.jobs.job import Taken

__all__ = ["Errand", "Sender"]

_log: Final = Logger()


class Sender(Protocol):
    """Who is told what a job has come to."""

    def replied(self, reply: Reply, command: Command, taken: Taken) -> None:
        """Its worker has answered."""

    def not_replied(self, failure: Failure, command: Command, taken: Taken) -> None:
        """It has failed, or has been taken off its Road."""


class Errand:
    """
    What is told of one job, once.

    Args:
        sender: Is told.
        command: What the job is on its Road.
        taken: The job.
    """

    __slots__ = ("_command", "_sender", "_taken")

    def __init__(self, sender: Sender, command: Command, taken: Taken) -> None:
        self._sender = sender
        self._command: Command | None = command
        self._taken = taken

    def callback(self, reply: Reply) -> None:
        """Its worker has answered."""
        command = self._let_go()
        try:
            self._sender.replied(reply, command, self._taken)
        except Exception:  # noqa: BLE001 (a job's trouble must not reach its worker)
            _log.failure("the reply to {command!r} was lost", command=command)

    def errback(self, failure: Failure) -> None:
        """It has failed."""
        command = self._let_go()
        try:
            self._sender.not_replied(failure, command, self._taken)
        except Exception:  # noqa: BLE001 (likewise)
            _log.failure("the failure of {command!r} was lost", command=command)

    def cancel(self) -> None:
        """Nobody wants it any more."""
        if self._command is not None:
            self._command.leave()
            self.errback(Failure(CancelledError()))

    def _let_go(self) -> Command:
        """The command, which has this as its `reply`: a circle would be left to the collector."""
        command, self._command = self._command, None
        assert command is not None, "told once"
        return command
