"""
When the store's operations run: `jobgate.jobs.sqlite.writer`, the one that runs in the loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from jobgate.errors import StoreUnavailable
from jobgate.jobs.job import Ending, State
from jobgate.jobs.journal import LeaseTerms
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

    def now(self, asked: Deferred[Any]) -> Any:
        """What comes of it at the end of the turn."""
        self.clock.advance(0)
        return self.successResultOf(asked)

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

    def test_the_tables_wait(self) -> None:
        """What nobody asks the tables for goes there with much else, as it is by then."""
        tables = self.journal._groups._home.ledger.db
        ids = [f"{number:032}" for number in range(200)]
        seen = []
        for id_ in ids:
            self.now(self.journal.put([new(id_)], claim=1))
            terms = LeaseTerms(f"lease of {id_}", 60.0)
            leased = self.now(self.journal.lease([([id_], 1)], terms))
            self.assertEqual(leased.jobs, ((id_, 1),))
            seen.append(tables.execute("SELECT count(*) FROM job").fetchone()[0])
            ended = self.journal.finish_lease(terms.id, Ending(State.SUCCEEDED))
            self.assertTrue(self.now(ended))
        self.assertLess(len(set(seen)), 10)
        self.assertGreater(seen[-1], 1)
        states = [change.state for change in self.told if change.id == ids[-1]]
        self.assertEqual(states, [State.QUEUED, State.RUNNING, State.SUCCEEDED])
        jobs, _ = self.now(self.journal.page("q", None, 1000, ""))
        self.assertEqual([job.id for job in jobs], ids[::-1])
        self.assertEqual({job.state for job in jobs}, {State.SUCCEEDED})
        self.assertEqual(self.journal._groups._home.ledger.desk.rows, {})
        again = self.journal.finish_lease(f"lease of {ids[0]}", Ending(State.SUCCEEDED))
        self.assertTrue(self.now(again))

    def test_what_the_tables_would_not_take(self) -> None:
        """It is refused when it comes, and nothing that was there before is lost by it."""
        self.now(self.journal.put([new("a")], claim=1))
        for wrong in ({"content_type": "\ud800"}, {"priority": 10**30}, {"delay": 1e18}):
            put = self.journal.put([new("b", **wrong)])
            self.clock.advance(0)
            failed = self.failureResultOf(put)
            self.assertIsInstance(failed.value, (UnicodeEncodeError, OverflowError), wrong)
        jobs, _ = self.now(self.journal.page("q", None, 10, ""))
        self.assertEqual([job.id for job in jobs], ["a"])

    def test_what_ram_has_is_not_put_again(self) -> None:
        """Nor is what the tables have."""
        for name in ("a", "a", "b"):
            self.now(self.journal.put([new(name)], claim=1))
        self.now(self.journal.page("q", None, 10, ""))
        self.now(self.journal.put([new("b")]))
        jobs, _ = self.now(self.journal.page("q", None, 10, ""))
        self.assertEqual([job.id for job in jobs], ["b", "a"])

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
