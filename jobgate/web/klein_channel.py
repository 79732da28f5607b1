"""
How the front door hands a request to Klein, and gets the response back.

A `twisted.web` Request believes that it has a channel of its own. Here it has one
exchange, parsed and bounded already (as `twisted.web`'s own HTTP/2 streams do), and it
writes nothing: its response goes back whole to the front door, which writes those of
both ways. Must not know routes.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.web.server import Request, Site

from jobgate.errors import BadRequest, NotFound
from jobgate.web.exchange import Exchange, Response

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress
    from twisted.web.resource import IResource

_HERE = IPv4Address("TCP", "127.0.0.1", 0)

__all__ = ["KleinRequest", "klein_site", "serve_by_klein"]


class KleinRequest(Request):
    """
    A `twisted.web` Request whose response goes to an exchange.

    Attributes:
        exchange: The request as the front door parsed it.
        response: What a route has answered; otherwise made of what Klein wrote.
    """

    exchange: Exchange
    response: Response | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 (twisted.web's own)
        super().__init__(*args, **kwargs)
        self._written: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Keep what Klein writes."""
        self._written.append(data)

    def finish(self) -> None:
        """The response is complete: give it to the front door."""
        if self._disconnected or self.finished:
            return
        response = self.response
        if response is None:
            kind = self.responseHeaders.getRawHeaders("Content-Type", ["text/plain"])[0]
            response = Response(self.code, kind, b"".join(self._written))
        self.finished = 1
        exchange = self.exchange
        self._cleanup()
        exchange.answer(response)


class _Channel:
    """What a Request asks of its channel."""

    factory = None
    transport = None

    def __init__(self, site: Site) -> None:
        self.site = site

    def getPeer(self) -> IAddress:
        """Of no meaning here: no route asks where a caller is."""
        return _HERE

    def getHost(self) -> IAddress:
        """Of no meaning here: routes make no absolute addresses."""
        return _HERE

    def isSecure(self) -> bool:
        """Likewise."""
        return False

    def requestDone(self, _: Request) -> None:
        """The front door knows by the answer."""


def klein_site(resource: IResource) -> Site:
    """The Site that requests are handed to; it does not listen."""
    return Site(resource, requestFactory=KleinRequest, parsePOSTFormSubmission=False)


def serve_by_klein(exchange: Exchange, site: Site) -> None:
    """
    Have Klein route a request; its answer goes to `exchange.answer`.

    Raises:
        BadRequest: The path is not UTF-8 behind its percent signs.
        NotFound: It begins with two slashes.
    """
    if exchange.head.path.startswith(b"//"):
        # Klein would take one of the slashes for nothing.
        message = f"no route {exchange.head.path.decode('latin-1')}"
        raise NotFound(message)
    try:
        unquote_to_bytes(exchange.head.path).decode()
    except UnicodeDecodeError:
        message = "path: wanted UTF-8, percent-encoded (RFC 3987)"
        raise BadRequest(message) from None
    request = KleinRequest(_Channel(site), parsePOSTFormSubmission=False)
    request.exchange = exchange
    head = exchange.head
    for name, value in head.headers.items():
        request.requestHeaders.addRawHeader(name, value)
    request.content = BytesIO()
    version = b"HTTP/1.0" if head.http10 else b"HTTP/1.1"
    request.requestReceived(head.method, head.target, version)
    leave = exchange.on_lost

    def lost() -> None:
        request.connectionLost(Failure(ConnectionDone()))
        if leave is not None:
            leave()

    if not request.finished:
        exchange.on_lost = lost
