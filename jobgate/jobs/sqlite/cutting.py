"""
Lots are cut where something happens to some of their jobs only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobgate.jobs.sqlite.ledger import Ledger
    from jobgate.jobs.sqlite.rows import Row

__all__ = ["rows_of"]


def rows_of(ledger: Ledger, lots: Sequence[tuple[Sequence[str], int]]) -> list[tuple[Row, int]]:
    """
    Rows that are these jobs' and nobody else's.

    Args:
        ledger: Where they are.
        lots: Ids of jobs and an attempt; unknown ones are left out.

    Returns:
        In order, with the attempts.
    """
    rows: list[tuple[Row, int]] = []
    others: list[tuple[str, int]] = []
    here = ledger.desk.rows
    for ids, attempt in lots:
        row = here.get(ids[0])
        if row is not None and row.size == len(ids) and (row.size == 1 or row.ids == ids):
            if others:
                rows += _cut(ledger, others)
                others = []
            rows.append((row, attempt))
        else:
            others += [(id_, attempt) for id_ in ids]
    return rows + _cut(ledger, others) if others else rows


def _cut(ledger: Ledger, jobs: Sequence[tuple[str, int]]) -> list[tuple[Row, int]]:
    """Likewise, with an attempt for each."""
    found: dict[int, tuple[Row, dict[str, int]]] = {}
    here = ledger.desk.rows
    for id_, attempt in jobs:
        row = here.get(id_) or ledger.find(id_)[0]
        if row is not None:
            found.setdefault(row.seq, (row, {}))[1][id_] = attempt
    rows: list[tuple[Row, int]] = []
    for row, wanted in found.values():
        ids = row.ids or [row.id]
        if len(wanted) < len(ids) or len(set(wanted.values())) > 1:
            # Cut wherever one is followed by one that has nothing to do with it.
            kinds = [wanted.get(id_) for id_ in ids]
            starts = [at for at in range(1, len(ids)) if kinds[at] != kinds[at - 1]]
            parts = ledger.split(row, starts)
        else:
            parts = [row]
        rows += [(part, wanted[part.id]) for part in parts if part.id in wanted]
    return rows
