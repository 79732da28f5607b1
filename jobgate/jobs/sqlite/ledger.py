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

from msgspec.structs import astuple

from jobgate.errors import Cancelled
from jobgate.jobs.job import FOLLOWS, TERMINAL, Change, Ending, State, callback, document
from jobgate.jobs.sqlite import lots
from jobgate.jobs.sqlite.lendings import Lendings
from jobgate.jobs.sqlite.rows import (
    CALL,
    COLUMNS,
    EITHER,
    HELD,
    INPUTS,
    NEEDED,
    ONCE,
    ROW,
    SPOKEN,
    WAITING,
    Row,
    decode,
    encode,
    public,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from jobgate.jobs.job import NewJob, Reply

__all__ = ["Ledger", "TablesNeeded"]

_AGEING: Final = 10_000
"""Milliseconds in which a waiting job rises one level."""
_TABLE: Final = 1 << 7
"""Rows of one statement at most."""
_ALIKE: Final = 4
"""Rows that have changed alike for which a statement of their own is worth it."""

_OWED: Final = 128
"""Rows that RAM alone may know, where it may be so, and others in proportion to their bodies:"""
_WEIGHT: Final = 12
"""so many bits of the length count as one."""

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

_BORN: Final = (
    f"INSERT INTO job ({', '.join(COLUMNS)}) VALUES {{}}",  # noqa: S608 (our own names)
    len(COLUMNS),
)
_GIVEN: Final = (
    "INSERT INTO job (seq, id, queue, state, turn, priority, attempts, created, due, alarm,"
    " expires, patience, keep, waits, flags, caller, callback, graph, size)"
)
_NEWBORN: Final = (f"{_GIVEN} VALUES {{}}", 19)
_INSERT: Final = (
    f"{_GIVEN} SELECT value, key, "  # noqa: S608 (our own names)
    + ", ".join([f"?{number}" for number in range(2, 19)])
    + " FROM json_each(?1)"
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
_LOT: Final = ("INSERT INTO lot VALUES {}", 3)
_BODY: Final = ("INSERT INTO body VALUES {}", 4)
_OUTCOME: Final = ("INSERT OR REPLACE INTO outcome VALUES {}", 5)
_TRY: Final = ("INSERT OR REPLACE INTO try VALUES {}", 7)
_NODE: Final = ("INSERT INTO node VALUES {}", 3)
_EDGE: Final = ("INSERT OR IGNORE INTO edge (parent, child, place) VALUES {}", 3)


_Ready = tuple[str, str, int, str, str]
"""A job that waits for a worker from now on: id, queue, attempt, graph, caller."""


class TablesNeeded(Exception):
    """A step cannot do without the tables."""


class _Alike:
    """
    New rows that differ in nothing but id and number, so that one statement inserts them all.

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


def _alike(job: NewJob, now: int, *, claim: bool, graph: int, waits: int, size: int) -> _Alike:
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
            waits, flags, job.caller, job.callback, graph, size,
        ),
    )  # fmt: skip


class Ledger:
    """
    Jobs, between steps and tables.

    Args:
        db: The only connection.

    Attributes:
        in_ram: The step under way is to do without the tables, or to say so before it has
            changed anything, by TablesNeeded.
        now: The time of the group under way.
        changes: What the transaction under way has brought about.
        waiting: By queue, how many jobs wait.
        lendings: The leases that are in RAM, with their rows.
        careful: Whether a put looks for what is there already, instead of failing.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.in_ram = False
        self.now = 0
        self.changes: list[Change] = []
        self.waiting: dict[str, int] = {}
        self.careful = False
        self.rows: dict[str, Row] = {}
        self.lendings = Lendings(self)
        self._next = 1
        self._held: set[int] = set()
        self._touched: dict[int, Row] = {}
        self._dirty: list[Row] = []
        self._unborn: list[Row] = []
        self._newborn: list[tuple[object, ...]] = []
        self._unwritten: dict[int, Row] = {}
        self._owed = 0
        self._fresh: dict[tuple[object, ...], _Alike] = {}
        self._new: set[str] = set()
        self._alone: list[str] = []
        self._any_lots: bool | None = None
        self._lots: list[tuple[object, ...]] = []
        self._bodies: list[tuple[object, ...]] = []
        self._outcomes: dict[int, tuple[object, ...]] = {}
        self._tries: list[tuple[object, ...]] = []
        self._nodes: list[tuple[object, ...]] = []
        self._edges: list[tuple[object, ...]] = []
        self._ended: list[Row] = []
        self._notices: list[Row] = []
        self._live: dict[int, int] = {}
        self._more: dict[str, int] = {}

    @property
    def db(self) -> sqlite3.Connection:
        """
        The tables.

        Raises:
            TablesNeeded: The step under way was to do without.
        """
        self.need_tables()
        return self._db

    @db.setter
    def db(self, db: sqlite3.Connection) -> None:
        self._db = db

    # --- the transaction

    def commit(self) -> list[Change]:
        """Write all that has changed and make it last; what has changed."""
        self.flush()
        self._db.execute("COMMIT")
        for row in self._unwritten.values():
            if row.state != HELD and not self._stays(row):
                self._let_go(row)
        self._unwritten.clear()
        self._owed = 0
        changes = self._settled()
        for row in self.lendings.tidy():
            self._let_go(row)
        return changes

    def keep(self) -> list[Change]:
        """Let all that has changed last in RAM alone, until the next `commit`; what has changed."""
        return self._settled()

    def need_tables(self) -> None:
        """Raise TablesNeeded if the step under way was to do without."""
        if self.in_ram:
            raise TablesNeeded

    @property
    def owes(self) -> bool:
        """Whether RAM alone knows so much that it should be written, or what must have effects."""
        return bool(self._owed >= _OWED or self._ended or self._notices or self._live)

    def _stays(self, row: Row) -> bool:
        """Whether a row that is not held is kept in RAM."""
        return row.state == State.RUNNING and (not row.lease or row.lease in self.lendings)

    def _settled(self) -> list[Change]:
        for queue, more in self._more.items():
            self.waiting[queue] = self.waiting.get(queue, 0) + more
        for seq, row in self._touched.items():
            if row.state == HELD:
                self._held.add(seq)
                continue
            self._held.discard(seq)
            if row.dirty:
                self._unwritten[seq] = row
            elif not self._stays(row):
                self._let_go(row)
        changes, self.changes = self.changes, []
        self._touched.clear()
        self._more.clear()
        return changes

    def rollback(self) -> None:
        """Forget it all."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        for row in chain(self._touched.values(), self.lendings.clear()):
            self._let_go(row)
        self.changes = []
        for pending in (
            self._touched,
            self._dirty,
            self._unborn,
            self._newborn,
            self._unwritten,
            self._fresh,
            self._new,
            self._alone,
            self._lots,
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
        self._owed = 0

    def flush(self) -> None:
        """
        Bring the tables up to date, and let go or cancel what needs those that have ended.

        Raises:
            TablesNeeded: The step under way was to do without.
        """
        self.need_tables()
        self._write()
        while self._ended or self._notices:
            if self._ended:
                self._settle_dependents()
            else:
                self._put_notices()
            self._write()

    # --- reading

    def seen(self, id_: str) -> bool:
        """Whether there is such a job, or may be; asked of the tables without waiting for them."""
        if id_ in self._new:
            return True
        if self._db.execute("SELECT 1 FROM job WHERE id = ?", (id_,)).fetchone():
            return True
        return self._any_lots is not False and lots.containing(self._db, id_) is not None

    def row(self, id_: str) -> Row | None:
        """A job by its id, alone."""
        found, index = self.find(id_)
        if found is None or found.size == 1:
            return found
        return self.split(found, range(1, found.size))[index]

    def find(self, id_: str) -> tuple[Row | None, int]:
        """A job by its id, or the lot that it is in, and where in it."""
        found = self.rows.get(id_)
        if found is None:
            rows = self.load("WHERE job.id = ?", (id_,))
            if not rows:
                seq = lots.containing(self.db, id_)
                if seq is None:
                    return None, 0
                rows = self.load("WHERE job.seq = ?", (seq,))
            found = rows[0]
        return found, found.ids.index(id_) if found.size > 1 else 0

    def rows_of(self, lots: Sequence[tuple[Sequence[str], int]]) -> list[tuple[Row, int]]:
        """
        Rows that are these jobs' and nobody else's.

        Args:
            lots: Ids of jobs and an attempt; unknown ones are left out.

        Returns:
            In order, with the attempts.
        """
        rows: list[tuple[Row, int]] = []
        others: list[tuple[str, int]] = []
        for ids, attempt in lots:
            row = self.rows.get(ids[0])
            if row is not None and row.size == len(ids) and (row.size == 1 or row.ids == ids):
                if others:
                    rows += self._rows_of(others)
                    others = []
                rows.append((row, attempt))
            else:
                others += [(id_, attempt) for id_ in ids]
        return rows + self._rows_of(others) if others else rows

    def _rows_of(self, jobs: Sequence[tuple[str, int]]) -> list[tuple[Row, int]]:
        """Likewise, with an attempt for each."""
        found: dict[int, tuple[Row, dict[str, int]]] = {}
        for id_, attempt in jobs:
            row = self.rows.get(id_) or self.find(id_)[0]
            if row is not None:
                found.setdefault(row.seq, (row, {}))[1][id_] = attempt
        rows: list[tuple[Row, int]] = []
        for row, wanted in found.values():
            ids = row.ids or [row.id]
            if len(wanted) < len(ids) or len(set(wanted.values())) > 1:
                # Cut wherever one is followed by one that has nothing to do with it.
                kinds = [wanted.get(id_) for id_ in ids]
                starts = [at for at in range(1, len(ids)) if kinds[at] != kinds[at - 1]]
                parts = self.split(row, starts)
            else:
                parts = [row]
            rows += [(part, wanted[part.id]) for part in parts if part.id in wanted]
        return rows

    def split(self, row: Row, starts: Sequence[int]) -> list[Row]:
        """Make several rows of a lot's, of which the others begin at these of its jobs."""
        self.flush()
        self._let_go(row)
        if row.lease:
            # It is to be looked up anew, with all its rows.
            self._touched.update((each.seq, each) for each in self.lendings.forget(row.lease))
        parts = lots.split(self.db, row, starts)
        for part in parts:
            self._remember(part)
        return parts

    def load(self, where: str, values: Sequence[object] = ()) -> list[Row]:
        """Jobs, by what follows `FROM job` in a SELECT; those in RAM already are the same rows."""
        self.flush()
        (text,) = self.db.execute(
            f"SELECT group_concat(row, ',') FROM (SELECT {ROW} AS row FROM job {where})",  # noqa: S608
            values,
        ).fetchone()
        # Put together here: SQLite would read each of them again to be sure that it is JSON.
        return [self._known(row) for row in decode(f"[{text or ''}]", type=list[Row])]

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
        self.flush()
        return lots.known(self.db, ids)

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
        known = self.rows.get(row.id)
        if known is None:
            if row.seq in self._held:
                row.state = HELD
            self._remember(row)
            return row
        self._touched[row.seq] = known
        return known

    def _remember(self, row: Row) -> None:
        self._touched[row.seq] = row
        if row.size == 1:
            self.rows[row.id] = row
        else:
            self.rows.update(dict.fromkeys(row.ids, row))

    def _let_go(self, row: Row) -> None:
        for id_ in row.ids or (row.id,):
            self.rows.pop(id_, None)

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
        A new job, or a lot; its number.

        Args:
            job: It.
            claim: Hold it for this gate.
            graph: The number of its graph.
            graph_id: And its id.
            waits: How many jobs it needs that have not ended.
        """
        seq = self._next
        ids, size = job.ids, len(job.ids) or 1
        self._owed += 1 + (len(job.body) >> _WEIGHT)
        self._next = seq + size
        alike = self._alike(job, claim=claim, graph=graph, waits=waits, size=size)
        self._are_new(ids or (job.id,))
        alike.numbers[job.id] = seq
        state = alike.state
        if ids:
            self._lots.append((seq, lots.stem(job.id), encode(ids).decode()))
        else:
            self._alone.append(job.id)
        self._bodies.append((seq, job.content_type, job.headers, job.body))
        if graph:
            self._nodes.append((graph, seq, job.name))
            self._live[graph] = self._live.get(graph, 0) + 1
        if state == HELD:
            # It will be started soon: a row now saves reading it then.
            fixed = alike.fixed
            values = (
                seq, job.id, job.queue, HELD, *fixed[2:4], 0, 0, *fixed[4:7], 0, 0, *fixed[7:13],
                "", *fixed[13:16], 0, size, graph_id, job.name, list(ids),
            )  # fmt: skip
            row = Row(*values)
            self._remember(row)
            if self.in_ram:
                self._unborn.append(row)
        elif self.in_ram:
            self._newborn.append((seq, job.id, *alike.fixed))
        self._more[job.queue] = self._more.get(job.queue, 0) + size
        self.changes.append(
            Change(
                job.id, job.queue, public(state), 0, graph_id, None, state == HELD, job.caller,
                ids=ids,
            )
        )  # fmt: skip
        return seq

    def _alike(self, job: NewJob, *, claim: bool, graph: int, waits: int, size: int) -> _Alike:
        """What it has in common with others: where RAM will do, times differ, so with nobody."""
        if self.in_ram:
            return _alike(job, self.now, claim=claim, graph=graph, waits=waits, size=size)
        like = (
            self.now, job.queue, job.priority, job.attempts, job.delay, job.expires, job.keep,
            job.caller, job.callback, job.call, job.once, job.when, not job.needs, claim, graph,
            waits, size,
        )  # fmt: skip
        alike = self._fresh.get(like)
        if alike is None:
            alike = self._fresh[like] = _alike(
                job, self.now, claim=claim, graph=graph, waits=waits, size=size
            )
        return alike

    def link(self, parent: int, child: int, place: int) -> None:
        """A job needs another."""
        self._edges.append((parent, child, place))

    def need(self, seqs: Sequence[int]) -> None:
        """New jobs are needed by others."""
        self.need_tables()
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
            more = ((state in WAITING) - (before in WAITING)) * row.size
            if more:
                self._more[row.queue] = self._more.get(row.queue, 0) + more
            if now < TERMINAL:
                change = Change(row.id, row.queue, now, row.attempt, row.graph_id, was, ids=row.ids)
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
                    ids=row.ids,
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
        if row.lease:
            self.lendings.freed(row.lease)
        row.due = row.lease = 0
        self.touch(row)
        if state is State.SCHEDULED:
            row.due = self.now + max(1, round(ending.delay * 1000))
            row.turn = row.due + row.priority * _AGEING
        if ending.error is not None:
            self._outcomes[row.seq] = (row.seq, None, None, None, encode(ending.error).decode())
            row.flags |= SPOKEN
        self.move(row, state)

    def end(
        self, row: Row, state: State, reply: Reply | None, error: dict[str, Any] | None
    ) -> None:
        """A job is over."""
        row.finished = self.now
        if row.due or row.lease:
            self.lendings.freed(row.lease)
            row.due = row.lease = 0
            self._mark(row, _LEASE)
        text = None if error is None else encode(error).decode()
        seq = row.seq
        status: str | int
        if reply is None:
            if text is not None or row.flags & SPOKEN:
                self._outcomes[seq] = (seq, None, None, None, text)
            status = (error or {}).get("slug", state.word)
        else:
            self._outcomes[seq] = (seq, reply.status, reply.content_type, reply.body, text)
            self._owed += len(reply.body) >> _WEIGHT
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
        row.flags |= SPOKEN
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
            self._let_go(row)

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
        db = self._db
        if self._bodies:
            self._are_unknown()
            if self._unborn:
                self._bear()
            if self._newborn:
                self._write_rows(_NEWBORN, self._newborn)
                self._newborn.clear()
            for alike in self._fresh.values():
                db.execute(_INSERT, (encode(alike.numbers).decode(), *alike.fixed))
            self._fresh.clear()
            if self._lots:
                self._write_rows(_LOT, self._lots)
                self._lots.clear()
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
        self.lendings.write(self._write_rows)
        if self._live:
            for graph, more in self._live.items():
                db.execute(
                    "UPDATE graph SET live = live + ?1, finished = ?2 * (live + ?1 = 0)"
                    " WHERE seq = ?3",
                    (more, self.now, graph),
                )
            self._live.clear()

    def _bear(self) -> None:
        """New rows that RAM has had for a while go in as they are now."""
        born = []
        for row in self._unborn:
            row.dirty = 0
            values = astuple(row)
            born.append((*values[:3], public(row.state), *values[4 : len(COLUMNS)]))
        self._write_rows(_BORN, born)
        self._unborn.clear()

    def _are_new(self, ids: Sequence[str]) -> None:
        before = len(self._new)
        self._new.update(ids)
        if len(self._new) < before + len(ids):
            message = f"job {ids[0]}, or one with it, is put twice at once"
            raise ValueError(message)

    def _are_unknown(self) -> None:
        """
        What the index of ids does not see: a new job, alone, that is in a lot already.

        A lot that is put again comes with the id of its first job, which it sees.
        """
        alone, self._alone = self._alone, []
        self._new.clear()
        if self._lots:
            self._any_lots = True
        elif self._any_lots is None:
            self._any_lots = self._db.execute("SELECT 1 FROM lot LIMIT 1").fetchone() is not None
        if not self._any_lots or not alone:
            return
        near = self._db.execute(
            "SELECT 1 FROM lot WHERE stem IN (SELECT value FROM json_each(?)) LIMIT 1",
            (encode(list({lots.stem(id_) for id_ in alone})).decode(),),
        ).fetchone()
        if near and lots.known(self._db, alone):
            message = "a job is put again"
            raise ValueError(message)

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
            seqs = rows[0].seq if len(rows) == 1 else encode([row.seq for row in rows]).decode()
            self._db.execute(_update_of(change[0], alone=len(rows) == 1), (*change[1:], seqs))
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
        self._touched[row.seq] = row
        if not row.dirty:
            self._dirty.append(row)
            self._owed += 1
        row.dirty |= bits

    def _write_rows(self, table: tuple[str, int], rows: Sequence[tuple[object, ...]]) -> None:
        """Many rows with few statements: one for each power of two in their number."""
        at, left, size = 0, len(rows), _TABLE
        while left:
            while size > left:
                size >>= 1
            values: Iterable[object] = rows[at] if size == 1 else chain(*rows[at : at + size])
            self._db.execute(_statement(*table, size), tuple(values))
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
        told = {callback(row.id, public(row.state), row.callback).id: row for row in self._notices}
        self._notices.clear()
        for before in self.known(list(told)):
            # Retried since: whoever sorts out what came twice must not take this for the same end.
            row = told.pop(before)
            again = callback(row.id, public(row.state), row.callback, row.attempt)
            if not self.known([again.id]):
                self.add(again)
        for row in told.values():
            self.add(callback(row.id, public(row.state), row.callback))


def _alarm(state: int, due: int, expires: int) -> int:
    """When time alone does something to a job that has not ended; 0: never."""
    if state == State.SCHEDULED:
        return min(due, expires) if expires else due
    return 0 if state == State.RUNNING else expires


@lru_cache
def _update_of(bits: int, *, alone: bool) -> str:
    columns = [column for bit, columns in _CHANGED if bits & bit for column in columns]
    changes = ", ".join(f"{column} = ?" for column in columns)
    which = "= ?" if alone else "IN (SELECT value FROM json_each(?))"
    return f"UPDATE job SET {changes} WHERE seq {which}"  # noqa: S608 (our own names)


@lru_cache(maxsize=256)
def _statement(sql: str, width: int, count: int) -> str:
    one = "(" + ", ".join("?" * width) + ")"
    return sql.format(", ".join([one] * count))
