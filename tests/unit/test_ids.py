"""
Which ids are taken: `jobgate.jobs.sqlite.ids`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.trial.unittest import SynchronousTestCase

from jobgate.jobs.sqlite import schema
from jobgate.jobs.sqlite.ids import Ids
from jobgate.jobs.sqlite.rows import encode

if TYPE_CHECKING:
    from collections.abc import Sequence


def made(at: str, number: int) -> str:
    """An id of the shape that ids have: when it was made, and what is its own."""
    return f"{at}-{number:032}"


LOT = [made("b", number) for number in range(3)]


class IdsTests(SynchronousTestCase):
    """With tables, into which they are written as the sheet would."""

    def setUp(self) -> None:
        self.db = schema.connect(schema.MEMORY)
        self.addCleanup(self.db.close)
        schema.create(self.db)
        self.ids = Ids(self.db)

    def write(self, ids: Sequence[str]) -> int:
        """A job, or a lot, comes into the tables; its number."""
        seq = self.ids.enter(ids)
        self.ids.check()
        self.db.execute(
            "INSERT INTO job (seq, id, queue, state, turn, priority, attempts, created, due,"
            " alarm, expires, patience, keep, waits, flags, caller, callback, graph, size)"
            " VALUES (?, ?, 'q', 2, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, '', '', 0, ?)",
            (seq, ids[0], len(ids)),
        )
        if len(ids) > 1:
            stem = ids[0].removesuffix(f"{0:032}")
            self.db.execute("INSERT INTO lot VALUES (?, ?, ?)", (seq, stem, encode(ids).decode()))
        return seq

    def test_numbers(self) -> None:
        """A lot has as many as it has jobs."""
        self.assertEqual(self.write([made("a", 0)]), 1)
        self.assertEqual(self.write(LOT), 2)
        self.assertEqual(self.write([made("c", 0)]), 5)
        self.assertEqual(self.ids.next_seq, 6)

    def test_twice_at_once(self) -> None:
        """Alone or in a lot; once it is forgotten it may come again."""
        self.ids.enter([made("a", 0)])
        self.ids.enter(LOT)
        for again in ([made("a", 0)], [LOT[1]], [made("b", 9), LOT[2]]):
            with self.assertRaisesRegex(ValueError, "put twice at once"):
                self.ids.enter(again)
        self.ids.clear()
        self.ids.enter([LOT[1]])

    def test_seen(self) -> None:
        """What was entered is, written or not; what nobody has put is not."""
        single, other = made("a", 0), made("a", 1)
        for ids in ([single], LOT):
            self.ids.enter(ids)
            self.assertTrue(all(map(self.ids.seen, ids)))
        self.ids.clear()
        for ids in ([single], LOT, [made("c", 0)]):
            self.write(ids)
        self.assertTrue(all(map(self.ids.seen, (single, *LOT, made("c", 0)))))
        for new in (other, made("b", 7), made("c", 1), made("d", 0)):
            self.assertFalse(self.ids.seen(new), new)

    def test_again_out_of_a_lot(self) -> None:
        """The tables would take it as a new one."""
        self.write(LOT)
        for ids in (self.ids, Ids(self.db)):
            ids.enter([made("b", 7)])
            ids.check()
            ids.enter([LOT[1]])
            with self.assertRaisesRegex(ValueError, "put again"):
                ids.check()
            ids.clear()
