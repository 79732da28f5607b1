"""
Wide reads and direct writes on what leads to a worker: a child's stdio, or a socket.

Twisted reads a pipe 8 KiB at a time and never writes before the next turn of the
loop. Here a pipe is 1 MiB long, read in pieces that grow with the traffic, a long
frame straight into its own buffer, and an idle worker is written to at once. Must not
know what the bytes mean.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import sys
import termios
from typing import TYPE_CHECKING, Any, Final, Protocol

from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST

from jobgate.loop import together

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure

__all__ = ["Receiver", "WorkerInput", "WorkerOutput"]

_PIPE_SIZE: Final = 1024 * 1024
_SMALL_READ: Final = 64 * 1024
_LARGE_READ: Final = 256 * 1024
_READS_AT_MOST: Final = 64
"""Reads of what a dead child has left: a grandchild may write for ever."""
_JOIN_BELOW: Final = 64 * 1024
"""Bytes up to which copying head and body together is cheaper than a vector of two."""


class Receiver(Protocol):
    """Where a worker's output goes."""

    def receive(self, data: bytes) -> None:
        """Bytes have come."""

    def wanted(self) -> memoryview | None:
        """A buffer that the next bytes should be read into, if there is one."""

    def filled(self, count: int) -> None:
        """`count` bytes have been read into `wanted()`, whose view has been released."""


def _enlarge(fd: int) -> None:
    """Make a pipe 1 MiB long where the system allows it; a shorter one works too."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        try:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        except OSError:
            return


def read_rest(pipe: Any) -> None:  # noqa: ANN401 (Twisted has no type for it)
    """Have a `ProcessReader` read what a dead child has left, up to a bound."""
    for _ in range(_READS_AT_MOST):
        if pipe.doRead() is not None or not _readable(pipe.fileno()):
            return


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _in_pipe(fd: int) -> int:
    """How many bytes a pipe holds that nobody has read."""
    count = bytearray(4)
    try:
        fcntl.ioctl(fd, termios.FIONREAD, count)
    except OSError:
        return 0
    return int.from_bytes(count, sys.byteorder)


class WorkerOutput:
    """
    Reads what a worker says, in place of Twisted's own `doRead`.

    Args:
        pipe: The `ProcessReader` of a child's descriptor 1, or the transport of a socket.
        receiver: Where the bytes go.

    Attributes:
        error: Why nothing more can be read, if it is not just the end.
    """

    def __init__(self, pipe: Any, receiver: Receiver) -> None:  # noqa: ANN401 (Twisted has no type for it)
        self._pipe = pipe
        self._fd = pipe.fileno()
        self._receiver = receiver
        self._size = _SMALL_READ
        self._closed = False
        self.error: OSError | None = None
        pipe.doRead = self.read
        _enlarge(self._fd)

    def read(self) -> BaseException | None:
        """
        Read what is there, once: the reactor calls this when the pipe is readable.

        Returns:
            None, or why the pipe is at its end, as a `doRead` does.
        """
        if self._closed:
            return CONNECTION_DONE
        try:
            view = self._receiver.wanted()
            if view is None:
                data = os.read(self._fd, self._size)
                if not data:
                    return CONNECTION_DONE
                self._size = _LARGE_READ if len(data) == self._size else _SMALL_READ
                self._receiver.receive(data)
                return None
            with view:
                count = os.readv(self._fd, [view])
            if not count:
                return CONNECTION_DONE
            self._receiver.filled(count)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINTR):
                return None
            self.error = error
            return CONNECTION_LOST
        return None

    def read_rest(self) -> None:
        """Read what is in the pipe now: the child has exited, or is about to be judged."""
        for _ in range(_READS_AT_MOST):
            if self._closed:
                return
            try:
                data = os.read(self._fd, _LARGE_READ)
            except OSError:
                return
            if not data:
                return
            self._receiver.receive(data)

    def hold(self, *, on: bool) -> None:
        """Read nothing (True), or again (False)."""
        if self._closed:
            return
        if on:
            self._pipe.stopReading()
        else:
            self._pipe.startReading()

    def close(self) -> None:
        """Read no more; the descriptor is Twisted's to close."""
        self._closed = True


