"""
A worker that comes to the gate by itself: what `serve(connect=...)` adds to `jobgate.worker`.

    from jobgate.worker import serve

    serve(handler, connect="tcp://gate:9000", queue="resize")

It finds the gate, says who is there, and finds it again whenever the connection is lost. What is
done with commands, `answers` knows. It runs in the worker and imports the standard library only;
`serve` imports it when it is asked to connect.
"""

from __future__ import annotations

import _thread
import os
import socket
import sys
from time import monotonic, sleep

from jobgate.worker.answers import work
from jobgate.worker.carriers import Plain, Secret, tls_context
from jobgate.worker.frames import DRAIN
from jobgate.worker.patience import Patience
from jobgate.worker.quick_json import dumps
from jobgate.worker.signals import take_signals
from jobgate.worker.socket_link import WITHIN, Gone, Refused, SocketLink

TYPE_CHECKING = False  # as in `jobgate.worker`
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Outside"]

_PARTING = 5.0
"""Seconds that the gate has to let a worker without work go."""
_FORMS = '"tcp://HOST:PORT", "tls://HOST:PORT" or "unix:///PATH"'
_KEEP_ALIVE = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3))
"""A gate whose machine is gone is found out within about ten seconds, also while idle."""


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
        self._context = tls_context(certfile, keyfile, cafile) if self._scheme == "tls" else None
        facts = {"protocol": 1, "ordered": True, "queue": queue, "name": name, "token": token}
        self._hello = dumps({key: value for key, value in facts.items() if value != ""})
        self._queue = queue
        self._batch = batch
        self._link: SocketLink | None = None
        self._leaving = False
        self._patience = Patience()

    def serve(self, handler: Callable[[Any], object]) -> None:
        """
        Run commands until this process is told to end.

        Raises:
            SystemExit: The gate refused this worker before it had ever let it in (1).
        """
        take_signals(self._told_to_end)
        os.register_at_fork(after_in_child=self._disown)
        known = False
        while not self._leaving:
            try:
                link = self._connect()
            except Refused as refusal:
                if not known:
                    sys.exit(f"jobgate.worker: {self._url} refused this worker: {refusal}")
                self._patience.say(f"{self._url} refused this worker: {refusal}; trying again")
            except (OSError, Gone) as error:
                self._patience.say(f"{self._url}: {error}; trying again")
            else:
                known = True
                self._patience.renew()
                self._patience.say(
                    f"at work for {self._queue} at {self._url} as {link.welcome['worker']}"
                )
                self._work(link, handler)
                if not self._leaving:
                    self._patience.say(f"{self._url}: {_why(link)}; connecting again")
            if not self._leaving:
                self._patience.rest()

    def leave(self) -> None:
        """Say that this worker goes, and see to it that it does; runs in a thread of its own."""
        link = self._link
        if link is None:
            return
        link.leaving = True
        try:
            link.tell(DRAIN, 0)
        except Gone:
            return
        idle_since = monotonic()
        while not link.ended:
            sleep(0.05)
            if link.current is not None:
                idle_since = monotonic()
            elif monotonic() - idle_since > _PARTING:
                link.cut()
                return

    def _connect(self) -> SocketLink:
        """
        Find the gate and register.

        Raises:
            OSError: It is not there, or does not answer.
            Refused: It will not have us.
        """
        sock = self._open()
        try:
            sock.settimeout(WITHIN)
            carrier = Secret(sock, self._context, self._host) if self._context else Plain(sock)
            sock.settimeout(None)
            link = SocketLink(carrier, batching=self._batch)
            link.register(self._hello)
        except BaseException:
            sock.close()
            raise
        self._link = link
        if self._leaving:  # the signal came too early for `leave` to know this one
            _thread.start_new_thread(self.leave, ())
        return link

    def _open(self) -> socket.socket:
        if self._scheme == "unix":
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.settimeout(WITHIN)
                sock.connect(self._path)
            except BaseException:
                sock.close()
                raise
            return sock
        sock = socket.create_connection((self._host, self._port), timeout=WITHIN)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE:
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        return sock

    def _work(self, link: SocketLink, handler: Callable[[Any], object]) -> None:
        try:
            work(link, handler)
        except Gone:
            pass  # what the handler made cannot be given to anybody: the gate knows it as lost
        finally:
            self._link = None
            link.close()

    def _told_to_end(self) -> None:
        self._leaving = True
        self._patience.end()
        # Not here: the main thread, which runs this, may hold the locks that writing needs.
        _thread.start_new_thread(self.leave, ())

    def _disown(self) -> None:
        """In a forked child: the connection belongs to the parent alone."""
        if self._link is not None:
            self._link.disown()


def _why(link: SocketLink) -> str:
    """Why a connection has ended."""
    if link.draining:
        return "the gate sent this worker away"
    return link.trouble or "the connection was lost"
