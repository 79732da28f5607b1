"""
The gate's ends of a FakeChild's descriptors: what Twisted's ProcessReader and ProcessWriter are.

Real pipes, so that the code under test reads and writes as it does in earnest; here stands what
a reactor would do when one of them is ready.
"""

from __future__ import annotations

import array
import fcntl
import os
import termios
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Pipe"]


class Pipe:
    """
    The gate's end of one descriptor.

    Args:
        fd: That end.
        lost: Called once, when it is closed.
        flushes: What has been written goes out before the gate closes it.

    Attributes:
        closed: It has been, by whichever side.
    """

    def __init__(self, fd: int, lost: Callable[[], None], *, flushes: bool = False) -> None:
        self._fd = fd
        self._lost = lost
        self._flushes = flushes
        self.closed = False
        self.dataBuffer = b""
        self.offset = 0
        self._tempDataLen = 0

    def fileno(self) -> int:
        """Its number, for the operating system."""
        return self._fd

    def doRead(self) -> BaseException | None:
        """Replaced by the code under test."""
        return None

    def write(self, data: bytes) -> None:
        """Keep bytes until the next `push`."""
        self.dataBuffer += bytes(data)

    def writeSequence(self, pieces: Sequence[bytes]) -> None:
        """Likewise."""
        self.dataBuffer += b"".join(pieces)

    def push(self) -> bool:
        """What a reactor does when the pipe is writable; True if anything went."""
        if self.closed or not self.dataBuffer:
            return False
        try:
            count = os.write(self._fd, self.dataBuffer)
        except OSError:
            return False
        self.dataBuffer = self.dataBuffer[count:]
        return count > 0

    def loseConnection(self) -> None:
        """The gate closes its end."""
        while self._flushes and self.push():
            continue
        self.lose()

    def lose(self) -> None:
        """This descriptor is closed, by whichever side."""
        if not self.closed:
            self.connectionLost(None)

    def connectionLost(self, reason: object) -> None:  # noqa: ARG002 (Twisted's signature)
        """What Twisted calls then; the code under test may have put itself in front."""
        self.closed = True
        self._lost()

    def be_read(self) -> None:
        """What a reactor does as long as the pipe is readable."""
        before = -1
        while not self.closed:
            left = _waiting(self._fd)
            if not left or left == before:
                return
            before = left
            if self.doRead() is not None:
                return


def _waiting(fd: int) -> int:
    """Bytes that wait in a pipe."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]
