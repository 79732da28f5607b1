"""
Everything that can go wrong, by name.

Knows nothing of HTTP: `jobgate.web.problems` alone maps these to status codes.
Each class has a `slug`, the stable word that names its problem page, and
`executed`: whether a worker may have run the command.
"""

from __future__ import annotations

__all__ = [
    "BadRequest",
    "BodyTooLarge",
    "Cancelled",
    "CommandFailed",
    "ConfigError",
    "Expired",
    "Forbidden",
    "GateFull",
    "Gone",
    "InternalError",
    "JobgateError",
    "LeaseLapsed",
    "MethodNotAllowed",
    "NoWorker",
    "NotFound",
    "PoisonCommand",
    "Purged",
    "QueueFull",
    "QueueTimeout",
    "QuotaExceeded",
    "RequestTimeout",
    "ShuttingDown",
    "StaleAttempt",
    "StoreUnavailable",
    "Unauthorized",
    "UnknownJob",
    "UnknownQueue",
    "UnknownWorker",
    "Unprocessable",
    "WorkerDied",
    "WorkerProtocolError",
    "WorkerTimeout",
    "WouldMissDeadline",
    "WrongState",
]


class ConfigError(Exception):
    """The configuration is wrong; the message names file, key, found and wanted."""


class JobgateError(Exception):
    """
    A command, or a request, that did not end well.

    Attributes:
        slug: The problem's stable name.
        title: One line for people, the same for every occurrence.
        executed: "no", "maybe" or "yes".
        detail: What was wrong this time.
        retry_after: Seconds after which trying again makes sense, or None.
        extra: Further members of the problem document.
    """

    slug = "internal-error"
    title = "Something in the gate went wrong"
    executed = "no"

    def __init__(
        self,
        detail: str = "",
        *,
        retry_after: float | None = None,
        executed: str = "",
        **extra: object,
    ) -> None:
        super().__init__(detail)
        self.executed = executed or self.executed
        self.detail = detail
        self.retry_after = retry_after
        self.extra = extra


class InternalError(JobgateError):
    """A bug in the gate; the log has the traceback."""

    executed = "maybe"


class BadRequest(JobgateError):
    """A header, query or body that cannot be read; `detail` names the field."""

    slug = "bad-request"
    title = "The request cannot be read"


class RequestTimeout(JobgateError):
    """The request did not arrive in time."""

    slug = "request-timeout"
    title = "The request did not arrive in time"


class Unprocessable(JobgateError):
    """The right form with impossible content."""

    slug = "unprocessable"
    title = "The request can be read but not carried out"


class NotFound(JobgateError):
    """No such route."""

    slug = "not-found"
    title = "There is nothing at this address"


class UnknownQueue(JobgateError):
    """No queue of that name."""

    slug = "unknown-queue"
    title = "There is no queue of this name"


class UnknownWorker(JobgateError):
    """No worker of that name."""

    slug = "not-found"
    title = "There is no worker of this name"


class MethodNotAllowed(JobgateError):
    """The route exists, the method does not; `allow` lists those that do."""

    slug = "method-not-allowed"
    title = "This address does not take that method"

    def __init__(self, allow: str) -> None:
        super().__init__(f"this address takes {allow}")
        self.allow = allow


class BodyTooLarge(JobgateError):
    """A body over `max_body`."""

    slug = "body-too-large"
    title = "The body is larger than this gate takes"


class QueueFull(JobgateError):
    """
    As many calls wait as may wait.

    Attributes:
        queue: Where, if there is any choice.
    """

    slug = "queue-full"
    title = "The queue is full"
    queue = ""


class WouldMissDeadline(JobgateError):
    """The expected wait is over the time that is left."""

    slug = "would-miss-deadline"
    title = "The command would miss its deadline anyway"


class GateFull(JobgateError):
    """The gate holds as many connections or bytes as it may."""

    slug = "gate-full"
    title = "The gate holds as much as it may"


class QuotaExceeded(JobgateError):
    """This caller's own quota is spent."""

    slug = "quota-exceeded"
    title = "Your own quota is spent"


class QueueTimeout(JobgateError):
    """Waited too long; no worker has begun it."""

    slug = "queue-timeout"
    title = "The command waited too long"


class WorkerTimeout(JobgateError):
    """Ran too long."""

    slug = "worker-timeout"
    title = "The command ran too long"
    executed = "maybe"


class WorkerDied(JobgateError):
    """The worker died under it."""

    slug = "worker-died"
    title = "The worker died while it had the command"
    executed = "maybe"


class PoisonCommand(JobgateError):
    """A command that is known to kill workers."""

    slug = "poison-command"
    title = "This command is known to kill workers"
    executed = "maybe"


class WorkerProtocolError(JobgateError):
    """The worker broke the protocol."""

    slug = "worker-protocol-error"
    title = "The worker broke the protocol"
    executed = "maybe"


class CommandFailed(JobgateError):
    """
    The worker said FAIL.

    Attributes:
        status: The status the worker gave, else 500.
        again: Trying again may help; False if the worker said that it does not.
    """

    slug = "command-failed"
    title = "The worker said FAIL"
    executed = "yes"

    def __init__(
        self, title: str, detail: str = "", status: int = 500, *, again: bool = True
    ) -> None:
        super().__init__(detail)
        self.title = title
        self.status = status
        self.again = again


class NoWorker(JobgateError):
    """No worker lives (crash loop), or all of them declined."""

    slug = "no-worker"
    title = "No worker can take the command"


class UnknownJob(JobgateError):
    """No job, graph or lease of that id, or not for this caller."""

    slug = "unknown-job"
    title = "There is no job of this id"


class WrongState(JobgateError):
    """What was asked for cannot be done to a job in this state; `detail` names it."""

    slug = "wrong-state"
    title = "The job is in no state for that"


class StaleAttempt(JobgateError):
    """A late or second reply: that attempt does not run any more."""

    slug = "stale-attempt"
    title = "This attempt is over"
    executed = "maybe"


class Gone(JobgateError):
    """The outcome was kept for its time and is no more."""

    slug = "gone"
    title = "The outcome is no longer kept"
    executed = "maybe"


class Cancelled(JobgateError):
    """The job was cancelled; `detail` says why."""

    slug = "cancelled"
    title = "The job was cancelled"


class LeaseLapsed(JobgateError):
    """A puller did not reply before its lease was over."""

    slug = "lease-lapsed"
    title = "The lease ran out"
    executed = "maybe"


class Expired(JobgateError):
    """The job waited longer than its queue's `expires`."""

    slug = "expired"
    title = "The job waited too long"


class StoreUnavailable(JobgateError):
    """The store cannot be reached, is full, or cannot be written."""

    slug = "store-unavailable"
    title = "The store cannot keep anything now"


class ShuttingDown(JobgateError):
    """The gate drains."""

    slug = "shutting-down"
    title = "The gate is shutting down"


class Purged(JobgateError):
    """An operator emptied the queue while the command waited in it."""

    slug = "purged"
    title = "The queue was emptied by an operator"


class Unauthorized(JobgateError):
    """No token, or one that is not known."""

    slug = "unauthorized"
    title = "A bearer token is needed"


class Forbidden(JobgateError):
    """The token, or a foreign web page, may not do this."""

    slug = "forbidden"
    title = "This is not allowed"
