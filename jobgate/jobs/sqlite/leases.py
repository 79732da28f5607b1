"""
Steps: leases, which let pullers have jobs for a time.

A lease lives as long as it covers a job that runs, and is remembered for an hour after
all of them were ended through it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from jobgate.jobs.journal import Leased
from jobgate.jobs.sqlite.entering import kept, remember
from jobgate.jobs.sqlite.rows import decode, encode
from jobgate.jobs.sqlite.running import conclude, may_start, taken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobgate.jobs.job import Ending, Taken
    from jobgate.jobs.journal import Key, LeaseTerms
    from jobgate.jobs.sqlite.ledger import Ledger
    from jobgate.jobs.sqlite.rows import Row

__all__ = ["extend", "finish_lease", "lease", "leased", "leased_by_key"]

_REMEMBERED: Final = 3_600_000
"""Milliseconds for which a lease that was ended is remembered."""


def lease(ledger: Ledger, jobs: Sequence[tuple[str, int]], terms: LeaseTerms) -> Leased:
    """Jobs start with a puller; what is no longer ours (cancelled meanwhile) is left out."""
    until = ledger.now + max(1, round(terms.seconds * 1000))
    number = ledger.db.execute(
        "INSERT INTO lease (id, until) VALUES (?, ?)", (terms.id, until)
    ).lastrowid
    assert number is not None, "it has just been inserted"
    covered = []
    for row, attempt in ledger.rows_of(jobs):
        if may_start(row, attempt):
            ledger.begin(row, attempt, terms.puller)
            ledger.lend(row, number)
            covered.append(row)
    if terms.key is not None:
        remember(ledger, terms.key, terms.id)
    return _leased(terms.id, until, covered)


def leased(ledger: Ledger, id_: str) -> Leased | None:
    """A lease that lives, or that was ended lately."""
    found = _find(ledger, id_)
    if found is None:
        return None
    number, until, ended, covered = found
    if ended:
        return Leased(id_, until / 1000, tuple((job, attempt) for job, attempt in decode(covered)))
    rows = _rows(ledger, number)
    return _leased(id_, until, rows) if rows else None


def leased_by_key(ledger: Ledger, key: Key) -> tuple[Leased, list[Taken]] | None:
    """The living lease that a key was used for."""
    known = kept(ledger, key)
    found = known and _find(ledger, known.id)
    if not known or not found or found[2]:
        return None
    rows = _rows(ledger, found[0])
    if not rows:
        return None
    return _leased(known.id, found[1], rows), taken(ledger, rows)


def extend(ledger: Ledger, id_: str, seconds: float) -> Leased | None:
    """Let a lease that lives last for so many seconds from now."""
    found = _find(ledger, id_)
    if found is None or found[2]:
        return None
    rows = _rows(ledger, found[0])
    if not rows:
        return None
    until = ledger.now + max(1, round(seconds * 1000))
    ledger.db.execute("UPDATE lease SET until = ? WHERE seq = ?", (until, found[0]))
    return _leased(id_, until, rows)


def finish_lease(ledger: Ledger, id_: str, ending: Ending) -> bool:
    """All that a lease covers has ended so; True, too, if it was ended before."""
    found = _find(ledger, id_)
    if found is None:
        return False
    number, _, ended, _ = found
    if ended:
        return True
    rows = _rows(ledger, number)
    for row in rows:
        conclude(ledger, row, ending)
    if rows:
        ledger.db.execute(
            "UPDATE lease SET ended = 1, until = ?, covered = ? WHERE seq = ?",
            (
                ledger.now + _REMEMBERED,
                encode(_pairs(rows)).decode(),
                number,
            ),
        )
    return bool(rows)


def _find(ledger: Ledger, id_: str) -> tuple[int, int, int, str] | None:
    ledger.flush()
    found: Any = ledger.db.execute(
        "SELECT seq, until, ended, covered FROM lease WHERE id = ?", (id_,)
    ).fetchone()
    return None if found is None else tuple(found)


def _rows(ledger: Ledger, number: int) -> list[Row]:
    return ledger.load(
        "WHERE job.lease = ? AND job.lease > 0 AND job.state = 3 ORDER BY job.turn, job.seq",
        (number,),
    )


def _leased(id_: str, until: int, rows: Sequence[Row]) -> Leased:
    return Leased(id_, until / 1000, tuple(_pairs(rows)))


def _pairs(rows: Sequence[Row]) -> list[tuple[str, int]]:
    return [(id_, row.attempt) for row in rows for id_ in row.ids or (row.id,)]
