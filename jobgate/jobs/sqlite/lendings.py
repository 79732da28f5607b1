"""
Leases in RAM, with the rows that they cover, and their way to the table.

A puller says soon what became of what it has, so its lease stays here for that: bounded, and
the table has all of them. Must not know what a lease is for, nor who looks one up in the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from jobgate.jobs.job import State
from jobgate.jobs.sqlite.rows import encode
from jobgate.jobs.sqlite.statements import write_rows

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from jobgate.jobs.sqlite.rows import Row

__all__ = ["Lending", "Lendings", "Pairs", "pairs"]

Pairs = tuple[tuple[str, int], ...]
"""`(id, attempt)` of jobs."""

_KEPT: Final = 4096
"""Leases at most, between two transactions."""
_TABLE: Final = (
    (
        "INSERT INTO lease VALUES {} ON CONFLICT (seq) DO UPDATE SET until = excluded.until,"
        " ended = excluded.ended, covered = excluded.covered"
    ),
    5,
)


class Lending(msgspec.Struct, gc=False):
    """
    A lease.

    Attributes:
        until: When it lapses or, once it has been ended, is forgotten; milliseconds.
        ended: 1 once all that it covered was ended through it.
        covered: `(id, attempt)` of that.
        rows: What it was given for, in order.
    """

    seq: int
    id: str
    until: int
    ended: int
    covered: Pairs
    rows: list[Row]

    @property
    def live(self) -> list[Row]:
        """What it covers still."""
        seq = self.seq
        return [row for row in self.rows if row.lease == seq and row.state == State.RUNNING]

    @property
    def pairs(self) -> Pairs:
        """`(id, attempt)` of what it covers or, once it has been ended, covered then."""
        return self.covered if self.ended else pairs(self.live)

    def end(self, until: int, rows: Sequence[Row]) -> None:
        """All of these, which it covered, have been ended."""
        self.ended, self.until = 1, until
        self.covered = pairs(rows)


class Lendings:
    """
    The leases of one ledger.

    Attributes:
        by_id: They.
        next_seq: The next one's number; 0 while the table has not been asked for it.
    """

    def __init__(self) -> None:
        self.by_id: dict[str, Lending] = {}
        self.next_seq = 0
        self._by_seq: dict[int, Lending] = {}
        self._dirty: dict[int, Lending] = {}
        self._freed: set[int] = set()

    def __contains__(self, seq: int) -> bool:
        """Whether a lease is here, by its number."""
        return seq in self._by_seq

    def new(self, id_: str, until: int) -> Lending:
        """One more lease."""
        lending = Lending(self.next_seq, id_, until, 0, (), [])
        self.next_seq += 1
        self.keep(lending)
        self._dirty[lending.seq] = lending
        return lending

    def keep(self, lending: Lending) -> None:
        """One that the table has is here, too."""
        self.by_id[lending.id] = lending
        self._by_seq[lending.seq] = lending

    def changed(self, lending: Lending) -> None:
        """The table does not know yet what became of it."""
        self._dirty[lending.seq] = lending

    def freed(self, seq: int) -> None:
        """A lease covers a row less."""
        self._freed.add(seq)

    def forget(self, seq: int) -> list[Row]:
        """Keep a lease no longer; its rows."""
        lending = self._by_seq.pop(seq, None)
        if lending is None:
            return []
        del self.by_id[lending.id]
        return lending.rows

    def write(self, db: sqlite3.Connection) -> None:
        """Bring the table up to date."""
        if self._dirty:
            rows = [
                (each.seq, each.id, each.until, each.ended, encode(each.covered).decode())
                for each in self._dirty.values()
            ]
            write_rows(db, _TABLE, rows)
            self._dirty.clear()

    def tidy(self) -> list[Row]:
        """The table knows all: let those go that cover nothing more, or are too many."""
        for seq in self._freed:
            lending = self._by_seq.get(seq)
            if lending is not None and not lending.live:
                self.forget(seq)
        self._freed.clear()
        rows: list[Row] = []
        if len(self._by_seq) > _KEPT:
            for seq in list(self._by_seq)[: len(self._by_seq) - _KEPT]:
                rows += self.forget(seq)
        return rows

    def clear(self) -> list[Row]:
        """Forget them all; their rows."""
        rows = [row for lending in self._by_seq.values() for row in lending.rows]
        for each in (self.by_id, self._by_seq, self._dirty, self._freed):
            each.clear()
        self.next_seq = 0
        return rows


def pairs(rows: Sequence[Row]) -> Pairs:
    """`(id, attempt)` of each of their jobs."""
    return tuple([(id_, row.attempt) for row in rows for id_ in row.ids or (row.id,)])
