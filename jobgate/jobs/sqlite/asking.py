"""
Steps that change nothing: what people ask for.
"""

from __future__ import annotations

from heapq import nlargest
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from jobgate.errors import BadRequest
from jobgate.jobs.job import Ending, Job, Reply, State, Try
from jobgate.jobs.journal import Graph
from jobgate.jobs.lots import bodies_of
from jobgate.jobs.sqlite.rows import CALL, GONE, INPUTS, decode, encode, public

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from jobgate.jobs.sqlite.ledger import Ledger
    from jobgate.jobs.sqlite.rows import Row

__all__ = [
    "ahead",
    "body",
    "documents",
    "ended",
    "endings",
    "get",
    "graph",
    "named",
    "page",
    "queues",
    "result",
    "tries",
    "unended",
]

_FAR: Final = 100_000
"""Jobs ahead of one that are counted at most."""


def documents(ledger: Ledger, rows: Sequence[Row]) -> list[Job]:
    """Rows as others see them, all jobs of lots."""
    return [
        _called(job, row, index)
        for row, job in zip(rows, _documents(ledger, rows), strict=True)
        for index in range(row.size)
    ]


def _called(job: Job, row: Row, index: int) -> Job:
    """One of a row's jobs, by the document of its first."""
    return replace(job, id=row.ids[index]) if index else job


def _documents(
    ledger: Ledger, rows: Sequence[Row], needs: Mapping[int, dict[str, State]] | None = None
) -> list[Job]:
    """
    The first job of each row.

    Args:
        ledger: Where they are from.
        rows: They.
        needs: What they need, by their numbers, if that is known.
    """
    if not rows:
        return []
    seqs = encode([row.seq for row in rows]).decode()
    details = ledger.ask(
        "SELECT json_array(body.content_type, outcome.error, lease.until) AS x"
        " FROM json_each(?) AS j JOIN job ON job.seq = j.value"
        " LEFT JOIN body ON body.seq = job.seq LEFT JOIN outcome ON outcome.seq = job.seq"
        " LEFT JOIN lease ON job.lease > 0 AND lease.seq = job.lease ORDER BY j.key",
        (seqs,),
    )
    if needs is None:
        needs = _needs(ledger, [row.seq for row in rows if row.flags & INPUTS])
    return [
        Job(
            id=row.id,
            queue=row.queue,
            state=public(row.state),
            attempt=row.attempt,
            spent=row.spent,
            attempts=row.attempts,
            priority=row.priority,
            created=row.created / 1000,
            content_type=content_type or "",
            due=row.due / 1000 if row.state == State.SCHEDULED else 0.0,
            started=row.started / 1000,
            finished=row.finished / 1000,
            until=(until or 0) / 1000,
            expires=row.expires / 1000,
            worker=row.worker,
            caller=row.caller,
            callback=row.callback,
            call=bool(row.flags & CALL),
            graph=row.graph_id,
            name=row.name,
            error=None if error is None else decode(error),
            needs=needs.get(row.seq, {}),
            gone=bool(row.flags & GONE),
        )
        for row, (content_type, error, until) in zip(rows, details, strict=True)
    ]


def get(ledger: Ledger, id_: str) -> Job | None:
    """A job."""
    row, index = ledger.find(id_)
    return None if row is None else _called(_documents(ledger, [row])[0], row, index)


def body(ledger: Ledger, id_: str) -> tuple[str, bytes] | None:
    """A job's content type and body."""
    row, index = ledger.find(id_)
    if row is None:
        return None
    found = ledger.db.execute(
        "SELECT content_type, data FROM body WHERE seq = ?", (row.seq,)
    ).fetchone()
    return None if found is None else (found[0], bodies_of(row.size, found[1])[index])


def result(ledger: Ledger, id_: str) -> Reply | None:
    """A job's reply, if it ended with one."""
    row, _ = ledger.find(id_)
    if row is None or not row.finished:
        return None
    found = ledger.db.execute(
        "SELECT status, content_type, data FROM outcome WHERE seq = ? AND status IS NOT NULL",
        (row.seq,),
    ).fetchone()
    return None if found is None else Reply(*found)


