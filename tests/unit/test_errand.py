"""
What a job's Road finds in the place of a caller's Deferred.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from jobgate.command import Command, Reply
from jobgate.errors import WorkerDied
from jobgate.jobs.errand import Errand

if TYPE_CHECKING:
    from jobgate.jobs.job import Taken


class Recorder:
    """A sender that writes down what it is told, and perhaps fails at it."""

    def __init__(self, *, fails: bool = False) -> None:
        self.told: list[Any] = []
        self.fails = fails

    def replied(self, reply: Reply, command: Command, taken: Taken) -> None:
        """Its worker has answered."""
        self._tell(reply, command, taken)

    def not_replied(self, failure: Failure, command: Command, taken: Taken) -> None:
        """It has failed."""
        self._tell(failure.type, command, taken)

    def _tell(self, what: object, command: Command, taken: Taken) -> None:
        self.told.append((what, command, taken))
        if self.fails:
            raise RuntimeError


class ErrandTests(SynchronousTestCase):
    """Told once, come what may."""

    def setUp(self) -> None:
        """A job, and who has left its Road."""
        self.command = Command("q", "id", b"", "a/b", 3, 0.0, float("inf"))
        self.taken = cast("Taken", object())
        self.left: list[Command] = []
        self.command.forget = self.left.append

    def errand(self, sender: Recorder) -> Errand:
        """The job, on its way."""
        return Errand(sender, self.command, self.taken)

    def test_reply(self) -> None:
        """It is passed on; a cancellation afterwards changes nothing."""
        sender = Recorder()
        errand = self.errand(sender)
        reply = Reply(b"x", "a/b")
        errand.callback(reply)
        errand.cancel()
        self.assertEqual(sender.told, [(reply, self.command, self.taken)])
        self.assertEqual(self.left, [])

    def test_failure(self) -> None:
        """Likewise."""
        sender = Recorder()
        self.errand(sender).errback(Failure(WorkerDied("x")))
        self.assertEqual(sender.told, [(WorkerDied, self.command, self.taken)])

    def test_cancelled(self) -> None:
        """It leaves its Road, then that is told, once."""
        sender = Recorder()
        errand = self.errand(sender)
        errand.cancel()
        errand.cancel()
        self.assertEqual(self.left, [self.command])
        self.assertEqual(sender.told, [(CancelledError, self.command, self.taken)])

    def test_trouble_stays_here(self) -> None:
        """What goes wrong with a job does not reach the Road, and is logged."""
        sender = Recorder(fails=True)
        self.errand(sender).callback(Reply(b"x", "a/b"))
        self.errand(sender).errback(Failure(WorkerDied("x")))
        self.assertEqual(len(sender.told), 2)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)
