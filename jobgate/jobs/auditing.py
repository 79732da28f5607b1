"""
Jobs in the audit, in the form in which calls are there: one line at acceptance, one at outcome.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobgate.jobs.job import TERMINAL, State
from jobgate.jobs.lots import ids_of

if TYPE_CHECKING:
    from jobgate.errors import JobgateError
    from jobgate.gate.audit import Audit
    from jobgate.jobs.job import Change, NewJob

__all__ = ["changed", "refused"]


def changed(audit: Audit, change: Change) -> None:
    """A job has come into a state: a line if it is new, and one if that is an end."""
    if change.before is None and change.state < TERMINAL:
        for id_ in ids_of(change):
            audit.append("accepted", id_, change.queue, change.caller, 0)
    elif change.state >= TERMINAL:
        for id_ in ids_of(change):
            audit.append(
                "ended",
                id_,
                change.queue,
                change.caller,
                change.attempt,
                status="cancelled" if change.state == State.CANCELLED else change.status,
                waited=round(change.waited, 6),
                ran=round(change.ran, 6),
            )


def refused(audit: Audit, job: NewJob, error: JobgateError) -> None:
    """A job could not be stored: acceptance and outcome in one."""
    for id_ in ids_of(job):
        audit.append("refused", id_, job.queue, job.caller, 0, status=error.slug)