class WorkerInput:
    """
    Writes to a worker: an idle one at once, a busy one once per turn of the loop.

    Args:
        pipe: The `ProcessWriter` of a child's descriptor 0, or the transport of a socket.
        clock: For the end of the turn.
        unread: Tells how many bytes the system still has that the worker cannot have seen.

    Attributes:
        offered: Bytes that were given to it since the start.
    """

    def __init__(
        self,
        pipe: Any,  # noqa: ANN401 (Twisted has no type for it)
        clock: IReactorTime,
        unread: Callable[[int], int] = _in_pipe,
    ) -> None:
        self._pipe = pipe
        self._in_pipe = unread
        self._fd = pipe.fileno()
        self._clock = clock
        self._gathered: list[bytes] = []
        self._closed = False
        self._lost = 0
        self._unread = 0
        self.offered = 0
        # The descriptor is closed there, and with it goes what the child has not read.
        self._pipe_lost = pipe.connectionLost
        pipe.connectionLost = self._connection_lost
        _enlarge(self._fd)

    @property
    def written(self) -> int:
        """Bytes that the child may have seen: what is neither here any more nor in the pipe."""
        if not self._closed:
            self._unread = self._in_pipe(self._fd)
        pipe = self._pipe
        left: int = len(pipe.dataBuffer) - pipe.offset + pipe._tempDataLen  # noqa: SLF001 (no public way)
        return self.offered - left - sum(map(len, self._gathered)) - self._lost - self._unread

    def write(self, head: bytes, body: bytes, *, idle: bool) -> int:
        """
        Send `head` and `body`; `idle` says that the child waits for them.

        Returns:
            How many bytes have been offered in all, these included.
        """
        self.offered = offered = self.offered + len(head) + len(body)
        if self._closed:
            self._lost += len(head) + len(body)
        else:
            pieces = [head + body] if len(body) < _JOIN_BELOW else [head, body]
            if idle and not self._gathered:
                self._now(pieces)
            else:
                if not self._gathered:
                    together(self._clock, self.flush)
                self._gathered += pieces
        return offered

    def close(self) -> None:
        """End the worker's input once everything is written."""
        if not self._closed:
            self.flush()
            self._unread = 0
            self._closed = True
            self._pipe.loseConnection()

    def _connection_lost(self, reason: Failure) -> None:
        """The child has closed its end; nothing more is written."""
        self._unread = self._in_pipe(self._fd)
        self._closed = True
        self._pipe_lost(reason)

    def flush(self) -> None:
        """Write what this turn has gathered."""
        pieces, self._gathered = self._gathered, []
        if pieces and not self._closed:
            self._now([b"".join(pieces)] if sum(map(len, pieces)) < _JOIN_BELOW else pieces)

    def _now(self, pieces: list[bytes]) -> None:
        pipe = self._pipe
        if pipe.dataBuffer or pipe._tempDataLen:  # noqa: SLF001 (no public way)
            pipe.writeSequence(pieces)
            return
        try:
            count = (
                os.writev(self._fd, pieces) if len(pieces) > 1 else os.write(self._fd, pieces[0])
            )
        except OSError as error:
            # A worker that reads no more: its death, or Twisted's own notice of the
            # closed pipe, follows and settles what it had. These bytes stay unwritten.
            if error.errno != errno.EAGAIN:
                self._unread = self._in_pipe(self._fd)
                self._closed = True
                self._gathered = pieces
                return
            count = 0
        for piece in pieces:
            if count >= len(piece):
                count -= len(piece)
                continue
            pipe.write(piece[count:])
            count = 0
