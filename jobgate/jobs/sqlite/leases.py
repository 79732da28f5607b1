"""
Steps: leases, which let pullers have jobs for a time.

A lease lives as long as it covers a job that runs, and is remembered for an hour after
all of them were ended through it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jobgate.jobs.journal import Leased
from jobgate.jobs.sqlite.entering import kept, remember
from jobgate.jobs.sqlite.lendings import pairs
from jobgate.jobs.sqlite.running import conclude, may_start, taken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobgate.jobs.job import Ending, Taken
    from jobgate.jobs.journal import Key, LeaseTerms
    from jobgate.jobs.sqlite.ledger import Ledger
    from jobgate.jobs.sqlite.lendings import Lending

__all__ = ["extend", "finish_lease", "lease", "leased", "leased_by_key"]

_REMEMBERED: Final = 3_600_000
"""Milliseconds for which a lease that was ended is remembered."""


def lease(ledger: Ledger, lots: Sequence[tuple[Sequence[str], int]], terms: LeaseTerms) -> Leased:
    """Jobs start with a puller; what is no longer ours (cancelled meanwhile) is left out."""
    rows = ledger.rows_of(lots)
    if terms.key is not None:
        remember(ledger, terms.key, terms.id)
    until = ledger.now + max(1, round(terms.seconds * 1000))
    lending = ledger.lendings.new(terms.id, until)
    for row, attempt in rows:
        if may_start(row, attempt):
            ledger.begin(row, attempt, terms.puller)
            ledger.lend(row, lending.seq)
            lending.rows.append(row)
    if not lending.rows:
        ledger.lendings.freed(lending.seq)
    return Leased(lending.id, until / 1000, pairs(lending.rows))


def leased(ledger: Ledger, id_: str) -> Leased | None:
    """A lease that lives, or that was ended lately."""
    lending = ledger.lendings.find(id_)
    return _leased(lending) if lending is not None and (lending.ended or lending.live) else None


def leased_by_key(ledger: Ledger, key: Key) -> tuple[Leased, list[Taken]] | None:
    """The living lease that a key was used for."""
    known = kept(ledger, key)
    lending = known and ledger.lendings.find(known.id)
    if not lending or lending.ended or not lending.live:
        return None
    return _leased(lending), taken(ledger, lending.live)


def extend(ledger: Ledger, id_: str, seconds: float) -> Leased | None:
    """Let a lease that lives last for so many seconds from now."""
    lending = ledger.lendings.find(id_)
    if lending is None or lending.ended or not lending.live:
        return None
    lending.until = ledger.now + max(1, round(seconds * 1000))
    ledger.lendings.changed(lending)
    return _leased(lending)


def finish_lease(ledger: Ledger, id_: str, ending: Ending) -> bool:
    """All that a lease covers has ended so; True, too, if it was ended before."""
    lending = ledger.lendings.find(id_)
    if lending is None:
        return False
    if lending.ended:
        return True
    rows = lending.live
    if not rows:
        return False
    for row in rows:
        conclude(ledger, row, ending)
    lending.end(ledger.now + _REMEMBERED, rows)
    ledger.lendings.changed(lending)
    return True


def _leased(lending: Lending) -> Leased:
    return Leased(lending.id, lending.until / 1000, lending.pairs)
