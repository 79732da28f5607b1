"""
One request and the response to it, as the handlers see them.

Plain data and the few rules of HTTP/1.1 that a response must keep (RFC 9112). Must not
know routes, queues or workers.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobgate.errors import JobgateError
    from jobgate.gate.tokens import Token
    from jobgate.stream import ReplyStream

    Handle = Callable[["Exchange", str, Callable[["Response"], None]], None]
    """Serves a request about something with a name."""

__all__ = ["NO_HEAD", "Exchange", "Head", "Response", "json_response", "phrase"]

_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
_PHRASES[413] = "Content Too Large"
_OCTETS: Final = "application/octet-stream"
_json: Final = msgspec.json.Encoder().encode


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
        command_id: The command they belong to.
        close: Whether the connection must not be used again.
        on_sent: Called once all of it has been given to the caller's connection.
    """

    stream: ReplyStream | None = None
    events = False
    command_id = ""
    close = False
    on_sent: Callable[[], None] | None = None

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

    def alive(self) -> bool:
        """Whether the caller is still there, as far as can be known."""


class Head:
    """
    The head of a request, as it has been parsed and found well-formed.

    Callers repeat their heads, so one object may serve many requests: what it says is never
    changed once it is made.

    Attributes:
        method: As sent.
        target: Path and query as sent, without scheme and host.
        headers: Lower-case name to value; repeated ones joined with a comma.
        http10: The caller speaks HTTP/1.0.
        keep_alive: The caller wants to go on using the connection.
        length: `Content-Length`, 0 without one.
        content_type: `Content-Type`, or what is meant by none.
        way: Who serves such requests, and the name that they are about, once that is known.
    """

    __slots__ = (
        "content_type", "headers", "http10", "keep_alive", "length", "method", "target", "way",
    )  # fmt: skip

    def __init__(
        self,
        method: bytes,
        target: bytes,
        headers: dict[bytes, bytes],
        *,
        http10: bool = False,
        keep_alive: bool = True,
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.http10 = http10
        self.keep_alive = keep_alive
        # The parser has seen to it that it fits 64 bits, however many zeros come first.
        self.length = int(headers.get(b"content-length", b"").lstrip(b"0") or 0)
        self.content_type = headers.get(b"content-type", b"").decode("latin-1") or _OCTETS
        self.way: tuple[Handle, str] | None = None

    def like(self, method: bytes, target: bytes) -> Head:
        """The same but for its first line."""
        return Head(method, target, self.headers, http10=self.http10, keep_alive=self.keep_alive)

    @property
    def path(self) -> bytes:
        """The target without its query, as sent."""
        return self.target.partition(b"?")[0]


NO_HEAD = Head(b"", b"/", {}, keep_alive=False)
"""The head of a request that never got so far."""


class Exchange:
    """
    One request on a connection, and the response to it.

    Attributes:
        connection: Takes the one Response.
        head: The request's head.
        body: All of its body, once it has arrived.
        token: Who sent it, as far as tokens are in use.
        keep_alive: Whether the connection can be used again after it.
        refusal: Why it is answered before anything is done with it.
        on_lost: Called if the caller leaves before the answer is complete; where the response
            has an `on_sent`, before it is sent.
        on_sent: What the response wants to be told.
    """

    token: Token | None = None
    refusal: JobgateError | None = None
    on_lost: Callable[[], None] | None = None
    on_sent: Callable[[], None] | None = None

    def __init__(self, connection: Connection, head: Head, body: bytes = b"") -> None:
        self.connection = connection
        self.head = head
        self.body = body
        self.keep_alive = head.keep_alive

    def __repr__(self) -> str:
        return f"<Exchange {self.head.method!r} {self.head.target!r}>"

    def answer(self, response: Response) -> None:
        """Send the response; only the first counts."""
        self.connection.answer(self, response)

    def lost(self) -> None:
        """The caller has left."""
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost()
