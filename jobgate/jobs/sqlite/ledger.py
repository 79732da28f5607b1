"""
What steps are given: jobs by their ids or by a SELECT, be they in RAM or in the tables.

Sees to it that whoever reads finds all that has happened: what is on the sheet is written first,
with what follows from it. `commit` makes it last, `rollback` forgets it. Must not know threads,
Deferreds, files, or why a step was asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobgate.jobs.sqlite import lots
from jobgate.jobs.sqlite.consequences import put_notices, settle_dependents
from jobgate.jobs.sqlite.desk import Desk
from jobgate.jobs.sqlite.ids import Ids
from jobgate.jobs.sqlite.lendings import Lendings
from jobgate.jobs.sqlite.moves import Moves
from jobgate.jobs.sqlite.rows import NEEDED, ROW, Row, decode, encode
from jobgate.jobs.sqlite.sheet import OWED, Sheet

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from jobgate.jobs.job import Change

__all__ = ["Ledger", "TablesNeeded"]


class TablesNeeded(Exception):
    """A step cannot do without the tables."""


class Ledger:
    """
    Jobs, between steps and tables.

    Args:
        db: The only connection.

    Attributes:
        in_ram: The step under way is to do without the tables, or to say so before it has
            changed anything, by TablesNeeded.
        careful: Whether a put looks for what is there already, instead of failing.
        ids: Which are taken.
        desk: The rows in RAM.
        sheet: What the tables are to be told.
        lendings: The leases that are in RAM, with their rows.
        moves: What happens to jobs.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.in_ram = False
        self.careful = False
        self.ids = Ids(db)
        self.sheet = Sheet()
        self.lendings = Lendings()
        self.desk = Desk(self.lendings)
        self.moves = Moves(self.ids, self.desk, self.sheet, self.lendings)

    # --- the tables

    @property
    def db(self) -> sqlite3.Connection:
        """
        The tables.

        Raises:
            TablesNeeded: The step under way was to do without.
        """
        if self.in_ram:
            raise TablesNeeded
        return self._db

    def need_tables(self) -> None:
        """Raise TablesNeeded if the step under way was to do without."""
        if self.in_ram:
            raise TablesNeeded

    def reach(self, db: sqlite3.Connection) -> None:
        """The same tables, by another connection: what RAM has of them is read anew."""
        self._db.close()
        self._db = self.ids.db = db
        self.desk.rows.clear()
        self.lendings.clear()

    # --- the transaction

    def flush(self) -> None:
        """
        Bring the tables up to date, and let go or cancel what needs those that have ended.

        Raises:
            TablesNeeded: The step under way was to do without.
        """
        if self.in_ram:
            raise TablesNeeded
        db, moves, sheet = self._db, self.moves, self.sheet
        while True:
            if sheet.bodies:
                self.ids.check()
            sheet.write(db, moves.now)
            self.lendings.write(db)
            if moves.ended:
                ended, moves.ended = moves.ended, []
                settle_dependents(self, ended)
            elif moves.notices:
                notices, moves.notices = moves.notices, []
                put_notices(self, notices)
            else:
                return

    def commit(self) -> list[Change]:
        """Write all that has changed and make it last; what has changed."""
        self.flush()
        self._db.execute("COMMIT")
        desk = self.desk
        if desk.unwritten:
            desk.written()
        self.sheet.owed = 0
        changes = self.moves.keep()
        for row in self.lendings.tidy():
            desk.let_go(row)
        return changes

    @property
    def owes(self) -> bool:
        """Whether RAM alone knows so much that it should be written, or what must have effects."""
        return self.sheet.owed >= OWED

    def rollback(self) -> None:
        """Forget it all."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self.ids.clear()
        self.sheet.clear()
        self.moves.clear()
        self.desk.clear()
        for row in self.lendings.clear():
            self.desk.let_go(row)

    # --- reading

    def row(self, id_: str) -> Row | None:
        """A job by its id, alone."""
        found, index = self.find(id_)
        if found is None or found.size == 1:
            return found
        return self.split(found, range(1, found.size))[index]

    def find(self, id_: str) -> tuple[Row | None, int]:
        """A job by its id, or the lot that it is in, and where in it."""
        found = self.desk.rows.get(id_)
        if found is None:
            rows = self.load("WHERE job.id = ?", (id_,))
            if not rows:
                seq = lots.containing(self.db, id_)
                if seq is None:
                    return None, 0
                rows = self.load("WHERE job.seq = ?", (seq,))
            found = rows[0]
        return found, found.ids.index(id_) if found.size > 1 else 0

    def load(self, where: str, values: Sequence[object] = ()) -> list[Row]:
        """Jobs, by what follows `FROM job` in a SELECT; those in RAM already are the same rows."""
        self.flush()
        (text,) = self.db.execute(
            f"SELECT group_concat(row, ',') FROM (SELECT {ROW} AS row FROM job {where})",  # noqa: S608
            values,
        ).fetchone()
        known = self.desk.known
        # Put together here: SQLite would read each of them again to be sure that it is JSON.
        return [known(row) for row in decode(f"[{text or ''}]", type=list[Row])]

    def ask(self, select: str, values: Sequence[object] = ()) -> list[Any]:
        """What a SELECT of one column of JSON finds, in one step."""
        self.flush()
        (text,) = self.db.execute(
            f"SELECT json_group_array(json(x)) FROM ({select})",  # noqa: S608
            values,
        ).fetchone()
        found: list[Any] = decode(text)
        return found

    def known(self, ids: Sequence[str]) -> list[str]:
        """Those of the ids under which there is a job."""
        self.flush()
        return lots.known(self.db, ids)

    # --- what only the tables can do

    def split(self, row: Row, starts: Sequence[int]) -> list[Row]:
        """Make several rows of a lot's, of which the others begin at these of its jobs."""
        self.flush()
        desk = self.desk
        desk.let_go(row)
        if row.lease:
            # It is to be looked up anew, with all its rows.
            desk.touched.update((each.seq, each) for each in self.lendings.forget(row.lease))
        parts = lots.split(self.db, row, starts)
        for part in parts:
            desk.remember(part)
        return parts

    def need(self, seqs: Sequence[int]) -> None:
        """New jobs are needed by others."""
        self.flush()
        self.db.execute(
            "UPDATE job SET flags = flags | ? WHERE seq IN (SELECT value FROM json_each(?))",
            (NEEDED, encode(seqs).decode()),
        )
        needed = set(seqs)
        for row in self.desk.touched.values():
            if row.seq in needed:
                row.flags |= NEEDED