def tries(ledger: Ledger, id_: str) -> list[Try]:
    """The attempts that failed, oldest first."""
    row, _ = ledger.find(id_)
    found = ledger.ask(
        "SELECT json_array(attempt, worker, started, finished, error, output) AS x"
        " FROM try WHERE seq = ? ORDER BY attempt",
        (0 if row is None else row.seq,),
    )
    return [
        Try(attempt, worker, started / 1000, finished / 1000, error and decode(error), output)
        for attempt, worker, started, finished, error, output in found
    ]


def queues(ledger: Ledger) -> list[str]:
    """The queues that have jobs, by leaps through the index."""
    return ledger.ask(
        "SELECT json_quote(queue) AS x FROM ("
        "WITH RECURSIVE q (queue) AS (SELECT min(queue) FROM job UNION ALL"
        " SELECT (SELECT min(queue) FROM job WHERE queue > q.queue) FROM q"
        " WHERE q.queue IS NOT NULL) SELECT queue FROM q WHERE queue IS NOT NULL)"
    )


def page(
    ledger: Ledger, queue: str, state: State | None, limit: int, after: str
) -> tuple[list[Job], str]:
    """
    Jobs, newest first, and the cursor of the next page.

    Raises:
        BadRequest: The cursor is none of ours.
    """
    if not after:
        before = ledger.ids.next_seq
    elif after.isascii() and after.isdigit() and len(after) < 19:
        before = int(after)
    else:
        raise BadRequest(f"after: {after!r} is no cursor of ours; take it from a page's answer")
    # One more than asked for tells whether there is another page.
    if queue or state is not None:
        seqs = _newest(ledger, queue, state, limit + 1, before)
        rows = ledger.load(
            "WHERE job.seq IN (SELECT value FROM json_each(?)) ORDER BY job.seq DESC",
            (encode(seqs).decode(),),
        )
    else:
        rows = ledger.load("WHERE job.seq < ? ORDER BY job.seq DESC LIMIT ?", (before, limit + 1))
    found = [
        (row, index) for row in rows for index in range(min(row.size, before - row.seq) - 1, -1, -1)
    ]
    more = len(found) > limit
    found = found[:limit]
    shown = list({row.seq: row for row, _ in found}.values())
    jobs = {job.id: job for job in _documents(ledger, shown)}
    last = found[-1][0].seq + found[-1][1] if more else 0
    return [_called(jobs[row.id], row, index) for row, index in found], str(last) if more else ""


def ahead(ledger: Ledger, id_: str) -> int:
    """How many queued jobs of its queue have their turn before a job; counted up to 100,000."""
    row, index = ledger.find(id_)
    if row is None or public(row.state) is not State.QUEUED:
        return 0
    (count,) = ledger.db.execute(
        "SELECT ifnull(sum(size), 0) FROM (SELECT size FROM job WHERE queue = ? AND state = 2"
        " AND (turn, seq) < (?, ?) LIMIT ?)",
        (row.queue, row.turn, row.seq, _FAR),
    ).fetchone()
    return int(count) + index


def graph(ledger: Ledger, id_: str, needs: bool) -> Graph | None:  # noqa: FBT001 (as it is passed on)
    """A graph with all its jobs, and what they need if that is asked for or it has not ended."""
    found = ledger.ask(
        "SELECT json_array(seq, created, caller) AS x FROM graph WHERE id = ?", (id_,)
    )
    if not found:
        return None
    ((number, created, caller),) = found
    rows = ledger.load(
        "JOIN node AS n ON n.seq = job.seq WHERE n.graph = ? ORDER BY n.seq", (number,)
    )
    needed: dict[int, dict[str, State]] = {}
    if needs or not all(row.finished for row in rows):
        needed = _needs_within(ledger, number, rows)
    jobs = {job.name: job for job in _documents(ledger, rows, needed)}
    return Graph(id_, created / 1000, caller, jobs, any(job.gone for job in jobs.values()))


def _needs_within(ledger: Ledger, number: int, rows: Sequence[Row]) -> dict[int, dict[str, State]]:
    """What all jobs of a graph need, by their numbers."""
    by_number = {row.seq: row for row in rows}
    needs: dict[int, dict[str, State]] = {}
    for child, parent in ledger.ask(
        "SELECT json_array(edge.child, edge.parent) AS x FROM node"
        " JOIN edge ON edge.child = node.seq WHERE node.graph = ? ORDER BY edge.child, edge.place",
        (number,),
    ):
        row = by_number[parent]
        needs.setdefault(child, {})[row.name] = public(row.state)
    return needs


