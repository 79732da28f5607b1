"""
`POST /call/<queue>`: a request becomes a command, its outcome the response.

Both ways in, the short one and Klein's, come through here, so they cannot differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from jobgate import errors
from jobgate.web import fields
from jobgate.web.exchange import Exchange, Response
from jobgate.web.problems import problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure

    from jobgate.command import Command, Reply
    from jobgate.gate import Gate
    from jobgate.web.access import Access

__all__ = ["Calls"]

_OCTETS = "application/octet-stream"


class Calls:
    """
    The call route.

    Args:
        gate: Where commands go.
        access: Who may send them.
    """

    _log = Logger()

    def __init__(self, gate: Gate, access: Access) -> None:
        self._gate = gate
        self._access = access
        self._rights: dict[str, str] = {}

    def call(self, exchange: Exchange, queue: str, answer: Callable[[Response], None]) -> None:
        """
        Have the body run and answer with the reply, or with the problem it ended with.

        Args:
            exchange: The request, all of it.
            queue: The queue's name.
            answer: Takes the response, now or later.
        """
        headers = exchange.headers
        kind = headers.get(b"content-type")
        command = None
        extra: list[tuple[str, str]] = []
        try:
            if exchange.token is not None:
                self._access.need(exchange, f"call:{queue}")
            command = self._gate.command(
                queue, exchange.body, kind.decode("latin-1") if kind else _OCTETS
            )
            if exchange.token is not None:
                command.caller = exchange.token.name
            if fields.CALL_FIELDS.isdisjoint(headers):
                self._gate.submit(command)
            else:
                extra = self._submit(command, headers)
        except errors.JobgateError as error:
            answer(self._problem(error, command))
            return
        exchange.on_lost = command.reply.cancel
        command.reply.addCallbacks(
            self._replied,
            self._failed,
            callbackArgs=(exchange, command, answer, extra),
            errbackArgs=(command, answer),
        ).addErrback(self._bug, answer)

    def _submit(self, command: Command, headers: dict[bytes, bytes]) -> list[tuple[str, str]]:
        """Submit with what the headers ask for; returns what to say of it in the response."""
        extra: list[tuple[str, str]] = []
        handed_on: dict[str, str] = {}
        timeouts: list[float] = []
        key = ""
        if b"jobgate-timeout" in headers:
            timeouts.append(fields.seconds("Jobgate-Timeout", headers[b"jobgate-timeout"]))
        if b"prefer" in headers:
            wanted = fields.preferences(headers[b"prefer"])
            # Without durable jobs there is no 202 to fall back to: the whole is ignored.
            if wanted.wait is not None and not wanted.respond_async:
                timeouts.append(max(wanted.wait, 0.001))
                extra.append(("Preference-Applied", f"wait={wanted.wait:.0f}"))
        if b"priority" in headers:
            command.priority = fields.priority(headers[b"priority"])
        if b"jobgate-key" in headers:
            key = handed_on["jobgate-key"] = fields.key(headers[b"jobgate-key"])
        if b"traceparent" in headers:
            trace = fields.traceparent(headers[b"traceparent"])
            if trace is not None:
                handed_on["traceparent"] = trace
        no_queue = b"jobgate-no-queue" in headers and fields.boolean(
            "Jobgate-No-Queue", headers[b"jobgate-no-queue"]
        )
        if timeouts:
            command.deadline = command.due = command.accepted + min(timeouts)
        command.headers = handed_on or None
        self._gate.submit(command, key=key, no_queue=no_queue)
        return extra

    def _replied(
        self,
        reply: Reply,
        exchange: Exchange,
        command: Command,
        answer: Callable[[Response], None],
        extra: list[tuple[str, str]],
    ) -> None:
        response = Response(reply.status, reply.content_type, reply.body)
        waited = (command.began - command.accepted) * 1000
        timing = f"queue;dur={waited:.3f}"
        if command.ended:
            timing += f", run;dur={(command.ended - command.began) * 1000:.3f}"
        response.headers = [
            ("Jobgate-Id", command.id),
            ("Jobgate-Attempt", str(command.attempt)),
            ("Jobgate-Worker", command.worker.name if command.worker is not None else ""),
            ("Server-Timing", timing),
            *extra,
        ]
        if reply.stream is not None:
            response.stream = reply.stream
            exchange.on_lost = command.leave
            if b"text/event-stream" in exchange.headers.get(b"accept", b""):
                response.events = True
                response.content_type = "text/event-stream"
                response.headers.append(("Cache-Control", "no-store"))
        else:
            exchange.on_lost = None
        answer(response)

    def _failed(
        self, failure: Failure, command: Command, answer: Callable[[Response], None]
    ) -> None:
        error = failure.value
        if isinstance(error, CancelledError):
            return
        if not isinstance(error, errors.JobgateError):
            self._log.failure("{command!r} failed", failure=failure, command=command)
            error = errors.InternalError("the gate's log has the details")
        answer(self._problem(error, command))

    def _problem(self, error: errors.JobgateError, command: Command | None) -> Response:
        if command is None or isinstance(error, errors.UnknownQueue):
            return problem(error)
        road = self._gate.dispatcher.roads.get(command.queue)
        status = road.config.full_status if road is not None else 503
        response = problem(error, command.id, status)
        if command.attempt:
            response.headers.append(("Jobgate-Attempt", str(command.attempt)))
        if command.worker is not None:
            response.headers.append(("Jobgate-Worker", command.worker.name))
        return response

    def _bug(self, failure: Failure, answer: Callable[[Response], None]) -> None:
        self._log.failure("an answer could not be given", failure=failure)
        answer(problem(errors.InternalError("the gate's log has the details")))
