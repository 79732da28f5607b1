"""
Steps: what people do to jobs, what time does, and what a gate's death has done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jobgate.errors import Cancelled, Purged, WorkerDied
from jobgate.jobs.job import TERMINAL, State, document
from jobgate.jobs.journal import Due
from jobgate.jobs.sqlite.asking import documents, queues
from jobgate.jobs.sqlite.rows import GONE, HELD, ONCE, encode

if TYPE_CHECKING:
    from jobgate.jobs.job import Job
    from jobgate.jobs.sqlite.ledger import Ledger
    from jobgate.jobs.sqlite.rows import Row

__all__ = ["cancel", "forget", "purge", "recover", "retry", "sweep"]

_SLICE: Final = 500
"""Jobs of one kind that one sweep, or one slice of a purge, looks at; a lot more at the most."""
_REMEMBERED: Final = 24 * 3600 * 1000
"""Milliseconds for which it is remembered that there was an outcome."""
_AGAIN: Final = 60_000
"""Milliseconds until what cannot be dropped yet is looked at again, at least."""


def cancel(ledger: Ledger, id_: str, reason: str) -> Job | None:
    """End a job, or a graph's jobs; the job as it was."""
    error = document(Cancelled(reason))
    row = ledger.row(id_)
    if row is not None:
        (before,) = documents(ledger, [row])
        if not TERMINAL <= row.state <= State.DEAD:
            ledger.moves.end(row, State.CANCELLED, None, error)
        return before
    for each in ledger.load(
        "JOIN node AS n ON n.seq = job.seq JOIN graph AS g ON g.seq = n.graph"
        " WHERE g.id = ? AND job.state < 4 ORDER BY n.seq",
        (id_,),
    ):
        ledger.moves.end(each, State.CANCELLED, None, error)
    return None


def retry(ledger: Ledger, id_: str) -> bool:
    """Queue a dead or failed job anew, as long as its body is kept."""
    row = ledger.row(id_)
    if row is None or row.state not in (State.FAILED, State.DEAD) or row.flags & GONE:
        return False
    ledger.moves.revive(row)
    return True


def forget(ledger: Ledger, id_: str) -> None:
    """Remove a job that has ended, or that this gate holds, and its key."""
    row = ledger.row(id_)
    if row is not None and row.state == HELD:
        ledger.moves.move(row, State.CANCELLED)
    if row is None or not TERMINAL <= row.state <= State.DEAD:
        return
    ledger.flush()
    _drop_outcomes(ledger, [row.seq])
    _delete(ledger, [row])
    ledger.db.execute("DELETE FROM key WHERE target = ?", (id_,))


def purge(ledger: Ledger, queue: str, below: int) -> tuple[int, int]:
    """
    Cancel a slice of what waits, then drop a slice of the dead; how many, and `below`.

    Args:
        ledger: The rows.
        queue: Its name.
        below: Leave what came later; 0: nothing has.
    """
    below = below or ledger.ids.next_seq
    error = document(Purged("the queue was emptied by an operator"))
    held = encode(ledger.desk.held()).decode()
    rows: list[Row] = []
    for state in (State.QUEUED, State.SCHEDULED, State.BLOCKED):
        rows = _slice(
            ledger,
            f"WHERE job.queue = ? AND job.state = {int(state)} AND job.seq < ?"  # noqa: S608 (a number)
            " AND job.seq NOT IN (SELECT value FROM json_each(?)) ORDER BY job.seq",
            (queue, below, held),
        )
        if rows:
            break
    for row in rows:
        ledger.moves.end(row, State.CANCELLED, None, error)
    if rows:
        return sum(row.size for row in rows), below
    dead = _slice(
        ledger,
        "WHERE job.queue = ? AND job.state = 7 AND job.flags & ? = 0 AND job.seq < ?"
        " ORDER BY job.seq",
        (queue, GONE, below),
    )
    _go(ledger, dead)
    return sum(row.size for row in dead), below


