"""
Where workers from outside come in: they say HELLO, and are let in or told why not.

Until then nobody knows who is there: little is read, and nobody may stay long. Must not know
tokens or queues: that is the `Registrar`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as Connection
from twisted.logger import Logger

from jobgate.errors import BadRequest, GateFull, JobgateError, RequestTimeout, ShuttingDown
from jobgate.listening import Ports, host_and_port, is_tls
from jobgate.pool.metas import read_hello
from jobgate.pool.remote import keep_alive
from jobgate.wire import frames
from jobgate.wire.frames import FrameDecoder, WireError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IDelayedCall
    from twisted.python.failure import Failure

    from jobgate.pool.metas import Hello
    from jobgate.pool.remote import RemoteWorker

__all__ = ["Reception", "Registrar", "Visitor"]

_HELLO_LIMIT = 16 * 1024
"""Bytes that a HELLO may have."""
_VISITORS = 1000
"""Connections that may be without a HELLO at the same time."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_PASSING = (ShuttingDown, GateFull, RequestTimeout)
"""Refusals that say nothing about the worker: it may try again."""
_json = msgspec.json.Encoder().encode


class Registrar(Protocol):
    """Who decides about those that come."""

    @property
    def patience(self) -> float:
        """Seconds from a connection to its HELLO."""

    def register(self, hello: Hello, transport: Any, address: str) -> RemoteWorker:  # noqa: ANN401 (TCP, UNIX or TLS: no type says all)
        """
        Make a worker of a connection.

        Raises:
            JobgateError: It may not be one; the error says why.
        """


class Visitor(Connection):
    """
    One connection: somebody who has not said HELLO, then the way to his worker.

    Args:
        reception: Where he came in.
    """

    _log = Logger()

    def __init__(self, reception: Reception) -> None:
        self._reception = reception
        self._decoder = FrameDecoder(_HELLO_LIMIT)
        self._said = b""
        self._refused = False
        self._timer: IDelayedCall | None = None
        self.worker: RemoteWorker | None = None

    @property
    def address(self) -> str:
        """Where he comes from, for people."""
        transport: Any = self.transport
        peer = transport.getPeer()
        if not hasattr(peer, "port"):
            return f"unix:{host_and_port(transport)}"
        return f"[{peer.host}]:{peer.port}" if ":" in peer.host else f"{peer.host}:{peer.port}"

    def connectionMade(self) -> None:
        """He has so long to say HELLO."""
        keep_alive(self.transport)
        if not self._reception.enter(self):
            self._refuse(GateFull(f"{_VISITORS} connections have not said HELLO yet"))
            return
        patience = self._reception.registrar.patience
        self._timer = self._reception.reactor.callLater(patience, self._too_late, patience)

    def dataReceived(self, data: bytes) -> None:
        """A part of HELLO; over TLS also all that the worker says later."""
        if self.worker is not None:
            self.worker.conversation.receive(data)
        elif not self._refused:
            self._said += data
            self._look(self._decoder.feed(data))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """He, or his worker, is gone."""
        self._done()
        self._reception.leave(self)
        if self.worker is not None:
            self.worker.lost(reason.getErrorMessage())

    def _look(self, found: Sequence[frames.Frame]) -> None:
        """Let him in if HELLO is all there, and right."""
        try:
            hello = self._hello(found)
            if hello is None:
                return
            transport: Any = self.transport
            worker = self._reception.registrar.register(hello, transport, self.address)
        except WireError as error:
            self._refuse(BadRequest(str(error)))
        except JobgateError as error:
            self._refuse(error)
        else:
            self._done()
            self._reception.leave(self)
            self.worker = worker
            said, self._said = self._said, b""
            worker.conversation.receive(said)

    def _hello(self, found: Sequence[frames.Frame]) -> Hello | None:
        """
        His HELLO, or None as long as it is not all there.

        Raises:
            WireError: It is something else.
        """
        if not found:
            if self._decoder.error is not None:
                raise self._decoder.error
            return None
        kind, _, meta, _ = found[0]
        if kind != frames.HELLO:
            message = f"a frame of type {kind} before HELLO"
            raise WireError(message)
        hello = read_hello(meta)
        if not hello.queue:
            raise WireError('HELLO names no queue: wanted {"queue": "NAME"}')
        if hello.name and not _NAME.match(hello.name):
            message = f"name: found {hello.name[:80]!r}, wanted 1 to 64 of A-Z a-z 0-9 . _ -"
            raise WireError(message)
        return hello

    def _refuse(self, error: JobgateError) -> None:
        """Say why, also to him, and close."""
        self._done()
        self._refused = True
        self._log.warn(
            "a worker at {address} was refused: {why}",
            address=self.address,
            why=f"{error.title}: {error.detail}",
        )
        meta: dict[str, object] = {"title": error.title, "detail": error.detail}
        if not isinstance(error, _PASSING):
            meta["retry"] = False
        transport: Any = self.transport
        transport.write(frames.encode(frames.FAIL, 0, _json(meta)))
        transport.loseConnection()
        # Who does not take it in must not stay for that.
        self._timer = self._reception.reactor.callLater(5, transport.abortConnection)

    def _too_late(self, patience: float) -> None:
        self._timer = None
        self._refuse(RequestTimeout(f"no HELLO within {patience:g} s"))

    def _done(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None


class Reception(Factory):
    """
    The endpoints of `worker_listen`.

    Args:
        reactor: Time, timers and ports.
        registrar: Who decides about those that come.
    """

    noisy = False
    _log = Logger()

    def __init__(self, reactor: Any, registrar: Registrar) -> None:  # noqa: ANN401 (IReactorTime, -TCP, -UNIX and -SSL: no type can say all)
        self.reactor = reactor
        self.registrar = registrar
        self._ports = Ports(reactor, self)
        self._visitors: set[Visitor] = set()

    def listen(self, endpoints: Sequence[str]) -> Deferred[None]:
        """
        Open these endpoints, and close all others; workers that are there stay.

        Returns:
            Fires when all are open; fails with the first that cannot be, and nothing is changed.
        """
        before = set(self._ports.open)
        return self._ports.relisten(endpoints).addCallback(self._announce, before)

    def addresses(self) -> list[str]:
        """Where it can be reached, as `serve(connect=...)` wants it."""
        return [self._url(text) for text in self._ports.open]

    def stop(self) -> Deferred[None]:
        """Let nobody in any more, and send those away who have not said HELLO."""
        for visitor in list(self._visitors):
            transport: Any = visitor.transport
            transport.abortConnection()
        return self._ports.close()

    def enter(self, visitor: Visitor) -> bool:
        """Count a connection in; False if there are too many without a HELLO."""
        self._visitors.add(visitor)
        return len(self._visitors) <= _VISITORS

    def leave(self, visitor: Visitor) -> None:
        """Count it out."""
        self._visitors.discard(visitor)

    def buildProtocol(self, addr: IAddress | None) -> Visitor:  # noqa: ARG002 (Twisted's signature)
        """Somebody has come."""
        return Visitor(self)

    def _url(self, text: str) -> str:
        where = host_and_port(self._ports.open[text])
        if text.startswith("unix:"):
            return f"unix://{Path(where).absolute()}"
        return f"{'tls' if is_tls(text) else 'tcp'}://{where}"

    def _announce(self, _: object, before: set[str]) -> None:
        for text in self._ports.open:
            if text not in before:
                self._log.info("workers may register at {address}", address=self._url(text))
