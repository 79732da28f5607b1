"""
The ids and numbers of jobs: which are taken, and which are new.

Answers from RAM where it can, and sees what the tables' own index of ids does not: jobs in lots.
Must not know what a job is, beyond its id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobgate.jobs.sqlite import lots
from jobgate.jobs.sqlite.rows import encode

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

__all__ = ["Ids"]


class Ids:
    """
    Those in the tables, and those on their way there.

    Args:
        db: The tables.

    Attributes:
        db: Likewise; another connection once the file has been opened anew.
        next_seq: The next job's number.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.next_seq = 1
        self._new: set[str] = set()
        self._alone: list[str] = []
        self._latest = ""
        self._of_latest: set[str] = set()
        self._any_lots: bool | None = None

    def enter(self, ids: Sequence[str]) -> int:
        """
        A job, or the jobs of a lot, are new; their first number.

        Raises:
            ValueError: One of them is on its way already.
        """
        before = len(self._new)
        self._new.update(ids)
        count = len(ids)
        if len(self._new) < before + count:
            message = f"job {ids[0]}, or one with it, is put twice at once"
            raise ValueError(message)
        if count == 1:
            self._alone.append(ids[0])
        else:
            self._any_lots = True
        made = lots.stem(ids[0])
        if made > self._latest:
            self._latest, self._of_latest = made, set(ids)
        elif made == self._latest:
            self._of_latest.update(ids)
        seq = self.next_seq
        self.next_seq = seq + count
        return seq

    def seen(self, id_: str) -> bool:
        """
        Whether there is such a job, or may be; asked of the tables without waiting for them.

        Ids can be sorted by time: most are newer than all that have come before. What the tables
        had at the beginning is not seen: those in memory begin empty.
        """
        made = lots.stem(id_)
        if made > self._latest:
            return False
        if id_ in self._new:
            return True
        if made == self._latest:
            return id_ in self._of_latest
        if self.db.execute("SELECT 1 FROM job WHERE id = ?", (id_,)).fetchone():
            return True
        return self._any_lots is not False and lots.containing(self.db, id_) is not None

    def check(self) -> None:
        """
        Look, before the new ones are written, for what the index of ids does not see.

        That is a job, alone, that is in a lot already. A lot that is put again comes with the id
        of its first job, which it sees.

        Raises:
            ValueError: There is one.
        """
        alone, self._alone = self._alone, []
        self._new.clear()
        if self._any_lots is None:
            self._any_lots = self.db.execute("SELECT 1 FROM lot LIMIT 1").fetchone() is not None
        if not self._any_lots or not alone:
            return
        near = self.db.execute(
            "SELECT 1 FROM lot WHERE stem IN (SELECT value FROM json_each(?)) LIMIT 1",
            (encode(list({lots.stem(id_) for id_ in alone})).decode(),),
        ).fetchone()
        if near and lots.known(self.db, alone):
            message = "a job is put again"
            raise ValueError(message)

    def clear(self) -> None:
        """What was on its way is not, any more."""
        self._new.clear()
        self._alone.clear()
