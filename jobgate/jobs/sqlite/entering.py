"""
Steps: jobs come in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jobgate.errors import QueueFull, Unprocessable
from jobgate.jobs.graph import MAX_JOBS, MAX_NEEDS, path
from jobgate.jobs.job import TERMINAL, State
from jobgate.jobs.journal import Kept, Key, Stored
from jobgate.jobs.lots import size_of
from jobgate.jobs.sqlite.consequences import need_ended
from jobgate.jobs.sqlite.rows import NEEDED, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobgate.jobs.job import NewJob
    from jobgate.jobs.sqlite.ledger import Ledger
    from jobgate.jobs.sqlite.rows import Row

__all__ = ["grow", "kept", "put", "remember"]

_STORED: Final = Stored()

_MUCH: Final = 1e10
"""Of anything that a job has a number of: what is more may be no number for a table."""


def put(
    ledger: Ledger,
    jobs: Sequence[NewJob],
    claim: int,
    key: Key | None,
    graph: str,
    limits: dict[str, int] | None,
) -> Stored:
    """
    Store jobs, all or none.

    Raises:
        QueueFull: A limit is reached.
        Unprocessable: A job needs another that there is not.
    """
    if ledger.in_ram and not _is_plain(ledger, jobs):
        ledger.need_tables()
    if key is not None:
        known = kept(ledger, key)
        if known is not None:
            return Stored(known)
    linked = any(job.needs for job in jobs)
    if ledger.careful or linked:
        jobs = _unknown(ledger, jobs)
        if not jobs:
            return _STORED
    if limits:
        _check_limits(ledger, jobs, limits)
    parents = _parents(ledger, jobs) if linked else None
    number = 0
    if graph:
        number = _new_graph(ledger, graph, jobs)
    if parents is None and not graph:
        add, late = ledger.moves.add, ledger.in_ram
        for job in jobs[:claim]:
            add(job, claim=True, late=late)
        for job in jobs[claim:]:
            add(job, late=late)
    elif parents is None:
        for index, job in enumerate(jobs):
            ledger.moves.add(job, claim=index < claim, graph=number, graph_id=graph)
    else:
        _add_linked(ledger, jobs, parents, claim, number, graph)
    if key is not None:
        remember(ledger, key, graph or jobs[0].id)
    return _STORED


def grow(ledger: Ledger, row: Row, jobs: Sequence[NewJob]) -> None:
    """
    A job brings further ones for its graph; what needs it then needs these, too.

    Raises:
        Unprocessable: It is in no graph, a job needs another that there is not or that waits for
            this one, a name is taken, or the graph would be too large.
    """
    if not row.graph:
        raise Unprocessable(f"job {row.id} is in no graph that could grow")
    jobs = _unknown(ledger, jobs)
    parents = _parents(ledger, jobs)
    children = ledger.load(
        "JOIN edge ON edge.child = job.seq WHERE edge.parent = ? AND job.state = 0",
        (row.seq,),
    )
    _check_growth(ledger, row, jobs, parents, len(children))
    ledger.db.execute("UPDATE graph SET size = size + ? WHERE seq = ?", (len(jobs), row.graph))
    numbers = _add_linked(ledger, jobs, parents, 0, row.graph, row.graph_id)
    if not children:
        return
    moves, edges = ledger.moves, ledger.sheet.edges
    ended = []
    for brought in ledger.load(
        "WHERE job.seq IN (SELECT value FROM json_each(?))", (encode(numbers).decode(),)
    ):
        brought.flags |= NEEDED
        moves.touch(brought)
        for child in children:
            # Behind all that it needed before: numbers only rise.
            edges.append((brought.seq, child.seq, brought.seq))
            child.waits += 1
            moves.touch(child)
            if TERMINAL <= brought.state <= State.DEAD:
                ended.append((child.seq, brought))
    if ended:
        _meet(ledger, ended)


def kept(ledger: Ledger, key: Key) -> Kept | None:
    """What a key stands for."""
    found = ledger.db.execute(
        "SELECT target, fingerprint, answer FROM key WHERE scope = ?", (key.scope,)
    ).fetchone()
    return None if found is None else Kept(*found)


def remember(ledger: Ledger, key: Key, target: str) -> None:
    """A key stands for something."""
    keep = round(key.keep * 1000)
    ledger.db.execute(
        "INSERT OR REPLACE INTO key VALUES (?, ?, ?, ?, ?, ?)",
        (key.scope, key.fingerprint, key.answer, target, keep, ledger.moves.now + keep),
    )


def _is_plain(ledger: Ledger, jobs: Sequence[NewJob]) -> bool:
    """Whether it is one new job that the tables will surely take, whenever they are given it."""
    job = jobs[0]
    return (
        not (len(jobs) > 1 or job.ids or job.needs or job.name)
        and type(job.body) is bytes
        and f"{job.content_type}{job.headers}{job.caller}{job.callback}".isascii()
        and max(job.priority, job.attempts, job.delay, job.expires, job.keep) <= _MUCH
        and not ledger.ids.seen(job.id)
    )


def _unknown(ledger: Ledger, jobs: Sequence[NewJob]) -> list[NewJob]:
    """Those that are not stored yet; a lot is if its first job is."""
    there = set(ledger.known([job.id for job in jobs]))
    return [job for job in jobs if job.id not in there]


def _check_limits(ledger: Ledger, jobs: Sequence[NewJob], limits: dict[str, int]) -> None:
    counts: dict[str, int] = {}
    for job in jobs:
        counts[job.queue] = counts.get(job.queue, 0) + size_of(job)
    for queue, count in counts.items():
        limit = limits.get(queue)
        waiting = ledger.moves.waiting_in(queue)
        if limit is not None and waiting + count > limit:
            found = f"queue {queue} has {waiting} jobs waiting, and may have {limit}"
            full = QueueFull(found if count == 1 else f"{found}: no room for {count} more")
            full.queue = queue
            raise full


def _parents(ledger: Ledger, jobs: Sequence[NewJob]) -> dict[str, Row]:
    """
    The jobs that new ones need and that are stored already.

    Raises:
        Unprocessable: One is neither stored nor among the new ones.
    """
    needed = {id_ for job in jobs for id_ in job.needs}
    needed.difference_update(job.id for job in jobs)
    rows = ledger.load(
        "WHERE job.id IN (SELECT value FROM json_each(?))", (encode(list(needed)).decode(),)
    )
    found = {row.id: row for row in rows if row.size == 1}
    for id_ in needed:
        if id_ not in found:
            row = ledger.row(id_)
            if row is None:
                raise Unprocessable(f"there is no job {id_}, which is needed")
            found[id_] = row
    return found


def _new_graph(ledger: Ledger, graph: str, jobs: Sequence[NewJob]) -> int:
    made = ledger.db.execute(
        "INSERT INTO graph (id, created, caller, size, live) VALUES (?, ?, ?, ?, 0) RETURNING seq",
        (graph, ledger.moves.now, jobs[0].caller, len(jobs)),
    )
    (number,) = made.fetchone()
    return int(number)


def _add_linked(
    ledger: Ledger,
    jobs: Sequence[NewJob],
    parents: dict[str, Row],
    claim: int,
    graph: int,
    graph_id: str,
) -> list[int]:
    """Jobs of which some need others, new or stored; their numbers."""
    moves, edges = ledger.moves, ledger.sheet.edges
    numbers: dict[str, int] = {}
    ended: list[tuple[int, Row]] = []
    first = ledger.ids.next_seq
    for index, job in enumerate(jobs):
        numbers[job.id] = first + index
    for index, job in enumerate(jobs):
        needs = dict.fromkeys(job.needs)
        seq = moves.add(job, claim=index < claim, graph=graph, graph_id=graph_id, waits=len(needs))
        for place, id_ in enumerate(needs):
            parent = parents.get(id_)
            if parent is None:
                edges.append((numbers[id_], seq, place))
                continue
            edges.append((parent.seq, seq, place))
            # One that has ended, too: its reply is to stay for those that need it.
            parent.flags |= NEEDED
            moves.touch(parent)
            if TERMINAL <= parent.state <= State.DEAD:
                ended.append((seq, parent))
    inner = {id_ for job in jobs for id_ in job.needs if id_ in numbers}
    if inner:
        ledger.need(sorted(numbers[id_] for id_ in inner))
    if ended:
        _meet(ledger, ended)
    return list(numbers.values())


def _check_growth(
    ledger: Ledger, row: Row, jobs: Sequence[NewJob], parents: dict[str, Row], children: int
) -> None:
    """Raise unless a graph can take these jobs."""
    ((size,),) = ledger.ask("SELECT json_array(size) AS x FROM graph WHERE seq = ?", (row.graph,))
    if size + len(jobs) > MAX_JOBS:
        raise Unprocessable(f"the graph has {size} jobs; {len(jobs)} more are over {MAX_JOBS}")
    if children * len(jobs) > MAX_NEEDS:
        raise Unprocessable(
            f"{children} jobs would come to need {len(jobs)} each: over {MAX_NEEDS}"
        )
    taken = ledger.ask(
        "SELECT json_quote(name) AS x FROM node"
        " WHERE graph = ? AND name <> '' AND name IN (SELECT value FROM json_each(?)) LIMIT 1",
        (row.graph, encode([job.name for job in jobs]).decode()),
    )
    if taken:
        where = path(taken[0])
        raise Unprocessable(f"{where}: the graph has a job of this name already", path=where)
    # What depends on this job is about to wait for the new ones: they must not wait for that.
    waiting = [
        parent.seq
        for parent in parents.values()
        if parent is not row and not TERMINAL <= parent.state <= State.DEAD
    ]
    if waiting and ledger.ask(
        "WITH RECURSIVE above (seq) AS (SELECT value FROM json_each(?1) UNION"
        " SELECT edge.parent FROM edge JOIN above ON edge.child = above.seq"
        " JOIN job ON job.seq = edge.parent WHERE job.state < 4)"
        " SELECT seq AS x FROM above WHERE seq = ?2",
        (encode(waiting).decode(), row.seq),
    ):
        raise Unprocessable(f"a cycle: one of them needs what needs {row.name or row.id}")


def _meet(ledger: Ledger, ended: list[tuple[int, Row]]) -> None:
    """New jobs need some that have ended already."""
    text = encode([(parent.seq, child) for child, parent in ended]).decode()
    seqs = encode([child for child, _ in ended]).decode()
    children = {
        row.seq: row
        for row in ledger.load("WHERE job.seq IN (SELECT value FROM json_each(?))", (seqs,))
    }
    ledger.db.execute(
        "UPDATE edge SET met = 1 FROM json_each(?) AS e"
        " WHERE edge.parent = json_extract(e.value, '$[0]')"
        " AND edge.child = json_extract(e.value, '$[1]')",
        (text,),
    )
    for child, parent in ended:
        need_ended(ledger, children[child], parent)
