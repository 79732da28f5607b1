"""
What follows when jobs end: those that need them go on or are cancelled, and who asked is told.

Knows the rules, and nothing of how a ledger keeps its rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobgate.errors import Cancelled
from jobgate.jobs.job import Change, State, callback, document
from jobgate.jobs.sqlite.rows import EITHER, encode, public

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jobgate.jobs.sqlite.ledger import Ledger
    from jobgate.jobs.sqlite.rows import Row

__all__ = ["need_ended", "put_notices", "settle_dependents"]

_Ready = tuple[str, str, int, str, str]
"""A job that waits for a worker from now on: id, queue, attempt, graph, caller."""


def settle_dependents(ledger: Ledger, rows: Sequence[Row]) -> None:
    """These have ended: what needs them is let go, or never runs."""
    ended = {row.seq: row for row in rows}
    good = [row.seq for row in ended.values() if row.state == State.SUCCEEDED]
    if good:
        _meet(ledger, encode(good).decode())
    if len(good) < len(ended):
        _disappoint(ledger, ended)
    ledger.db.execute(
        "UPDATE edge SET met = 1 WHERE parent IN (SELECT value FROM json_each(?))",
        (encode(list(ended)).decode(),),
    )


def _meet(ledger: Ledger, parents: str) -> None:
    """These have succeeded: what needs them waits for fewer."""
    found: list[tuple[int, int, int, bool, _Ready]] = ledger.ask(
        "SELECT json_array(edge.child, job.waits, count(*), job.due > ?2, CASE job.waits"
        " WHEN count(*) THEN json_array(job.id, job.queue, job.attempt,"
        " ifnull((SELECT id FROM graph WHERE seq = job.graph), ''), job.caller) END) AS x"
        " FROM edge JOIN job ON job.seq = edge.child WHERE job.state = 0 AND edge.met = 0"
        " AND edge.parent IN (SELECT value FROM json_each(?1)) GROUP BY edge.child",
        (parents, ledger.moves.now),
    )
    # Who only waits for fewer from now on, or for a worker, need not come into RAM, unless
    # it is there.
    here = ledger.desk.under_way(State.BLOCKED)
    fewer: dict[int, list[int]] = {}
    ready = []
    less = {}
    for child, waits, count, later, job in found:
        if child in here or (later and count == waits):
            less[child] = count
        elif count < waits:
            fewer.setdefault(count, []).append(child)
        else:
            ready.append(child)
            name, queue, attempt, graph, caller = job
            ledger.moves.changes.append(
                Change(name, queue, State.QUEUED, attempt, graph, State.BLOCKED, caller=caller)
            )
    for count, seqs in fewer.items():
        ledger.db.execute(
            "UPDATE job SET waits = waits - ? WHERE seq IN (SELECT value FROM json_each(?))",
            (count, encode(seqs).decode()),
        )
    if ready:
        ledger.db.execute(
            "UPDATE job SET state = 2, waits = 0, due = 0, alarm = expires"
            " WHERE seq IN (SELECT value FROM json_each(?))",
            (encode(ready).decode(),),
        )
    if less:
        for row in _children(ledger, less):
            _wait_for_fewer(ledger, row, less[row.seq])


def _disappoint(ledger: Ledger, ended: dict[int, Row]) -> None:
    """These have ended, and not all of them well."""
    edges: list[tuple[int, int]] = ledger.ask(
        "SELECT json_array(parent, child) AS x FROM edge WHERE met = 0"
        " AND parent IN (SELECT value FROM json_each(?)) ORDER BY child, place",
        (encode([seq for seq, row in ended.items() if row.state != State.SUCCEEDED]).decode(),),
    )
    if edges:
        children = {row.seq: row for row in _children(ledger, {child for _, child in edges})}
        for parent, child in edges:
            need_ended(ledger, children[child], ended[parent])


def _children(ledger: Ledger, seqs: Iterable[int]) -> list[Row]:
    text = encode(list(seqs)).decode()
    return ledger.load("WHERE job.seq IN (SELECT value FROM json_each(?))", (text,))


def need_ended(ledger: Ledger, row: Row, parent: Row) -> None:
    """What a job needs has ended: if it is blocked it waits for one less, or never runs."""
    if row.state != State.BLOCKED:
        return
    if parent.state == State.SUCCEEDED or row.flags & EITHER:
        _wait_for_fewer(ledger, row, 1)
        return
    word = public(parent.state).word
    why = f"it needed {parent.name or parent.id}, which is {word}"
    ledger.moves.end(row, State.CANCELLED, None, document(Cancelled(why)))


def _wait_for_fewer(ledger: Ledger, row: Row, count: int) -> None:
    row.waits -= count
    ledger.moves.touch(row)
    if not row.waits:
        later = row.due > ledger.moves.now
        if not later:
            row.due = 0
        ledger.moves.move(row, State.SCHEDULED if later else State.QUEUED)


def put_notices(ledger: Ledger, rows: Sequence[Row]) -> None:
    """The ends that are to be told: commands for the queue of callbacks."""
    told = {callback(row.id, public(row.state), row.callback).id: row for row in rows}
    for before in ledger.known(list(told)):
        # Retried since: whoever sorts out what came twice must not take this for the same end.
        row = told.pop(before)
        again = callback(row.id, public(row.state), row.callback, row.attempt)
        if not ledger.known([again.id]):
            ledger.moves.add(again)
    for row in told.values():
        ledger.moves.add(callback(row.id, public(row.state), row.callback))
