"""
Steps: leases, which let pullers have jobs for a time.

A lease lives as long as it covers a job that runs, and is remembered for an hour after
all of them were ended through it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jobgate.jobs.journal import Leased
from jobgate.jobs.sqlite.cutting import rows_of
from jobgate.jobs.sqlite.entering import kept, remember
from jobgate.jobs.sqlite.lendings import Lending, Pairs, pairs
from jobgate.jobs.sqlite.rows import decode
from jobgate.jobs.sqlite.running import conclude, may_start, taken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobgate.jobs.job import Ending, Taken
    from jobgate.jobs.journal import Key, LeaseTerms
    from jobgate.jobs.sqlite.ledger import Ledger

__all__ = ["extend", "finish_lease", "lease", "leased", "leased_by_key"]

_REMEMBERED: Final = 3_600_000
"""Milliseconds for which a lease that was ended is remembered."""


def lease(ledger: Ledger, lots: Sequence[tuple[Sequence[str], int]], terms: LeaseTerms) -> Leased:
    """Jobs start with a puller; what is no longer ours (cancelled meanwhile) is left out."""
    rows = rows_of(ledger, lots)
    if terms.key is not None:
        remember(ledger, terms.key, terms.id)
    lendings, moves = ledger.lendings, ledger.moves
    if not lendings.next_seq:
        first = ledger.db.execute("SELECT ifnull(max(seq), 0) + 1 FROM lease")
        ((lendings.next_seq,),) = first
    until = moves.now + max(1, round(terms.seconds * 1000))
    lending = lendings.new(terms.id, until)
    for row, attempt in rows:
        if may_start(row, attempt):
            moves.begin(row, attempt, terms.puller)
            moves.lend(row, lending.seq)
            lending.rows.append(row)
    if not lending.rows:
        lendings.freed(lending.seq)
    return Leased(lending.id, until / 1000, pairs(lending.rows))


def leased(ledger: Ledger, id_: str) -> Leased | None:
    """A lease that lives, or that was ended lately."""
    lending = _find(ledger, id_)
    return _leased(lending) if lending is not None and (lending.ended or lending.live) else None


def leased_by_key(ledger: Ledger, key: Key) -> tuple[Leased, list[Taken]] | None:
    """The living lease that a key was used for."""
    known = kept(ledger, key)
    lending = known and _find(ledger, known.id)
    if not lending or lending.ended or not lending.live:
        return None
    return _leased(lending), taken(ledger, lending.live)


def extend(ledger: Ledger, id_: str, seconds: float) -> Leased | None:
    """Let a lease that lives last for so many seconds from now."""
    lending = _find(ledger, id_)
    if lending is None or lending.ended or not lending.live:
        return None
    lending.until = ledger.moves.now + max(1, round(seconds * 1000))
    ledger.lendings.changed(lending)
    return _leased(lending)


def finish_lease(ledger: Ledger, id_: str, ending: Ending) -> bool:
    """All that a lease covers has ended so; True, too, if it was ended before."""
    lending = _find(ledger, id_)
    if lending is None:
        return False
    if lending.ended:
        return True
    rows = lending.live
    if not rows:
        return False
    for row in rows:
        conclude(ledger, row, ending)
    lending.end(ledger.moves.now + _REMEMBERED, rows)
    ledger.lendings.changed(lending)
    return True


def _find(ledger: Ledger, id_: str) -> Lending | None:
    """A lease, whatever became of it."""
    lending = ledger.lendings.by_id.get(id_)
    if lending is not None:
        return lending
    ledger.flush()
    found = ledger.db.execute(
        "SELECT seq, until, ended, covered FROM lease WHERE id = ?", (id_,)
    ).fetchone()
    if found is None:
        return None
    seq, until, ended, covered = found
    lending = Lending(seq, id_, until, ended, decode(covered, type=Pairs), [])
    if not lending.ended:
        lending.rows = ledger.load(
            "WHERE job.lease = ? AND job.lease > 0 AND job.state = 3 ORDER BY job.turn, job.seq",
            (lending.seq,),
        )
        ledger.lendings.keep(lending)
    return lending


def _leased(lending: Lending) -> Leased:
    return Leased(lending.id, lending.until / 1000, lending.pairs)
