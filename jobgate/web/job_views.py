"""
What callers are shown of jobs: the state document and lists of them.

Each document is a struct, so `/openapi.json` can tell its shape.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from jobgate.jobs.endings import as_error
from jobgate.jobs.job import TERMINAL, State
from jobgate.web.problems import problem_document

if TYPE_CHECKING:
    from jobgate.errors import JobgateError
    from jobgate.gate import Gate
    from jobgate.jobs.job import Job as StoredJob
    from jobgate.jobs.job import Try as StoredTry

__all__ = [
    "Inputs",
    "Job",
    "Jobs",
    "Progress",
    "Try",
    "document",
    "error_of",
    "full",
    "moment",
    "progress_of",
    "told",
]


class Progress(msgspec.Struct):
    """
    What its worker last said of how far it is.

    Attributes:
        done: In units of its own.
        total: Of how many; null if it does not know.
        note: In words.
    """

    done: float
    total: float | None = None
    note: str | None = None


class Try(msgspec.Struct):
    """
    An attempt that failed.

    Attributes:
        attempt: Which, counted from 1.
        worker: Who had it.
        started: When, RFC 3339.
        finished: When, RFC 3339.
        error: The problem.
        output: The last that the worker printed, if it died.
    """

    attempt: int
    worker: str | None
    started: str | None
    finished: str | None
    error: dict[str, Any] | None
    output: str | None


class Job(msgspec.Struct, kw_only=True):
    """
    A job's state.

    Attributes:
        id: Its id.
        queue: Its queue.
        state: blocked, scheduled, queued, running, succeeded, failed, cancelled or dead.
        why: In words, what it waits for while it neither runs nor has ended; else null.
        attempt: Starts so far.
        attempts: Starts in all that it may use up.
        priority: 0 (first) to 7.
        created: When it was accepted, RFC 3339.
        started: When its last attempt began, or null.
        finished: When it ended, or null.
        worker: Who has it, or had it last.
        error: The problem that it, or its last attempt, ended with.
        needs: What it needs, by name, and the state of that.
        progress: What its worker last said of how far it is, or null.
        links: Where to go from here.
        tries: The attempts that failed, oldest first; not in lists.
    """

    id: str
    queue: str
    state: str
    why: str | None
    attempt: int
    attempts: int
    priority: int
    created: str | None
    started: str | None
    finished: str | None
    worker: str | None
    error: dict[str, Any] | None
    needs: dict[str, str]
    progress: Progress | None
    links: dict[str, str]
    tries: list[Try] | None = None


class Jobs(msgspec.Struct):
    """
    A page of jobs, newest first.

    Attributes:
        jobs: At most `limit`.
        after: What `?after=` gets the next page; null on the last.
    """

    jobs: list[Job]
    after: str | None


class Inputs(msgspec.Struct):
    """
    What a job receives.

    Attributes:
        inputs: The names of the jobs whose replies are at `/jobs/<id>/inputs/<name>`.
    """

    inputs: list[str]


async def full(gate: Gate, job: StoredJob) -> Job:
    """A job's document with everything that has to be asked for."""
    journal = gate.jobs.journal
    ahead = await journal.ahead(job.id) if job.state == State.QUEUED else None
    shown = document(gate, job, ahead)
    if job.error is not None and job.attempt:
        shown.tries = [_try(one) for one in await journal.tries(job.id)]
    return shown


def document(gate: Gate, job: StoredJob, ahead: int | None = None) -> Job:
    """
    A job's document.

    Args:
        gate: Whose it is.
        job: What the store knows.
        ahead: How many have their turn before it, if that has been asked.
    """
    links = {"self": f"/jobs/{job.id}", "result": f"/jobs/{job.id}/result"}
    links["events"] = f"/jobs/{job.id}/events"
    if job.graph:
        links["graph"] = f"/graphs/{job.graph}"
    said = progress_of(gate, job)
    return Job(
        id=job.id,
        queue=job.queue,
        state=job.state.word,
        why=_why(gate, job, ahead),
        attempt=job.attempt,
        attempts=job.attempts,
        priority=job.priority,
        created=moment(job.created),
        started=moment(job.started),
        finished=moment(job.finished),
        worker=job.worker or None,
        error=problem_document(error_of(job), job.id) if job.error else None,
        needs={name: state.word for name, state in job.needs.items()},
        progress=Progress(*said) if said is not None else None,
        links=links,
    )


def progress_of(gate: Gate, job: StoredJob) -> tuple[float, float | None, str | None] | None:
    """What a running job's worker last said of how far it is: done, total and note."""
    backlog = gate.jobs.backlogs.get(job.queue)
    command = backlog.window.get(job.id) if backlog is not None else None
    return command.progress if command is not None and job.state == State.RUNNING else None


async def told(gate: Gate, name: str) -> bytes | None:
    """A job's document as its callback tells it; None if the job is not kept."""
    job = await gate.jobs.journal.get(name)
    return None if job is None else msgspec.json.encode(await full(gate, job))


def error_of(job: StoredJob) -> JobgateError:
    """The error that a job ended with; what has been started may have run, however it ended."""
    error = as_error(job.error or {})
    if job.attempt and error.executed == "no":
        error.executed = "maybe"
    return error


def moment(seconds: float) -> str | None:
    """A time as documents write it: RFC 3339, UTC, three decimals; null for none."""
    if not seconds:
        return None
    at = datetime.fromtimestamp(seconds, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _try(one: StoredTry) -> Try:
    return Try(
        attempt=one.attempt,
        worker=one.worker or None,
        started=moment(one.started),
        finished=moment(one.finished),
        error=problem_document(as_error(one.error)) if one.error else None,
        output=one.output or None,
    )


def _why(gate: Gate, job: StoredJob, ahead: int | None) -> str | None:
    """What a job that neither runs nor has ended waits for, in words."""
    if job.state >= TERMINAL or job.state == State.RUNNING:
        return None
    if job.state == State.BLOCKED:
        open_needs = [f"{n} ({s.word})" for n, s in job.needs.items() if s < TERMINAL]
        return f"it needs {', '.join(open_needs)}" if open_needs else "it needs others"
    if job.state == State.SCHEDULED:
        left = max(0.0, job.due - gate.jobs.journal.now())
        reason = f"back-off after attempt {job.attempt}" if job.attempt else "its delay"
        return f"{reason}: {left:.1f} s are left"
    road = gate.dispatcher.get(job.queue)
    if road is None:
        return f"no queue is called {job.queue!r}: it waits until there is one again"
    if road.paused:
        return "its queue is paused, until somebody resumes it"
    if road.refusal():
        return f"its queue is not ready: {road.refusal()}"
    if not road.staffed:
        waits = "no worker of its queue is ready" if road.config.command else "nobody pulls it"
    else:
        waits = "all workers are busy" if not road.free else "a worker is about to take it"
    if ahead is None:
        return waits
    expected = ahead * road.stats.service_time / max(1, road.lanes)
    about = f", about {expected:.1f} s" if expected and road.staffed else ""
    return f"{waits}; {ahead} ahead of it{about}"
