"""
What becomes of a job when an attempt at it has ended (contract section 6).

Pure: an error, what is known of the job and a queue's rules in, an `Ending` out. Must
not know stores, clocks or HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from jobgate import errors
from jobgate.errors import JobgateError
from jobgate.jobs.job import Ending, State, document

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobgate.config import Backoff

__all__ = ["after_failure", "as_error", "delay"]

_NOBODY: Final = 1.0
"""Seconds after which a job that all workers declined is offered again."""
_FINAL: Final = (errors.BadRequest, errors.Unprocessable)
"""What would go wrong again in the same way."""
_MEMBERS: Final = frozenset({"slug", "title", "detail", "executed", "status"})


def delay(backoff: Backoff, spent: int, random: Callable[[], float]) -> float:
    """
    Seconds until the next attempt: exponential, bounded, spread by the jitter.

    Args:
        backoff: The queue's.
        spent: Attempts used up, at least one.
        random: Gives numbers from 0 to 1.
    """
    # Bounded before the power is taken: a job may have any number of attempts.
    power = min(spent - 1, 64)
    seconds = min(backoff.first * backoff.factor**power, float(backoff.max))
    return float(seconds * (1 - backoff.jitter + 2 * backoff.jitter * random()))


def after_failure(
    error: JobgateError,
    *,
    spent: int,
    attempts: int,
    once: bool,
    backoff: Backoff,
    random: Callable[[], float],
    output: str = "",
) -> Ending:
    """
    How a failed attempt ends its job, or when the next one is made.

    Args:
        error: What went wrong.
        spent: Attempts used up before this one.
        attempts: How many may be.
        once: It is never started a second time.
        backoff: The queue's.
        random: Gives numbers from 0 to 1, for the jitter.
        output: The last that the worker printed.
    """
    problem = document(error)
    if isinstance(error, errors.PoisonCommand):
        return Ending(State.DEAD, error=problem, output=output)
    if isinstance(error, errors.NoWorker):
        # Whatever earlier attempts have done, this one was none.
        return Ending(State.SCHEDULED, error=problem, delay=_NOBODY, spent=False)
    if error.executed == "no" and isinstance(error, errors.ShuttingDown):
        return Ending(State.QUEUED, error=problem, spent=False)
    if isinstance(error, _FINAL) or (isinstance(error, errors.CommandFailed) and not error.again):
        return Ending(State.FAILED, error=problem, output=output)
    if once:
        return Ending(State.DEAD, error=problem, output=output)
    if isinstance(error, errors.ShuttingDown):
        return Ending(State.QUEUED, error=problem, spent=False)
    if spent + 1 >= attempts:
        return Ending(State.DEAD, error=problem, output=output)
    wait = delay(backoff, spent + 1, random)
    return Ending(State.SCHEDULED, error=problem, delay=wait, output=output)


_KINDS: Final = {
    kind.slug: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, JobgateError)
}


def as_error(problem: dict[str, Any]) -> JobgateError:
    """The error that was stored so."""
    slug = problem.get("slug", "")
    detail = str(problem.get("detail", ""))
    executed = str(problem.get("executed", "maybe"))
    if slug == errors.CommandFailed.slug:
        failed = errors.CommandFailed(
            str(problem.get("title", "")), detail, int(problem.get("status", 500))
        )
        failed.executed = executed
        return failed
    kind = _KINDS.get(slug, errors.InternalError)
    if kind in (errors.MethodNotAllowed, JobgateError):
        kind = errors.InternalError
    extra = {name: value for name, value in problem.items() if name not in _MEMBERS}
    return kind(detail, executed=executed, **extra)
