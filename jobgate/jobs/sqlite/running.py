"""
Steps: jobs are taken, run and end.
"""

from __future__ import annotations

from itertools import accumulate, takewhile
from typing import TYPE_CHECKING, Final

from jobgate.jobs.job import FOLLOWS, TERMINAL, Ending, State, Taken
from jobgate.jobs.lots import bodies_of
from jobgate.jobs.sqlite.asking import ended
from jobgate.jobs.sqlite.cutting import rows_of
from jobgate.jobs.sqlite.entering import grow
from jobgate.jobs.sqlite.rows import CALL, HELD, INPUTS, ONCE, decode, encode, public

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobgate.jobs.job import Reply
    from jobgate.jobs.sqlite.ledger import Ledger
    from jobgate.jobs.sqlite.rows import Row

__all__ = [
    "conclude",
    "consume",
    "finish",
    "finish_waiting",
    "give_back",
    "may_start",
    "run",
    "start",
    "take",
    "taken",
]

_CONSUMED: Final = Ending(State.SUCCEEDED)
_FEW: Final = 4
_SOME: Final = 64
"""Rows that are looked at first, and one more for each so many jobs."""
_STATUS: Final = 999


def take(ledger: Ledger, queue: str, count: int, max_bytes: int) -> list[Taken]:
    """Hold queued jobs for this gate, those first whose turn it is."""
    rows = _next(ledger, queue, count)
    if not rows:
        return []
    rows, left = _fitting(ledger, rows, max_bytes)
    move = ledger.moves.move
    for row in rows:
        move(row, HELD)
    return taken(ledger, rows, left)


