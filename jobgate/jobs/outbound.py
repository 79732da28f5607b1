"""
POST requests to where strangers want them: an HTTP client that trusts nobody.

The address is checked when connecting, and what was checked is what is connected to: the
name is resolved once. Redirects are not followed, an answer is read up to a bound, and no
connection outlives its request. Must not know what is sent, nor when to try again.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.defer import TimeoutError as TooLate
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import (
    ConnectError,
    ConnectionAborted,
    ConnectionClosed,
    DNSLookupError,
)
from twisted.internet.interfaces import IResolutionReceiver, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.web.client import (
    URI,
    Agent,
    HTTPConnectionPool,
    RequestTransmissionFailed,
    ResponseFailed,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer
from zope.interface import implementer

if TYPE_CHECKING:
    from twisted.internet.interfaces import (
        IAddress,
        IConsumer,
        IHostResolution,
        IProtocol,
        IProtocolFactory,
    )
    from twisted.python.failure import Failure
    from twisted.web.iweb import IResponse

    from jobgate.jobs.targets import Addresses

__all__ = ["Outbound", "Refused", "explain"]

_CONNECT_WITHIN = 10.0
"""Seconds for each address of a host."""
_READ_UP_TO = 64 * 1024
"""Bytes of an answer, its head and all that TLS says included."""
_END_WITHIN = 5.0
"""Seconds between an answer's status and the end of its connection."""


class Refused(Exception):
    """Such a URL is not for this gate; trying again would not help."""


class Outbound:
    """
    Sends requests.

    Args:
        reactor: Connections, name resolution and timers.
        addresses: Which addresses may be reached.
    """

    def __init__(self, reactor: Any, addresses: Addresses) -> None:  # noqa: ANN401 (IReactorTCP, -Time and -PluggableNameResolver: no type can say all)
        self._reactor = reactor
        self._addresses = addresses
        self._pool = HTTPConnectionPool(reactor, persistent=False)

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> int:
        """
        Send one request and wait for its answer, of which only the status is of interest.

        Returns:
            The status.

        Raises:
            Refused: It must not be sent.
            Exception: Nothing that is an answer has come; `explain` says why.
        """
        way = _Way(self._reactor, self._addresses)
        agent = Agent.usingEndpointFactory(self._reactor, way, self._pool)
        fields = Headers({name: [value] for name, value in headers.items()})
        try:
            response: IResponse = await agent.request(b"POST", url.encode(), fields, _Body(body))
            response.deliverBody(Protocol())
            # It is heard out, within bounds, so that it is not cut off while it still writes;
            # but whatever becomes of that, it has answered.
            with suppress(TooLate):
                await way.ended.addTimeout(_END_WITHIN, self._reactor)
            return int(response.code)
        finally:
            way.close()


def explain(error: BaseException) -> str:
    """Why there was no answer, for people."""
    if isinstance(error, ConnectError):
        return f"it cannot be connected to: {error}".rstrip(".")
    if isinstance(error, DNSLookupError):
        return str(error)
    if not isinstance(error, RequestTransmissionFailed | ResponseFailed):
        return f"{type(error).__name__}: {error}"
    reason = error.reasons[0].value
    if isinstance(reason, ConnectionAborted):
        return f"the head of its answer is longer than {_READ_UP_TO} bytes"
    if isinstance(reason, ConnectionClosed):
        return "it closed the connection without an answer"
    # Without what it was: nobody shall read through us what is not for them.
    return _explain_tls(reason) or f"its answer is not HTTP/1.1 ({type(reason).__name__})"


def _explain_tls(error: BaseException) -> str:
    """What TLS found wrong; empty if the error is not about that."""
    try:
        from OpenSSL.SSL import Error
        from service_identity import VerificationError
    except ImportError:
        return ""  # without them there is no TLS
    if isinstance(error, VerificationError):
        return "its certificate is for another host"
    if isinstance(error, Error):
        found = error.args[0] if error.args and isinstance(error.args[0], list) else []
        return f"TLS: {', '.join(entry[-1] for entry in found) or 'the connection was cut'}"
    return ""


