"""
Errors as problem documents (RFC 9457): the one place that knows status codes.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from jobgate import errors
from jobgate.web.exchange import Response, json_response

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure

    from jobgate.errors import JobgateError
    from jobgate.web.exchange import Exchange

__all__ = ["PROBLEMS", "Problem", "failed", "page", "problem", "problem_document"]

_log = Logger()


class Problem(NamedTuple):
    """
    One kind of problem.

    Attributes:
        status: Its HTTP status.
        error: The error it is made from.
        advice: What a caller should do about it.
    """

    status: int
    error: type[JobgateError]
    advice: str


_KINDS: Final = (
    Problem(400, errors.BadRequest, "Mend the field that the detail names."),
    Problem(401, errors.Unauthorized, "Send a known token as `Authorization: Bearer`."),
    Problem(
        403,
        errors.Forbidden,
        "Use a token whose `allow` covers this, or, without tokens, call the gate by a loopback"
        " name and not from a foreign web page.",
    ),
    Problem(404, errors.NotFound, "Look the address up in `/openapi.json`."),
    Problem(404, errors.UnknownQueue, "`GET /queues` lists the queues."),
    Problem(404, errors.UnknownJob, "Check the id; outcomes are kept for `result_ttl` only."),
    Problem(405, errors.MethodNotAllowed, "Use a method that `Allow` lists."),
    Problem(408, errors.RequestTimeout, "Send the whole request within the gate's times."),
    Problem(409, errors.WrongState, "`GET /jobs/ID` tells its state."),
    Problem(409, errors.Cancelled, "The detail says why; push it again if it is wanted still."),
    Problem(409, errors.StaleAttempt, "Throw the work away: the attempt is over."),
    Problem(410, errors.Gone, "Fetch outcomes within the queue's `result_ttl`."),
    Problem(413, errors.BodyTooLarge, "Send less, or have `max_body` raised."),
    Problem(422, errors.Unprocessable, "Mend what the detail names."),
    Problem(429, errors.QuotaExceeded, "Wait for `Retry-After` seconds; others are not affected."),
    Problem(500, errors.InternalError, "This is a bug of the gate: its log has the traceback."),
    Problem(500, errors.CommandFailed, "The worker says what was wrong."),
    Problem(
        502,
        errors.WorkerDied,
        "The command may have run. `GET /workers/NAME/report` tells how the worker died.",
    ),
    Problem(502, errors.PoisonCommand, "Do not send this body again before its worker is mended."),
    Problem(502, errors.WorkerProtocolError, "Mend the worker; its report has the details."),
    Problem(
        503, errors.QueueFull, "Wait for `Retry-After` seconds, which is when it will be drained."
    ),
    Problem(503, errors.WouldMissDeadline, "Give it more time, or come back later."),
    Problem(503, errors.GateFull, "Wait for `Retry-After` seconds, or ask another gate."),
    Problem(503, errors.NoWorker, "`GET /readyz` tells why; the gate keeps trying."),
    Problem(503, errors.Purged, "An operator emptied the queue; nothing has run."),
    Problem(
        503, errors.StoreUnavailable, "Wait for `Retry-After` seconds; plain calls go on meanwhile."
    ),
    Problem(503, errors.ShuttingDown, "Ask another gate, or this one once it is back."),
    Problem(
        504,
        errors.QueueTimeout,
        "It had to wait for too long: add workers; `executed` says whether it may have run.",
    ),
    Problem(504, errors.LeaseLapsed, "Extend leases in time, or ask for longer ones."),
    Problem(504, errors.Expired, "It was not run: push it again, or raise `expires`."),
    Problem(504, errors.WorkerTimeout, "The command may have run; it was too slow."),
)

PROBLEMS: Final[dict[str, Problem]] = {kind.error.slug: kind for kind in _KINDS}
"""Every kind of problem by its slug."""


def problem(error: JobgateError, command_id: str = "", full_status: int = 503) -> Response:
    """
    The response that tells a caller of an error.

    Args:
        error: What went wrong.
        command_id: The command it happened to, where there is one.
        full_status: The queue's status for `queue-full`.
    """
    document = problem_document(error, command_id, full_status)
    status = document["status"]
    fields = f"Jobgate-Id: {command_id}\r\n" if command_id else ""
    if error.retry_after is not None or status in (429, 503):
        fields += f"Retry-After: {max(1, ceil(error.retry_after or 0))}\r\n"
    if isinstance(error, errors.MethodNotAllowed):
        fields += f"Allow: {error.allow}\r\n"
    if isinstance(error, errors.Unauthorized):
        fields += 'WWW-Authenticate: Bearer realm="jobgate"\r\n'
    response = json_response(document, status, "application/problem+json", fields)
    response.close = isinstance(error, errors.ShuttingDown)
    return response


def failed(exchange: Exchange, answer: Callable[[Response], None], failure: Failure) -> None:
    """
    Answer with what went wrong; what is no JobgateError is a bug, and logged.

    Args:
        exchange: The request.
        answer: Takes the response.
        failure: Why there is no other; if it was cancelled, nobody is there to take one.
    """
    error = failure.value
    if isinstance(error, CancelledError):
        return
    if not isinstance(error, errors.JobgateError):
        _log.failure("{exchange!r} failed", failure=failure, exchange=exchange)
        error = errors.InternalError("the gate's log has the details")
    answer(problem(error))


def problem_document(
    error: JobgateError, command_id: str = "", full_status: int = 503
) -> dict[str, Any]:
    """The document itself; arguments as for `problem`."""
    status = PROBLEMS[error.slug].status
    if isinstance(error, errors.CommandFailed):
        status = error.status
    elif isinstance(error, errors.QueueFull):
        status = full_status
    document = {
        "type": f"/problems/{error.slug}",
        "title": error.title,
        "status": status,
        "detail": error.detail,
        "executed": error.executed,
    }
    document |= {name: value for name, value in error.extra.items() if value is not None}
    return document | {"id": command_id} if command_id else document


def page(slug: str) -> Response:
    """
    The page that explains a kind of problem.

    Raises:
        NotFound: There is no such kind.
    """
    kind = PROBLEMS.get(slug)
    if kind is None:
        message = f"no problem is called {slug!r}"
        raise errors.NotFound(message)
    title = kind.error.title
    about = " ".join((kind.error.__doc__ or "").partition("\n\n")[0].split())
    text = (
        f"{title}\n\n{about}\n\n"
        f"Status: {kind.status}\nExecuted: {kind.error.executed}\n\n{kind.advice}\n"
    )
    return Response(200, "text/plain; charset=utf-8", text.encode())
