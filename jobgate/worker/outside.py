"""
The worker's side of a socket: what `serve(connect=...)` adds to `jobgate.worker`.

    from jobgate.worker import serve

    serve(handler, connect="tcp://gate:9000", queue="resize")

It finds the gate, says who is there, and finds it again whenever the connection is lost. What is
done with commands, `jobgate.worker` knows. Like that module it runs in the worker and imports the
standard library only; `serve` imports it when it is asked to connect.
"""

from __future__ import annotations

import _thread
import os
import socket
import sys
from random import uniform
from select import POLLIN, poll
from time import monotonic, sleep

from jobgate.worker.answers import work
from jobgate.worker.frames import DECLINE, DRAIN, FAIL, HELLO, pack
from jobgate.worker.link import READ, Link
from jobgate.worker.quick_json import dumps, loads
from jobgate.worker.signals import take_signals

TYPE_CHECKING = False  # as in `jobgate.worker`
if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from typing import Any

    from jobgate.worker import Command

__all__ = ["Outside"]

_FIRST, _FACTOR, _MOST = 0.1, 2.0, 10.0
"""Seconds before the first new attempt to connect, their growth, and the longest."""
_JITTER = 0.5
"""The random share of that, so that a restarted gate does not see all its workers at once."""
_WITHIN = 10.0
"""Seconds for a connection, and again for the gate's answer to HELLO."""
_PARTING = 5.0
"""Seconds that the gate has to let a worker without work go."""
_JOIN_BELOW = 16 * 1024
"""Bytes up to which copying head and body together is cheaper than a vector of two."""
_FORMS = '"tcp://HOST:PORT", "tls://HOST:PORT" or "unix:///PATH"'
_KEEP_ALIVE = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3))
"""A gate whose machine is gone is found out within about ten seconds, also while idle."""


class _Gone(SystemExit):
    """The connection has ended under a handler: nothing of it must catch this by mistake."""


class _Refused(Exception):
    """The gate will not have this worker, and will not another time."""


