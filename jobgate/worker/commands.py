"""
What a handler is given, and what it may say beyond plain values.

Must not know how a command came, nor how what is said about it gets to the gate: that is the
link's (`link`).
"""

from __future__ import annotations

from time import monotonic

from jobgate.worker.frames import PROGRESS
from jobgate.worker.quick_json import dumps, loads

TYPE_CHECKING = False  # as in `jobgate.worker`
if TYPE_CHECKING:
    from typing import Any

    from jobgate.worker.link import Link

__all__ = ["BYTES", "Command", "Decline", "Fail", "Input", "Reply", "describe", "line"]

BYTES = "application/octet-stream"
_LINE, _DETAIL = 500, 10_000  # characters of a title and of a detail that the caller gets


class Decline(Exception):
    """Raise or return it to hand a command back: the gate gives it to another worker."""


class Fail(Exception):
    """
    Raise or return it to fail a command with words and a status of your own.

    Args:
        title: One line that says what went wrong; the caller reads it.
        detail: More of the same, for this one occurrence.
        status: The HTTP status for the caller, 400 to 599; by default the gate says 500.
        retry: False tells the gate that trying again is useless (contract 6).

    Raises:
        ValueError: The status is none that a failure can have.
    """

    def __init__(
        self,
        title: str,
        detail: str | None = None,
        status: int | None = None,
        retry: bool | None = None,  # noqa: FBT001 - the order is part of the contract
    ) -> None:
        super().__init__(title)
        _check_status(status, 400)
        self.title = title
        self.detail = detail
        self.status = status
        self.retry = retry


class Reply:
    """
    A reply that says its own content type or status, or makes its graph grow.

    Args:
        body: bytes, str, or anything JSON.
        content_type: What the body is; by default, what its Python type suggests.
        status: The HTTP status for the caller, 200 to 599; by default the gate says 200.
        jobs: Further jobs for the graph of the command's job (contract 4.3), as `POST /graphs`
            takes them: by name, each a dict with `queue` and so on.

    Raises:
        ValueError: Content type or status would not survive the way to the caller.
    """

    __slots__ = ("body", "content_type", "jobs", "status")

    def __init__(
        self,
        body: object,
        content_type: str | None = None,
        status: int | None = None,
        jobs: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        # The gate ends a worker over these (contract 5.1): better to fail the one command here.
        _check_status(status, 200)
        plain = str(content_type or "")
        if not (plain.isascii() and plain.isprintable()):
            msg = f"content type {content_type!r} is not printable ASCII"
            raise ValueError(msg)
        self.body = body
        self.content_type = plain or None
        self.status = status
        self.jobs = jobs


class Input:
    """
    The reply of a job that this command needed (contract 4.3).

    Attributes:
        body: Its bytes.
        content_type: What they are.
    """

    __slots__ = ("body", "content_type")

    def __init__(self, body: bytes, content_type: str) -> None:
        self.body = body
        self.content_type = content_type


class Command:
    """
    One piece of work, as the handler sees it.

    Attributes:
        body: The bytes that the caller sent.
        content_type: What the caller says they are.
        id: The `Jobgate-Id`.
        queue: The queue it came through.
        attempt: Which start of this command this is, from 1.
        headers: What was handed on from the request: `traceparent`, `jobgate-key`.
        inputs: The replies of the jobs that this one needed, by name.
    """

    # Read from the meta when the first is asked for: many handlers want the body only.
    _LATER = ("content_type", "id", "queue", "attempt", "headers", "inputs", "_deadline")
    __slots__ = (*_LATER, "_cancelled", "_link", "_meta", "_number", "_received", "body")
    body: bytes
    content_type: str
    id: str
    queue: str
    attempt: int
    headers: dict[str, str]
    inputs: dict[str, Input]
    _deadline: float

    def __init__(self, link: Link, number: int, meta: bytes, body: bytes, received: float) -> None:
        self._link = link
        self._number = number
        self._meta = meta
        self.body = body
        self._received = received
        self._cancelled = False

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - it is JSON
        if name not in Command._LATER:
            msg = f"a Command has no {name!r}"
            raise AttributeError(msg)
        self._parse()
        return getattr(self, name)

    def _parse(self) -> None:
        """Set what the meta says, and part the inputs from the body, which they follow."""
        facts = loads(self._meta) if self._meta else {}
        self.id = str(facts.get("id") or self._number)
        self.queue = str(facts.get("queue") or "")
        self.content_type = str(facts.get("content_type") or BYTES)
        self.attempt = int(facts.get("attempt") or 1)
        self.headers = dict(facts.get("headers") or {})
        remaining = facts.get("remaining_ms")
        seconds = float("inf" if remaining is None else remaining) / 1000
        self._deadline = self._received + seconds
        inputs, end = {}, len(self.body)
        for entry in reversed(facts.get("inputs") or ()):
            start = end - entry["length"]
            kind = str(entry.get("content_type") or BYTES)
            inputs[entry["name"]] = Input(self.body[start:end], kind)
            end = start
        self.inputs = dict(reversed(inputs.items()))
        self.body = self.body[:end]

    @property
    def remaining(self) -> float:
        """Seconds until nobody waits for the reply any more; infinite without a deadline."""
        return max(0.0, self._deadline - monotonic())

    @property
    def cancelled(self) -> bool:
        """Whether the caller has gone or the time is up: a long handler looks now and then."""
        if not self._cancelled:
            self._link.glance()
        return self._cancelled

    def json(self) -> Any:  # noqa: ANN401 - it is JSON
        """
        Parse the body as JSON.

        Raises:
            Fail: It is not JSON; left alone, the caller gets status 400.
        """
        try:
            return loads(self.body)
        except (ValueError, RecursionError) as error:
            title = "the body is not JSON"
            raise Fail(title, line(error), 400, retry=False) from None

    def progress(self, done: float, total: float | None = None, note: str | None = None) -> None:
        """
        Tell those who watch the job how far it is. May be called from any thread.

        Args:
            done: How much is done, in units of the handler's choice.
            total: How much there is in all, if known.
            note: A line for people.
        """
        facts: dict[str, object] = {"done": _number(done)}
        if total is not None:
            facts["total"] = _number(total)
        if note is not None:
            facts["note"] = line(note)
        meta = dumps(facts)
        # A thread that outlives its command has nobody to tell.
        if self._link.current is self or self in self._link.batch:
            self._link.tell(PROGRESS, self._number, meta)


def describe(fail: Fail) -> bytes:
    """Return the meta of a FAIL frame."""
    detail = None if fail.detail is None else str(fail.detail)[:_DETAIL]
    facts = {"detail": detail, "status": fail.status, "retry": fail.retry}
    given = {name: value for name, value in facts.items() if value is not None}
    return dumps({"title": line(fail.title), **given})


def line(said: object) -> str:
    """Return one short line for the caller, from an exception or a title."""
    try:
        text = " ".join(str(said).split())
    except Exception:  # noqa: BLE001 - somebody's __str__; the type still tells something
        text = ""
    if isinstance(said, Exception):
        text = f"{type(said).__name__}: {text}" if text else type(said).__name__
    return text[:_LINE]


def _number(amount: float) -> float:
    """Return an amount as JSON likes it, whatever number type it has (NumPy's, for one)."""
    value = float(amount)
    return int(value) if value.is_integer() else value


def _check_status(status: int | None, least: int) -> None:
    """Raise ValueError for a status that the gate would end this worker over."""
    if status is not None and not (isinstance(status, int) and least <= status <= 599):
        msg = f"status {status!r} is not a whole number from {least} to 599"
        raise ValueError(msg)
