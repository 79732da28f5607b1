"""
What a connection has still to send.

Bytes are given to the kernel at once where it takes them; the rest is handed to the
transport in slices as it drains, so a slow reader's reply is held once, counted
(`Ledger`), and seen to move or not. Must not know HTTP.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.interfaces import IPullProducer, ISSLTransport
from zope.interface import classImplements

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Ledger", "Outbox"]

_SLICE: Final = 256 * 1024
_JOIN_BELOW: Final = 32 * 1024
"""Bytes up to which copying pieces together is cheaper than sending a vector."""


class Ledger:
    """
    Bytes the gate holds for its callers: bodies being read, replies being written.

    Attributes:
        held: How many.
        limit: From where on new bodies are refused.
    """

    def __init__(self, limit: int) -> None:
        self.held = 0
        self.limit = limit

    def reserve(self, count: int) -> bool:
        """Take room for `count` bytes; False, and nothing taken, if there is none."""
        if self.held + count > self.limit:
            return False
        self.held += count
        return True


class Outbox:
    """
    The sending side of one connection.

    Args:
        transport: A Twisted stream transport.
        ledger: Where unsent bytes are counted.
        seconds: The time.

    Attributes:
        unsent: Bytes that wait here for the reader.
        moved_at: When the reader last took something.
        on_empty: Called whenever everything has been taken.
    """

    def __init__(self, transport: Any, ledger: Ledger, seconds: Callable[[], float]) -> None:  # noqa: ANN401 (TCP, UNIX or TLS: no type says all)
        self._transport = transport
        self._ledger = ledger
        self._seconds = seconds
        # TLS must encrypt first; it passes on questions to the transport below, socket included.
        self._socket = None if ISSLTransport.providedBy(transport) else transport.socket
        self._pieces: deque[memoryview] = deque()
        self._draining = False
        self.unsent = 0
        self.moved_at = 0.0
        self.on_empty: Callable[[], None] | None = None

    def send(self, head: bytes | bytearray, body: bytes | bytearray = b"") -> None:
        """Send these, after whatever waits."""
        if body and len(body) < _JOIN_BELOW:
            head, body = head + body, b""
        if not self._draining:
            taken = self._now(head, body)
            size = len(head)
            if taken == (size + len(body) if body else size):
                return
            if taken < size:
                self._keep(memoryview(head)[taken:])
                taken = size
            if body:
                self._keep(memoryview(body)[taken - size :])
            self.moved_at = self._seconds()
            self._draining = True
            self._transport.registerProducer(self, streaming=False)
            return
        self._keep(memoryview(head))
        if body:
            self._keep(memoryview(body))

    def resumeProducing(self) -> None:
        """The transport has sent all it had: give it the next slice."""
        self.moved_at = self._seconds()
        if not self._pieces:
            self._draining = False
            self._transport.unregisterProducer()
            if self.on_empty is not None:
                self.on_empty()
            return
        piece = self._pieces[0]
        self._transport.write(bytes(piece[:_SLICE]))
        sent = min(_SLICE, len(piece))
        if sent == len(piece):
            self._pieces.popleft()
        else:
            self._pieces[0] = piece[_SLICE:]
        self._count(-sent)

    def stopProducing(self) -> None:
        """The connection is gone."""
        self.close()

    def close(self) -> None:
        """Forget what was not sent."""
        self._pieces.clear()
        self._count(-self.unsent)

    def _now(self, head: bytes | bytearray, body: bytes | bytearray) -> int:
        """Give the kernel what it takes at once."""
        transport = self._transport
        # What the transport still holds must go first (the private names have no public twin).
        if self._socket is None or transport.dataBuffer or transport._tempDataLen:  # noqa: SLF001
            return 0
        if not transport.connected or transport.disconnecting:
            return len(head) + len(body)
        try:
            sent = self._socket.sendmsg([head, body]) if body else self._socket.send(head)
        except BlockingIOError:
            return 0
        except OSError:
            # Gone: Twisted finds out by reading, and tells everyone in good order.
            return len(head) + len(body)
        return sent  # type: ignore[no-any-return]

    def _keep(self, piece: memoryview) -> None:
        if piece:
            self._pieces.append(piece)
            self._count(len(piece))

    def _count(self, change: int) -> None:
        self.unsent += change
        self._ledger.held += change


# A decorator would keep the class from being compiled.
classImplements(Outbox, IPullProducer)
