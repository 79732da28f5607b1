"""
The statements that write rows: many at once with few of them.

Must not know why anything has changed.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from jobgate.jobs.sqlite.rows import COLUMNS, encode, public

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from jobgate.jobs.sqlite.rows import Row

__all__ = [
    "ALL",
    "BODY",
    "BORN",
    "EDGE",
    "END",
    "INSERT",
    "LEASE",
    "LOT",
    "NEWBORN",
    "NODE",
    "OUTCOME",
    "START",
    "STATE",
    "TRY",
    "update",
    "write_rows",
]

_TABLE: Final = 64
"""Rows of one statement at most."""
_ALIKE: Final = 4
"""Rows that have changed alike for which a statement of their own is worth it."""

STATE: Final = 1
START: Final = 2
END: Final = 4
LEASE: Final = 8
ALL: Final = 16
_CHANGED: Final = (
    (STATE, ("state", "alarm")),
    (START, ("attempt", "started", "worker")),
    (END, ("spent", "finished")),
    (LEASE, ("due", "lease")),
)
"""By bit of `dirty`, the columns that the usual ways of a job change; `ALL` is any of them."""

BORN: Final = (
    f"INSERT INTO job ({', '.join(COLUMNS)}) VALUES {{}}",  # noqa: S608 (our own names)
    len(COLUMNS),
)
_GIVEN: Final = (
    "INSERT INTO job (seq, id, queue, state, turn, priority, attempts, created, due, alarm,"
    " expires, patience, keep, waits, flags, caller, callback, graph, size)"
)
NEWBORN: Final = (f"{_GIVEN} VALUES {{}}", 19)
INSERT: Final = (
    f"{_GIVEN} SELECT value, key, "  # noqa: S608 (our own names)
    + ", ".join([f"?{number}" for number in range(2, 19)])
    + " FROM json_each(?1)"
)
_UPDATE: Final = (
    (
        "UPDATE job SET state = v.column2, turn = v.column3, attempt = v.column4,"
        " spent = v.column5, due = v.column6, started = v.column7, finished = v.column8,"
        " alarm = v.column9, expires = v.column10, waits = v.column11, flags = v.column12,"
        " worker = v.column13, lease = v.column14 FROM (VALUES {}) AS v WHERE job.seq = v.column1"
    ),
    14,
)
LOT: Final = ("INSERT INTO lot VALUES {}", 3)
BODY: Final = ("INSERT INTO body VALUES {}", 4)
OUTCOME: Final = ("INSERT OR REPLACE INTO outcome VALUES {}", 5)
TRY: Final = ("INSERT OR REPLACE INTO try VALUES {}", 7)
NODE: Final = ("INSERT INTO node VALUES {}", 3)
EDGE: Final = ("INSERT OR IGNORE INTO edge (parent, child, place) VALUES {}", 3)


def write_rows(
    db: sqlite3.Connection, table: tuple[str, int], rows: Sequence[tuple[object, ...]]
) -> None:
    """Many rows with few statements."""
    for at in range(0, len(rows), _TABLE):
        some = rows[at : at + _TABLE]
        values: Iterable[object] = some[0] if len(some) == 1 else chain(*some)
        db.execute(_statement(*table, len(some)), tuple(values))


def update(db: sqlite3.Connection, dirty: Sequence[Row]) -> None:
    """Jobs that have changed alike with one statement, all others together with another."""
    alike: dict[tuple[Any, ...], list[Row]] = {}
    others: list[Row] = []
    for row in dirty:
        bits = row.dirty
        if not bits:
            continue
        row.dirty = 0
        if bits >= ALL:
            others.append(row)
            continue
        change: tuple[Any, ...] = (bits, public(row.state), row.alarm)
        if bits & START:
            change += (row.attempt, row.started, row.worker)
        if bits & END:
            change += (row.spent, row.finished)
        if bits & LEASE:
            change += (row.due, row.lease)
        rows = alike.get(change)
        if rows is None:
            alike[change] = [row]
        else:
            rows.append(row)
    for change, rows in alike.items():
        if len(rows) < _ALIKE and len(alike) > _ALIKE:
            others += rows
            continue
        seqs = rows[0].seq if len(rows) == 1 else encode([row.seq for row in rows]).decode()
        db.execute(_update_of(change[0], alone=len(rows) == 1), (*change[1:], seqs))
    if others:
        write_rows(
            db,
            _UPDATE,
            [
                (
                    row.seq, public(row.state), row.turn, row.attempt, row.spent, row.due,
                    row.started, row.finished, row.alarm, row.expires, row.waits, row.flags,
                    row.worker, row.lease,
                )
                for row in others
            ],
        )  # fmt: skip


@lru_cache
def _update_of(bits: int, *, alone: bool) -> str:
    columns = [column for bit, columns in _CHANGED if bits & bit for column in columns]
    changes = ", ".join(f"{column} = ?" for column in columns)
    which = "= ?" if alone else "IN (SELECT value FROM json_each(?))"
    return f"UPDATE job SET {changes} WHERE seq {which}"  # noqa: S608 (our own names)


@lru_cache(maxsize=1024)
def _statement(sql: str, width: int, count: int) -> str:
    one = "(" + ", ".join("?" * width) + ")"
    return sql.format(", ".join([one] * count))
