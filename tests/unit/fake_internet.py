"""
A reactor whose names and connections are the test's.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectError, ConnectionAborted
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure


class Names:
    """A name server that the test answers for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.receivers: list[Any] = []

    def resolveHostName(
        self, receiver: Any, name: str, port: int = 0, kinds: Any = None, semantics: str = "TCP"
    ) -> None:
        self.asked.append(name)
        self.receivers.append(receiver)
        receiver.resolutionBegan(None)

    def answer(self, *addresses: str) -> None:
        receiver = self.receivers.pop(0)
        for address in addresses:
            kind: Any = IPv6Address if ":" in address else IPv4Address
            receiver.addressResolved(kind("TCP", address, 80))
        receiver.resolutionComplete()


class Wire(StringTransport):
    """The gate's end of a connection; as a real one, it never ends within a call of ours."""

    def __init__(self, reactor: FakeInternet, factory: Any, address: Any) -> None:
        super().__init__()
        self.reactor = reactor
        self.protocol = factory.buildProtocol(address)
        self.ended: type[Exception] | None = None
        self.protocol.makeConnection(self)

    def end(self, reason: type[Exception]) -> None:
        if self.ended is None:
            self.ended = reason
            self.protocol.connectionLost(Failure(reason()))

    def loseConnection(self) -> None:
        """Said once all is well: closed a moment later, by the test."""
        self.disconnecting = True

    def abortConnection(self) -> None:
        self.reactor.callLater(0, self.end, ConnectionAborted)


class FakeInternet(MemoryReactorClock):
    """
    A reactor that resolves and connects when the test says so.

    Attributes:
        names: The name server.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names = Names()
        self.installNameResolver(self.names)  # type: ignore[arg-type]

    @property
    def tried(self) -> list[tuple[str, int]]:
        """Where connections have been wanted to, oldest first."""
        return [client[:2] for client in self.tcpClients]

    def connect(self) -> Wire:
        """Let the last one succeed."""
        host, port, factory, _, _ = self.tcpClients[-1]
        return Wire(self, factory, IPv4Address("TCP", host, port))

    def refuse(self) -> None:
        """Let the last one fail."""
        factory = self.tcpClients[-1][2]
        factory.clientConnectionFailed(self.connectors[-1], Failure(ConnectError(111, "refused")))
