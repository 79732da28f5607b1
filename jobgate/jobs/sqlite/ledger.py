"""
The rows of jobs in RAM while steps work on them, and their way to the tables.

Holds the jobs that this gate has taken or runs, and whatever else the transaction under
way touches; `flush` writes what has changed, and sees to what follows, `commit` makes it
last, `rollback` forgets it. Knows a job's table of states; must not know threads, Deferreds
or why a step was asked for.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import astuple

from jobgate.jobs.job import FOLLOWS, TERMINAL, Change, Ending, State
from jobgate.jobs.sqlite import lots
from jobgate.jobs.sqlite.consequences import put_notices, settle_dependents
from jobgate.jobs.sqlite.lendings import Lendings
from jobgate.jobs.sqlite.newcomers import AGEING, Alike, in_common
from jobgate.jobs.sqlite.rows import (
    COLUMNS,
    HELD,
    NEEDED,
    ROW,
    SPOKEN,
    STATES,
    WAITING,
    Row,
    alarm,
    decode,
    encode,
    public,
)
from jobgate.jobs.sqlite.statements import (
    ALL,
    BODY,
    BORN,
    EDGE,
    END,
    INSERT,
    LEASE,
    LOT,
    NEWBORN,
    NODE,
    OUTCOME,
    START,
    STATE,
    TRY,
    update,
    write_rows,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from jobgate.jobs.job import NewJob, Reply

__all__ = ["Ledger", "TablesNeeded"]

_OWED: Final = 128
"""Rows that RAM alone may know, where it may be so, and others in proportion to their bodies:"""
_WEIGHT: Final = 12
"""so many bits of the length count as one."""


class TablesNeeded(Exception):
    """A step cannot do without the tables."""


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
        self._fresh: dict[tuple[object, ...], Alike] = {}
        self._new: set[str] = set()
        self._latest = ""
        self._of_latest: set[str] = set()
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
        if self._more:
            for queue, more in self._more.items():
                self.waiting[queue] = self.waiting.get(queue, 0) + more
            self._more.clear()
        for seq, row in self._touched.items():
            if row.state == HELD:
                self._held.add(seq)
                continue
            self._held.discard(seq)
            if row.dirty:
                self._unwritten[seq] = row
            elif not self._stays(row):
                self._let_go(row)
        self._touched.clear()
        changes, self.changes = self.changes, []
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
                ended, self._ended = self._ended, []
                settle_dependents(self, ended)
            else:
                notices, self._notices = self._notices, []
                put_notices(self, notices)
            self._write()

    # --- reading

    def seen(self, id_: str) -> bool:
        """
        Whether there is such a job, or may be; asked of the tables without waiting for them.

        Ids can be sorted by time: most are newer than all that have come before.
        """
        made = lots.stem(id_)
        if made > self._latest:
            return False
        if id_ in self._new:
            return True
        if made == self._latest:
            return id_ in self._of_latest
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

    def under_way(self, state: State) -> set[int]:
        """The numbers of the rows in a state that the transaction under way has touched."""
        return {row.seq for row in self._touched.values() if row.state == state}

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
        self._are_new(ids or (job.id,))
        if self.in_ram:
            # Times differ then, so that it has nothing in common with anybody.
            state, fixed = in_common(job, self.now, graph, waits, size, claim=claim)
        else:
            alike = self._alike(job, graph, waits, size, claim=claim)
            alike.numbers[job.id] = seq
            state, fixed = alike.state, alike.fixed
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
            values = (
                seq, job.id, job.queue, HELD, *fixed[2:4], 0, 0, *fixed[4:7], 0, 0, *fixed[7:13],
                "", *fixed[13:16], 0, size, graph_id, job.name, list(ids),
            )  # fmt: skip
            row = Row(*values)
            self._remember(row)
            if self.in_ram:
                self._unborn.append(row)
        elif self.in_ram:
            self._newborn.append((seq, job.id, *fixed))
        self._more[job.queue] = self._more.get(job.queue, 0) + size
        self.changes.append(
            Change(
                job.id, job.queue, public(state), 0, graph_id, None, state == HELD, job.caller,
                ids=ids,
            )
        )  # fmt: skip
        return seq

    def _alike(self, job: NewJob, graph: int, waits: int, size: int, *, claim: bool) -> Alike:
        """What it has in common with others of this transaction."""
        like = (
            self.now, job.queue, job.priority, job.attempts, job.delay, job.expires, job.keep,
            job.caller, job.callback, job.call, job.once, job.when, not job.needs, claim, graph,
            waits, size,
        )  # fmt: skip
        alike = self._fresh.get(like)
        if alike is None:
            fresh = in_common(job, self.now, graph, waits, size, claim=claim)
            alike = self._fresh[like] = Alike(*fresh)
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
        self._mark(row, ALL)

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
        was, now = STATES[before], STATES[state]
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
            row.alarm = 0 if now is State.RUNNING else alarm(state, row.due, row.expires)
        self._mark(row, STATE)

    def begin(self, row: Row, attempt: int, worker: str) -> None:
        """An attempt starts."""
        row.attempt = attempt
        row.started = self.now
        row.worker = worker
        self.move(row, State.RUNNING)
        row.dirty |= START

    def lend(self, row: Row, lease: int) -> None:
        """A job that has just begun runs under a lease."""
        row.lease = lease
        row.dirty |= LEASE

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
            row.turn = row.due + row.priority * AGEING
        if ending.error is not None:
            self._outcomes[row.seq] = (row.seq, None, None, None, encode(ending.error).decode())
            row.flags |= SPOKEN
        self.move(row, state)

    def end(
        self, row: Row, state: State, reply: Reply | None, error: dict[str, Any] | None
    ) -> None:
        """A job is over."""
        row.finished = self.now
        bits = END
        if row.due or row.lease:
            self.lendings.freed(row.lease)
            row.due = row.lease = 0
            bits |= LEASE
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
        row.dirty |= bits
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
        row.turn = self.now + row.priority * AGEING
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
                write_rows(self._db, NEWBORN, self._newborn)
                self._newborn.clear()
            for alike in self._fresh.values():
                db.execute(INSERT, (encode(alike.numbers).decode(), *alike.fixed))
            self._fresh.clear()
            if self._lots:
                write_rows(self._db, LOT, self._lots)
                self._lots.clear()
            write_rows(self._db, BODY, self._bodies)
            self._bodies.clear()
        if self._nodes:
            write_rows(self._db, NODE, self._nodes)
            self._nodes.clear()
        if self._edges:
            write_rows(self._db, EDGE, self._edges)
            self._edges.clear()
        if self._dirty:
            update(self._db, self._dirty)
            self._dirty.clear()
        if self._outcomes:
            write_rows(self._db, OUTCOME, list(self._outcomes.values()))
            self._outcomes.clear()
        if self._tries:
            write_rows(self._db, TRY, self._tries)
            self._tries.clear()
        self.lendings.write(self._db)
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
        write_rows(self._db, BORN, born)
        self._unborn.clear()

    def _are_new(self, ids: Sequence[str]) -> None:
        before = len(self._new)
        self._new.update(ids)
        if len(self._new) < before + len(ids):
            message = f"job {ids[0]}, or one with it, is put twice at once"
            raise ValueError(message)
        made = lots.stem(ids[0])
        if made > self._latest:
            self._latest, self._of_latest = made, set(ids)
        elif made == self._latest:
            self._of_latest.update(ids)

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

    def _mark(self, row: Row, bits: int) -> None:
        self._touched[row.seq] = row
        if not row.dirty:
            self._dirty.append(row)
            self._owed += 1
        row.dirty |= bits
