"""
`POST /call/<queue>`: a request becomes a command, its outcome the response.

Both ways in, the short one and Klein's, come through here, so they cannot differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twisted.logger import Logger

from jobgate import errors
from jobgate.command import PRIORITY, Command
from jobgate.web import fields as read
from jobgate.web.exchange import Response
from jobgate.web.fields import CALL_FIELDS
from jobgate.web.problems import problem
from jobgate.web.pushes import Asked

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure

    from jobgate.command import Reply
    from jobgate.gate import Gate
    from jobgate.web.access import Access
    from jobgate.web.exchange import Exchange
    from jobgate.web.pushes import Pushes

__all__ = ["Calls"]

_log = Logger()

_FOREVER: Final = float("inf")
_EVENTS: Final = "text/event-stream"
_FRACTIONS: Final = tuple(f".{number:03d}" for number in range(1000))


class Calls:
    """
    The call route.

    Args:
        gate: Where commands go.
        access: Who may send them.
        pushes: Takes those that are to be stored.
    """

    def __init__(self, gate: Gate, access: Access, pushes: Pushes) -> None:
        self._gate = gate
        self._access = access
        self._pushes = pushes
        self._seconds = gate.reactor.seconds

    def call(self, exchange: Exchange, queue: str, answer: Callable[[Response], None]) -> None:
        """
        Have the body run and answer with the reply, or with the problem it ended with.

        Args:
            exchange: The request, all of it.
            queue: The queue's name.
            answer: Takes the response, now or later.
        """
        head = exchange.head
        headers = head.headers
        command = None
        try:
            if exchange.token is not None:
                self._access.need(exchange, f"call:{queue}")
            command = Command(
                queue,
                self._gate.ids.make(),
                exchange.body,
                head.content_type,
                PRIORITY,
                self._seconds(),
                _FOREVER,
            )
            if exchange.token is not None:
                command.caller = exchange.token.name
            road = self._gate.dispatcher[queue]
            if CALL_FIELDS.isdisjoint(headers):
                road.submit(command, waiter=_Caller(self, exchange, command, answer))
            else:
                asked = self._read(command, headers)
                if asked.respond_async or b"idempotency-key" in headers:
                    self._pushes.call(exchange, command, answer, asked)
                    return
                caller = _Caller(self, exchange, command, answer, asked.applied)
                road.submit(command, key=asked.shard, no_queue=asked.no_queue, waiter=caller)
        except errors.JobgateError as error:
            answer(self.problem(error, command))

    @staticmethod
    def _read(command: Command, headers: dict[bytes, bytes]) -> Asked:
        """What the headers ask for; what concerns the command is set on it."""
        handed_on: dict[str, str] = {}
        timeouts: list[float] = []
        wanted = read.Preferences()
        shard = applied = ""
        if b"jobgate-timeout" in headers:
            timeouts.append(read.seconds("Jobgate-Timeout", headers[b"jobgate-timeout"]))
        if b"prefer" in headers:
            wanted = read.preferences(headers[b"prefer"])
            if wanted.wait is not None and not wanted.respond_async:
                timeouts.append(max(wanted.wait, 0.001))
                applied = f"Preference-Applied: wait={wanted.wait:.0f}\r\n"
        if b"priority" in headers:
            command.priority = read.priority(headers[b"priority"])
        if b"jobgate-key" in headers:
            shard = handed_on["jobgate-key"] = read.key(headers[b"jobgate-key"])
        if b"traceparent" in headers:
            trace = read.traceparent(headers[b"traceparent"])
            if trace is not None:
                handed_on["traceparent"] = trace
        no_queue = b"jobgate-no-queue" in headers and read.boolean(
            "Jobgate-No-Queue", headers[b"jobgate-no-queue"]
        )
        if not wanted.respond_async:
            for name in ("Jobgate-Callback", "Jobgate-Delay"):
                if name.lower().encode() in headers:
                    text = "wanted a push, or Prefer: respond-async: who waits is told, and at once"
                    raise errors.BadRequest(f"{name}: found it on a call, {text}")
        if timeouts:
            command.deadline = command.due = command.accepted + min(timeouts)
        command.headers = handed_on or None
        return Asked(shard, no_queue, wanted.respond_async, wanted.wait, applied)

    def problem(self, error: errors.JobgateError, command: Command | None) -> Response:
        """The response that tells of a failure."""
        if command is None or isinstance(error, errors.UnknownQueue):
            return problem(error)
        road = self._gate.dispatcher.roads.get(command.queue)
        status = road.config.full_status if road is not None else 503
        response = problem(error, command.id, status)
        if command.attempt:
            response.fields += f"Jobgate-Attempt: {command.attempt}\r\n"
        if command.worker is not None:
            response.fields += f"Jobgate-Worker: {command.worker.name}\r\n"
        return response


class _Caller:
    """
    Who waits for a call's outcome and answers with it: what a Deferred would be, at less cost.

    Args:
        calls: The route.
        exchange: The request.
        command: What it has become.
        answer: Takes the response.
        applied: The header line that says which preferences were kept.
    """

    __slots__ = ("_answer", "_applied", "_calls", "_command", "_exchange")

    def __init__(
        self,
        calls: Calls,
        exchange: Exchange,
        command: Command,
        answer: Callable[[Response], None],
        applied: str = "",
    ) -> None:
        self._calls = calls
        self._exchange = exchange
        self._command: Command | None = command
        self._answer = answer
        self._applied = applied
        exchange.on_lost = command.leave

    def cancel(self) -> None:
        """Nobody waits any more."""
        if self._command is not None:
            self._command.leave()

    def callback(self, reply: Reply) -> None:
        """Its worker has answered, or begun to."""
        try:
            command, exchange = self._let_go(), self._exchange
            began, worker = command.began, command.worker
            assert worker is not None, "somebody has replied"
            run = f", run;dur={_milliseconds(command.ended - began)}" if command.ended else ""
            response = Response(
                reply.status,
                reply.content_type,
                reply.body,
                f"Jobgate-Id: {command.id}\r\nJobgate-Attempt: {command.attempt}\r\n"
                f"Jobgate-Worker: {worker.name}\r\nServer-Timing: queue;dur="
                f"{_milliseconds(began - command.accepted)}{run}\r\n{self._applied}",
            )
            if reply.stream is not None:
                response.stream = reply.stream
                response.command_id = command.id
                accepted = exchange.head.headers.get(b"accept", b"").lower()
                # What a worker has written as events already stays as it is.
                if _EVENTS.encode() in accepted and not reply.content_type.startswith(_EVENTS):
                    response.events = True
                    response.content_type = _EVENTS
                    response.fields += "Cache-Control: no-store\r\n"
            self._answer(response)
        except Exception:  # noqa: BLE001 (a caller's trouble must not reach the worker)
            _log.failure("the reply to {exchange!r} was lost", exchange=self._exchange)

    def errback(self, failure: Failure) -> None:
        """It has failed."""
        try:
            command, error = self._let_go(), failure.value
            if not isinstance(error, errors.JobgateError):
                _log.failure("{command!r} failed", failure=failure, command=command)
                error = errors.InternalError("the gate's log has the details")
            self._answer(self._calls.problem(error, command))
        except Exception:  # noqa: BLE001 (likewise)
            _log.failure("the failure of {exchange!r} was lost", exchange=self._exchange)

    def _let_go(self) -> Command:
        """The command, which has this as its `reply`: a circle would be left to the collector."""
        command, self._command = self._command, None
        assert command is not None, "told once"
        return command


def _milliseconds(seconds: float) -> str:
    """What `f"{seconds * 1000:.3f}"` is, at less cost: every reply says two of them."""
    microseconds = int(seconds * 1_000_000 + 0.5)
    return f"{microseconds // 1000}{_FRACTIONS[microseconds % 1000]}"
