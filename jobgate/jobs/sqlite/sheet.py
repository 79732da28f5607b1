"""
The sheet on which is gathered what the tables are to be told, and from which it is written.

Few statements for many rows. Must not know why anything has changed, nor when it is time to write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import astuple

from jobgate.jobs.sqlite.newcomers import Alike, in_common
from jobgate.jobs.sqlite.rows import COLUMNS, Row, encode, public
from jobgate.jobs.sqlite.statements import (
    BODY,
    BORN,
    EDGE,
    INSERT,
    LOT,
    NEWBORN,
    NODE,
    OUTCOME,
    TRY,
    update,
    write_rows,
)

if TYPE_CHECKING:
    import sqlite3

    from jobgate.jobs.job import NewJob

__all__ = ["OWED", "WEIGHT", "Sheet"]

OWED: Final = 128
"""Rows that RAM alone may know, where it may be so, and others in proportion to their bodies:"""
WEIGHT: Final = 12
"""so many bits of the length count as one."""


class Sheet:
    """
    Rows on their way to the tables.

    Attributes:
        unborn: New rows of jobs that RAM works on; they go in as they are by then.
        newborn: Others, as the columns of `statements.NEWBORN`.
        bodies: Of new jobs, all of them.
        lots: Whose jobs the new lots are.
        nodes: Which new jobs are in graphs.
        edges: Which jobs need which others.
        tries: Attempts that have failed.
        outcomes: What jobs have come to, by number; they take the place of earlier ones.
        dirty: Rows of jobs that have changed, with the bits that say how.
        live: By graph, how many more of its jobs are to end.
        owed: How much all this is, in rows; `OWED` and more if it should not wait.
    """

    def __init__(self) -> None:
        self.unborn: list[Row] = []
        self.newborn: list[tuple[object, ...]] = []
        self.bodies: list[tuple[object, ...]] = []
        self.lots: list[tuple[object, ...]] = []
        self.nodes: list[tuple[object, ...]] = []
        self.edges: list[tuple[object, ...]] = []
        self.tries: list[tuple[object, ...]] = []
        self.outcomes: dict[int, tuple[object, ...]] = {}
        self.dirty: list[Row] = []
        self.live: dict[int, int] = {}
        self.owed = 0
        self._alike: dict[tuple[object, ...], Alike] = {}

    def alike(
        self, job: NewJob, now: int, graph: int, waits: int, size: int, *, claim: bool
    ) -> Alike:
        """What a new job has in common with others that are written with it."""
        like = (
            now, job.queue, job.priority, job.attempts, job.delay, job.expires, job.keep,
            job.caller, job.callback, job.call, job.once, job.when, not job.needs, claim, graph,
            waits, size,
        )  # fmt: skip
        alike = self._alike.get(like)
        if alike is None:
            fresh = in_common(job, now, graph, waits, size, claim=claim)
            alike = self._alike[like] = Alike(*fresh)
        return alike

    def write(self, db: sqlite3.Connection, now: int) -> None:
        """Bring the tables up to date; what is on the sheet is then no more."""
        if self.bodies:
            self._write_new(db)
        if self.nodes:
            write_rows(db, NODE, self.nodes)
            self.nodes.clear()
        if self.edges:
            write_rows(db, EDGE, self.edges)
            self.edges.clear()
        if self.dirty:
            update(db, self.dirty)
            self.dirty.clear()
        if self.outcomes:
            write_rows(db, OUTCOME, list(self.outcomes.values()))
            self.outcomes.clear()
        if self.tries:
            write_rows(db, TRY, self.tries)
            self.tries.clear()
        if self.live:
            for graph, more in self.live.items():
                db.execute(
                    "UPDATE graph SET live = live + ?1, finished = ?2 * (live + ?1 = 0)"
                    " WHERE seq = ?3",
                    (more, now, graph),
                )
            self.live.clear()

    def clear(self) -> None:
        """Nothing of it is to be written."""
        for pending in (
            self.unborn,
            self.newborn,
            self.bodies,
            self.lots,
            self.nodes,
            self.edges,
            self.tries,
            self.outcomes,
            self.dirty,
            self.live,
            self._alike,
        ):
            pending.clear()
        self.owed = 0

    def _write_new(self, db: sqlite3.Connection) -> None:
        """Rows of jobs that the tables do not know, with their bodies."""
        if self.unborn:
            born = []
            for row in self.unborn:
                row.dirty = 0
                values = astuple(row)
                born.append((*values[:3], public(row.state), *values[4 : len(COLUMNS)]))
            write_rows(db, BORN, born)
            self.unborn.clear()
        if self.newborn:
            write_rows(db, NEWBORN, self.newborn)
            self.newborn.clear()
        for alike in self._alike.values():
            db.execute(INSERT, (encode(alike.numbers).decode(), *alike.fixed))
        self._alike.clear()
        if self.lots:
            write_rows(db, LOT, self.lots)
            self.lots.clear()
        write_rows(db, BODY, self.bodies)
        self.bodies.clear()