@implementer(IBodyProducer)
class _Body:
    """The body of a request, at once."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """All has been written already."""

    def resumeProducing(self) -> None:
        """Likewise."""

    def stopProducing(self) -> None:
        """Likewise."""


@implementer(IAgentEndpointFactory)
class _Way:
    """
    Where one request goes, and the connection that it has got.

    Attributes:
        ended: Fires when the connection is no more.
    """

    def __init__(self, reactor: Any, addresses: Addresses) -> None:  # noqa: ANN401 (as above)
        self._reactor = reactor
        self._addresses = addresses
        self._connection: _Limited | None = None
        self.ended: Deferred[None] = Deferred()

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        host = uri.host.decode("ascii")
        endpoint = _CheckedEndpoint(self._reactor, host, uri.port, self)
        if uri.scheme == b"http":
            return endpoint
        try:
            from twisted.internet.ssl import optionsForClientTLS
        except ImportError:
            raise Refused("https needs the extra: pip install 'jobgate[tls]'") from None
        # A certificate names the host, never with the dot that DNS allows at its end.
        return wrapClientTLS(optionsForClientTLS(host.rstrip(".")), endpoint)

    def refusal(self, address: IPv4Address | IPv6Address) -> str:
        """What it is that must not be reached; empty if it may be."""
        return self._addresses.refusal(address.host)

    def made(self, connection: _Limited) -> None:
        """This is the connection."""
        self._connection = connection

    def lost(self) -> None:
        """It is no more."""
        self._connection = None
        if not self.ended.called:
            self.ended.callback(None)

    def close(self) -> None:
        """Whoever is at the other end: it is over."""
        if self._connection is not None:
            self._connection.transport.abortConnection()


@implementer(IStreamClientEndpoint)
class _CheckedEndpoint:
    """A host, as far as its addresses may be reached."""

    def __init__(self, reactor: Any, host: str, port: int, way: _Way) -> None:  # noqa: ANN401 (as above)
        self._reactor = reactor
        self._host = host
        self._port = port
        self._way = way

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        found = _Found()
        self._reactor.nameResolver.resolveHostName(found, self._host, self._port)
        addresses = await found.complete
        if not addresses:
            raise DNSLookupError(f"{self._host} has no address")
        last: Exception = self._refused(addresses)
        for address in addresses:
            if not self._way.refusal(address):
                try:
                    return await self._connect_to(address, factory)
                except ConnectError as error:
                    last = error
        raise last

    def _refused(self, addresses: list[IPv4Address | IPv6Address]) -> Refused:
        shown = ", ".join(f"{a.host} ({self._way.refusal(a)})" for a in addresses)
        if addresses[0].host != self._host:
            shown = f"{self._host} is {shown}"
        return Refused(f"{shown}: refused unless [callbacks] allow names it")

    async def _connect_to(
        self, address: IPv4Address | IPv6Address, factory: IProtocolFactory
    ) -> IProtocol:
        kind = TCP6ClientEndpoint if isinstance(address, IPv6Address) else TCP4ClientEndpoint
        endpoint = kind(self._reactor, address.host, self._port, timeout=_CONNECT_WITHIN)
        limited: Any = await endpoint.connect(_LimitedFactory(factory, self._way))
        connected: IProtocol = limited.wrappedProtocol
        return connected


@implementer(IResolutionReceiver)
class _Found:
    """The addresses of a name, as they come."""

    def __init__(self) -> None:
        self._addresses: list[IPv4Address | IPv6Address] = []
        self.complete: Deferred[list[IPv4Address | IPv6Address]] = Deferred()

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """It cannot be cancelled, so there is nothing to keep."""

    def addressResolved(self, address: IAddress) -> None:
        if isinstance(address, IPv4Address | IPv6Address) and address not in self._addresses:
            self._addresses.append(address)

    def resolutionComplete(self) -> None:
        self.complete.callback(self._addresses)


class _Limited(ProtocolWrapper):
    """A connection that is cut off when too much has come."""

    factory: _LimitedFactory
    transport: Any
    _received = 0

    def connectionMade(self) -> None:
        self.factory.way.made(self)

    def dataReceived(self, data: bytes) -> None:
        self._received += len(data)
        super().dataReceived(data)
        if self._received > _READ_UP_TO:
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self.factory.way.lost()


class _LimitedFactory(WrappingFactory[_Limited]):
    """Makes the connections of one way."""

    protocol = _Limited

    def __init__(self, wrappedFactory: IProtocolFactory, way: _Way) -> None:
        super().__init__(wrappedFactory)
        self.way = way

    def doStart(self) -> None:
        """Twisted would log the start of what is wrapped, once for every request."""

    def doStop(self) -> None:
        """Likewise its end."""
