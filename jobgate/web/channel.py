"""
The front door: every request of a connection is parsed once, here, and bounded here.

Header size and count, header and body deadlines, body size before reading, the bytes
held in all, requests in order under pipelining: whichever way a request takes from here
(`HTTPServer.serve`), these hold. Must not know routes.

Parsing is llhttp's (`httptools`), in its strict mode: what smuggling lives on (both
lengths, doubled lengths, odd line ends, folded headers) is an error (RFC 9112, 6.3).
"""

from __future__ import annotations

from collections import deque
from time import time
from typing import TYPE_CHECKING, Any
from wsgiref.handlers import format_date_time

import httptools
from twisted.internet.address import UNIXAddress
from twisted.internet.protocol import Protocol
from twisted.logger import Logger

from jobgate import errors
from jobgate.web.events import as_event, error_event
from jobgate.web.exchange import Exchange, phrase
from jobgate.web.outbox import Outbox
from jobgate.web.problems import problem

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from jobgate.errors import JobgateError
    from jobgate.web.exchange import Response
    from jobgate.web.server import HTTPServer

__all__ = ["FrontDoor", "Stamp"]

_FOREVER = float("inf")
_MAX_HEADERS = 100
_MAX_HELD = 64 * 1024
"""Bytes of later requests taken in while one is being answered; then reading stops."""
_MAX_RAW = 64 * 1024
"""Bytes of a request that may arrive before its headers are complete."""
_CHUNK_OVERHEAD = 8
"""Bytes on the wire for a byte of body, in the smallest chunks, and some to spare."""
_LARGE_BODY = 64 * 1024
_LARGE_READ = 256 * 1024
_ONCE = (b"host", b"authorization", b"content-type", b"jobgate-key", b"jobgate-timeout")
_BODILESS = (204, 304)
"""Statuses that forbid a body (RFC 9110, sections 15.3.5 and 15.4.5)."""
_LINGER = 2.0
"""Seconds for which input is read and dropped after a refusal, so that it reaches the caller."""
_MAX_UNREAD = 1024 * 1024
"""Bytes of a streamed reply that a caller may leave unread."""


