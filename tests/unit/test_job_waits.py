"""
Those who wait for jobs and leave, or are left: nothing of them stays, and no job is forgotten.
"""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred

from jobgate.jobs.job import State
from tests.unit.jobs_case import JobsCase

ONE = {"command": ("w",), "workers": 1}


class WaitingTests(JobsCase):
    """Who waits for the end of a job."""

    def tearDown(self) -> None:
        self.conserved()

    def test_nobody_is_kept(self) -> None:
        """Whoever has waited is let go, in whatever way the wait ended."""
        self.build(q=ONE)
        name = self.push()
        late = Deferred.fromCoroutine(self.gate.jobs.wait(name, 5.0))
        gone = Deferred.fromCoroutine(self.gate.jobs.wait(name, 5.0))
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.turn(5.1)
        self.assertIs(self.successResultOf(late).state, State.RUNNING)
        told = Deferred.fromCoroutine(self.gate.jobs.wait(name, 5.0))
        self.child.reply(b"done")
        self.assertIs(self.successResultOf(told).state, State.SUCCEEDED)
        self.assertEqual(self.gate.jobs.waiting, set())