def _next(ledger: Ledger, queue: str, count: int) -> list[Row]:
    """The rows of the so many jobs whose turn it is; of the last lot only what is wanted."""
    # To look at as many rows as there may have to be costs more than to take some lots.
    few = min(count, _FEW + count // _SOME)
    rows = _first(ledger, queue, count, few)
    left = count - sum([row.size for row in rows[:-1]])
    if few == len(rows) < count and rows[-1].size < left:
        rows = _first(ledger, queue, count, count)
        left = count - sum([row.size for row in rows[:-1]])
    if rows and rows[-1].size > left:
        ledger.split(rows[-1], [left])
    return rows


def _first(ledger: Ledger, queue: str, count: int, most: int) -> list[Row]:
    """The rows of the so many jobs whose turn it is, be it some more, but only so many rows."""
    return ledger.load(
        "JOIN (SELECT seq, sum(size) OVER (ORDER BY turn, seq ROWS UNBOUNDED PRECEDING) - size"
        " AS before FROM (SELECT seq, turn, size FROM job WHERE queue = ?1 AND state = 2"
        " AND (expires = 0 OR expires > ?2) AND seq NOT IN (SELECT value FROM json_each(?3))"
        " ORDER BY turn, seq LIMIT ?5)) AS next ON next.seq = job.seq"
        " WHERE next.before < ?4 ORDER BY next.before",
        (queue, ledger.moves.now, encode(ledger.desk.held()).decode(), count, most),
    )


def _fitting(ledger: Ledger, rows: list[Row], max_bytes: int) -> tuple[list[Row], int]:
    """The first so many whose bodies fit, but one job at least; and how many bytes are left."""
    if len(rows) == rows[0].size == 1:
        return rows, max_bytes
    lengths = ledger.ask(
        "SELECT length(body.data) AS x FROM json_each(?) AS j JOIN body ON body.seq = j.value"
        " ORDER BY j.key",
        (encode([row.seq for row in rows]).decode(),),
    )
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        ends = row.size if row.size > 1 else 0
        if length - ends > max_bytes:
            if row.size > 1:
                fit = _fitting_lines(ledger, row, max_bytes) or (not index)
                if fit:
                    ledger.split(row, [fit])
                return rows[: index + bool(fit)], 0
            return rows[: index or 1], 0
        max_bytes -= length - ends
    return rows, max_bytes


def _fitting_lines(ledger: Ledger, row: Row, max_bytes: int) -> int:
    """How many of a lot's jobs fit into so many bytes."""
    ((data,),) = ledger.db.execute("SELECT data FROM body WHERE seq = ?", (row.seq,))
    sizes = accumulate(map(len, bodies_of(row.size, data)))
    return sum(1 for _ in takewhile(lambda size: size <= max_bytes, sizes))


def taken(ledger: Ledger, rows: Sequence[Row], max_bytes: int = 0) -> list[Taken]:
    """Jobs with their bodies, to run them; and with inputs of so many bytes."""
    ledger.flush()
    # One row of text and bytes for all of them: a hand-over of the interpreter for each costs more.
    heads, data = ledger.db.execute(
        "SELECT json_group_array(json_array(content_type, headers, length(data))),"
        " CAST(group_concat(data, '') AS BLOB)"
        " FROM (SELECT body.* FROM json_each(?) AS j JOIN body ON body.seq = j.value"
        " ORDER BY j.key)",
        (encode([row.seq for row in rows]).decode(),),
    ).fetchone()
    needy = [row.seq for row in rows if row.flags & INPUTS]
    inputs, fed = _inputs(ledger, needy, max_bytes) if needy else ({}, {})
    found = []
    at = 0
    for row, (content_type, headers, length) in zip(rows, decode(heads), strict=True):
        body = data[at : at + length]
        at += length
        found.append(
            Taken(
                id=row.id,
                queue=row.queue,
                body=body,
                content_type=content_type,
                priority=row.priority,
                attempt=row.attempt,
                spent=row.spent,
                attempts=row.attempts,
                created=row.created / 1000,
                headers=headers,
                caller=row.caller,
                call=bool(row.flags & CALL),
                once=bool(row.flags & ONCE),
                graph=row.graph_id,
                name=row.name,
                inputs=inputs.get(row.seq, ()),
                fed=fed.get(row.seq, ()),
                ids=row.ids,
            )
        )
    return found


def give_back(ledger: Ledger, lots: Sequence[Sequence[str]]) -> None:
    """Leave what was taken for another `take`; what had started was declined then."""
    for row, _ in rows_of(ledger, [(ids, 0) for ids in lots]):
        if _ours(row):
            ledger.moves.move(row, State.QUEUED)


def start(ledger: Ledger, id_: str, attempt: int, worker: str) -> None:
    """
    A job of ours starts, perhaps anew: a batch that killed its worker goes again at once.

    What has been cancelled meanwhile does not.
    """
    row = ledger.row(id_)
    if row is not None and may_start(row, attempt):
        ledger.moves.begin(row, attempt, worker)


def may_start(row: Row, attempt: int) -> bool:
    """Whether it is ours to start; a start that was declined is made again under its number."""
    return _ours(row) and attempt >= row.attempt + (row.state == HELD)


def _ours(row: Row) -> bool:
    """Whether this gate has it, waiting or at a worker of its own."""
    return row.state == HELD or (row.state == State.RUNNING and not row.lease)


def consume(ledger: Ledger, lots: Sequence[tuple[Sequence[str], int]]) -> None:
    """Held jobs are a puller's for good."""
    for row, attempt in rows_of(ledger, lots):
        if _ours(row):
            if row.state == HELD:
                ledger.moves.begin(row, attempt, "")
            ledger.moves.settle(row, _CONSUMED)


def run(ledger: Ledger, id_: str, attempt: int, worker: str, ending: Ending) -> bool:
    """An attempt of a job of ours has begun, and has ended; False if it could not begin."""
    row = ledger.row(id_)
    if row is None or not may_start(row, attempt):
        return False
    _can_end(ledger, ending)
    ledger.moves.begin(row, attempt, worker)
    conclude(ledger, row, ending)
    return True


def finish(ledger: Ledger, id_: str, attempt: int, ending: Ending) -> bool:
    """An attempt has ended; False if it does not run (any more)."""
    row = ledger.row(id_)
    if row is None or row.state != State.RUNNING or row.attempt != attempt:
        return False
    conclude(ledger, row, ending)
    return True


def conclude(ledger: Ledger, row: Row, ending: Ending) -> None:
    """The attempt under way has ended, of a job or of a lot."""
    _can_end(ledger, ending)
    if ending.jobs:
        grow(ledger, row, ending.jobs)
    row.spent += ending.spent
    if ending.error is not None:
        ledger.moves.failed(row, ending.error, ending.output)
    ledger.moves.settle(row, ending)


def _can_end(ledger: Ledger, ending: Ending) -> None:
    """Raise TablesNeeded if an attempt cannot end so without them."""
    if ledger.in_ram and (
        ending.jobs
        or ending.error is not None
        or not (ending.reply is None or _is_plain(ending.reply))
    ):
        ledger.need_tables()


def _is_plain(reply: Reply) -> bool:
    """Whether the tables will surely take it, whenever they are given it."""
    return type(reply.body) is bytes and reply.content_type.isascii() and reply.status <= _STATUS


def finish_waiting(ledger: Ledger, id_: str, ending: Ending) -> bool:
    """A job ends that has not started (again); False if it does not wait, or cannot end so."""
    row = ledger.row(id_)
    if row is None or row.state == State.RUNNING or ending.state < TERMINAL:
        return False
    if ending.state not in FOLLOWS[public(row.state)]:
        return False
    ledger.moves.settle(row, ending)
    return True


def _inputs(
    ledger: Ledger, seqs: list[int], max_bytes: int
) -> tuple[dict[int, tuple[tuple[str, str], ...]], dict[int, tuple[Ending, ...]]]:
    """What jobs needed: by their numbers, `(name, id)` in order; and how that ended, if small."""
    parents: dict[int, list[tuple[int, str, str, int]]] = {}
    for child, *parent in ledger.ask(
        "SELECT json_array(edge.child, job.seq, coalesce(node.name, job.id), job.id,"
        " ifnull(length(data), 0)) AS x FROM edge"
        " JOIN job ON job.seq = edge.parent LEFT JOIN outcome ON outcome.seq = job.seq"
        " LEFT JOIN node ON job.graph > 0 AND node.graph = job.graph AND node.seq = job.seq"
        " WHERE edge.child IN (SELECT value FROM json_each(?))"
        " ORDER BY edge.child, edge.place",
        (encode(seqs).decode(),),
    ):
        parents.setdefault(child, []).append(tuple(parent))
    chosen: dict[int, None] = {}
    small = []
    for child, its in parents.items():
        new = {seq: length for seq, _, _, length in its if seq not in chosen}
        if sum(new.values()) <= max_bytes:
            max_bytes -= sum(new.values())
            chosen.update(dict.fromkeys(new))
            small.append(child)
    found = ended(ledger, list(chosen)) if chosen else {}
    return (
        {child: tuple([(name, id_) for _, name, id_, _ in its]) for child, its in parents.items()},
        {child: tuple([found[id_] for _, _, id_, _ in parents[child]]) for child in small},
    )
