"""
The reference for large bodies: a bare HTTP front that reads a body and answers 1 MiB.

One Twisted Protocol with ``httptools``, no routes, no limits, no queue, no worker: about the
least work with which a Twisted process can take a body of any size and give 1 MiB back.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, cast

import httptools
from twisted.internet import reactor
from twisted.internet.protocol import Protocol, ServerFactory

if TYPE_CHECKING:
    from twisted.internet.tcp import Server

BODY = b"\xa5" * 2**20
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n%b"
    % (len(BODY), BODY)
)
READ_SIZE = 2**18


class ConstantProtocol(Protocol):
    """
    Gathers each request's body, then answers the constant.
    """

    def connectionMade(self) -> None:
        """
        Prepare the parser; large reads, no waiting for more to send.
        """
        self.parser = httptools.HttpRequestParser(self)
        self.parts: list[bytes] = []
        self.socket = cast("Server", self.transport)
        self.socket.bufferSize = READ_SIZE
        self.socket.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        """
        Hand what came to the parser.
        """
        self.parser.feed_data(data)

    def on_body(self, part: bytes) -> None:
        """
        Keep a part of the body.
        """
        self.parts.append(part)

    def on_message_complete(self) -> None:
        """
        Put the body together, as a server that does something with it must, and answer.
        """
        b"".join(self.parts)
        self.parts.clear()
        self.socket.write(ANSWER)  # type: ignore[no-untyped-call]


def serve(protocol: type[Protocol]) -> None:
    """
    Serve on a free port of the loopback interface until killed.
    """
    factory = ServerFactory.forProtocol(protocol)
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[arg-type]
    number = port.getHost().port  # type: ignore[attr-defined]
    sys.stdout.write(f"listening on http://127.0.0.1:{number}\n")
    sys.stdout.flush()
    reactor.run()


if __name__ == "__main__":
    serve(ConstantProtocol)
