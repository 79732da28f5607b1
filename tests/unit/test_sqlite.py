"""
`jobgate.jobs.sqlite`: what is particular to it; what every store must do is held elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from jobgate.errors import ConfigError
from jobgate.jobs.job import Change, Ending, NewJob, Reply, State
from jobgate.jobs.sqlite import asking, entering, running
from jobgate.jobs.sqlite.groups import Groups
from jobgate.jobs.sqlite.operations import Kind, Operation
from jobgate.jobs.stores import open_journal
from jobgate.testing import inline_journal

if TYPE_CHECKING:
    from jobgate.jobs.sqlite import SqliteJournal


def new(name: str, **changes: Any) -> NewJob:
    return NewJob(**{"id": name, "queue": "q", "body": b"", "content_type": "t/p", **changes})


class SqliteTests(SynchronousTestCase):
    """In a file, inline."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.path = self.mktemp()
        self.changes: list[Change] = []

    def open(self) -> SqliteJournal:
        journal = inline_journal(self.clock, self.path)
        self.counts = self.successResultOf(journal.open(self.changes.extend))
        return journal

    def test_any_bytes(self) -> None:
        """Bodies and replies come back as they were, several at once."""
        bodies = [bytes(range(256)), b"", b"\0\0", b"\xff\xfe\0", "\N{SNOWMAN}".encode("utf-16")]
        journal = self.open()
        journal.put([new(f"j{n}", body=body) for n, body in enumerate(bodies)])
        taken = self.successResultOf(journal.take("q", 10, 1 << 20))
        self.assertEqual([job.body for job in taken], bodies)
        for n, body in enumerate(bodies):
            journal.start(f"j{n}", 1, "w")
            ending = Ending(State.SUCCEEDED, Reply(200, "t/p", body))
            self.assertTrue(self.successResultOf(journal.finish(f"j{n}", 1, ending)))
            reply = self.successResultOf(journal.result(f"j{n}"))
            assert reply is not None
            self.assertEqual(reply.body, body)

    def test_opened_anew(self) -> None:
        """What a gate had, it has back: calls and `once` have ended, all else is queued."""
        journal = self.open()
        names = {"call": {"call": True}, "once": {"once": True}, "plain": {}, "held": {}}
        journal.put([new(name, **also) for name, also in names.items()], claim=4)
        for name in ("call", "once", "plain"):
            journal.start(name, 1, "w")
        self.successResultOf(journal.close())
        self.changes.clear()
        journal = self.open()
        self.assertEqual(self.counts, {"q": [0, 0, 2, 0, 0, 0, 0, 0]})
        self.assertEqual(
            [(change.id, change.state, change.before) for change in self.changes],
            [("call", State.FAILED, None), ("once", State.DEAD, None)],
        )
        taken = self.successResultOf(journal.take("q", 10, 1 << 20))
        self.assertEqual(
            [(t.id, t.attempt, t.spent) for t in taken], [("plain", 1, 0), ("held", 0, 0)]
        )

    def test_second_gate(self) -> None:
        """A file belongs to one gate."""
        journal = self.open()
        journal.put([new("a")])
        other = inline_journal(self.clock, self.path)
        refused = self.failureResultOf(other.open(self.changes.extend), ConfigError)
        self.assertIn("another gate", str(refused.value))
        self.successResultOf(journal.close())
        self.successResultOf(self.open().close())

    def test_put_twice(self) -> None:
        """Putting a job again is harmless, alone or among others."""
        journal = self.open()
        journal.put([new("a", body=b"1")])
        self.successResultOf(journal.put([new("a", body=b"2"), new("b")]))
        taken = self.successResultOf(journal.take("q", 10, 100))
        self.assertEqual([(t.id, t.body) for t in taken], [("a", b"1"), ("b", b"")])

    def test_answers_are_as_new_as_what_is_told(self) -> None:
        """In one group questions are answered last: what changes is told before they are."""
        groups = Groups(":memory:", self.clock.seconds, lambda: 1e9)
        groups.open()
        groups.run(
            [Operation(entering.put, ([new("a")], 1, None, "", None), Kind.WRITE, Deferred())]
        )
        question = Operation(asking.get, ("a",), Kind.READ, Deferred())
        start = Operation(running.start, ("a", 1, "w"), Kind.LASTING, Deferred())
        changes, left = groups.run([question, start])
        self.assertEqual([change.state for change in changes], [State.RUNNING])
        self.assertEqual(left, [])
        answer: Any = question.outcome
        self.assertEqual(answer.state, State.RUNNING)

    def test_noted(self) -> None:
        """What nobody waits for is stored; what cannot be is logged, and fails alone."""
        journal = self.open()
        journal.put([new(name) for name in "abc"], claim=3)
        writer: Any = journal._writer
        writer.hold()
        for name in "abc":
            journal.note_start(name, 1, "w")
        writer.release()
        writer.hold()
        for name, status in (("a", 200), ("b", 1 << 70), ("c", 201)):
            journal.note_finish(name, 1, Ending(State.SUCCEEDED, Reply(status, "t/p", b"")))
        writer.release()
        jobs = [self.successResultOf(journal.get(name)) for name in "abc"]
        self.assertEqual(
            [job and job.state for job in jobs],
            [State.SUCCEEDED, State.RUNNING, State.SUCCEEDED],
        )
        [lost] = self.flushLoggedErrors(OverflowError)
        self.assertIn("too large", str(lost.value))
        self.successResultOf(journal.close())
        journal.note_start("b", 2, "w")

    def test_noted_together(self) -> None:
        """What begins and ends at once is one step for the store, and tells of both."""
        journal = self.open()
        journal.put([new(name) for name in "abc"], claim=3)
        self.changes.clear()
        before = journal.writes
        writer: Any = journal._writer
        writer.hold()
        for name in "abc":
            journal.note_start(name, 1, "w")
        cancelled = journal.cancel("b", "not any more")
        ending = Ending(State.SUCCEEDED)
        journal.note_finish("a", 1, ending)
        journal.note_finish("c", 2, ending)
        writer.release()
        self.assertEqual(
            [(change.id, change.state) for change in self.changes],
            [
                ("a", State.RUNNING),
                ("a", State.SUCCEEDED),
                ("b", State.RUNNING),
                ("c", State.RUNNING),
                ("b", State.CANCELLED),
            ],
        )
        self.assertIsNotNone(self.successResultOf(cancelled))
        self.assertEqual(journal.writes - before, 5)
        writer.hold()
        journal.note_start("b", 2, "w")
        journal.note_finish("b", 2, ending)
        writer.release()
        job = self.successResultOf(journal.get("b"))
        self.assertEqual(job and job.state, State.CANCELLED)

    def test_stores(self) -> None:
        """What a configuration may name."""
        self.assertEqual(open_journal("memory:", self.clock).durability, "memory")
        self.assertEqual(open_journal("sqlite:x.db", self.clock).durability, "fsync")
        for wrong in ("redis://h", "sqlite:", "x", "memory:y"):
            self.assertRaises(ConfigError, open_journal, wrong, self.clock)