class Stamp:
    """What every response begins with, `Date` included (RFC 9110, 6.6.1), made once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._starts: dict[int, str] = {}

    def start(self, status: int) -> str:
        """The status line, `Server` and `Date`."""
        second = int(time())
        if second != self._second:
            self._second = second
            self._starts.clear()
        start = self._starts.get(status)
        if start is None:
            start = self._starts[status] = (
                f"HTTP/1.1 {status} {phrase(status)}\r\n"
                f"Server: jobgate\r\nDate: {format_date_time(second)}\r\n"
            )
        return start


class FrontDoor(Protocol):
    """
    One connection.

    Args:
        server: Limits, deadlines, and where requests go.

    Attributes:
        due: When the server must look at it: a deadline has passed then.
    """

    _log = Logger()
    transport: Any

    def __init__(self, server: HTTPServer) -> None:
        self._server = server
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._arriving: Exchange | None = None
        self._has_headers = False
        self._raw_bytes = 0
        self._timed = ""
        self._answered = False
        self._local = False
        self._ready: deque[Exchange] = deque()
        self._current: Exchange | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._deaf = False
        self._closing = False
        self._gone = False
        self._serving = False
        self._streaming = False
        self.due = _FOREVER

    # --- the connection

    def connectionMade(self) -> None:
        """A caller has come."""
        if hasattr(self.transport, "setTcpNoDelay"):
            self.transport.setTcpNoDelay(True)
        self._outbox = Outbox(self.transport, self._server.ledger, self._server.seconds)
        self._outbox.on_empty = self._drained
        self._local = isinstance(self.transport.getHost(), UNIXAddress)
        self.due = self._server.seconds() + self._server.settings.idle_timeout
        if not self._server.welcome(self):
            self._arriving = Exchange(self)
            self._refuse(errors.GateFull("as many connections as may be are open"))
            self._serve()

    def dataReceived(self, data: bytes) -> None:
        """The caller has sent something."""
        if self._deaf:
            return
        if self._current is not None:
            self._held.append(data)
            self._held_bytes += len(data)
            if self._held_bytes > _MAX_HELD:
                self.transport.pauseProducing()
            return
        self._feed(data)

    def connectionLost(self, reason: Failure | None = None) -> None:
        """The caller is gone: nobody wants what was asked for on this connection."""
        self._gone = self._deaf = True
        self._parser = None
        self._server.farewell(self)
        self._outbox.close()
        arriving, self._arriving = self._arriving, None
        for exchange in (arriving, *self._ready):
            if exchange is not None:
                self._release(exchange)
        self._ready.clear()
        current, self._current = self._current, None
        if current is not None:
            current.lost()

    def overdue(self, now: float) -> None:
        """A deadline has passed: whose, the state tells."""
        settings = self._server.settings
        if self._outbox.unsent:
            self.due = self._outbox.moved_at + settings.body_timeout
            if self.due <= now:
                self.transport.abortConnection()
        elif self._closing:
            self.transport.abortConnection()
        elif self._current is not None:
            self.due = _FOREVER
        elif self._arriving is not None:
            part = "body" if self._has_headers else "headers"
            limit = settings.body_timeout if self._has_headers else settings.header_timeout
            self._refuse(errors.RequestTimeout(f"its {part} took longer than {limit:g} s"))
            self._serve()
        else:
            self._closing = True
            self.transport.loseConnection()

    def close_if_idle(self) -> None:
        """The server stops: a connection without a request is closed, another after its answer."""
        if self._current is None and not self._outbox.unsent:
            self.transport.loseConnection()

    # --- requests coming in: what the parser calls

    def on_message_begin(self) -> None:
        """A request's first byte."""
        self._arriving = Exchange(self)
        self._has_headers = False
        self._fields: list[tuple[bytes, bytes]] = []
        self._raw_bytes = 0
        self._timed = ""

    def on_url(self, url: bytes) -> None:
        """Its target, or a piece of it."""
        if self._arriving is not None:
            self._arriving.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; trailers are dropped (RFC 9110, section 6.5.1)."""
        if not self._has_headers:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """All headers are here: the last moment to refuse the body."""
        exchange, parser = self._arriving, self._parser
        self._has_headers = True
        if exchange is None or parser is None:
            return
        exchange.method = parser.get_method()
        version = parser.get_http_version()
        if version != "1.1":
            exchange.http10 = True
        exchange.keep_alive = parser.should_keep_alive()
        exchange.headers = {name.lower(): value for name, value in self._fields}
        error = self._look_at_headers(exchange, version)
        if error is not None:
            self._refuse(error)

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        exchange = self._arriving
        if exchange is None:
            return
        exchange.size += len(data)
        if exchange.size > exchange.reserved:
            if exchange.size > self._server.settings.max_body:
                self._refuse(self._too_large(exchange.size))
                return
            if not self._server.ledger.reserve(len(data)):
                self._refuse(self._full())
                return
            exchange.reserved += len(data)
        exchange.chunks.append(data)

    def on_message_complete(self) -> None:
        """A request is all here."""
        exchange, self._arriving = self._arriving, None
        if exchange is None:
            return
        chunks = exchange.chunks
        if chunks:
            exchange.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            exchange.chunks = []
        if exchange.reserved:
            self._release(exchange)
        self._ready.append(exchange)

    # --- inside: requests

    def _feed(self, data: bytes) -> None:
        parser = self._parser
        try:
            while parser is not None and not self._deaf:
                try:
                    parser.feed_data(data)
                except httptools.HttpParserUpgrade as upgrade:
                    # The offer is not taken; what follows is the next request.
                    self._parser = parser = httptools.HttpRequestParser(self)
                    data = data[upgrade.args[0] :]
                    if not data:
                        break
                else:
                    break
        except httptools.HttpParserCallbackError:
            self._log.failure("a request could not be taken in")
            self._refuse(errors.InternalError("the gate's log has the details"))
        except httptools.HttpParserError as error:
            self._refuse(errors.BadRequest(f"not HTTP/1.1: {error}"))
        if self._arriving is not None:
            self._expect_more(len(data))
        if self._ready:
            self._serve()

    def _expect_more(self, count: int) -> None:
        """A request is not all here after `count` more bytes: its time runs, its room is bounded."""
        settings = self._server.settings
        self._raw_bytes += count
        part = "body" if self._has_headers else "headers"
        if self._timed != part:
            self._timed = part
            limit = settings.body_timeout if self._has_headers else settings.header_timeout
            self.due = self._server.seconds() + limit if limit else _FOREVER
        most = _MAX_RAW + (_CHUNK_OVERHEAD * settings.max_body if self._has_headers else 0)
        if self._raw_bytes > most:
            self._refuse(self._headers_too_large())

    def _look_at_headers(self, exchange: Exchange, version: str) -> JobgateError | None:
        """Why the request cannot be let in, or None."""
        headers, server = exchange.headers, self._server
        if version not in ("1.1", "1.0"):
            return errors.BadRequest(f"HTTP version: found {version}, wanted 1.1 or 1.0")
        if len(self._fields) != len(headers):
            repeated = self._join_repeated(exchange)
            if repeated is not None:
                return repeated
        if len(self._fields) > _MAX_HEADERS:
            return self._headers_too_large()
        if not exchange.http10 and b"host" not in headers:
            return errors.BadRequest("Host: found nothing, wanted the gate's name (RFC 9112, 3.2)")
        if b"transfer-encoding" in headers and (
            exchange.http10 or headers[b"transfer-encoding"].lower() != b"chunked"
        ):
            return errors.BadRequest("Transfer-Encoding: wanted chunked alone, in HTTP/1.1")
        if not exchange.target.startswith(b"/"):
            exchange.target = _origin_form(exchange.target)
        refused = server.access.check(exchange, server.seconds, local=self._local)
        if refused is not None:
            return refused
        length = int(headers.get(b"content-length", 0))
        if length > server.settings.max_body:
            return self._too_large(length)
        if length:
            if not server.ledger.reserve(length):
                return self._full()
            exchange.reserved = length
            if length > _LARGE_BODY:
                self.transport.bufferSize = _LARGE_READ
        if b"expect" in headers:
            return self._expectation(exchange)
        return None

    def _join_repeated(self, exchange: Exchange) -> JobgateError | None:
        """Repeated headers make a list (RFC 9110, section 5.3), but these must not be repeated."""
        headers: dict[bytes, bytes] = {}
        for name, value in self._fields:
            lower = name.lower()
            if lower not in headers:
                headers[lower] = value
            elif lower in _ONCE:
                return errors.BadRequest(f"{lower.decode()}: found it twice, wanted it once")
            else:
                headers[lower] += b", " + value
        exchange.headers = headers
        return None

    def _expectation(self, exchange: Exchange) -> JobgateError | None:
        """`Expect: 100-continue` (RFC 9110, section 10.1.1)."""
        value = exchange.headers[b"expect"]
        if value.lower() != b"100-continue":
            return errors.BadRequest(f"Expect: found {value.decode('latin-1')!r}, wanted 100-continue")
        if not exchange.http10 and self._current is None and not self._ready:
            self._outbox.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    def _refuse(self, error: JobgateError) -> None:
        """Answer what is arriving with a problem, in its turn, and take in no more."""
        exchange, self._arriving = self._arriving or Exchange(self), None
        self._release(exchange)
        exchange.refusal = error
        exchange.keep_alive = False
        exchange.chunks = []
        self._deaf = True
        self._ready.append(exchange)

    def _release(self, exchange: Exchange) -> None:
        self._server.ledger.held -= exchange.reserved
        exchange.reserved = 0

    def _too_large(self, length: int) -> JobgateError:
        limit = int(self._server.settings.max_body)
        return errors.BodyTooLarge(f"{length} bytes, where {limit} are taken", limit=limit)

    def _full(self) -> JobgateError:
        return errors.GateFull("as many bytes as may be are held for other requests")

    def _headers_too_large(self) -> JobgateError:
        return errors.BadRequest(
            f"headers: wanted at most {_MAX_HEADERS} with {_MAX_RAW} bytes in all"
        )

    # --- inside: answers, one at a time and in order

    def _serve(self) -> None:
        """Serve requests until one has to be waited for; never nested."""
        if self._serving:
            return
        self._serving = True
        try:
            while self._current is None and not self._gone and not self._closing:
                if self._ready:
                    self._begin(self._ready.popleft())
                elif self._held:
                    data, self._held = b"".join(self._held), []
                    if self._held_bytes > _MAX_HELD:
                        self.transport.resumeProducing()
                    self._held_bytes = 0
                    self._feed(data)
                else:
                    return
        finally:
            self._serving = False

    def _begin(self, exchange: Exchange) -> None:
        self._current = exchange
        self._answered = False
        self.due = _FOREVER
        self.transport.bufferSize = _LARGE_BODY
        if exchange.refusal is not None:
            self.answer(exchange, problem(exchange.refusal))
            return
        try:
            self._server.serve(exchange)
        except Exception:  # noqa: BLE001 (whatever it is, the caller must get an answer)
            self._log.failure("{exchange!r} could not be served", exchange=exchange)
            self.answer(exchange, problem(errors.InternalError("the gate's log has the details")))

    def answer(self, exchange: Exchange, response: Response) -> None:
        """Send the response to the present exchange; anything else is too late."""
        if exchange is not self._current or self._streaming or self._answered:
            return
        if response.stream is not None:
            self._stream(exchange, response)
            return
        body = response.body
        head = self._head(exchange, response, len(body))
        if exchange.method == b"HEAD" or response.status in _BODILESS:
            body = b""
        self._outbox.send(head, body)
        self._finished(exchange)

    def _head(self, exchange: Exchange, response: Response, length: int | None) -> bytes:
        """The status line and headers (RFC 9112, section 4); `length` None: until the end."""
        status = response.status
        start = self._server.stamp.start(status)
        if status in _BODILESS:
            framing = ""
        elif length is not None:
            framing = f"Content-Type: {response.content_type}\r\nContent-Length: {length}\r\n"
        elif exchange.http10:
            exchange.keep_alive = False
            framing = f"Content-Type: {response.content_type}\r\n"
        else:
            framing = f"Content-Type: {response.content_type}\r\nTransfer-Encoding: chunked\r\n"
        if response.close or self._server.closing:
            exchange.keep_alive = False
        if not exchange.keep_alive:
            framing += "Connection: close\r\n"
        elif exchange.http10:
            framing += "Connection: keep-alive\r\n"
        return f"{start}{framing}{response.fields}\r\n".encode("latin-1")

    def _stream(self, exchange: Exchange, response: Response) -> None:
        """Send parts as they come; a caller that does not read them is cut off."""
        assert response.stream is not None, "only called with one"
        self._streaming = True
        chunked = not exchange.http10
        self._outbox.send(self._head(exchange, response, None))

        def send(data: bytes | bytearray) -> None:
            if self._outbox.unsent > _MAX_UNREAD:
                self.transport.abortConnection()
                return
            if chunked:
                self._outbox.send(b"%x\r\n" % len(data))
                self._outbox.send(data, b"\r\n")
            else:
                self._outbox.send(bytes(data))

        def on_chunk(data: bytes | bytearray) -> None:
            if exchange is self._current and data:
                send(as_event(data) if response.events else data)

        def on_end(failure: Failure | None) -> None:
            if exchange is not self._current:
                return
            if failure is not None and not response.events:
                # Without chunks, only a reset tells the caller that this was not all.
                if chunked:
                    self.transport.loseConnection()
                else:
                    self.transport.abortConnection()
                return
            if failure is not None:
                send(error_event(failure.value))
            if chunked:
                self._outbox.send(b"0\r\n\r\n")
            self._finished(exchange)

        response.stream.read(on_chunk, on_end)

    def _finished(self, exchange: Exchange) -> None:
        """The answer is complete; the next request's turn comes once it is sent."""
        exchange.on_lost = None
        self._answered = True
        if self._outbox.unsent:
            self.due = self._server.seconds() + self._server.settings.body_timeout
            return
        self._drained()

    def _drained(self) -> None:
        """Everything has been sent."""
        exchange = self._current
        if exchange is None or not self._answered or self._gone:
            return
        self._current = None
        self._streaming = False
        if not exchange.keep_alive or self._server.closing:
            self._close()
            return
        self.due = self._server.seconds() + self._server.settings.idle_timeout
        if not self._serving and (self._ready or self._held):
            self._serve()

    def _close(self) -> None:
        """End the connection so that the answer arrives even if the caller is still sending."""
        self._closing = True
        if self._deaf and hasattr(self.transport, "loseWriteConnection"):
            self.transport.loseWriteConnection()
            self.due = self._server.seconds() + _LINGER
        else:
            self._deaf = True
            self.transport.loseConnection()


def _origin_form(target: bytes) -> bytes:
    """The path and query of an absolute-form target (RFC 9112, section 3.2.2)."""
    _, scheme, rest = target.partition(b"://")
    if not scheme:
        return target
    _, slash, path = rest.partition(b"/")
    return slash + path or b"/"
