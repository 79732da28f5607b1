"""
A worker that registered over a socket.

It is driven like a child: the same frames, the same Runner. What differs is how it is lost: it
cannot be killed, only cut off, and a connection can be dead without a word. Must not know how
it was let in.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import sys
from typing import TYPE_CHECKING, Any, ClassVar, Final

from twisted.internet.interfaces import IPushProducer, ISSLTransport
from twisted.logger import Logger
from zope.interface import classImplements

from jobgate.pool.frames import FramesConversation
from jobgate.pool.lifecycle import Event, State
from jobgate.pool.member import RETIRED, Member
from jobgate.pool.pipes import WorkerInput, WorkerOutput
from jobgate.pool.roles import Loss

if TYPE_CHECKING:
    from jobgate.config import WorkerConfig
    from jobgate.pool.roles import Owner

__all__ = ["RemoteWorker", "keep_alive"]

# Asked about for every command.
_READY: Final = State.READY
_PING_EVERY: Final = 4.0
"""Seconds between two PINGs to an idle worker, and that it has for the answer."""
_UNHEARD: Final = 1000
"""Frames besides commands that are kept for a worker that does not read."""
_PARTING: Final = 1.0
"""Seconds between DRAIN and the end of a connection that the worker does not end itself."""
_SIOCOUTQNSD: Final = 0x894B
"""Linux: asks a TCP socket how many bytes it has not sent yet."""
_GONE: Final = (errno.ECONNRESET, errno.EPIPE)
"""What a socket says whose other side has been closed; all else means that nothing is heard."""
_KEEP_ALIVE: Final = (
    # Seconds of silence before the first probe, between two, and how many may stay unanswered.
    ("TCP_KEEPIDLE", 4),
    ("TCP_KEEPINTVL", 2),
    ("TCP_KEEPCNT", 2),
    # Milliseconds for which what was sent may stay unacknowledged.
    ("TCP_USER_TIMEOUT", 8000),
)


def keep_alive(transport: Any) -> None:  # noqa: ANN401 (TCP, UNIX or TLS: no type says all)
    """Have the kernel find out within ten seconds if the other side of a TCP connection is gone."""
    sock: socket.socket = transport.socket
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _unsent(fd: int) -> int:
    """
    How many bytes the kernel has taken but not sent.

    What has been sent may have been seen, acknowledged or not.
    """
    count = bytearray(4)
    try:
        fcntl.ioctl(fd, _SIOCOUTQNSD, count)
    except OSError:
        return 0  # a UNIX socket, or another system
    return int.from_bytes(count, sys.byteorder)


class _Connection:
    """What a worker is spoken to through."""

    def write(self, head: bytes, body: bytes, *, idle: bool) -> int:
        """Send bytes; returns how many have been offered in all."""
        raise NotImplementedError

    def written(self) -> int:
        """How many of them the worker may have seen."""
        raise NotImplementedError

    def error(self) -> OSError | None:
        """Why nothing more can be read, if it is not just the end."""
        raise NotImplementedError

    def read_rest(self) -> None:
        """Take in what has come already."""
        raise NotImplementedError

    def hold(self, *, on: bool) -> None:
        """Read nothing (True), or again (False)."""
        raise NotImplementedError

    def part(self) -> None:
        """Everything has been written: end our side, and let the worker end its own."""
        raise NotImplementedError


class _Plain(_Connection):
    """TCP or UNIX: read and written as a child's pipes are."""

    def __init__(self, worker: RemoteWorker, transport: Any, clock: Any) -> None:  # noqa: ANN401 (Twisted has no type for it)
        self._transport = transport
        self._input = WorkerInput(transport, clock, _unsent)
        self._output = WorkerOutput(transport, worker.conversation)

    def write(self, head: bytes, body: bytes, *, idle: bool) -> int:
        return self._input.write(head, body, idle=idle)

    def written(self) -> int:
        return self._input.written

    def error(self) -> OSError | None:
        return self._output.error

    def read_rest(self) -> None:
        self._output.read_rest()

    def hold(self, *, on: bool) -> None:
        self._output.hold(on=on)

    def part(self) -> None:
        self._input.flush()
        self._transport.loseWriteConnection()


class _Secret(_Connection):
    """TLS: Twisted has to do both, since what is written must be encrypted first."""

    def __init__(self, transport: Any) -> None:  # noqa: ANN401 (as above)
        self._transport = transport
        self._written = 0

    def write(self, head: bytes, body: bytes, *, idle: bool) -> int:  # noqa: ARG002 (as `_Plain`)
        """Whatever has been given to TLS may have been seen."""
        self._written += len(head) + len(body)
        self._transport.write(head)
        if body:
            self._transport.write(bytes(body))
        return self._written

    def written(self) -> int:
        return self._written

    def error(self) -> OSError | None:
        return None

    def read_rest(self) -> None:
        """What has not been decrypted cannot be looked at."""

    def hold(self, *, on: bool) -> None:
        if on:
            self._transport.pauseProducing()
        else:
            self._transport.resumeProducing()

    def part(self) -> None:
        """End both sides: TLS has no other way."""
        self._transport.loseConnection()


