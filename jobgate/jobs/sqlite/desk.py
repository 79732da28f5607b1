"""
The rows of jobs that are in RAM: those that this gate has, and those that steps work on.

Knows which of them must stay, and for how long. Must not know why a row has changed, nor tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobgate.jobs.job import State
from jobgate.jobs.sqlite.rows import HELD, Row

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jobgate.jobs.sqlite.lendings import Lendings

__all__ = ["Desk"]


class Desk:
    """
    Rows in RAM, each there once.

    Args:
        lendings: The leases in RAM; what they cover stays.

    Attributes:
        rows: By the id of each of their jobs.
        touched: By number, what steps have worked on since the last `settle`.
        unwritten: Likewise, what was touched before and the tables do not know as it is.
    """

    def __init__(self, lendings: Lendings) -> None:
        self.rows: dict[str, Row] = {}
        self.touched: dict[int, Row] = {}
        self.unwritten: dict[int, Row] = {}
        self._lendings = lendings
        self._held: set[int] = set()

    def remember(self, row: Row) -> None:
        """A row comes."""
        self.touched[row.seq] = row
        if row.size == 1:
            self.rows[row.id] = row
        else:
            self.rows.update(dict.fromkeys(row.ids, row))

    def known(self, row: Row) -> Row:
        """A row as the tables have it, or as it is here already."""
        known = self.rows.get(row.id)
        if known is None:
            if row.seq in self._held:
                row.state = HELD
            self.remember(row)
            return row
        self.touched[row.seq] = known
        return known

    def held(self) -> list[int]:
        """The numbers of the jobs that this gate holds, what is under way included."""
        now = {seq for seq, row in self.touched.items() if row.state == HELD}
        return list(now | (self._held - self.touched.keys()))

    def under_way(self, state: State) -> set[int]:
        """The numbers of the rows in a state that have been touched."""
        return {row.seq for row in self.touched.values() if row.state == state}

    def settle(self) -> None:
        """What has happened to the touched is to last: let go of those that are done with."""
        for seq, row in self.touched.items():
            if row.state == HELD:
                self._held.add(seq)
                continue
            self._held.discard(seq)
            if row.dirty:
                self.unwritten[seq] = row
            elif not self._stays(row):
                self.let_go(row)
        self.touched.clear()

    def written(self) -> None:
        """The tables know all: let go of those that were waiting for that."""
        for row in self.unwritten.values():
            if row.state != HELD and not self._stays(row):
                self.let_go(row)
        self.unwritten.clear()

    def let_go(self, row: Row) -> None:
        """A row goes."""
        for id_ in row.ids or (row.id,):
            self.rows.pop(id_, None)

    def drop(self, rows: Iterable[Row]) -> None:
        """Jobs are no more."""
        for row in rows:
            row.dirty = 0
            self.let_go(row)

    def clear(self) -> None:
        """What has been touched is not to last: it is as the tables have it."""
        for row in self.touched.values():
            self.let_go(row)
        self.touched.clear()
        self.unwritten.clear()

    def _stays(self, row: Row) -> bool:
        """Whether a row that is not held is kept."""
        return row.state == State.RUNNING and (not row.lease or row.lease in self._lendings)
