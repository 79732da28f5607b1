"""
A job: its states as one table, and what it looks like on its way into and out of a store.

Plain data and pure rules. Must not know stores, clocks, queues or HTTP. Times are
seconds since the epoch on the store's own clock; spans are in seconds.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobgate.command import PRIORITY
from jobgate.enums import plain
from jobgate.errors import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobgate.errors import JobgateError

__all__ = [
    "CALLBACKS",
    "FOLLOWS",
    "TERMINAL",
    "Change",
    "Ending",
    "Job",
    "NewJob",
    "Notice",
    "Reply",
    "State",
    "Taken",
    "Try",
    "callback",
    "document",
    "taken",
]


@plain
class State(IntEnum):
    """Where a job stands; from `SUCCEEDED` on it is over."""

    BLOCKED = 0
    """It needs others that have not ended."""
    SCHEDULED = 1
    """It waits for its time: a delay, or the back-off after a failure."""
    QUEUED = 2
    """It waits for a worker."""
    RUNNING = 3
    """A worker has it, or a puller by its lease."""
    SUCCEEDED = 4
    FAILED = 5
    """It ended with a problem that trying again would not mend."""
    CANCELLED = 6
    DEAD = 7
    """All its attempts are used up, or its time is; it stays until it is purged or retried."""

    @property
    def word(self) -> str:
        """As documents write it."""
        return self.name.lower()


TERMINAL: Final = State.SUCCEEDED
"""This state and every later one is an end."""

CALLBACKS: Final = "~callbacks"
"""The queue of callbacks: reserved, since no name that users give can have a tilde."""
_CALLBACK_ATTEMPTS: Final = 10
"""With the default back-off a receiver may be away for about four minutes."""

FOLLOWS: Final[Mapping[State, frozenset[State]]] = {
    State.BLOCKED: frozenset({State.SCHEDULED, State.QUEUED, State.CANCELLED, State.DEAD}),
    State.SCHEDULED: frozenset({State.QUEUED, State.CANCELLED, State.DEAD}),
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED, State.FAILED, State.DEAD}),
    State.RUNNING: frozenset(
        {
            State.QUEUED,
            State.SCHEDULED,
            State.SUCCEEDED,
            State.FAILED,
            State.CANCELLED,
            State.DEAD,
        }
    ),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset({State.QUEUED}),
    State.CANCELLED: frozenset(),
    State.DEAD: frozenset({State.QUEUED}),
}
"""Which state may follow which; from `FAILED` and `DEAD` only an explicit retry leads back."""


class NewJob(msgspec.Struct, frozen=True, gc=False):
    r"""
    What is put into a store: a job, or a lot of them that are alike but for id and body.

    Attributes:
        id: Made by the gate, so that putting it again is harmless.
        queue: Where it waits.
        body: The work.
        content_type: What the body is.
        priority: 0 (first) to 7.
        attempts: Starts in all that may be used up.
        delay: Seconds until it may start.
        expires: Seconds after which it is dead if it still waits; 0: never.
        keep: Seconds for which its outcome is kept.
        headers: What is handed on to the worker, as JSON text; empty if nothing.
        caller: The name of the token it came with.
        callback: Where its end is to be told; empty if nowhere.
        call: It is a call with a caller attached: it ends when the gate dies.
        once: It is never started a second time, not even after the gate's death.
        name: Its name within its graph; empty outside of graphs.
        needs: The ids of the jobs it needs.
        when: `succeeded` or `finished`: how what it needs must end.
        ids: Of all jobs of a lot, made together, so that they differ in their last 32 characters
            alone; then `id` is the first, and `body` is all bodies, each with a `\n` behind it.
            Such jobs are in no graph, have no callback and are no calls.
    """

    id: str
    queue: str
    body: bytes
    content_type: str
    priority: int = PRIORITY
    attempts: int = 3
    delay: float = 0.0
    expires: float = 0.0
    keep: float = 3600.0
    headers: str = ""
    caller: str = ""
    callback: str = ""
    call: bool = False
    once: bool = False
    name: str = ""
    needs: tuple[str, ...] = ()
    when: str = "succeeded"
    ids: Sequence[str] = ()


class Taken(msgspec.Struct, frozen=True, gc=False):
    """
    A job that a gate has taken out of the store's backlog, with its body, to run it; or a lot.

    Attributes:
        attempt: Starts so far; the next one is `attempt + 1`.
        spent: Of these, those that count against `attempts`.
        inputs: `(name, job id)` of what it needed, in the order of its needs.
        fed: How these have ended, in the same order; empty if that is too much to come along.
        ids: As a NewJob's.
    """

    id: str
    queue: str
    body: bytes
    content_type: str
    priority: int
    attempt: int
    spent: int
    attempts: int
    created: float
    headers: str
    caller: str
    call: bool = False
    once: bool = False
    graph: str = ""
    name: str = ""
    inputs: tuple[tuple[str, str], ...] = ()
    fed: tuple[Ending, ...] = ()
    ids: Sequence[str] = ()


class Job(msgspec.Struct, gc=False):
    """
    What a store knows of a job, without its body and result.

    Attributes:
        due: When it may start, while `SCHEDULED`; else 0.
        started: When its last attempt began; 0 before the first.
        finished: When it ended; 0 before.
        until: When its lease lapses, while a puller has it; else 0.
        expires: When it is dead if it still waits; 0: never.
        error: The problem it ended with, or that its last attempt ended with, as a document.
        needs: Name (or id, outside of graphs) to state of what it needs.
        gone: Its outcome was kept for its time and is no more; only the fact is left.
    """

    id: str
    queue: str
    state: State
    attempt: int
    spent: int
    attempts: int
    priority: int
    created: float
    content_type: str = ""
    due: float = 0.0
    started: float = 0.0
    finished: float = 0.0
    until: float = 0.0
    expires: float = 0.0
    worker: str = ""
    caller: str = ""
    callback: str = ""
    call: bool = False
    graph: str = ""
    name: str = ""
    error: dict[str, Any] | None = None
    needs: dict[str, State] = {}
    gone: bool = False


class Reply(msgspec.Struct, frozen=True, gc=False):
    """A stored reply."""

    status: int
    content_type: str
    body: bytes


class Ending(msgspec.Struct, frozen=True, gc=False):
    """
    How an attempt ended, and what becomes of its job.

    Attributes:
        state: A terminal one, or `QUEUED` (again, at once) or `SCHEDULED` (again, after `delay`).
        reply: What the worker answered, if it did.
        error: The problem, as a document, if there was one.
        delay: Seconds until the next attempt may start.
        spent: Whether the attempt counts against the job's `attempts`.
        output: The last that the worker printed, for dead letters.
        jobs: Further jobs for the job's own graph; what needs the job then needs these, too.
    """

    state: State
    reply: Reply | None = None
    error: dict[str, Any] | None = None
    delay: float = 0.0
    spent: bool = True
    output: str = ""
    jobs: tuple[NewJob, ...] = ()


class Try(msgspec.Struct, frozen=True, gc=False):
    """One attempt that ended, as dead letters show it."""

    attempt: int
    worker: str
    started: float
    finished: float
    error: dict[str, Any] | None
    output: str


class Change(msgspec.Struct, frozen=True, gc=False):
    """
    A job has come into a state, or a lot has.

    Attributes:
        claimed: It was put or given with the right to run it here at once (see `Journal.put`).
    """

    id: str
    queue: str
    state: State
    attempt: int
    graph: str = ""
    before: State | None = None
    """The state it left; None for a new job, and for one found at the opening."""
    claimed: bool = False
    caller: str = ""
    """The name of the token the job came with."""
    waited: float = 0.0
    ran: float = 0.0
    """Seconds from its creation to its last start, and from there to its end; once it has ended."""
    status: str | int = ""
    """Of one that has ended: its reply's status, its problem's slug, or its state in a word."""
    ids: Sequence[str] = ()
    """Of all jobs of a lot; empty for a single one."""


class Notice(msgspec.Struct, frozen=True):
    """
    The body of a callback.

    Attributes:
        job: The id of the job that has ended.
        state: How, in a word.
        url: Who is to be told.
    """

    job: str
    state: str
    url: str


def callback(job: str, state: State, url: str, again: int = 0) -> NewJob:
    """
    The job that tells an end; a store puts it in the same step in which the other one ends.

    Args:
        job: The id of the job that has ended.
        state: How.
        url: Who is to be told: its `callback`.
        again: Its last attempt, if it had ended so before, and has been retried.
    """
    return NewJob(
        id=f"{job}-{state.word}-{again}" if again else f"{job}-{state.word}",
        queue=CALLBACKS,
        body=msgspec.json.encode(Notice(job, state.word, url)),
        content_type="application/json",
        attempts=_CALLBACK_ATTEMPTS,
    )


def taken(job: NewJob, now: float) -> Taken:
    """A new job as `take` would have given it."""
    return Taken(
        id=job.id,
        queue=job.queue,
        body=job.body,
        content_type=job.content_type,
        priority=job.priority,
        attempt=0,
        spent=0,
        attempts=job.attempts,
        created=now,
        headers=job.headers,
        caller=job.caller,
        call=job.call,
        once=job.once,
        name=job.name,
        ids=job.ids,
    )


def document(error: JobgateError) -> dict[str, Any]:
    """
    An error as jobs keep it: what a problem document is made of.

    The status is HTTP's business, but for the one that a worker gave.
    """
    members = {name: value for name, value in error.extra.items() if value is not None}
    if isinstance(error, CommandFailed):
        members["status"] = error.status
    return {
        "slug": error.slug,
        "title": error.title,
        "detail": error.detail,
        "executed": error.executed,
        **members,
    }
