"""
A worker's link to its gate over a socket, in place of a child's two pipes.

Says HELLO first, hands back what still comes when the worker leaves, and ends where the
connection does. Runs in the worker and imports the standard library only.
"""

from __future__ import annotations

import socket
from time import monotonic

from jobgate.worker.frames import DECLINE, FAIL, HELLO, pack
from jobgate.worker.link import READ, Link
from jobgate.worker.quick_json import loads

TYPE_CHECKING = False  # as in `jobgate.worker`
if TYPE_CHECKING:
    from typing import Any

    from jobgate.worker.carriers import Plain, Secret
    from jobgate.worker.commands import Command

__all__ = ["WITHIN", "Gone", "Refused", "SocketLink"]

WITHIN = 10.0
"""Seconds for a connection, and again for the gate's answer to HELLO."""
_JOIN_BELOW = 16 * 1024
"""Bytes up to which copying head and body together is cheaper than a vector of two."""


class Gone(SystemExit):
    """The connection has ended under a handler: nothing of it must catch this by mistake."""


class Refused(Exception):
    """The gate will not have this worker, and will not another time."""


class SocketLink(Link):
    """
    The connection to the gate, in place of a child's two pipes.

    Attributes:
        leaving: This worker has said that it goes; what still comes is handed back.
        refusal: What the gate said instead of WELCOME.
    """

    def __init__(self, carrier: Plain | Secret, *, batching: bool) -> None:
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
            Refused: It is a refusal that will not change.
        """
        self.send(HELLO, 0, hello)
        until = monotonic() + WITHIN
        while not (self._welcome or self.refusal or self.ended):
            if not self.carrier.readable(max(0.0, until - monotonic())):
                message = f"no answer to HELLO within {WITHIN:g} s"
                raise TimeoutError(message)
            with self.reading:
                self._read()
        if self.refusal:
            said = loads(self.refusal)
            why = f"{said.get('title')}: {said.get('detail')}"
            raise Refused(why) if said.get("retry") is False else ConnectionError(why)
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
            Gone: The connection has ended.
        """
        length = 12 + len(meta) + len(body)
        if length > self._limit:
            self._check_length(length)
        head = pack(length, 1, kind, 0, number, len(meta)) + meta
        if length < _JOIN_BELOW:
            self._write(head + body)
        else:
            self._write(head, body)

    def _write(self, data: bytes, body: Any = b"") -> None:  # noqa: ANN401
        if not data:
            return
        try:
            with self.writing:
                if body:
                    self.carrier.write(data, body)
                else:
                    self.carrier.send(data)
        except OSError:
            raise Gone("the connection was lost") from None

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