def sweep(ledger: Ledger) -> Due:
    """Do what time demands, a slice at a time."""
    now = ledger.moves.now
    rows = _slice(ledger, "WHERE job.alarm > 0 AND job.alarm <= ? ORDER BY job.alarm", (now,))
    expired: list[Row] = []
    over: list[Row] = []
    for row in rows:
        if TERMINAL <= row.state <= State.DEAD:
            over.append(row)
        elif row.expires and row.expires <= now:
            expired.append(row)
        else:
            row.due = 0
            ledger.moves.move(row, State.QUEUED)
    _drop(ledger, over)
    lapsed = _slice(
        ledger,
        "JOIN lease ON lease.seq = job.lease WHERE job.lease > 0 AND job.state = 3"
        " AND lease.ended = 0 AND lease.until <= ? ORDER BY lease.until",
        (now,),
    )
    ledger.flush()
    ledger.db.execute(
        "DELETE FROM lease WHERE until <= ? AND NOT EXISTS"
        " (SELECT 1 FROM job WHERE job.lease = lease.seq AND job.lease > 0)",
        (now,),
    )
    _drop_keys(ledger)
    return Due(
        tuple(documents(ledger, lapsed)),
        tuple(documents(ledger, expired)),
        _next(ledger, full=_is_slice(rows) or _is_slice(lapsed)),
    )


def _slice(ledger: Ledger, where: str, values: tuple[object, ...]) -> list[Row]:
    """The first of these rows, with as many jobs as are looked at in one go."""
    seqs, total = [], 0
    for seq, size in ledger.ask(
        f"SELECT json_array(job.seq, job.size) AS x FROM job {where} LIMIT ?",  # noqa: S608 (ours)
        (*values, _SLICE),
    ):
        seqs.append(seq)
        total += size
        if total >= _SLICE:
            break
    if not seqs:
        return []
    found = {
        row.seq: row
        for row in ledger.load(
            "WHERE job.seq IN (SELECT value FROM json_each(?))", (encode(seqs).decode(),)
        )
    }
    return [found[seq] for seq in seqs]


def _is_slice(rows: list[Row]) -> bool:
    """Whether there may be more of them."""
    return sum(row.size for row in rows) >= _SLICE


def recover(ledger: Ledger, seen: int) -> dict[str, list[int]]:
    """
    Put right what a dead gate has left.

    Args:
        ledger: The rows.
        seen: When the last gate is known to have lived.

    Returns:
        For each queue with jobs that have not ended: how many, by state.
    """
    db = ledger.db
    if seen:
        db.execute("UPDATE lease SET until = until + ? WHERE ended = 0", (ledger.moves.now - seen,))
    names = queues(ledger)
    died = document(WorkerDied("the gate died, and the command may have run", executed="maybe"))
    # A call has lost its caller, wherever it stood; what may start only once may have.
    for row in ledger.load("WHERE job.flags & 1 AND job.state < 4"):
        if row.state in (State.BLOCKED, State.SCHEDULED):
            ledger.moves.move(row, State.QUEUED)
        ledger.moves.end(row, State.FAILED, None, died)
    for name in names:
        for row in ledger.load("WHERE job.queue = ? AND job.state = 3 AND job.lease = 0", (name,)):
            if row.flags & ONCE:
                ledger.moves.failed(row, died, "")
                ledger.moves.end(row, State.DEAD, None, died)
            else:
                ledger.moves.move(row, State.QUEUED)
    ledger.flush()
    counts: dict[str, list[int]] = {}
    for name in queues(ledger):
        by_state = [0] * len(State)
        for state, count in ledger.ask(
            "SELECT json_array(state, sum(size)) AS x FROM job"
            " WHERE queue = ? AND state IN (0, 1, 2, 3) GROUP BY state",
            (name,),
        ):
            by_state[state] = count
        if any(by_state):
            counts[name] = by_state
    return counts


def _drop(ledger: Ledger, rows: list[Row]) -> None:
    """Outcomes have been kept long enough: they go, and a day later the jobs themselves."""
    needed = _still_needed(ledger, rows)
    for row in rows:
        if row.seq in needed:
            until = needed[row.seq] + row.keep
            row.alarm = until if until > ledger.moves.now else ledger.moves.now + _AGAIN
            ledger.moves.touch(row)
    rows = [row for row in rows if row.seq not in needed]
    _go(ledger, [row for row in rows if not row.flags & GONE])
    _delete(ledger, [row for row in rows if row.flags & GONE and row.alarm <= ledger.moves.now])


