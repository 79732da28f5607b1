"""
Those who wait for jobs and leave, or are left: nothing of them stays, and no job is forgotten.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from jobgate import errors
from jobgate.jobs.job import NewJob, State
from jobgate.jobs.journal import Due
from jobgate.jobs.sweeping import Sweeper
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
        self.assertEqual(self.gate.jobs.watches.waiting, set())


class CancelledPutTests(JobsCase):
    """Who pushes may stop waiting before the store has answered."""

    def tearDown(self) -> None:
        self.conserved()

    def push_and_leave(self, **how: Any) -> None:
        """Push, and leave before the store has answered."""
        writer: Any = self.journal._writer
        writer.hold()
        pushed = self.gate.push("q", b"work", **how)
        pushed.cancel()
        self.failureResultOf(pushed, CancelledError)
        writer.release()

    def test_it_runs(self) -> None:
        """It is stored all the same, and so it runs."""
        self.build(q=ONE)
        self.push_and_leave()
        self.assertEqual([given.body for given in self.child.commands], [b"work"])

    def test_its_time_comes(self) -> None:
        """Likewise, if it is to start later."""
        self.build(q=ONE)
        self.turn(1.0)
        self.push_and_leave(delay=3.0)
        self.turn(3.1)
        self.assertEqual([given.body for given in self.child.commands], [b"work"])

    def test_it_is_not_stored(self) -> None:
        """If the store refuses it, nothing is expected any more."""
        self.build(q={**ONE, "max_backlog": 1})
        self.push(delay=50.0)
        self.push_and_leave()
        self.assertEqual(self.child.commands, [])

    def test_no_such_queue_any_more(self) -> None:
        """A refusal that comes when its queue has been given up is told as what it is."""
        self.build()
        stored: Deferred[Any] = Deferred()
        self.gate.queue("made")
        with patch.object(self.journal, "put", return_value=stored):
            pushed = self.gate.push("made", b"work")
        self.gate._remove("made")
        stored.errback(errors.StoreUnavailable("no"))
        self.failureResultOf(pushed, errors.StoreUnavailable)

    def test_a_graph_whose_queue_was_given_up(self) -> None:
        """What was found when the graph was checked is there again when it is stored."""
        self.build()
        job = NewJob("id", "made", b"", "t/p", name="a")
        self.successResultOf(self.gate.jobs.put([job], graph="graph"))
        self.assertEqual(self.gate.jobs.backlogs["made"].tally.open[State.QUEUED], 1)


class SweeperTests(SynchronousTestCase):
    """What time demands is done again and again."""

    def test_a_sweep_that_goes_wrong(self) -> None:
        """What is made of one may fail: the next one comes all the same, and it is logged."""
        clock = Clock()
        found: list[Due] = []

        def swept(due: Due) -> None:
            found.append(due)
            if len(found) == 1:
                raise ValueError

        class Journal:
            def sweep(self) -> Deferred[Due]:
                return succeed(Due((), (), 60.0))

        sweeper = Sweeper(Journal(), clock, swept)  # type: ignore[arg-type]
        sweeper.sweep_in(0)
        clock.advance(0.1)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        clock.advance(1.1)
        self.assertEqual(len(found), 2)
        sweeper.stop()
        self.assertEqual(clock.getDelayedCalls(), [])
