"""
A child that does only what the test says.

Its end of the pipes is here, and what a process and its reaping look like to Twisted; the gate's
ends are `pipes`.
"""

from __future__ import annotations

import json
import os
import signal as signals
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.python.failure import Failure

from jobgate.testing.pipes import Pipe
from jobgate.wire import frames
from jobgate.wire.frames import FrameDecoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from twisted.internet.interfaces import IReactorTime

__all__ = ["FakeChild", "Given"]

_STDIN, _STDOUT, _STDERR, _STATUS = range(4)
_FINAL = frozenset({frames.REPLY, frames.FAIL, frames.DECLINE})
"""The types of frame that are the last word on a command."""


class Given(NamedTuple):
    """
    One frame that the gate wrote to a worker.

    Attributes:
        kind: Its type, such as `frames.COMMAND`.
        id: The frame's id.
        meta: Its meta, decoded; empty if it had none.
        body: Its body.
    """

    kind: int
    id: int
    meta: dict[str, Any]
    body: bytes


class FakeChild:
    """
    A child that does only what the test says; the transport of its ProcessProtocol.

    Args:
        reactor: Who spawned it.
        protocol: The gate's ProcessProtocol.
        executable: As given to `spawnProcess`, like all that follow.
        args: The command line.
        env: The environment.
        path: The folder it is started in.
        child_fds: Which descriptors it has.

    Attributes:
        pid: Its process id; None once it has been reaped.
        received: Signals it got, oldest first. SIGKILL ends it, others only as `dies_of` says.
        dies_of: Signals that end it, in the next turn.
        pipes: The gate's ends of its descriptors, by number.
        alive: It has not exited.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        protocol: Any,  # noqa: ANN401
        executable: str,
        args: Sequence[str],
        env: Mapping[str, str] | None,
        path: str | None,
        child_fds: Mapping[int, Any],
        pid: int,
    ) -> None:
        self.reactor = reactor
        self.protocol = protocol
        self.executable = executable
        self.args = list(args)
        self.env = dict(env or {})
        self.path = path
        self.pid: int | None = pid
        self.group = pid
        self.alive = True
        self.received: list[signals.Signals] = []
        self.dies_of = {signals.SIGKILL}
        self.pipes: dict[int, Pipe] = {}
        self._stdin = b""
        self._decoder = FrameDecoder()
        self._frames: list[Given] = []
        self._answered: set[int] = set()
        self._ended = False
        self._fds: list[int] = []
        self._stdin_fd = self._stdout_fd = -1
        for number, kind in child_fds.items():
            if kind in ("r", "w"):
                self._open(number)

    def __repr__(self) -> str:
        return f"<FakeChild pid={self.pid} {'alive' if self.alive else 'dead'}>"

    # --- what the gate has done to it

    @property
    def command(self) -> list[str]:
        """What the launcher is to become: the command of the configuration."""
        return self.args[6:]

    @property
    def written(self) -> bytes:
        """All bytes the gate has written to its stdin so far; reading them makes room for more."""
        pipe = self.pipes.get(_STDIN)
        while True:
            try:
                data = os.read(self._stdin_fd, 1024 * 1024)
            except OSError:
                data = b""
            self._stdin += data
            if not data and not (pipe is not None and pipe.push()):
                return self._stdin

    @property
    def stdin_closed(self) -> bool:
        """Whether the gate has ended its stdin."""
        return self.pipes[_STDIN].closed

    @property
    def frames(self) -> list[Given]:
        """Every frame the gate has written so far."""
        before = len(self._stdin)
        for kind, number, meta, body in self._decoder.feed(self.written[before:]):
            document = json.loads(bytes(meta)) if meta else {}
            self._frames.append(Given(kind, number, document, bytes(body)))
        return self._frames

    @property
    def kinds(self) -> list[int]:
        """The types of those frames."""
        return [frame.kind for frame in self.frames]

    @property
    def commands(self) -> list[Given]:
        """The COMMANDs it has not answered yet, oldest first."""
        return [f for f in self.frames if f.kind == frames.COMMAND and f.id not in self._answered]

    # --- what it does

    def executed(self) -> None:
        """The launcher has become the command: a `lines` worker without a banner is ready."""
        self.pipes[_STATUS].lose()

    def say(self, data: bytes) -> None:
        """Write to its stdout; the gate has read it when this returns."""
        rest = memoryview(data)
        while rest:
            if self.pipes[_STDOUT].closed:
                return
            with suppress(BlockingIOError):
                rest = rest[os.write(self._stdout_fd, rest) :]
            self.pipes[_STDOUT].be_read()

    def complain(self, data: bytes) -> None:
        """Write to its stderr."""
        self.protocol.childDataReceived(_STDERR, data)

    def frame(self, kind: int, number: int = 0, meta: object = None, body: bytes = b"") -> None:
        """Say any frame; a meta that is no bytes is sent as JSON."""
        if kind in _FINAL:
            self._answered.add(number)
        text = meta if isinstance(meta, bytes) else json.dumps(meta).encode() if meta else b""
        self.say(frames.encode(kind, number, text, body))

    def hello(self, **meta: object) -> None:
        """Say that it is ready."""
        self.frame(frames.HELLO, 0, {"protocol": 1, **meta})

    def reply(self, body: bytes = b"", to: int | None = None, **meta: object) -> None:
        """Answer the oldest unanswered command, or the frame id `to`."""
        number = self.commands[0].id if to is None else to
        self.frame(frames.REPLY, number, meta, body)

    def fail(self, title: str, to: int | None = None, **meta: object) -> None:
        """Say FAIL to the oldest unanswered command, or to the frame id `to`."""
        number = self.commands[0].id if to is None else to
        self.frame(frames.FAIL, number, {"title": title, **meta})

    def decline(self, to: int | None = None) -> None:
        """Say DECLINE to the oldest unanswered command, or to the frame id `to`."""
        self.frame(frames.DECLINE, self.commands[0].id if to is None else to)

    def close_stdout(self) -> None:
        """End its output, and live on."""
        self.pipes[_STDOUT].lose()

    def close_stdin(self) -> None:
        """Read no more: the gate's next write fails."""
        if self._stdin_fd in self._fds:
            self._fds.remove(self._stdin_fd)
            os.close(self._stdin_fd)

    def cannot_start(self, why: str) -> None:
        """The launcher could not become the command."""
        self.protocol.childDataReceived(_STATUS, why.encode())
        self.exit(127)

    def read_all(self) -> None:
        """Read its stdin: what it dies without having read, it cannot have begun."""
        if self._stdin_fd in self._fds:
            _ = self.written

    def exit(self, status: int = 0) -> None:
        """Exit by itself, all its stdin read; it has been reaped when this returns."""
        self.read_all()
        self._die(ProcessTerminated(status, None, status << 8) if status else ProcessDone(0))

    def kill(self, signal: signals.Signals = signals.SIGKILL, *, read: bool = True) -> None:
        """Be ended by a signal, its stdin read or not; it has been reaped when this returns."""
        if read:
            self.read_all()
        self._die(ProcessTerminated(None, int(signal), int(signal)))

    def discard(self) -> None:
        """Close every descriptor; the test is over."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        self._stdin_fd = self._stdout_fd = -1

    # --- what Twisted's process transport has

    def write(self, data: bytes) -> None:
        """Write to the child's stdin."""
        self.pipes[_STDIN].write(data)
        self.pipes[_STDIN].push()

    def loseConnection(self) -> None:
        """Close all descriptors."""
        for pipe in list(self.pipes.values()):
            pipe.loseConnection()

    # --- what the reactor tells it

    def signalled(self, number: int) -> None:
        """The gate sent it a signal."""
        signal = signals.Signals(number)
        self.received.append(signal)
        if signal in self.dies_of:
            self.reactor.callLater(0, self._killed_by, signal)

    # --- inside

    def _open(self, number: int) -> None:
        reads, writes = os.pipe()
        self._fds += [reads, writes]
        lost = partial(self._pipe_closed, number)
        os.set_blocking(reads, False)
        os.set_blocking(writes, False)
        if number == _STDIN:
            self._stdin_fd = reads
            self.pipes[number] = Pipe(writes, lost, flushes=True)
        else:
            self.pipes[number] = Pipe(reads, lost)
            if number == _STDOUT:
                self._stdout_fd = writes

    def _pipe_closed(self, number: int) -> None:
        self.protocol.childConnectionLost(number)
        self._end_if_over()

    def _killed_by(self, signal: signals.Signals) -> None:
        if self.alive:
            self.kill(signal)

    def _die(self, reason: Exception) -> None:
        if not self.alive:
            return
        self.alive = False
        self.pid = None
        self.protocol.processExited(Failure(reason))
        self._end_if_over()

    def _end_if_over(self) -> None:
        if not self.alive and not self._ended and all(p.closed for p in self.pipes.values()):
            self._ended = True
            self.protocol.processEnded(Failure(ProcessDone(0)))
