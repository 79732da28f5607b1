"""
One request and the response to it, as the handlers see them.

Plain data and the few rules of HTTP/1.1 that a response must keep (RFC 9112). Must not
know routes, queues or workers.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

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
        headers: Further headers, in order.
        stream: The parts of a streamed body, else None.
        events: Whether the parts are to be sent as server-sent events.
        close: Whether the connection must not be used again.
    """

    __slots__ = ("body", "close", "content_type", "events", "headers", "status", "stream")

    def __init__(
        self,
        status: int,
        content_type: str,
        body: bytes | bytearray = b"",
        headers: list[tuple[str, str]] | None = None,
    ) -> None:
        self.status = status
        self.content_type = content_type
        self.body = body
        self.headers = headers or []
        self.stream: ReplyStream | None = None
        self.events = False
        self.close = False

    @property
    def bodiless(self) -> bool:
        """Whether the status forbids a body (RFC 9110, sections 15.3.5 and 15.4.5)."""
        return self.status in (204, 304)


def json_response(
    document: Any,  # noqa: ANN401 (whatever JSON can hold)
    status: int = 200,
    content_type: str = "application/json",
    headers: list[tuple[str, str]] | None = None,
) -> Response:
    """A JSON document as a response."""
    return Response(status, content_type, _json(document), headers)


class Exchange:
    """
    One request on a connection.

    Attributes:
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
        answer: Takes the one Response.
        on_lost: Called if the caller leaves before the answer is complete.
        unsent: Tells how many bytes the caller has not taken yet.
        cut: Ends the connection without a proper end of the response.
    """

    __slots__ = (
        "answer",
        "body",
        "chunks",
        "cut",
        "headers",
        "http10",
        "keep_alive",
        "method",
        "on_lost",
        "refusal",
        "reserved",
        "size",
        "target",
        "token",
        "unsent",
    )

    answer: Callable[[Response], None]
    unsent: Callable[[], int]
    cut: Callable[[], None]

    def __init__(self) -> None:
        self.method = ""
        self.target = b""
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.http10 = False
        self.keep_alive = True
        self.token: Token | None = None
        self.refusal: JobgateError | None = None
        self.chunks: list[bytes] = []
        self.size = 0
        self.reserved = 0
        self.on_lost: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<Exchange {self.method} {self.target!r}>"

    @property
    def path(self) -> bytes:
        """The target without its query, as sent."""
        return self.target.partition(b"?")[0]

    def lost(self) -> None:
        """The caller has left."""
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost()