class RemoteWorker(Member):
    """
    One worker at the other end of a connection; other arguments as for every `Member`.

    Args:
        transport: The connection.
        address: Where it comes from, for people.

    Attributes:
        address: As given.
    """

    _log: ClassVar = Logger()

    def __init__(
        self,
        name: str,
        queue: str,
        config: WorkerConfig,
        reactor: Any,  # noqa: ANN401 (IReactorTime)
        owner: Owner,
        transport: Any,  # noqa: ANN401 (TCP, UNIX or TLS: no type says all)
        address: str,
    ) -> None:
        super().__init__(name, queue, config, reactor, owner)
        self.address = address
        self._transport = transport
        self._choked = False
        self._unheard = 0
        self.conversation = FramesConversation(config, self, reactor.seconds, name, queue)
        secret = ISSLTransport.providedBy(transport)
        self._stream: _Connection = (
            _Secret(transport) if secret else _Plain(self, transport, reactor)
        )
        transport.registerProducer(self, True)  # noqa: FBT003 (Twisted's signature)

    def __repr__(self) -> str:
        age = self._reactor.seconds() - self.born
        return (
            f"<RemoteWorker {self.name} at {self.address} {self.state.name} "
            f"{age:.1f}s done={self.conversation.done}>"
        )

    @property
    def room(self) -> int:
        """How many more commands it can be handed now: none while it has not read the last."""
        conversation = self.conversation
        if self.state is _READY and conversation.is_ready and not self._choked:
            return conversation.capacity + conversation.company - len(conversation.in_hand)
        return 0

    # --- what the connection tells

    def lost(self, why: str) -> None:
        """The connection has ended."""
        self._cancel_timer()
        error = self._stream.error()
        cause = f"the connection was lost: {error.strerror if error else why}"
        torn = self.conversation.ended()
        if torn and self._loss is None:
            cause += f"; {torn}"
        self._leave(Event.EXIT)
        # Of a host that has fallen silent nobody knows whether the command was to blame.
        silent = error is not None and error.errno not in _GONE
        self._lose(Loss("timeout" if silent else "died", cause))
        assert self._loss is not None, "set by _lose"
        self.report = self._write_report(self._loss, cause, None, None)
        self._owner.worker_gone(self, self.report)

    def pauseProducing(self) -> None:
        """More than a little waits for it to read."""
        self._choked = True

    def resumeProducing(self) -> None:
        """It has read what it was sent."""
        self._choked = False
        self._unheard = 0
        if self.crew is not None:
            self.crew.rested()

    def stopProducing(self) -> None:
        """The connection is gone; `lost` follows."""

    # --- what the conversation needs: the rest of the Transport protocol

    def write(self, head: bytes, body: bytes, *, idle: bool) -> int:
        """Send bytes to it; returns how many have been offered in all."""
        if self._choked:
            self._unheard += 1
            if self._unheard == _UNHEARD:
                self._reactor.callLater(0, self.broken, "it does not read what it is sent")
        return self._stream.write(head, body, idle=idle)

    def written(self) -> int:
        """How many of the offered bytes it may have seen."""
        return self._stream.written()

    def look(self) -> None:
        """Take in what it has said already."""
        self._stream.read_rest()

    def hold(self, *, on: bool) -> None:
        """Read nothing from it (True), or again (False)."""
        self._stream.hold(on=on)

    def leaving(self) -> None:
        """It wants no more commands: it is about to go."""
        self.retire()

    # --- how it is made to go

    def _watch(self) -> None:
        """The kernel looks after a busy connection; an idle worker must answer a PING."""
        self._wait(_PING_EVERY, self._look_after)

    def _look_after(self) -> None:
        if self.idle:
            if not self.conversation.answered_ping:
                self.stop_by_force(Loss("timeout", f"no answer to PING within {_PING_EVERY:g} s"))
                return
            self.conversation.ping()
        self._wait(_PING_EVERY, self._look_after)

    def _end_politely(self) -> None:
        """DRAIN, and the end of our side; if it does not end its own, that is done for it."""
        self.conversation.drain()
        self._lose(Loss("stopped", RETIRED))
        self._transport.unregisterProducer()
        self._stream.part()
        self._wait(_PARTING, self._end_at_once)

    def _end_by_force(self) -> None:
        """Cut it off: there is no other process to end."""
        self._end_at_once()

    def _end_at_once(self) -> None:
        self._cancel_timer()
        self._transport.abortConnection()


# A decorator would keep the class from being compiled.
classImplements(RemoteWorker, IPushProducer)
