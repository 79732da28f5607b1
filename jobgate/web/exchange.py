"""
One request and the response to it, as the handlers see them.

Plain data and the few rules of HTTP/1.1 that a response must keep (RFC 9112). Must not
know routes, queues or workers.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobgate.command import ReplyStream
    from jobgate.errors import JobgateError
    from jobgate.web.access import Token

__all__ = ["Exchange", "Response", "json_response", "phrase"]

_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_PHRASES[413] = "Content Too Large"
_json = msgspec.json.Encoder().encode


def phrase(status: int) -> str:
    """The reason phrase that goes with a status (RFC 9110, section 15)."""
    return _PHRASES.get(status, "Unknown")


class Response:
    """
    What a handler answers.

    Attributes:
        status: The status code.
        content_type: What the body is.
        body: All of it, or nothing where `stream` has it.
        fields: Further header lines, each with its line end.
        stream: The parts of a streamed body, else None.
        events: Whether the parts are to be sent as server-sent events.
        close: Whether the connection must not be used again.
    """

    stream: ReplyStream | None = None
    events = False
    close = False

    def __init__(
        self, status: int, content_type: str, body: bytes | bytearray = b"", fields: str = ""
    ) -> None:
        self.status = status
        self.content_type = content_type
        self.body = body
        self.fields = fields


def json_response(
    document: Any,  # noqa: ANN401 (whatever JSON can hold)
    status: int = 200,
    content_type: str = "application/json",
    fields: str = "",
) -> Response:
    """A JSON document as a response."""
    return Response(status, content_type, _json(document), fields)


class Connection(Protocol):
    """What an exchange takes place on."""

    def answer(self, exchange: Exchange, response: Response) -> None:
        """Send the response to this exchange."""


class Exchange:
    """
    One request on a connection.

    Attributes:
        connection: Takes the one Response.
        method: As sent.
        target: Path and query as sent, without scheme and host.
        headers: Lower-case name to value; repeated ones joined with a comma.
        body: All of it, once it has arrived.
        http10: The caller speaks HTTP/1.0.
        keep_alive: The caller wants to go on using the connection.
        token: Who it is, as far as tokens are in use.
        refusal: Why it is answered before anything is done with it.
        chunks: What of the body has arrived.
        size: How much that is, in bytes.
        reserved: Bytes of the ledger that are taken for it.
        on_lost: Called if the caller leaves before the answer is complete.
    """

    method = b""
    target = b""
    headers: dict[bytes, bytes] = {}  # noqa: RUF012 (replaced, never changed)
    body = b""
    http10 = False
    keep_alive = True
    token: Token | None = None
    refusal: JobgateError | None = None
    size = 0
    reserved = 0
    on_lost: Callable[[], None] | None = None

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.chunks: list[bytes] = []

    def __repr__(self) -> str:
        return f"<Exchange {self.method!r} {self.target!r}>"

    @property
    def path(self) -> bytes:
        """The target without its query, as sent."""
        return self.target.partition(b"?")[0]

    def answer(self, response: Response) -> None:
        """Send the response; only the first counts."""
        self.connection.answer(self, response)

    def lost(self) -> None:
        """The caller has left."""
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost()