def unended(ledger: Ledger, id_: str) -> tuple[str, list[str]] | None:
    """Whose a graph is, and the ids of its jobs that have not ended."""
    found = ledger.ask("SELECT json_array(seq, caller) AS x FROM graph WHERE id = ?", (id_,))
    if not found:
        return None
    ((number, caller),) = found
    return caller, ledger.ask(
        "SELECT json_quote(job.id) AS x FROM node JOIN job ON job.seq = node.seq"
        " WHERE node.graph = ? AND job.state < 4",
        (number,),
    )


def named(ledger: Ledger, graph_: str, names: Sequence[str]) -> dict[str, str]:
    """The ids of a graph's jobs by name, of those that there are."""
    found = ledger.ask(
        "SELECT json_array(node.name, job.id) AS x FROM json_each(?) AS j"
        " JOIN graph ON graph.id = ? JOIN node ON node.graph = graph.seq AND node.name = j.value"
        " JOIN job ON job.seq = node.seq WHERE node.name <> ''",
        (encode(names).decode(), graph_),
    )
    return dict(found)


def endings(ledger: Ledger, ids: Sequence[str], max_bytes: int) -> dict[str, Ending]:
    """How jobs have ended, of those that have; without what is over `max_bytes` together."""
    lengths = ledger.ask(
        "SELECT json_array(job.seq, ifnull(length(data), 0)) AS x FROM json_each(?) AS j"
        " JOIN job ON job.id = j.value LEFT JOIN outcome ON outcome.seq = job.seq"
        " WHERE job.state BETWEEN 4 AND 7 ORDER BY j.key",
        (encode(ids).decode(),),
    )
    chosen = []
    for seq, length in lengths:
        if length <= max_bytes:
            max_bytes -= length
            chosen.append(seq)
    return ended(ledger, chosen)


def ended(ledger: Ledger, seqs: Sequence[int]) -> dict[str, Ending]:
    """How these jobs have ended, by their ids."""
    # One row of text and bytes for all of them: a hand-over of the interpreter for each costs more.
    heads, data = ledger.db.execute(
        "SELECT json_group_array(json_array(id, state, status, content_type, length(data), error)),"
        " CAST(group_concat(ifnull(data, ''), '') AS BLOB)"
        " FROM (SELECT job.id, job.state, status, outcome.content_type, data, error"
        " FROM json_each(?) AS j JOIN job ON job.seq = j.value"
        " LEFT JOIN outcome ON outcome.seq = job.seq ORDER BY j.key)",
        (encode(seqs).decode(),),
    ).fetchone()
    found = {}
    at = 0
    for id_, state, status, content_type, length, error in decode(heads):
        reply = None
        if status is not None:
            reply = Reply(status, content_type, data[at : at + length])
            at += length
        found[id_] = Ending(public(state), reply, None if error is None else decode(error))
    return found


def _newest(ledger: Ledger, queue: str, state: State | None, limit: int, before: int) -> list[int]:
    """The highest numbers below one, from the index's stretches by queue and state."""
    states: Iterable[int] = State if state is None else (state,)
    seqs: list[int] = []
    for name in [queue] if queue else queues(ledger):
        for each in states:
            seqs += ledger.ask(
                f"SELECT seq AS x FROM job WHERE queue = ? AND state = {int(each)} AND seq < ?"  # noqa: S608 (a number)
                " ORDER BY seq DESC LIMIT ?",
                (name, before, limit),
            )
    return nlargest(limit, seqs)


def _needs(ledger: Ledger, seqs: list[int]) -> dict[int, dict[str, State]]:
    found: dict[int, dict[str, State]] = {}
    if seqs:
        for child, name, state in ledger.ask(
            "SELECT json_array(edge.child, coalesce(node.name, job.id), job.state) AS x FROM edge"
            " JOIN job ON job.seq = edge.parent"
            " LEFT JOIN node ON job.graph > 0 AND node.graph = job.graph AND node.seq = job.seq"
            " WHERE edge.child IN (SELECT value FROM json_each(?))"
            " ORDER BY edge.child, edge.place",
            (encode(seqs).decode(),),
        ):
            found.setdefault(child, {})[name] = public(state)
    return found
