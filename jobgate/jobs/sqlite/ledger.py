"""
The rows of jobs in RAM while steps work on them, and their way to the tables.

Holds the jobs that this gate has taken or runs, and whatever else the transaction under
way touches; `flush` writes what has changed with few statements, `commit` makes it last,
`rollback` forgets it. Knows a job's table of states, and what follows when one ends; must
not know threads, Deferreds or why a step was asked for.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobgate.errors import Cancelled
from jobgate.jobs.job import FOLLOWS, TERMINAL, Change, Ending, State, callback, document

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from jobgate.jobs.job import NewJob, Reply

__all__ = [
    "CALL",
    "EITHER",
    "GONE",
    "HELD",
    "INPUTS",
    "NEEDED",
    "ONCE",
    "WAITING",
    "Ledger",
    "Row",
    "decode",
    "encode",
    "public",
]

HELD: Final = 9
"""`QUEUED`, and taken by this gate: known in RAM only, so that to take stores nothing."""
_PUBLIC: Final[tuple[State, ...]] = (*State, State.QUEUED, State.QUEUED)
"""By a row's state, with a gap at 8."""
WAITING: Final = (State.BLOCKED, State.SCHEDULED, State.QUEUED, HELD)

CALL: Final = 1
"""In the column `flags`: a caller is attached."""
ONCE: Final = 2
EITHER: Final = 4
"""What it needs may end as it likes."""
INPUTS: Final = 8
"""It needs others."""
NEEDED: Final = 16
"""Others need it."""
GONE: Final = 32
"""Its outcome is no longer kept."""
_SPOKEN: Final = 64
"""It has an outcome already, of an earlier attempt or end."""

_AGEING: Final = 10_000
"""Milliseconds in which a waiting job rises one level."""
_TABLE: Final = 1 << 7
"""Rows of one statement at most."""
_ALIKE: Final = 4
"""Rows that have changed alike for which a statement of their own is worth it."""

encode = msgspec.json.Encoder().encode
decode = msgspec.json.decode


_Ready = tuple[str, str, int, str, str]
"""A job that waits for a worker from now on: id, queue, attempt, graph, caller."""


class Row(msgspec.Struct, array_like=True, gc=False):
    """A row of the table of jobs; times and spans in milliseconds."""

    seq: int
    id: str
    queue: str
    state: int
    turn: int
    priority: int
    attempt: int
    spent: int
    attempts: int
    created: int
    due: int
    started: int
    finished: int
    alarm: int
    expires: int
    patience: int
    keep: int
    waits: int
    flags: int
    worker: str
    caller: str
    callback: str
    graph: int
    lease: int
    graph_id: str = ""
    name: str = ""
    dirty: int = 0
    """Which columns the table does not know yet."""


_STATE: Final = 1
_START: Final = 2
_END: Final = 4
_LEASE: Final = 8
_ALL: Final = 16
_CHANGED: Final = (
    (_STATE, ("state", "alarm")),
    (_START, ("attempt", "started", "worker")),
    (_END, ("spent", "finished")),
    (_LEASE, ("due", "lease")),
)
"""By bit of `dirty`, the columns that the usual ways of a job change; `_ALL` is any of them."""

