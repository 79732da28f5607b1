"""
HTTPServer: listens, bounds connections, and sends each request its way.

The short way serves what is hot; Klein serves everything, and with `front = "klein"`
everything goes to it. One sweep looks after the deadlines of all connections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TooLate
from twisted.internet.interfaces import IProtocolNegotiationFactory
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import classImplements

from jobgate.errors import JobgateError
from jobgate.listening import Ports, host_and_port, is_tls
from jobgate.web.access import Access
from jobgate.web.calls import Calls
from jobgate.web.channel import FrontDoor, Stamp
from jobgate.web.handler import HTTPHandler
from jobgate.web.job_views import told
from jobgate.web.klein_channel import klein_site, serve_by_klein
from jobgate.web.leases import LeaseRequests
from jobgate.web.outbox import Ledger
from jobgate.web.problems import problem
from jobgate.web.pulls import Pulls
from jobgate.web.pushes import Pushes
from jobgate.web.short_way import ShortWay

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress
    from twisted.python.failure import Failure

    from jobgate.config import GateConfig
    from jobgate.gate import Gate
    from jobgate.web.exchange import Exchange, Head

__all__ = ["HTTPServer"]

_FOREVER: Final = float("inf")
_SWEEP_EVERY: Final = 0.5
"""Seconds between two looks at the connections' deadlines."""
_LAST_ANSWERS: Final = 5.0
"""Seconds that callers have, at the end, to take the last of their answers."""


class HTTPServer(Factory):
    """
    The web side of a gate.

    Args:
        gate: What is behind it.

    Attributes:
        settings: The table `[gate]`.
        idle_timeout: Seconds that a connection may be without a request: for as long as it likes,
            if the table says 0.
        access: Who may come in.
        ledger: Bytes held for callers.
        stamp: The date.
        closing: Connections end with their present answer.
        heads: Heads that have been parsed and found well-formed, by their bytes.
        fields: The same by the bytes behind the first line, of any that had them.
    """

    noisy = False
    _log: ClassVar = Logger()

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.seconds = gate.reactor.seconds
        self.ledger = Ledger(gate.config.gate.max_buffered)
        self.stamp = Stamp()
        self.closing = False
        self.heads: dict[bytes, Head] = {}
        self.fields: dict[bytes, Head] = {}
        self._connections: set[FrontDoor] = set()
        # Of these: they are told so and go, and take nobody's place until they have gone.
        self._turned_away: set[FrontDoor] = set()
        self._ports = Ports(gate.reactor, self)
        self._ended: Deferred[None] | None = None
        self._sweep = LoopingCall(self._look)
        self._sweep.clock = gate.reactor
        gate.callbacks.tell(lambda name: Deferred.fromCoroutine(told(gate, name)))
        self.reconfigure(gate.config)

    def reconfigure(self, config: GateConfig) -> None:
        """Take on other limits and tokens; what is open stays open."""
        self.settings = config.gate
        self.idle_timeout = config.gate.idle_timeout or _FOREVER
        self.ledger.limit = config.gate.max_buffered
        self.access = Access(config)
        pushes = Pushes(self._gate, self.access)
        calls = Calls(self._gate, self.access, pushes)
        pulls = Pulls(self._gate, self.access)
        leases = LeaseRequests(self._gate, self.access, pulls)
        handler = HTTPHandler(self._gate, calls, pushes, pulls, leases, self.access)
        self._site = klein_site(handler.app.resource())
        self._short: ShortWay | None = None
        if config.gate.front == "fast":
            self._short = ShortWay(calls, pushes, pulls, leases, config.queues)
        self.heads.clear()
        self.fields.clear()

    # --- listening

    def listen(self) -> Deferred[None]:
        """
        Open the configured endpoints.

        Returns:
            Fires when all are open; fails with the first that cannot be, none left open.
        """
        if not self._sweep.running:
            self._sweep.start(_SWEEP_EVERY, now=False)
        return self._ports.listen(self.settings.listen)

    def relisten(self, config: GateConfig) -> Deferred[None]:
        """Open the endpoints that another configuration adds, then close those it drops."""
        return self._ports.relisten(config.gate.listen)

    def addresses(self) -> list[str]:
        """Where it can be reached, as URLs."""
        return [
            f"{'https' if is_tls(text) else 'http'}://{host_and_port(port)}"
            if not text.startswith("unix:")
            else f"unix:{host_and_port(port)}"
            for text, port in self._ports.open.items()
        ]

    def stop(self) -> Deferred[None]:
        """
        Close the ports; connections end with their present answer.

        Returns:
            Fires when all connections have ended, the slowest after a few seconds.
        """
        self.closing = True
        if self._sweep.running:
            self._sweep.stop()
        closed = self._ports.close()
        for connection in list(self._connections):
            connection.close_if_idle()
        ended: Deferred[None] = Deferred()
        self._ended = ended
        ended.addTimeout(_LAST_ANSWERS, self._gate.reactor)
        ended.addErrback(self._too_slow)
        if not self._connections:
            ended.callback(None)
        return closed.addCallback(lambda _: ended)

    def hurry(self) -> None:
        """Close every connection now."""
        for connection in list(self._connections):
            connection.transport.abortConnection()

    def _too_slow(self, failure: Failure) -> None:
        failure.trap(TooLate)
        self.hurry()

    # --- connections

    def buildProtocol(self, addr: IAddress | None) -> FrontDoor:  # noqa: ARG002 (Twisted's signature)
        """A connection for a caller."""
        return FrontDoor(self)

    def acceptableProtocols(self) -> list[bytes]:
        """What is spoken over TLS (ALPN, RFC 7301): without this, callers that ask are refused."""
        return [b"http/1.1"]

    def welcome(self, connection: FrontDoor) -> bool:
        """Count a connection in; False if there are as many as may be."""
        most = self.settings.max_connections
        room = len(self._connections) - len(self._turned_away) < most
        self._connections.add(connection)
        if not room:
            self._turned_away.add(connection)
        return room

    def farewell(self, connection: FrontDoor) -> None:
        """Count it out."""
        self._connections.discard(connection)
        self._turned_away.discard(connection)
        if self._ended is not None and not self._ended.called and not self._connections:
            self._ended.callback(None)

    def serve(self, exchange: Exchange) -> None:
        """Send a request its way: the short one if it is hot and plain, else Klein's."""
        head = exchange.head
        way = head.way
        if way is None and self._short is not None:
            way = head.way = self._short.find(head)
        if way is not None:
            handle, name = way
            handle(exchange, name, exchange.answer)
            return
        try:
            serve_by_klein(exchange, self._site)
        except JobgateError as error:
            exchange.answer(problem(error))

    def _look(self) -> None:
        """One sweep over all connections: cheaper than a timer for each request."""
        now = self.seconds()
        for connection in [c for c in self._connections if c.due <= now]:
            connection.overdue(now)


# A decorator would keep the class from being compiled.
classImplements(HTTPServer, IProtocolNegotiationFactory)