class _Plain:
    """A connection without TLS."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def readable(self, seconds: float = 0) -> bool:
        """Whether `read` would not wait now, or not after so many seconds."""
        ready = poll()
        ready.register(self.sock, POLLIN)
        return bool(ready.poll(seconds * 1000))

    def read(self, count: int) -> bytes:
        """Some bytes, at most `count`; none at the end."""
        return self.sock.recv(count)

    def read_into(self, view: memoryview) -> int:
        """Read into a buffer; returns how many, 0 at the end."""
        return self.sock.recv_into(view)

    def write(self, head: bytes, body: Any) -> None:  # noqa: ANN401
        """Write all of this."""
        if len(body) < _JOIN_BELOW:
            self.sock.sendall(b"".join((head, body)))
            return
        sent = self.sock.sendmsg((head, body))
        if sent < len(head) + len(body):
            self.sock.sendall(memoryview(b"".join((head, body)))[sent:])


class _Secret:
    """
    A connection with TLS.

    One thread may read while another writes, which an `ssl.SSLSocket` does not allow: OpenSSL's
    own state is only touched under `_tls`, and never while the network is waited for.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        import ssl

        self.sock = sock
        self._wants = ssl.SSLWantReadError
        self._ends = (ssl.SSLZeroReturnError, ssl.SSLEOFError)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._in, self._out, server_hostname=host)
        self._tls = _thread.allocate_lock()
        self._sending = _thread.allocate_lock()
        self._plain = b""
        self._ended = False
        while True:
            try:
                self._object.do_handshake()
                break
            except self._wants:
                self._flush()
                self._receive(wait=True)
                if self._ended:
                    message = "the connection ended in the TLS handshake"
                    raise ConnectionError(message) from None
        self._flush()

    def readable(self, seconds: float = 0) -> bool:
        """Whether `read` would not wait now, or not after so many seconds."""
        until = monotonic() + seconds
        while not (self._plain or self._ended):
            if not _Plain(self.sock).readable(max(0.0, until - monotonic())):
                return False
            self._decrypt(wait=False)
        return True

    def read(self, count: int) -> bytes:
        """Some bytes, at most `count`; none at the end."""
        while not (self._plain or self._ended):
            self._decrypt(wait=True)
        data, self._plain = self._plain[:count], self._plain[count:]
        return data

    def read_into(self, view: memoryview) -> int:
        """Read into a buffer; returns how many, 0 at the end."""
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def write(self, head: bytes, body: Any) -> None:  # noqa: ANN401
        """Write all of this."""
        with self._sending:
            with self._tls:
                self._object.write(head)
                if len(body):
                    self._object.write(body)
                data = self._out.read()
            self.sock.sendall(data)

    def _decrypt(self, *, wait: bool) -> None:
        """Take in what the network has, or wait for some."""
        self._receive(wait=wait)
        parts = []
        with self._tls:
            try:
                while part := self._object.read(READ):
                    parts.append(part)
                self._ended = True
            except self._wants:
                pass
            except self._ends:
                self._ended = True
        self._plain += b"".join(parts)
        self._flush()

    def _receive(self, *, wait: bool) -> None:
        try:
            data = self.sock.recv(READ, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        with self._tls:
            self._in.write(data) if data else self._in.write_eof()
        self._ended = not data

    def _flush(self) -> None:
        """Send what TLS itself has to say."""
        if self._out.pending:
            with self._sending:
                with self._tls:
                    data = self._out.read()
                self.sock.sendall(data)


class _Wire(Link):
    """
    The connection to the gate, in place of a child's two pipes.

    Attributes:
        leaving: This worker has said that it goes; what still comes is handed back.
        refusal: What the gate said instead of WELCOME.
    """

    def __init__(self, carrier: _Plain | _Secret, *, batching: bool) -> None:
        super().__init__(carrier.sock.fileno(), carrier.sock.fileno(), batching=batching)
        self.carrier = carrier
        self.leaving = False
        self.refusal = b""

    @property
    def welcome(self) -> dict[str, Any]:
        """What the gate said in WELCOME; empty before."""
        return dict(loads(self._welcome)) if self._welcome else {}

    def register(self, hello: bytes) -> None:
        """
        Say HELLO and wait for the answer.

        Raises:
            OSError: There is none.
            _Refused: It is a refusal that will not change.
        """
        self.send(HELLO, 0, hello)
        until = monotonic() + _WITHIN
        while not (self._welcome or self.refusal or self.ended):
            if not self.carrier.readable(max(0.0, until - monotonic())):
                message = f"no answer to HELLO within {_WITHIN:g} s"
                raise TimeoutError(message)
            with self.reading:
                self._read()
        if self.refusal:
            said = loads(self.refusal)
            why = f"{said.get('title')}: {said.get('detail')}"
            raise _Refused(why) if said.get("retry") is False else ConnectionError(why)
        if not self._welcome:
            message = self.trouble or "the connection ended without an answer to HELLO"
            raise ConnectionError(message)

    def take(self) -> Command | None:
        """Wait for the next command; while leaving, hand it back instead."""
        command = super().take()
        while command and self.leaving:
            self.send(DECLINE, command._number)  # noqa: SLF001 - family
            command = super().take()
        return command

    def take_batch(self) -> list[Command]:
        """Wait for all of the next batch; likewise."""
        batch = super().take_batch()
        while batch and self.leaving:
            for command in batch:
                self.send(DECLINE, command._number)  # noqa: SLF001 - family
            batch = super().take_batch()
        return batch

    def send(self, kind: int, number: int, meta: bytes = b"", body: Any = b"") -> None:  # noqa: ANN401
        """
        Write one frame, to its last byte, from any thread.

        Raises:
            Fail: The frame is larger than the gate takes; nothing has been written.
            _Gone: The connection has ended.
        """
        length = 12 + len(meta) + len(body)
        if length > self._limit:
            self._check_length(length)
        self._write(pack(length, 1, kind, 0, number, len(meta)) + meta, body)

    def _write(self, data: bytes, body: Any = b"") -> None:  # noqa: ANN401
        if not data:
            return
        try:
            with self.writing:
                self.carrier.write(data, body)
        except OSError:
            raise _Gone("the connection was lost") from None

    def tell(self, kind: int, number: int, meta: bytes = b"") -> None:
        """Write one small frame, from any thread."""
        self.send(kind, number, meta)

    def close(self) -> None:
        """End the connection; the helper thread must not look at its number again."""
        self._shut()
        with self.reading:
            self.ended = True
            self.carrier.sock.close()

    def cut(self) -> None:
        """Wake whoever waits for the gate: nothing more comes."""
        self._shut()

    def _shut(self) -> None:
        try:
            self.carrier.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def _control(self, kind: int, number: int, meta: bytes) -> None:
        if kind == FAIL:
            self.refusal = meta or b"{}"
        else:
            super()._control(kind, number, meta)

    def _readable(self) -> bool:
        return self.carrier.readable()

    def _receive(self) -> bytes:
        try:
            data = self.carrier.read(READ)
        except OSError:  # reset, timed out, or a host that cannot be reached any more
            data = b""
        if not data:
            self._lost()
        return data

    def _receive_into(self, view: memoryview) -> int:
        try:
            count = self.carrier.read_into(view)
        except OSError:
            count = 0
        if not count:
            self._lost()
        return count

    def _lost(self) -> None:
        """The gate does not wait for the command under way any more."""
        if self.current:
            self.current._cancelled = True  # noqa: SLF001 - family


class Outside:
    """
    A worker that comes to the gate by itself.

    Args:
        connect: Where the gate's `worker_listen` is.
        queue: The queue to work for.
        token: What allows it.
        name: What to be called.
        certfile: The worker's own certificate, for `tls://`.
        keyfile: Its key, if that is not in `certfile`.
        cafile: The certificates that the gate's must be signed by; the system's if not given.
        batch: The handler takes many commands at a time.

    Raises:
        ValueError: `connect` is none of the known forms.
    """

    def __init__(
        self,
        connect: str,
        queue: str,
        token: str,
        name: str,
        certfile: str,
        keyfile: str,
        cafile: str,
        *,
        batch: bool = False,
    ) -> None:
        self._url = connect
        self._scheme, _, rest = connect.partition("://")
        self._host, _, port = rest.rstrip("/").rpartition(":")
        self._host = self._host.strip("[]")
        self._path = rest
        known = self._scheme == "unix" and bool(rest)
        if self._scheme in ("tcp", "tls") and self._host and port.isdecimal():
            self._port = int(port)
            known = True
        if not known:
            msg = f"connect: found {connect!r}, wanted {_FORMS}"
            raise ValueError(msg)
        self._context = _context(certfile, keyfile, cafile) if self._scheme == "tls" else None
        facts = {"protocol": 1, "ordered": True, "queue": queue, "name": name, "token": token}
        self._hello = dumps({key: value for key, value in facts.items() if value != ""})
        self._queue = queue
        self._batch = batch
        self._wire: _Wire | None = None
        self._leaving = False
        self._pause = _thread.allocate_lock()
        self._pause.acquire()
        self._last_said = ""

    def serve(self, handler: Callable[[Any], object]) -> None:
        """
        Run commands until this process is told to end.

        Raises:
            SystemExit: The gate refused this worker before it had ever let it in (2).
        """
        take_signals(self._told_to_end)
        os.register_at_fork(after_in_child=self._disown)
        wait, known = _FIRST, False
        while not self._leaving:
            try:
                wire = self._connect()
            except _Refused as refusal:
                if not known:
                    sys.exit(f"jobgate.worker: {self._url} refused this worker: {refusal}")
                self._say(f"{self._url} refused this worker: {refusal}; trying again")
            except (OSError, _Gone) as error:
                self._say(f"{self._url}: {error}; trying again")
            else:
                wait, known = _FIRST, True
                self._say(f"at work for {self._queue} at {self._url} as {wire.welcome['worker']}")
                self._work(wire, handler)
                if not self._leaving:
                    self._say(f"{self._url}: {_why(wire)}; connecting again")
            if not self._leaving:
                self._pause.acquire(timeout=wait * uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311
                wait = min(_MOST, wait * _FACTOR)

    def leave(self) -> None:
        """Say that this worker goes, and see to it that it does; runs in a thread of its own."""
        wire = self._wire
        if wire is None:
            return
        wire.leaving = True
        try:
            wire.tell(DRAIN, 0)
        except _Gone:
            return
        idle_since = monotonic()
        while not wire.ended:
            sleep(0.05)
            if wire.current is not None:
                idle_since = monotonic()
            elif monotonic() - idle_since > _PARTING:
                wire.cut()
                return

    def _connect(self) -> _Wire:
        """
        Find the gate and register.

        Raises:
            OSError: It is not there, or does not answer.
            _Refused: It will not have us.
        """
        sock = self._open()
        try:
            sock.settimeout(_WITHIN)
            carrier = _Secret(sock, self._context, self._host) if self._context else _Plain(sock)
            sock.settimeout(None)
            wire = _Wire(carrier, batching=self._batch)
            wire.register(self._hello)
        except BaseException:
            sock.close()
            raise
        self._wire = wire
        if self._leaving:  # the signal came too early for `leave` to know this one
            _thread.start_new_thread(self.leave, ())
        return wire

    def _open(self) -> socket.socket:
        if self._scheme == "unix":
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.settimeout(_WITHIN)
                sock.connect(self._path)
            except BaseException:
                sock.close()
                raise
            return sock
        sock = socket.create_connection((self._host, self._port), timeout=_WITHIN)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE:
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        return sock

    def _work(self, wire: _Wire, handler: Callable[[Any], object]) -> None:
        try:
            work(wire, handler)
        except _Gone:
            pass  # what the handler made cannot be given to anybody: the gate knows it as lost
        finally:
            self._wire = None
            wire.close()

    def _told_to_end(self) -> None:
        self._leaving = True
        self._pause.release()
        # Not here: the main thread, which runs this, may hold the locks that writing needs.
        _thread.start_new_thread(self.leave, ())

    def _disown(self) -> None:
        """In a forked child: the connection belongs to the parent alone."""
        if self._wire is not None:
            self._wire.disown()

    def _say(self, text: str) -> None:
        """Tell what has changed, on stderr."""
        if text != self._last_said:
            self._last_said = text
            sys.stderr.write(f"jobgate.worker: {text}\n")
            sys.stderr.flush()


def _why(wire: _Wire) -> str:
    """Why a connection has ended."""
    if wire.draining:
        return "the gate sent this worker away"
    return wire.trouble or "the connection was lost"


def _context(certfile: str, keyfile: str, cafile: str) -> ssl.SSLContext:
    import ssl

    context = ssl.create_default_context(cafile=cafile or None)
    if certfile:
        context.load_cert_chain(certfile, keyfile or None)
    return context
