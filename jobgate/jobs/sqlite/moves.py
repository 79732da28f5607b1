"""
What happens to jobs: they come, go from state to state, and end.

A move changes a row, puts on the sheet what the tables are to be told of it, and notes what it
brings about: what listeners hear, how many wait, whose end others must learn. Knows a job's table
of states; must not know the tables, nor why a step was asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobgate.jobs.job import FOLLOWS, TERMINAL, Change, Ending, State
from jobgate.jobs.sqlite import lots
from jobgate.jobs.sqlite.newcomers import AGEING, in_common
from jobgate.jobs.sqlite.rows import (
    HELD,
    NEEDED,
    SPOKEN,
    STATES,
    WAITING,
    Row,
    alarm,
    encode,
    public,
)
from jobgate.jobs.sqlite.sheet import OWED, WEIGHT
from jobgate.jobs.sqlite.statements import ALL, END, LEASE, START, STATE

if TYPE_CHECKING:
    from jobgate.jobs.job import NewJob, Reply
    from jobgate.jobs.sqlite.desk import Desk
    from jobgate.jobs.sqlite.ids import Ids
    from jobgate.jobs.sqlite.lendings import Lendings
    from jobgate.jobs.sqlite.sheet import Sheet

__all__ = ["Moves"]


class Moves:
    """
    The moves of jobs in the transaction under way.

    Args:
        ids: Get the new ones' ids.
        desk: Where the rows are.
        sheet: Gets what has changed.
        lendings: Hear of rows that their leases do not cover any more.

    Attributes:
        now: When all this happens; milliseconds.
        changes: What the transaction under way has brought about.
        waiting: By queue, how many jobs wait; without it.
        ended: Rows that others need, and that have ended.
        notices: Rows that have ended, and whose end is to be told.
    """

    def __init__(self, ids: Ids, desk: Desk, sheet: Sheet, lendings: Lendings) -> None:
        self.now = 0
        self.changes: list[Change] = []
        self.waiting: dict[str, int] = {}
        self.ended: list[Row] = []
        self.notices: list[Row] = []
        self._ids = ids
        self._desk = desk
        self._sheet = sheet
        self._lendings = lendings
        self._more: dict[str, int] = {}

    # --- jobs come

    def add(
        self,
        job: NewJob,
        *,
        claim: bool = False,
        late: bool = False,
        graph: int = 0,
        graph_id: str = "",
        waits: int = 0,
    ) -> int:
        """
        A new job, or a lot; its number.

        Args:
            job: It.
            claim: Hold it for this gate.
            late: RAM alone knows it for a while.
            graph: The number of its graph.
            graph_id: And its id.
            waits: How many jobs it needs that have not ended.
        """
        sheet = self._sheet
        ids, size = job.ids, len(job.ids) or 1
        seq = self._ids.enter(ids or (job.id,))
        if late:
            # Times differ then, so that it has nothing in common with anybody.
            state, fixed = in_common(job, self.now, graph, waits, size, claim=claim)
        else:
            alike = sheet.alike(job, self.now, graph, waits, size, claim=claim)
            alike.numbers[job.id] = seq
            state, fixed = alike.state, alike.fixed
        sheet.owed += 1 + (len(job.body) >> WEIGHT)
        if ids:
            sheet.lots.append((seq, lots.stem(job.id), encode(ids).decode()))
        sheet.bodies.append((seq, job.content_type, job.headers, job.body))
        if graph:
            sheet.nodes.append((graph, seq, job.name))
            sheet.live[graph] = sheet.live.get(graph, 0) + 1
        if state == HELD:
            # It will be started soon: a row now saves reading it then.
            values = (
                seq, job.id, job.queue, HELD, *fixed[2:4], 0, 0, *fixed[4:7], 0, 0, *fixed[7:13],
                "", *fixed[13:16], 0, size, graph_id, job.name, list(ids),
            )  # fmt: skip
            row = Row(*values)
            self._desk.remember(row)
            if late:
                sheet.unborn.append(row)
        elif late:
            sheet.newborn.append((seq, job.id, *fixed))
        self._more[job.queue] = self._more.get(job.queue, 0) + size
        self.changes.append(
            Change(
                job.id, job.queue, public(state), 0, graph_id, None, state == HELD, job.caller,
                ids=ids,
            )
        )  # fmt: skip
        return seq

    def waiting_in(self, queue: str) -> int:
        """How many jobs of a queue wait, what is under way included."""
        return self.waiting.get(queue, 0) + self._more.get(queue, 0)

    # --- go from state to state

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
            self._desk.touched[row.seq] = row
            return
        if now >= TERMINAL:
            row.alarm = row.finished + row.keep if now is not State.DEAD else 0
        else:
            row.alarm = 0 if now is State.RUNNING else alarm(state, row.due, row.expires)
        self._mark(row, STATE)

    def touch(self, row: Row) -> None:
        """A row has changed, in whatever columns."""
        self._mark(row, ALL)

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

    def failed(self, row: Row, error: dict[str, Any], output: str) -> None:
        """One attempt is to be remembered."""
        self._sheet.tries.append(
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

    def revive(self, row: Row) -> None:
        """A job that was over is queued anew."""
        row.finished = row.spent = row.due = 0
        row.flags |= SPOKEN
        row.turn = self.now + row.priority * AGEING
        row.expires = self.now + row.patience if row.patience else 0
        self.touch(row)
        self.move(row, State.QUEUED)
        if row.graph:
            sheet = self._sheet
            sheet.live[row.graph] = sheet.live.get(row.graph, 0) + 1
            sheet.owed += OWED

    # --- and end

    def settle(self, row: Row, ending: Ending) -> None:
        """What a job's attempt, or its waiting, has come to."""
        state = ending.state
        if state >= TERMINAL:
            self.end(row, state, ending.reply, ending.error)
            return
        if row.lease:
            self._lendings.freed(row.lease)
        row.due = row.lease = 0
        self.touch(row)
        if state is State.SCHEDULED:
            row.due = self.now + max(1, round(ending.delay * 1000))
            row.turn = row.due + row.priority * AGEING
        if ending.error is not None:
            text = encode(ending.error).decode()
            self._sheet.outcomes[row.seq] = (row.seq, None, None, None, text)
            row.flags |= SPOKEN
        self.move(row, state)

    def end(
        self, row: Row, state: State, reply: Reply | None, error: dict[str, Any] | None
    ) -> None:
        """A job is over."""
        row.finished = self.now
        bits = END
        if row.due or row.lease:
            self._lendings.freed(row.lease)
            row.due = row.lease = 0
            bits |= LEASE
        text = None if error is None else encode(error).decode()
        seq = row.seq
        sheet = self._sheet
        status: str | int
        if reply is None:
            if text is not None or row.flags & SPOKEN:
                sheet.outcomes[seq] = (seq, None, None, None, text)
            status = (error or {}).get("slug", state.word)
        else:
            sheet.outcomes[seq] = (seq, reply.status, reply.content_type, reply.body, text)
            sheet.owed += len(reply.body) >> WEIGHT
            status = reply.status
        self.move(row, state, status)
        row.dirty |= bits
        # What concerns others is owed at once.
        if row.graph:
            sheet.live[row.graph] = sheet.live.get(row.graph, 0) - 1
            sheet.owed += OWED
        if row.flags & NEEDED:
            self.ended.append(row)
            sheet.owed += OWED
        if row.callback:
            self.notices.append(row)
            sheet.owed += OWED

    # --- the transaction

    def keep(self) -> list[Change]:
        """Let all that has happened last, be it in RAM alone until it is written; the changes."""
        if self._more:
            for queue, more in self._more.items():
                self.waiting[queue] = self.waiting.get(queue, 0) + more
            self._more.clear()
        self._desk.settle()
        changes, self.changes = self.changes, []
        return changes

    def clear(self) -> None:
        """It has not happened; the rows know no better yet."""
        self.changes = []
        self._more.clear()
        self.ended.clear()
        self.notices.clear()

    # --- inside

    def _mark(self, row: Row, bits: int) -> None:
        self._desk.touched[row.seq] = row
        if not row.dirty:
            sheet = self._sheet
            sheet.dirty.append(row)
            sheet.owed += 1
        row.dirty |= bits
