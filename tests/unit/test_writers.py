"""
When the store's operations run: `jobgate.jobs.sqlite.writer`, the one that runs in the loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from jobgate.errors import StoreUnavailable
from jobgate.jobs.sqlite import SqliteJournal
from tests.unit.journal_suite import new

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from jobgate.jobs.job import Change


class LoopTests(SynchronousTestCase):
    """A store in memory, where a gate has it."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.told: list[Change] = []
        self.groups: list[int] = []
        self.journal = SqliteJournal(":memory:", self.clock, clock=self.clock.seconds)
        self.successResultOf(self.journal.open(self.changed))
        self.told.clear()

    def changed(self, changes: Any) -> None:
        self.groups.append(len(changes))
        self.told += changes

    def put(self, name: str) -> Deferred[Any]:
        return self.journal.put([new(name)])

    def test_a_turn_is_a_group(self) -> None:
        """What is asked in one turn happens in the next, together and in order."""
        asked = [self.put(name) for name in "abc"]
        self.assertNoResult(asked[0])
        self.clock.advance(0)
        for each in asked:
            self.successResultOf(each)
        self.assertEqual(self.groups, [3])
        self.assertEqual([change.id for change in self.told], ["a", "b", "c"])

    def test_what_follows_waits(self) -> None:
        """Who asks again at once lets the loop see to everybody else between."""
        late: list[int] = []

        def again(_: object) -> None:
            self.put("b").addCallback(lambda _: late.append(len(self.groups)))
            self.clock.callLater(0, lambda: late.append(len(self.groups)))

        first = self.put("a").addCallback(again)
        self.journal._writer._run()  # type: ignore[attr-defined]
        self.assertTrue(first.called)
        self.assertEqual(late, [])
        self.clock.advance(0)
        self.assertEqual(late, [2, 2])

    def test_close(self) -> None:
        """What was asked is done before the end, and nothing is left in the loop."""
        asked = self.put("a")
        late: list[Deferred[Any]] = []
        asked.addCallback(lambda _: late.append(self.put("b")))
        self.successResultOf(self.journal.close())
        self.successResultOf(asked)
        self.successResultOf(late[0])
        self.failureResultOf(self.put("c"), StoreUnavailable)
        self.assertEqual(self.clock.getDelayedCalls(), [])
