"""
What arrives on a connection: bytes become requests, parsed once, here, and bounded here.

Header size and count, header and body deadlines, body size before reading, the bytes
held in all: whichever way a request takes later, these hold. Must not know routes, nor
how an answer is sent.

Parsing is llhttp's (`httptools`), in its strict mode: what smuggling lives on (both
lengths, doubled lengths, odd line ends, folded headers) is an error (RFC 9112, 6.3).
Callers repeat their heads byte for byte, so a head that has been parsed and found good
is remembered, and the same bytes are not parsed again; nor are the same fields behind
another first line, if that is a plain one.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, ClassVar, Final

import httptools
from twisted.logger import Logger

from jobgate import errors
from jobgate.web.exchange import NO_HEAD, Exchange, Head

if TYPE_CHECKING:
    from jobgate.errors import JobgateError
    from jobgate.web.channel import FrontDoor
    from jobgate.web.server import HTTPServer

__all__ = ["LARGE_BODY", "Arrivals"]

_FOREVER: Final = float("inf")
_MAX_HEADERS: Final = 100
_MAX_RAW: Final = 64 * 1024
"""Bytes of a request that may arrive before its headers are complete."""
_CHUNK_OVERHEAD: Final = 8
"""Bytes on the wire for a byte of body, in the smallest chunks, and some to spare."""
_MAX_HEADS: Final = 1024
_MAX_HEAD: Final = 2048
"""How many heads are remembered, and how many bytes one may have for that."""
_ONE_TIME: Final = (b"/jobs/", b"/leases/")
"""How targets begin that name something which does not come again and again."""
_PLAIN: Final = re.compile(rb"(GET|POST) (/[A-Za-z0-9._/?=&-]{0,1000}) HTTP/1\.1\Z")
"""A first line that cannot mean anything else."""
LARGE_BODY: Final = 64 * 1024
"""Bytes of body from which a connection is read in larger pieces."""
_LARGE_READ: Final = 256 * 1024
_ONCE: Final = frozenset(
    {
        b"host",
        b"authorization",
        b"content-type",
        b"idempotency-key",
        b"jobgate-callback",
        b"jobgate-delay",
        b"jobgate-key",
        b"jobgate-lease",
        b"jobgate-no-queue",
        b"jobgate-status",
        b"jobgate-timeout",
    }
)


class Arrivals:
    """
    The receiving side of one connection.

    Args:
        connection: Whose.
        server: Limits, and who may come in.

    Attributes:
        active: A request has begun to arrive and is not complete.
        ready: Requests that have arrived, in order.
        deaf: Nothing more is taken in.
    """

    _log: ClassVar = Logger()

    def __init__(self, connection: FrontDoor, server: HTTPServer) -> None:
        self._connection = connection
        self._server = server
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self.active = False
        self.ready: deque[Exchange] = deque()
        self.deaf = False
        self._exchange: Exchange | None = None
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._chunks: list[bytes] = []
        self._size = 0
        self._reserved = 0
        self._raw_bytes = 0
        self._timed = ""

    def known(self, data: bytes) -> Exchange | None:
        """
        A whole request whose head has come before, byte for byte, if that is what this is.

        Only to be asked between two requests.
        """
        end = data.find(b"\r\n\r\n") + 4
        head = self._server.heads.get(data[:end]) or self._like(data, end)
        if head is None or head.length != len(data) - end:
            self.feed(data, end)
            return None
        exchange = Exchange(self._connection, head, data[end:])
        server = self._server
        if server.access.has_tokens:
            local = self._connection.local
            exchange.refusal = server.access.check(exchange, server.seconds, local=local)
        if head.length and server.ledger.held + head.length > server.ledger.limit:
            exchange.refusal = exchange.refusal or _full()
        return exchange

    def too_slow(self) -> None:
        """Its time is up."""
        settings = self._server.settings
        limit = settings.body_timeout if self._exchange else settings.header_timeout
        part = "body" if self._exchange else "headers"
        self.refuse(errors.RequestTimeout(f"its {part} took longer than {limit:g} s"))

    def end(self) -> None:
        """The connection is gone."""
        self.deaf = True
        self._parser = None
        self.ready.clear()
        self.release()

    # --- what the parser calls

    def on_message_begin(self) -> None:
        """A request's first byte."""
        self.active = True
        self._exchange = None
        self._target = b""
        self._fields = []
        self._chunks = []
        self._size = self._raw_bytes = 0
        self._timed = ""

    def on_url(self, url: bytes) -> None:
        """Its target, or a piece of it."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """
        One header; trailers are dropped (RFC 9110, section 6.5.1).

        The parser leaves what is white behind a value, which is no part of it (section 5.5).
        """
        if self._exchange is None:
            self._fields.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """All headers are here: the last moment to refuse the body."""
        parser = self._parser
        if parser is None or self.deaf:
            return
        method = parser.get_method()
        if method == b"CONNECT":
            self.refuse(errors.BadRequest("CONNECT: wanted a method of this gate, not a tunnel"))
            return
        if parser.should_upgrade():
            # What `_without_upgrade` makes of it will come here again.
            return
        version = parser.get_http_version()
        headers = {name.lower(): value for name, value in self._fields}
        try:
            if len(headers) != len(self._fields):
                headers = self._join_repeated()
            target = self._target
            if not target.startswith(b"/"):
                authority, target = _absolute_form(target)
                headers[b"host"] = authority or headers.get(b"host", b"")
            self._exchange = exchange = Exchange(
                self._connection,
                Head(
                    method,
                    target,
                    headers,
                    http10=version == "1.0",
                    keep_alive=parser.should_keep_alive(),
                ),
            )
            self._look_at(exchange, version)
        except errors.JobgateError as error:
            self.refuse(error)

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self.deaf:
            return
        self._size += len(data)
        if self._size > self._reserved:
            server = self._server
            if self._size > server.settings.max_body:
                self.refuse(self._too_large(self._size))
                return
            if not server.ledger.reserve(len(data)):
                self.refuse(_full())
                return
            self._reserved += len(data)
        self._chunks.append(data)

    def on_message_complete(self) -> None:
        """A request is all here."""
        exchange, self._exchange = self._exchange, None
        self.active = False
        if exchange is None or self.deaf:
            return
        chunks = self._chunks
        if chunks:
            exchange.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            self._chunks = []
            self.release()
        self.ready.append(exchange)

    # --- inside

    def feed(self, data: bytes, head_end: int = 0) -> None:
        """Have the parser take bytes in; those before `head_end` may be a head to remember."""
        parser = self._parser
        before = len(self.ready)
        try:
            while parser is not None and not self.deaf:
                try:
                    parser.feed_data(data)
                except httptools.HttpParserUpgrade as upgrade:
                    # The parser stops here, but the offer is not taken (RFC 9110, 7.8).
                    data = self._without_upgrade(parser.get_method()) + data[upgrade.args[0] :]
                    self._parser = parser = httptools.HttpRequestParser(self)
                    head_end = 0
                else:
                    break
        except httptools.HttpParserCallbackError:
            self._log.failure("a request could not be taken in")
            self.refuse(errors.InternalError("the gate's log has the details"))
        except httptools.HttpParserError as error:
            self.refuse(errors.BadRequest(f"not HTTP/1.1: {error}"))
        if self.active:
            self._expect_more(len(data))
        elif head_end and len(self.ready) == before + 1:
            self._remember(data, head_end)

    def _like(self, data: bytes, end: int) -> Head | None:
        """A head that differs from one that has come before in its plain first line alone."""
        line = data.find(b"\r\n")
        if not 0 < line < end:
            return None
        known = self._server.fields.get(data[line:end])
        first = known and _PLAIN.match(data, 0, line)
        if not known or not first:
            return None
        head = known.like(first[1], first[2])
        if not head.target.startswith(_ONE_TIME):
            self._keep(self._server.heads, data[:end], head)
        return head

    @staticmethod
    def _keep(heads: dict[bytes, Head], data: bytes, head: Head) -> None:
        if len(heads) >= _MAX_HEADS:
            heads.clear()
        heads[data] = head

    def _without_upgrade(self, method: bytes) -> bytes:
        """The head of the present request as it would be without the offer to upgrade."""
        lines = [b"%s %s HTTP/1.1" % (method, self._target)]
        closing = False
        for name, value in self._fields:
            if name.lower() == b"connection":
                closing = closing or b"close" in value.lower()
            elif name.lower() not in (b"upgrade", b"http2-settings"):
                lines.append(name + b": " + value)
        if closing:
            lines.append(b"Connection: close")
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _remember(self, data: bytes, head_end: int) -> None:
        """These bytes were one request without further ado: its head need not be parsed again."""
        exchange = self.ready[-1]
        head = exchange.head
        if (
            exchange.refusal is None
            and head_end <= _MAX_HEAD
            and len(data) == head_end + head.length
            and data[:1].isalpha()
            and not self._connection.local
            and b"expect" not in head.headers
            and b"transfer-encoding" not in head.headers
        ):
            if not head.target.startswith(_ONE_TIME):
                self._keep(self._server.heads, data[:head_end], head)
            if not head.http10:
                self._keep(self._server.fields, data[data.find(b"\r\n") : head_end], head)

    def _expect_more(self, count: int) -> None:
        """A request is not all here after `count` more bytes: its time runs, its room ends."""
        settings = self._server.settings
        self._raw_bytes += count
        in_body = self._exchange is not None
        part = "body" if in_body else "headers"
        if self._timed != part:
            self._timed = part
            limit = settings.body_timeout if in_body else settings.header_timeout
            self._connection.due = self._server.seconds() + (limit or _FOREVER)
        if self._raw_bytes > _MAX_RAW + (_CHUNK_OVERHEAD * settings.max_body if in_body else 0):
            self.refuse(_headers_too_large())

    def _look_at(self, exchange: Exchange, version: str) -> None:
        """Raise the reason why the request cannot be let in, if there is one."""
        head, server = exchange.head, self._server
        headers = head.headers
        if version not in ("1.1", "1.0"):
            raise errors.BadRequest(f"HTTP version: found {version}, wanted 1.1 or 1.0")
        size = len(self._target) + sum(len(name) + len(value) for name, value in self._fields)
        if len(self._fields) > _MAX_HEADERS or size > _MAX_RAW:
            raise _headers_too_large()
        if not head.http10 and b"host" not in headers:
            raise errors.BadRequest("Host: found nothing, wanted the gate's name (RFC 9112, 3.2)")
        if b"transfer-encoding" in headers and (
            head.http10 or headers[b"transfer-encoding"].lower() != b"chunked"
        ):
            raise errors.BadRequest("Transfer-Encoding: wanted chunked alone, in HTTP/1.1")
        refused = server.access.check(exchange, server.seconds, local=self._connection.local)
        if refused is not None:
            raise refused
        length = head.length
        if length > server.settings.max_body:
            raise self._too_large(length)
        if length:
            if not server.ledger.reserve(length):
                raise _full()
            self._reserved = length
            if length > LARGE_BODY:
                self._connection.transport.bufferSize = _LARGE_READ
        if b"expect" in headers:
            self._expectation(head)

    def _join_repeated(self) -> dict[bytes, bytes]:
        """Repeated headers make a list (RFC 9110, section 5.3), but some must not be repeated."""
        headers: dict[bytes, bytes] = {}
        for name, value in self._fields:
            lower = name.lower()
            if lower not in headers:
                headers[lower] = value
            elif lower in _ONCE:
                raise errors.BadRequest(f"{lower.decode()}: found it twice, wanted it once")
            else:
                headers[lower] += b", " + value
        return headers

    def _expectation(self, head: Head) -> None:
        """`Expect: 100-continue` (RFC 9110, section 10.1.1)."""
        value = head.headers[b"expect"]
        if value.lower() != b"100-continue":
            found = value.decode("latin-1")
            raise errors.BadRequest(f"Expect: found {found!r}, wanted 100-continue")
        if not head.http10 and not self.ready:
            self._connection.invite()

    def refuse(self, error: JobgateError) -> None:
        """Answer what is arriving with a problem, in its turn, and take in no more."""
        if self.deaf:
            return
        exchange = self._exchange or Exchange(self._connection, NO_HEAD)
        exchange.refusal = error
        self._exchange = None
        self.active = False
        self._chunks = []
        self.release()
        self.deaf = True
        self.ready.append(exchange)

    def release(self) -> None:
        """Give back what was reserved for the body."""
        self._server.ledger.held -= self._reserved
        self._reserved = 0

    def _too_large(self, length: int) -> JobgateError:
        limit = int(self._server.settings.max_body)
        return errors.BodyTooLarge(f"{length} bytes, where {limit} are taken", limit=limit)


def _absolute_form(target: bytes) -> tuple[bytes, bytes]:
    """The authority, which stands for `Host`, and the rest of a target (RFC 9112, 3.2.2)."""
    _, scheme, rest = target.partition(b"://")
    if not scheme:
        return b"", target
    authority, slash, path = rest.partition(b"/")
    return authority, slash + path or b"/"


def _full() -> JobgateError:
    return errors.GateFull("as many bytes as may be are held for other requests")


def _headers_too_large() -> JobgateError:
    return errors.BadRequest(
        f"headers: wanted at most {_MAX_HEADERS} of them with {_MAX_RAW} bytes in all"
    )