def _still_needed(ledger: Ledger, rows: list[Row]) -> dict[int, int]:
    """
    Whose outcome others may still ask for: their graph's, or a job that needs it.

    Returns:
        By number, until when: the end of its graph, or 0 if that is not known yet.
    """
    rows = [row for row in rows if not row.flags & GONE]
    if not rows:
        return {}
    found = ledger.ask(
        "SELECT json_array(job.seq, coalesce(graph.finished, 0)) AS x FROM json_each(?) AS j"
        " JOIN job ON job.seq = j.value LEFT JOIN graph ON job.graph > 0 AND graph.seq = job.graph"
        " WHERE graph.live > 0 OR graph.finished + job.keep > ? OR (job.flags & 16 AND EXISTS"
        " (SELECT 1 FROM edge JOIN job AS child ON child.seq = edge.child"
        " WHERE edge.parent = job.seq AND child.finished = 0))",
        (encode([row.seq for row in rows]).decode(), ledger.moves.now),
    )
    return dict(found)


def _go(ledger: Ledger, rows: list[Row]) -> None:
    if not rows:
        return
    ledger.flush()
    _drop_outcomes(ledger, [row.seq for row in rows])
    for row in rows:
        row.flags |= GONE
        row.alarm = ledger.moves.now + _REMEMBERED
        ledger.moves.touch(row)


def _drop_outcomes(ledger: Ledger, seqs: list[int]) -> None:
    text = encode(seqs).decode()
    for table in ("body", "outcome", "try"):
        ledger.db.execute(
            f"DELETE FROM {table} WHERE seq IN (SELECT value FROM json_each(?))",  # noqa: S608
            (text,),
        )


def _delete(ledger: Ledger, rows: list[Row]) -> None:
    if not rows:
        return
    ledger.flush()
    db = ledger.db
    text = encode([row.seq for row in rows]).decode()
    db.execute("DELETE FROM edge WHERE parent IN (SELECT value FROM json_each(?))", (text,))
    db.execute("DELETE FROM edge WHERE child IN (SELECT value FROM json_each(?))", (text,))
    db.execute("DELETE FROM lot WHERE seq IN (SELECT value FROM json_each(?))", (text,))
    db.execute("DELETE FROM job WHERE seq IN (SELECT value FROM json_each(?))", (text,))
    graphs = {row.graph for row in rows if row.graph}
    for number in graphs:
        db.execute(
            "DELETE FROM node WHERE graph = ? AND seq IN (SELECT value FROM json_each(?))",
            (number, text),
        )
        db.execute(
            "DELETE FROM graph WHERE seq = ?1 AND NOT EXISTS (SELECT 1 FROM node WHERE graph = ?1)",
            (number,),
        )
    ledger.desk.drop(rows)


def _drop_keys(ledger: Ledger) -> None:
    """Keys go so long after the end of what they name, or when that is no more."""
    now = ledger.moves.now
    for scope, keep, finished in ledger.ask(
        "SELECT json_array(scope, keep, coalesce("
        "(SELECT finished FROM job WHERE id = target),"
        " (SELECT CASE live WHEN 0 THEN finished ELSE 0 END FROM graph WHERE id = target),"
        " (SELECT CASE WHEN ended THEN 1 WHEN until > ?1 THEN 0"
        " ELSE EXISTS (SELECT 1 FROM job WHERE lease > 0 AND lease = lease.seq) = 0 END"
        " FROM lease WHERE id = target), 1)) AS x"
        " FROM key WHERE alarm <= ?1 ORDER BY alarm LIMIT ?2",
        (now, _SLICE),
    ):
        if finished and finished + keep <= now:
            ledger.db.execute("DELETE FROM key WHERE scope = ?", (scope,))
        else:
            again = max(now + _AGAIN, finished + keep)
            ledger.db.execute("UPDATE key SET alarm = ? WHERE scope = ?", (again, scope))


def _next(ledger: Ledger, *, full: bool) -> float:
    """Seconds until something is due next; what was just handed over is the caller's matter."""
    if full:
        return 0.0
    ledger.flush()
    (soonest,) = ledger.db.execute(
        "SELECT min(x) FROM (SELECT min(alarm) AS x FROM job WHERE alarm > ?1"
        " UNION ALL SELECT min(until) FROM lease WHERE until > ?1"
        " UNION ALL SELECT min(alarm) FROM key WHERE alarm > ?1)",
        (ledger.moves.now,),
    ).fetchone()
    return float("inf") if soonest is None else (soonest - ledger.moves.now) / 1000