_COLUMNS: Final = ", ".join(f"job.{field}" for field in Row.__struct_fields__[:-3])
ROW: Final = (
    f"json_array({_COLUMNS},"  # noqa: S608 (our own names)
    " CASE job.graph WHEN 0 THEN '' ELSE (SELECT id FROM graph WHERE seq = job.graph) END,"
    " CASE job.graph WHEN 0 THEN ''"
    " ELSE (SELECT name FROM node WHERE graph = job.graph AND seq = job.seq) END)"
)
_INSERT: Final = (
    "INSERT INTO job (seq, id, queue, state, turn, priority, attempts, created, due, alarm,"
    " expires, patience, keep, waits, flags, caller, callback, graph)"
    " SELECT value, key, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17"
    " FROM json_each(?1)"
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
_BODY: Final = ("INSERT INTO body VALUES {}", 4)
_OUTCOME: Final = ("INSERT OR REPLACE INTO outcome VALUES {}", 5)
_TRY: Final = ("INSERT OR REPLACE INTO try VALUES {}", 7)
_NODE: Final = ("INSERT INTO node VALUES {}", 3)
_EDGE: Final = ("INSERT OR IGNORE INTO edge (parent, child, place) VALUES {}", 3)


class _Alike:
    """
    New jobs that differ in nothing but id and number, so that one statement inserts them all.

    Args:
        state: Where they stand.
        fixed: Their columns, from the third on, in the order of `_INSERT`.

    Attributes:
        numbers: Number by id.
    """

    __slots__ = ("fixed", "numbers", "state")

    def __init__(self, state: int, fixed: tuple[Any, ...]) -> None:
        self.state = state
        self.fixed = fixed
        self.numbers: dict[str, int] = {}


def _alike(job: NewJob, now: int, *, claim: bool, graph: int, waits: int) -> _Alike:
    """What a new job has in common with others."""
    due = now + max(1, round(job.delay * 1000)) if job.delay > 0 else 0
    patience = max(1, round(job.expires * 1000)) if job.expires > 0 else 0
    expires = now + patience if patience else 0
    flags = (job.call and CALL) | (job.once and ONCE) | (INPUTS if job.needs else 0)
    if job.when == "finished":
        flags |= EITHER
    if waits:
        state = int(State.BLOCKED)
    elif due:
        state = int(State.SCHEDULED)
    else:
        state = int(State.QUEUED)
    return _Alike(
        HELD if claim and state == State.QUEUED else state,
        (
            job.queue, state, (due or now) + job.priority * _AGEING, job.priority, job.attempts,
            now, due, _alarm(state, due, expires), expires, patience, round(job.keep * 1000),
            waits, flags, job.caller, job.callback, graph,
        ),
    )  # fmt: skip


class Ledger:
    """
    Jobs, between steps and tables.

    Args:
        db: The only connection.

    Attributes:
        now: The time of the group under way.
        changes: What the transaction under way has brought about.
        waiting: By queue, how many jobs wait.
        careful: Whether a put looks for what is there already, instead of failing.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.now = 0
        self.changes: list[Change] = []
        self.waiting: dict[str, int] = {}
        self.careful = False
        self.rows: dict[str, Row] = {}
        self._next = 1
        self._held: set[int] = set()
        self._touched: dict[int, Row] = {}
        self._dirty: list[Row] = []
        self._fresh: dict[tuple[object, ...], _Alike] = {}
        self._bodies: list[tuple[object, ...]] = []
        self._outcomes: dict[int, tuple[object, ...]] = {}
        self._tries: list[tuple[object, ...]] = []
        self._nodes: list[tuple[object, ...]] = []
        self._edges: list[tuple[object, ...]] = []
        self._ended: list[Row] = []
        self._notices: list[Row] = []
        self._live: dict[int, int] = {}
        self._more: dict[str, int] = {}

    # --- the transaction

    def commit(self) -> list[Change]:
        """Write all that has changed and make it last; what has changed."""
        self.flush()
        self.db.execute("COMMIT")
        for queue, more in self._more.items():
            self.waiting[queue] = self.waiting.get(queue, 0) + more
        for seq, row in self._touched.items():
            if row.state == HELD:
                self._held.add(seq)
                continue
            self._held.discard(seq)
            if row.state != State.RUNNING or row.lease:
                self.rows.pop(row.id, None)
        changes, self.changes = self.changes, []
        self._touched.clear()
        self._more.clear()
        return changes

    def rollback(self) -> None:
        """Forget it all."""
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")
        for row in self._touched.values():
            self.rows.pop(row.id, None)
        self.changes = []
        for pending in (
            self._touched,
            self._dirty,
            self._fresh,
            self._outcomes,
            self._live,
            self._more,
            self._bodies,
            self._tries,
            self._nodes,
            self._edges,
            self._ended,
            self._notices,
        ):
            pending.clear()

    def flush(self) -> None:
        """Bring the tables up to date, and let go or cancel what needs those that have ended."""
        self._write()
        while self._ended or self._notices:
            if self._ended:
                self._settle_dependents()
            else:
                self._put_notices()
            self._write()

    # --- reading

    def row(self, id_: str) -> Row | None:
        """A job by its id."""
        found = self.rows.get(id_)
        if found is None:
            for found in self.load("WHERE job.id = ?", (id_,)):
                return found
        return found

    def load(self, where: str, values: Sequence[object] = ()) -> list[Row]:
        """Jobs, by what follows `FROM job` in a SELECT; those in RAM already are the same rows."""
        self.flush()
        (text,) = self.db.execute(
            f"SELECT json_group_array(json(row)) FROM (SELECT {ROW} AS row FROM job {where})",  # noqa: S608
            values,
        ).fetchone()
        return [self._known(row) for row in decode(text, type=list[Row])]

    def ask(self, select: str, values: Sequence[object] = ()) -> list[Any]:
        """What a SELECT of one column of JSON finds, in one step."""
        self.flush()
        (text,) = self.db.execute(
            f"SELECT json_group_array(json(x)) FROM ({select})",  # noqa: S608
            values,
        ).fetchone()
        found: list[Any] = decode(text)
        return found

    def known(self, ids: Sequence[str]) -> list[str]:
        """Those of the ids under which there is a job."""
        return self.ask(
            "SELECT json_quote(id) AS x FROM job WHERE id IN (SELECT value FROM json_each(?))",
            (encode(ids).decode(),),
        )

    def waiting_in(self, queue: str) -> int:
        """How many jobs of a queue wait, what is under way included."""
        return self.waiting.get(queue, 0) + self._more.get(queue, 0)

    def next_seq(self) -> int:
        """The next job's number."""
        return self._next

    def number_from(self, seq: int) -> None:
        """Number jobs from here on."""
        self._next = seq

    def held(self) -> list[int]:
        """The numbers of the jobs that this gate holds, what is under way included."""
        now = {seq for seq, row in self._touched.items() if row.state == HELD}
        return list(now | (self._held - self._touched.keys()))

    def _known(self, row: Row) -> Row:
        known = self.rows.setdefault(row.id, row)
        if known is row and row.seq in self._held:
            row.state = HELD
        self._touched[row.seq] = known
        return known

    # --- writing

    def add(
        self,
        job: NewJob,
        *,
        claim: bool = False,
        graph: int = 0,
        graph_id: str = "",
        waits: int = 0,
    ) -> int:
        """
        A new job; its number.

        Args:
            job: It.
            claim: Hold it for this gate.
            graph: The number of its graph.
            graph_id: And its id.
            waits: How many jobs it needs that have not ended.
        """
        seq = self._next
        self._next = seq + 1
        like = (
            job.queue, job.priority, job.attempts, job.delay, job.expires, job.keep, job.caller,
            job.callback, job.call, job.once, job.when, not job.needs, claim, graph, waits,
        )  # fmt: skip
        alike = self._fresh.get(like)
        if alike is None:
            alike = self._fresh[like] = _alike(job, self.now, claim=claim, graph=graph, waits=waits)
        if job.id in alike.numbers:
            message = f"job {job.id} is put twice at once"
            raise ValueError(message)
        alike.numbers[job.id] = seq
        state = alike.state
        self._bodies.append((seq, job.content_type, job.headers, job.body))
        if graph:
            self._nodes.append((graph, seq, job.name))
            self._live[graph] = self._live.get(graph, 0) + 1
        if state == HELD:
            # It will be started soon: a row now saves reading it then.
            fixed = alike.fixed
            values = (
                seq, job.id, job.queue, HELD, *fixed[2:4], 0, 0, *fixed[4:7], 0, 0, *fixed[7:13],
                "", *fixed[13:], 0, graph_id, job.name,
            )  # fmt: skip
            row = Row(*values)
            self.rows[job.id] = self._touched[seq] = row
        self._more[job.queue] = self._more.get(job.queue, 0) + 1
        self.changes.append(
            Change(job.id, job.queue, public(state), 0, graph_id, None, state == HELD, job.caller)
        )
        return seq

    def link(self, parent: int, child: int, place: int) -> None:
        """A job needs another."""
        self._edges.append((parent, child, place))

    def need(self, seqs: Sequence[int]) -> None:
        """New jobs are needed by others."""
        self._write()
        self.db.execute(
            "UPDATE job SET flags = flags | ? WHERE seq IN (SELECT value FROM json_each(?))",
            (NEEDED, encode(seqs).decode()),
        )
        needed = set(seqs)
        for row in self._touched.values():
            if row.seq in needed:
                row.flags |= NEEDED

    def touch(self, row: Row) -> None:
        """A row has changed, in whatever columns."""
        self._mark(row, _ALL)

    def move(self, row: Row, state: int, status: str | int = "") -> None:
        """
        A job comes into another state.

        Args:
            row: The job.
            state: That state, or `HELD`.
            status: What it has ended with, for those who are told.

        Raises:
            ValueError: That state may not follow: a bug.
        """
        before = row.state
        was, now = public(before), public(state)
        if was is not now:
            if now not in FOLLOWS[was]:
                message = f"job {row.id} cannot go from {was.word} to {now.word}"
                raise ValueError(message)
            more = (state in WAITING) - (before in WAITING)
            if more:
                self._more[row.queue] = self._more.get(row.queue, 0) + more
            if now < TERMINAL:
                change = Change(row.id, row.queue, now, row.attempt, row.graph_id, was)
            else:
                began = row.started or row.finished
                change = Change(
                    row.id,
                    row.queue,
                    now,
                    row.attempt,
                    row.graph_id,
                    was,
                    caller=row.caller,
                    waited=(began - row.created) / 1000,
                    ran=(row.finished - began) / 1000,
                    status=status,
                )
            self.changes.append(change)
        row.state = state
        if was is now is State.QUEUED:
            # Held, or held no more.
            self._touched[row.seq] = row
            return
        if now >= TERMINAL:
            row.alarm = row.finished + row.keep if now is not State.DEAD else 0
        else:
            row.alarm = _alarm(state, row.due, row.expires)
        self._mark(row, _STATE)

    def begin(self, row: Row, attempt: int, worker: str) -> None:
        """An attempt starts."""
        row.attempt = attempt
        row.started = self.now
        row.worker = worker
        self.move(row, State.RUNNING)
        row.dirty |= _START

    def lend(self, row: Row, lease: int) -> None:
        """A job that runs does so under a lease."""
        row.lease = lease
        self._mark(row, _LEASE)

    def settle(self, row: Row, ending: Ending) -> None:
        """What a job's attempt, or its waiting, has come to."""
        state = ending.state
        if state >= TERMINAL:
            self.end(row, state, ending.reply, ending.error)
            return
        row.due = row.lease = 0
        self.touch(row)
        if state is State.SCHEDULED:
            row.due = self.now + max(1, round(ending.delay * 1000))
            row.turn = row.due + row.priority * _AGEING
        if ending.error is not None:
            self._outcomes[row.seq] = (row.seq, None, None, None, encode(ending.error).decode())
            row.flags |= _SPOKEN
        self.move(row, state)

    def end(
        self, row: Row, state: State, reply: Reply | None, error: dict[str, Any] | None
    ) -> None:
        """A job is over."""
        row.finished = self.now
        if row.due or row.lease:
            row.due = row.lease = 0
            self._mark(row, _LEASE)
        text = None if error is None else encode(error).decode()
        seq = row.seq
        status: str | int = state.word
        if reply is None:
            if text is not None or row.flags & _SPOKEN:
                self._outcomes[seq] = (seq, None, None, None, text)
            if error is not None:
                status = error.get("slug", status)
        else:
            self._outcomes[seq] = (seq, reply.status, reply.content_type, reply.body, text)
            status = reply.status
        self.move(row, state, status)
        row.dirty |= _END
        if row.graph:
            self._live[row.graph] = self._live.get(row.graph, 0) - 1
        if row.flags & NEEDED:
            self._ended.append(row)
        if row.callback:
            self._notices.append(row)

    def revive(self, row: Row) -> None:
        """A job that was over is queued anew."""
        row.finished = row.spent = row.due = 0
        row.flags |= _SPOKEN
        row.turn = self.now + row.priority * _AGEING
        row.expires = self.now + row.patience if row.patience else 0
        self.touch(row)
        self.move(row, State.QUEUED)
        if row.graph:
            self._live[row.graph] = self._live.get(row.graph, 0) + 1

    def drop(self, rows: Sequence[Row]) -> None:
        """Jobs are no more."""
        for row in rows:
            row.dirty = 0
            self.rows.pop(row.id, None)

    def failed(self, row: Row, error: dict[str, Any], output: str) -> None:
        """One attempt is to be remembered."""
        self._tries.append(
            (
                row.seq,
                row.attempt,
                row.worker,
                row.started,
                self.now,
                encode(error).decode(),
                output,
            )
        )

    # --- inside

    def _write(self) -> None:
        db = self.db
        if self._fresh:
            for alike in self._fresh.values():
                db.execute(_INSERT, (encode(alike.numbers).decode(), *alike.fixed))
            self._fresh.clear()
            self._write_rows(_BODY, self._bodies)
            self._bodies.clear()
        if self._nodes:
            self._write_rows(_NODE, self._nodes)
            self._nodes.clear()
        if self._edges:
            self._write_rows(_EDGE, self._edges)
            self._edges.clear()
        if self._dirty:
            self._update()
        if self._outcomes:
            self._write_rows(_OUTCOME, list(self._outcomes.values()))
            self._outcomes.clear()
        if self._tries:
            self._write_rows(_TRY, self._tries)
            self._tries.clear()
        if self._live:
            for graph, more in self._live.items():
                db.execute(
                    "UPDATE graph SET live = live + ?1, finished = ?2 * (live + ?1 = 0)"
                    " WHERE seq = ?3",
                    (more, self.now, graph),
                )
            self._live.clear()

    def _update(self) -> None:
        """Jobs that have changed alike with one statement, all others together with another."""
        alike: dict[tuple[Any, ...], list[Row]] = {}
        others: list[Row] = []
        for row in self._dirty:
            bits = row.dirty
            if not bits:
                continue
            row.dirty = 0
            if bits >= _ALL:
                others.append(row)
                continue
            change: tuple[Any, ...] = (bits, public(row.state), row.alarm)
            if bits & _START:
                change += (row.attempt, row.started, row.worker)
            if bits & _END:
                change += (row.spent, row.finished)
            if bits & _LEASE:
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
            seqs = encode([row.seq for row in rows]).decode()
            self.db.execute(_update_of(change[0]), (*change[1:], seqs))
        self._dirty.clear()
        if others:
            self._write_rows(
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

    def _mark(self, row: Row, bits: int) -> None:
        if not row.dirty:
            self._dirty.append(row)
            self._touched[row.seq] = row
        row.dirty |= bits

    def _write_rows(self, table: tuple[str, int], rows: Sequence[tuple[object, ...]]) -> None:
        """Many rows with few statements: one for each power of two in their number."""
        at, left, size = 0, len(rows), _TABLE
        while left:
            while size > left:
                size >>= 1
            values: Iterable[object] = rows[at] if size == 1 else chain(*rows[at : at + size])
            self.db.execute(_statement(*table, size), tuple(values))
            at += size
            left -= size

    def _settle_dependents(self) -> None:
        ended = {row.seq: row for row in self._ended}
        self._ended.clear()
        good = [row.seq for row in ended.values() if row.state == State.SUCCEEDED]
        if good:
            self._meet(encode(good).decode())
        if len(good) < len(ended):
            self._disappoint(ended)
        self.db.execute(
            "UPDATE edge SET met = 1 WHERE parent IN (SELECT value FROM json_each(?))",
            (encode(list(ended)).decode(),),
        )

    def _meet(self, parents: str) -> None:
        """These have succeeded: what needs them waits for fewer."""
        found: list[tuple[int, int, int, bool, _Ready]] = self.ask(
            "SELECT json_array(edge.child, job.waits, count(*), job.due > ?2, CASE job.waits"
            " WHEN count(*) THEN json_array(job.id, job.queue, job.attempt,"
            " ifnull((SELECT id FROM graph WHERE seq = job.graph), ''), job.caller) END) AS x"
            " FROM edge JOIN job ON job.seq = edge.child WHERE job.state = 0 AND edge.met = 0"
            " AND edge.parent IN (SELECT value FROM json_each(?1)) GROUP BY edge.child",
            (parents, self.now),
        )
        # Who only waits for fewer from now on, or for a worker, need not come into RAM, unless
        # it is there.
        here = {row.seq for row in self._touched.values() if row.state == State.BLOCKED}
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
                self.changes.append(
                    Change(name, queue, State.QUEUED, attempt, graph, State.BLOCKED, caller=caller)
                )
        for count, seqs in fewer.items():
            self.db.execute(
                "UPDATE job SET waits = waits - ? WHERE seq IN (SELECT value FROM json_each(?))",
                (count, encode(seqs).decode()),
            )
        if ready:
            self.db.execute(
                "UPDATE job SET state = 2, waits = 0, due = 0, alarm = expires"
                " WHERE seq IN (SELECT value FROM json_each(?))",
                (encode(ready).decode(),),
            )
        if less:
            for row in self._children(less):
                self._wait_for_fewer(row, less[row.seq])

    def _disappoint(self, ended: dict[int, Row]) -> None:
        """These have ended, and not all of them well."""
        edges: list[tuple[int, int]] = self.ask(
            "SELECT json_array(parent, child) AS x FROM edge WHERE met = 0"
            " AND parent IN (SELECT value FROM json_each(?)) ORDER BY child, place",
            (encode([seq for seq, row in ended.items() if row.state != State.SUCCEEDED]).decode(),),
        )
        if edges:
            children = {row.seq: row for row in self._children({child for _, child in edges})}
            for parent, child in edges:
                self.need_ended(children[child], ended[parent])

    def _children(self, seqs: Iterable[int]) -> list[Row]:
        text = encode(list(seqs)).decode()
        return self.load("WHERE job.seq IN (SELECT value FROM json_each(?))", (text,))

    def need_ended(self, row: Row, parent: Row) -> None:
        """What a job needs has ended: if it is blocked it waits for one less, or never runs."""
        if row.state != State.BLOCKED:
            return
        if parent.state == State.SUCCEEDED or row.flags & EITHER:
            self._wait_for_fewer(row, 1)
            return
        word = public(parent.state).word
        why = f"it needed {parent.name or parent.id}, which is {word}"
        self.end(row, State.CANCELLED, None, document(Cancelled(why)))

    def _wait_for_fewer(self, row: Row, count: int) -> None:
        row.waits -= count
        self.touch(row)
        if not row.waits:
            later = row.due > self.now
            if not later:
                row.due = 0
            self.move(row, State.SCHEDULED if later else State.QUEUED)

    def _put_notices(self) -> None:
        """The ends that are to be told: commands for the queue of callbacks."""
        notices = {
            notice.id: notice
            for notice in (
                callback(row.id, public(row.state), row.callback) for row in self._notices
            )
        }
        self._notices.clear()
        for known in self.known(list(notices)):
            del notices[known]
        for notice in notices.values():
            self.add(notice)


def public(state: int) -> State:
    """What others see of the column `state`."""
    return _PUBLIC[state]


def _alarm(state: int, due: int, expires: int) -> int:
    """When time alone does something to a job that has not ended; 0: never."""
    if state == State.SCHEDULED:
        return min(due, expires) if expires else due
    return 0 if state == State.RUNNING else expires


@lru_cache
def _update_of(bits: int) -> str:
    columns = [column for bit, columns in _CHANGED if bits & bit for column in columns]
    changes = ", ".join(f"{column} = ?" for column in columns)
    return f"UPDATE job SET {changes} WHERE seq IN (SELECT value FROM json_each(?))"  # noqa: S608


@lru_cache(maxsize=256)
def _statement(sql: str, width: int, count: int) -> str:
    one = "(" + ", ".join("?" * width) + ")"
    return sql.format(", ".join([one] * count))
