"""
The front door: one connection, its requests answered one at a time and in order.

What arrives is parsed and bounded by `arrivals`, what is sent is kept by the `outbox`;
between the two each request gets its one answer, whole or in parts. Must not know routes:
`HTTPServer.serve` sends a request its way.
"""

from __future__ import annotations

import select
from time import time
from typing import TYPE_CHECKING, Any, ClassVar, Final
from wsgiref.handlers import format_date_time

from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Server
from twisted.logger import Logger

from jobgate import errors
from jobgate.web.arrivals import LARGE_BODY, Arrivals
from jobgate.web.events import as_event, error_event
from jobgate.web.exchange import phrase
from jobgate.web.outbox import Outbox
from jobgate.web.problems import problem

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from jobgate.stream import ReplyStream
    from jobgate.web.exchange import Exchange, Response
    from jobgate.web.server import HTTPServer

__all__ = ["FrontDoor", "Stamp"]

_FOREVER: Final = float("inf")
_ENDED: Final[int] = getattr(select, "POLLRDHUP", select.POLLHUP)
"""The peer has sent its FIN; where the system has no such flag, POLLHUP says it (macOS)."""
_ONE: Final = select.poll()
"""For looking at one connection, now."""
_MAX_HELD: Final = 64 * 1024
"""Bytes of later requests taken in while one is being answered; then reading stops."""
_BODILESS: Final = (204, 304)
"""Statuses that forbid a body (RFC 9110, sections 15.3.5 and 15.4.5)."""
_LINGER: Final = 2.0
"""Seconds for which input is read and dropped after a refusal, so that it reaches the caller."""
_MAX_UNREAD: Final = 1024 * 1024
"""Bytes of a streamed reply that a caller may leave unread."""
_CATCH_UP: Final = 1.0
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
        local: It came over a UNIX socket.
    """

    _log: ClassVar = Logger()
    transport: Any

    def __init__(self, server: HTTPServer) -> None:
        self._server = server
        self._in = Arrivals(self, server)
        # The request that is being answered, and input that came after it.
        self._current: Exchange | None = None
        self._answered = False
        self._streaming = False
        self._paused: ReplyStream | None = None
        self._serving = False
        self._held: list[bytes] = []
        self._held_bytes = 0
        # How the connection ends.
        self._closing = False
        self._gone = False
        self.due = _FOREVER

    # --- the connection

    def connectionMade(self) -> None:
        """A caller has come."""
        server = self._server
        if hasattr(self.transport, "setTcpNoDelay"):
            self.transport.setTcpNoDelay(True)
        over_tcp = type(self.transport) is Server
        if over_tcp:
            self.transport.doRead = self._read
        self._outbox = Outbox(self.transport, server.ledger, server.seconds)
        self._outbox.on_empty = self._drained
        self.local = isinstance(self.transport.getHost(), UNIXAddress)
        self.due = server.seconds() + server.idle_timeout
        if not server.welcome(self):
            self._in.refuse(errors.GateFull("as many connections as may be are open"))
            self._serve()

    def dataReceived(self, data: bytes) -> None:
        """The caller has sent something."""
        arrivals = self._in
        if arrivals.deaf:
            return
        if self._current is not None:
            self._held.append(data)
            self._held_bytes += len(data)
            if self._held_bytes > _MAX_HELD:
                self.transport.pauseProducing()
        elif arrivals.active:
            arrivals.feed(data)
            self._serve()
        else:
            exchange = arrivals.known(data)
            if exchange is not None:
                self._begin(exchange)
            else:
                self._serve()

    def _read(self) -> BaseException | None:
        """What the transport's own `doRead` does; three calls for each request are two too many."""
        transport = self.transport
        try:
            data = transport.socket.recv(transport.bufferSize)
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if not data:
            return CONNECTION_DONE
        self.dataReceived(data)
        return None

    def connectionLost(self, reason: Failure | None = None) -> None:  # noqa: ARG002 (Twisted's)
        """The caller is gone: nobody wants what was asked for on this connection."""
        self._gone = True
        self._in.end()
        self._server.farewell(self)
        self._outbox.close()
        # It would keep us, and we keep it.
        vars(self.transport).pop("doRead", None)
        self._resume()
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
        elif self._in.active:
            self._in.too_slow()
            self._serve()
        else:
            self._closing = True
            self.transport.loseConnection()

    def close_if_idle(self) -> None:
        """The server stops: a connection without a request is closed, another after its answer."""
        if self._current is None and not self._outbox.unsent:
            self.transport.loseConnection()

    def invite(self) -> None:
        """Say `100 Continue`, unless another request's answer must come first."""
        if self._current is None:
            self._outbox.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def alive(self) -> bool:
        """Whether the caller is still there: its FIN may have come and not been read."""
        if self._gone:
            return False
        descriptor = self.transport.fileno()
        _ONE.register(descriptor, _ENDED)
        try:
            return not _ONE.poll(0)
        finally:
            _ONE.unregister(descriptor)

    # --- answers, one at a time and in order

    def _serve(self) -> None:
        """Serve requests until one has to be waited for; never nested."""
        if self._serving:
            return
        self._serving = True
        try:
            while self._current is None and not self._gone and not self._closing:
                if self._in.ready:
                    self._begin(self._in.ready.popleft())
                elif self._held:
                    data, self._held = b"".join(self._held), []
                    if self._held_bytes > _MAX_HELD:
                        self.transport.resumeProducing()
                    self._held_bytes = 0
                    self._in.feed(data)
                else:
                    return
        finally:
            self._serving = False

    def _begin(self, exchange: Exchange) -> None:
        self._current = exchange
        self._answered = False
        self.due = _FOREVER
        if exchange.refusal is not None:
            # All of a request that came with its head is here: the next can be told apart.
            exchange.keep_alive = exchange.keep_alive and not self._in.deaf
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
            if exchange.head.method == b"HEAD":
                # Who asks for the head alone wants none of its parts (RFC 9110, 9.3.2).
                self._outbox.send(self._head(exchange, response, None))
                exchange.lost()
                self._finished(exchange)
            else:
                self._stream(exchange, response)
            return
        body = response.body
        head = self._head(exchange, response, len(body))
        if exchange.head.method == b"HEAD" or response.status in _BODILESS:
            body = b""
        exchange.on_sent = response.on_sent
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
        bodiless = response.status in _BODILESS
        chunked = not exchange.head.http10 and not bodiless
        self._outbox.send(self._head(exchange, response, None))

        def send(data: bytes | bytearray) -> None:
            if chunked:
                self._outbox.send(b"%x\r\n" % len(data))
                self._outbox.send(data, b"\r\n")
            else:
                self._outbox.send(data)

        def on_chunk(data: bytes | bytearray) -> None:
            if exchange is self._current and data and not self._gone and not bodiless:
                if self._outbox.unsent > _MAX_UNREAD and not self._paused:
                    self._pause(stream)
                send(as_event(data) if response.events else data)

        def on_end(failure: Failure | None) -> None:
            if exchange is not self._current:
                return
            self._paused = None
            if failure is not None and (bodiless or not response.events):
                # Without chunks, only a reset tells the caller that this was not all.
                if chunked:
                    limit = self._server.settings.body_timeout or _FOREVER
                    self.due = self._server.seconds() + limit
                    self._closing = True
                    self.transport.loseConnection()
                else:
                    self.transport.abortConnection()
                return
            if failure is not None:
                send(error_event(failure, response.command_id))
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
        if exchange.on_sent is None:
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
        if exchange.on_sent is not None:
            exchange.on_lost = None
            exchange.on_sent()
        server = self._server
        if not exchange.keep_alive or server.closing:
            self._close()
            return
        self.due = server.seconds() + server.idle_timeout
        if exchange.head.length > LARGE_BODY:
            self.transport.bufferSize = LARGE_BODY
        if (self._in.ready or self._held) and not self._serving:
            self._serve()

    def _close(self) -> None:
        """End the connection so that the answer arrives even if the caller is still sending."""
        self._closing = True
        if self._in.deaf and not ISSLTransport.providedBy(self.transport):
            self.transport.loseWriteConnection()
            self.due = self._server.seconds() + _LINGER
        else:
            self._in.deaf = True
            self.transport.loseConnection()
