"""
The front door: every request of a connection is parsed once, here, and bounded here.

Header size and count, header and body deadlines, body size before reading, the bytes
held in all, requests in order under pipelining: whichever way a request takes from here
(`HTTPServer.serve`), these hold. Must not know routes.

Parsing is llhttp's (`httptools`), in its strict mode: what smuggling lives on (both
lengths, doubled lengths, odd line ends, folded headers) is an error (RFC 9112, 6.3).
Callers repeat their heads byte for byte, so a head that has been parsed and found good
is remembered, and the same bytes are not parsed again.
"""

from __future__ import annotations

from collections import deque
from time import time
from typing import TYPE_CHECKING, Any
from wsgiref.handlers import format_date_time

import httptools
from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import Protocol
from twisted.logger import Logger

from jobgate import errors
from jobgate.web.events import as_event, error_event
from jobgate.web.exchange import NO_HEAD, Exchange, Head, phrase
from jobgate.web.outbox import Outbox
from jobgate.web.problems import problem

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from jobgate.command import ReplyStream
    from jobgate.errors import JobgateError
    from jobgate.web.exchange import Response
    from jobgate.web.server import HTTPServer

__all__ = ["FrontDoor", "Stamp"]

_FOREVER = float("inf")
_MAX_HEADERS = 100
_MAX_RAW = 64 * 1024
"""Bytes of a request that may arrive before its headers are complete."""
_CHUNK_OVERHEAD = 8
"""Bytes on the wire for a byte of body, in the smallest chunks, and some to spare."""
_MAX_HELD = 64 * 1024
"""Bytes of later requests taken in while one is being answered; then reading stops."""
_MAX_HEADS, _MAX_HEAD = 1024, 2048
"""How many heads are remembered, and how many bytes one may have for that."""
_LARGE_BODY = 64 * 1024
_LARGE_READ = 256 * 1024
_ONCE = (b"host", b"authorization", b"content-type", b"jobgate-key", b"jobgate-timeout")
_BODILESS = (204, 304)
"""Statuses that forbid a body (RFC 9110, sections 15.3.5 and 15.4.5)."""
_LINGER = 2.0
"""Seconds for which input is read and dropped after a refusal, so that it reaches the caller."""
_MAX_UNREAD = 1024 * 1024
"""Bytes of a streamed reply that a caller may leave unread."""
_CATCH_UP = 1.0
"""Seconds it has to read them once there are more, before it is cut off."""


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
        self._heads = server.heads
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        # The request that is arriving: from its first byte to its last.
        self._arriving = False
        self._exchange: Exchange | None = None
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._chunks: list[bytes] = []
        self._size = 0
        self._reserved = 0
        self._raw_bytes = 0
        self._timed = ""
        # Requests that have arrived, the one that is being answered, and input after it.
        self._ready: deque[Exchange] = deque()
        self._current: Exchange | None = None
        self._answered = False
        self._streaming = False
        self._paused: ReplyStream | None = None
        self._serving = False
        self._held: list[bytes] = []
        self._held_bytes = 0
        # How the connection ends.
        self._deaf = False
        self._closing = False
        self._gone = False
        self.due = _FOREVER

    # --- the connection

    def connectionMade(self) -> None:
        """A caller has come."""
        server = self._server
        if hasattr(self.transport, "setTcpNoDelay"):
            self.transport.setTcpNoDelay(True)
        self._outbox = Outbox(self.transport, server.ledger, server.seconds)
        self._outbox.on_empty = self._drained
        self._local = isinstance(self.transport.getHost(), UNIXAddress)
        self.due = server.seconds() + (server.settings.idle_timeout or _FOREVER)
        if not server.welcome(self):
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
        elif self._arriving:
            self._feed(data)
        else:
            end = data.find(b"\r\n\r\n") + 4
            head = self._heads.get(data[:end])
            if head is None or head.length != len(data) - end:
                self._feed(data, end)
                return
            exchange = Exchange(self, head, data[end:])
            server = self._server
            if server.access.has_tokens:
                exchange.refusal = server.access.check(exchange, server.seconds, local=self._local)
                self._deaf = exchange.refusal is not None
            self._begin(exchange)

    def connectionLost(self, reason: Failure | None = None) -> None:  # noqa: ARG002 (Twisted's)
        """The caller is gone: nobody wants what was asked for on this connection."""
        self._gone = self._deaf = True
        self._parser = None
        self._server.farewell(self)
        self._outbox.close()
        self._release()
        self._resume()
        self._ready.clear()
        current, self._current = self._current, None
        if current is not None:
            current.lost()

    def overdue(self, now: float) -> None:
        """A deadline has passed: whose, the state tells."""
        settings = self._server.settings
        if self._paused is not None:
            self.transport.abortConnection()
        elif self._outbox.unsent:
            self.due = self._outbox.moved_at + (settings.body_timeout or _FOREVER)
            if self.due <= now:
                self.transport.abortConnection()
        elif self._closing:
            self.transport.abortConnection()
        elif self._current is not None:
            self.due = _FOREVER
        elif self._arriving:
            limit = settings.body_timeout if self._exchange else settings.header_timeout
            part = "body" if self._exchange else "headers"
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
        self._arriving = True
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
        """One header; trailers are dropped (RFC 9110, section 6.5.1)."""
        if self._exchange is None:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """All headers are here: the last moment to refuse the body."""
        parser = self._parser
        if parser is None or self._deaf:
            return
        version = parser.get_http_version()
        headers = {name.lower(): value for name, value in self._fields}
        try:
            if len(headers) != len(self._fields):
                headers = self._join_repeated()
            target = self._target
            self._exchange = exchange = Exchange(
                self,
                Head(
                    parser.get_method(),
                    target if target.startswith(b"/") else _origin_form(target),
                    headers,
                    http10=version == "1.0",
                    keep_alive=parser.should_keep_alive(),
                ),
            )
            self._look_at(exchange, version)
        except errors.JobgateError as error:
            self._refuse(error)

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self._deaf:
            return
        self._size += len(data)
        if self._size > self._reserved:
            server = self._server
            if self._size > server.settings.max_body:
                self._refuse(self._too_large(self._size))
                return
            if not server.ledger.reserve(len(data)):
                self._refuse(_full())
                return
            self._reserved += len(data)
        self._chunks.append(data)

    def on_message_complete(self) -> None:
        """A request is all here."""
        exchange, self._exchange = self._exchange, None
        self._arriving = False
        if exchange is None or self._deaf:
            return
        chunks = self._chunks
        if chunks:
            exchange.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            self._chunks = []
            self._release()
        self._ready.append(exchange)

    # --- inside: requests

    def _feed(self, data: bytes, head_end: int = 0) -> None:
        """Have the parser take bytes in; those before `head_end` may be a head to remember."""
        parser = self._parser
        before = len(self._ready)
        try:
            while parser is not None and not self._deaf:
                try:
                    parser.feed_data(data)
                except httptools.HttpParserUpgrade as upgrade:
                    # The offer is not taken; what follows is the next request.
                    self._parser = parser = httptools.HttpRequestParser(self)
                    data = data[upgrade.args[0] :]
                    head_end = 0
                    if not data:
                        break
                else:
                    break
        except httptools.HttpParserCallbackError:
            self._log.failure("a request could not be taken in")
            self._refuse(errors.InternalError("the gate's log has the details"))
        except httptools.HttpParserError as error:
            self._refuse(errors.BadRequest(f"not HTTP/1.1: {error}"))
        if self._arriving:
            self._expect_more(len(data))
        elif head_end and len(self._ready) == before + 1:
            self._remember(data, head_end)
        if self._ready:
            self._serve()

    def _remember(self, data: bytes, head_end: int) -> None:
        """These bytes were one request without further ado: its head need not be parsed again."""
        head = self._ready[-1].head
        if (
            head_end <= _MAX_HEAD
            and len(data) == head_end + head.length
            and data[:1].isalpha()
            and not self._local
            and b"expect" not in head.headers
            and b"transfer-encoding" not in head.headers
        ):
            if len(self._heads) >= _MAX_HEADS:
                self._heads.clear()
            self._heads[data[:head_end]] = head

    def _expect_more(self, count: int) -> None:
        """A request is not all here after `count` more bytes: its time runs, its room ends."""
        settings = self._server.settings
        self._raw_bytes += count
        in_body = self._exchange is not None
        part = "body" if in_body else "headers"
        if self._timed != part:
            self._timed = part
            limit = settings.body_timeout if in_body else settings.header_timeout
            self.due = self._server.seconds() + (limit or _FOREVER)
        if self._raw_bytes > _MAX_RAW + (_CHUNK_OVERHEAD * settings.max_body if in_body else 0):
            self._refuse(_headers_too_large())

    def _look_at(self, exchange: Exchange, version: str) -> None:
        """Raise the reason why the request cannot be let in, if there is one."""
        head, server = exchange.head, self._server
        headers = head.headers
        if version not in ("1.1", "1.0"):
            raise errors.BadRequest(f"HTTP version: found {version}, wanted 1.1 or 1.0")
        if len(self._fields) > _MAX_HEADERS:
            raise _headers_too_large()
        if not head.http10 and b"host" not in headers:
            raise errors.BadRequest("Host: found nothing, wanted the gate's name (RFC 9112, 3.2)")
        if b"transfer-encoding" in headers and (
            head.http10 or headers[b"transfer-encoding"].lower() != b"chunked"
        ):
            raise errors.BadRequest("Transfer-Encoding: wanted chunked alone, in HTTP/1.1")
        refused = server.access.check(exchange, server.seconds, local=self._local)
        if refused is not None:
            raise refused
        length = head.length
        if length > server.settings.max_body:
            raise self._too_large(length)
        if length:
            if not server.ledger.reserve(length):
                raise _full()
            self._reserved = length
            if length > _LARGE_BODY:
                self.transport.bufferSize = _LARGE_READ
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
        if not head.http10 and self._current is None and not self._ready:
            self._outbox.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse(self, error: JobgateError) -> None:
        """Answer what is arriving with a problem, in its turn, and take in no more."""
        if self._deaf:
            return
        exchange = self._exchange or Exchange(self, NO_HEAD)
        exchange.refusal = error
        self._exchange = None
        self._arriving = False
        self._chunks = []
        self._release()
        self._deaf = True
        self._ready.append(exchange)

    def _release(self) -> None:
        self._server.ledger.held -= self._reserved
        self._reserved = 0

    def _too_large(self, length: int) -> JobgateError:
        limit = int(self._server.settings.max_body)
        return errors.BodyTooLarge(f"{length} bytes, where {limit} are taken", limit=limit)

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
        if exchange.refusal is not None:
            exchange.keep_alive = False
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
        if exchange.head.method == b"HEAD" or response.status in _BODILESS:
            body = b""
        self._outbox.send(head, body)
        self._finished(exchange)

    def _head(self, exchange: Exchange, response: Response, length: int | None) -> bytes:
        """The status line and headers (RFC 9112, section 4); `length` None: until the end."""
        status = response.status
        start = self._server.stamp.start(status)
        http10 = exchange.head.http10
        if status in _BODILESS:
            framing = ""
        elif length is not None:
            framing = f"Content-Type: {response.content_type}\r\nContent-Length: {length}\r\n"
        elif http10:
            exchange.keep_alive = False
            framing = f"Content-Type: {response.content_type}\r\n"
        else:
            framing = f"Content-Type: {response.content_type}\r\nTransfer-Encoding: chunked\r\n"
        if response.close or self._server.closing:
            exchange.keep_alive = False
        if not exchange.keep_alive:
            framing += "Connection: close\r\n"
        elif http10:
            framing += "Connection: keep-alive\r\n"
        return f"{start}{framing}{response.fields}\r\n".encode("latin-1")

    def _stream(self, exchange: Exchange, response: Response) -> None:
        """Send parts as they come; a caller that does not read them is cut off."""
        stream = response.stream
        assert stream is not None, "only called with one"
        self._streaming = True
        chunked = not exchange.head.http10
        self._outbox.send(self._head(exchange, response, None))

        def send(data: bytes | bytearray) -> None:
            if self._outbox.unsent > _MAX_UNREAD and not self._paused:
                self._pause(stream)
            if chunked:
                self._outbox.send(b"%x\r\n" % len(data))
                self._outbox.send(data, b"\r\n")
            else:
                self._outbox.send(data)

        def on_chunk(data: bytes | bytearray) -> None:
            if exchange is self._current and data and not self._gone:
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
                send(error_event(failure))
            if chunked:
                self._outbox.send(b"0\r\n\r\n")
            self._finished(exchange)

        stream.read(on_chunk, on_end)

    def _pause(self, stream: ReplyStream) -> None:
        """The caller is behind: it has a second to catch up, if nobody else must wait for that."""
        if stream.pause():
            self._paused = stream
            self.due = self._server.seconds() + _CATCH_UP
        else:
            self.transport.abortConnection()

    def _resume(self) -> None:
        """The caller has caught up, or is gone."""
        stream, self._paused = self._paused, None
        if stream is not None:
            self.due = _FOREVER
            stream.resume()

    def _finished(self, exchange: Exchange) -> None:
        """The answer is complete; the next request's turn comes once it is sent."""
        exchange.on_lost = None
        self._answered = True
        if self._outbox.unsent:
            self.due = self._server.seconds() + (self._server.settings.body_timeout or _FOREVER)
        else:
            self._drained()

    def _drained(self) -> None:
        """Everything has been sent."""
        if self._paused is not None:
            self._resume()
        exchange = self._current
        if exchange is None or not self._answered or self._gone:
            return
        self._current = None
        self._streaming = False
        server = self._server
        if not exchange.keep_alive or server.closing:
            self._close()
            return
        self.due = server.seconds() + (server.settings.idle_timeout or _FOREVER)
        if exchange.head.length > _LARGE_BODY:
            self.transport.bufferSize = _LARGE_BODY
        if (self._ready or self._held) and not self._serving:
            self._serve()

    def _close(self) -> None:
        """End the connection so that the answer arrives even if the caller is still sending."""
        self._closing = True
        if self._deaf and not ISSLTransport.providedBy(self.transport):
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


def _full() -> JobgateError:
    return errors.GateFull("as many bytes as may be are held for other requests")


def _headers_too_large() -> JobgateError:
    return errors.BadRequest(
        f"headers: wanted at most {_MAX_HEADERS} of them with {_MAX_RAW} bytes in all"
    )
