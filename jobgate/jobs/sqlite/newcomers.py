"""
What new jobs look like as rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from jobgate.jobs.job import State
from jobgate.jobs.sqlite.rows import CALL, EITHER, HELD, INPUTS, ONCE, alarm

if TYPE_CHECKING:
    from jobgate.jobs.job import NewJob

__all__ = ["AGEING", "Alike", "in_common"]

AGEING: Final = 10_000
"""Milliseconds in which a waiting job rises one level."""


class Alike:
    """
    New rows that differ in nothing but id and number, so that one statement inserts them all.

    Args:
        state: Where they stand.
        fixed: Their columns, from the third on, in the order of `statements.INSERT`.

    Attributes:
        numbers: Number by id.
    """

    __slots__ = ("fixed", "numbers", "state")

    def __init__(self, state: int, fixed: tuple[Any, ...]) -> None:
        self.state = state
        self.fixed = fixed
        self.numbers: dict[str, int] = {}


def in_common(
    job: NewJob, now: int, graph: int, waits: int, size: int, *, claim: bool
) -> tuple[int, tuple[Any, ...]]:
    """What a new job has in common with others: an Alike's `state` and `fixed`."""
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
    return (
        HELD if claim and state == State.QUEUED else state,
        (
            job.queue, state, (due or now) + job.priority * AGEING, job.priority, job.attempts,
            now, due, alarm(state, due, expires), expires, patience, round(job.keep * 1000),
            waits, flags, job.caller, job.callback, graph, size,
        ),
    )  # fmt: skip
