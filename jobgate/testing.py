"""
Fakes for tests of whatever runs workers: ours, and those of programs that embed a gate.

A `SpawningReactor` is a clock that spawns `FakeChild`s instead of processes. What the
gate writes goes through real pipes, so the code under test is the code that runs; no
process, port or second of waiting is needed::

    reactor = SpawningReactor()
    with reactor:
        gate = Gate(config, reactor, inline_journal(reactor))
        gate.start()
        reactor.advance(0)
        child = reactor.workers[0]
        child.hello()
        reply = gate.call("resize", b"body")
        child.reply(b"done")
        assert reply.result.body == b"done"
"""

from __future__ import annotations

import json
import os
import signal as signals
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from jobgate.jobs.sqlite import SqliteJournal
from jobgate.pool import process, warden
from jobgate.wire import frames
from jobgate.wire.frames import FrameDecoder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from twisted.internet.interfaces import IReactorTime

__all__ = ["FakeChild", "Given", "Recorder", "SpawningReactor", "inline_journal"]

_STDIN, _STDOUT, _STDERR, _STATUS = range(4)
_FIRST_PID = 2**30
"""Above any process id that a system gives (Linux: at most 2**22), so no signal can ever hit one."""  # noqa: E501
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


class Recorder:
    """
    Stands for any object that is only told things, and keeps what it was told.

    Every method exists, returns None and appends `(name, *arguments)` to `events`;
    arguments given by name follow as one dict.

    Args:
        events: The list to append to; give several recorders one list to compare the order.
        results: What methods return instead of None, by name.

    Attributes:
        events: What it was told, oldest first.
    """

    def __init__(self, events: list[tuple[Any, ...]] | None = None, **results: object) -> None:
        self.events = [] if events is None else events
        self._results = results

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)

        def told(*args: object, **named: object) -> object:
            self.events.append((name, *args, named) if named else (name, *args))
            return self._results.get(name)

        return told

    @property
    def names(self) -> list[str]:
        """The names of the methods that were called, oldest first."""
        return [event[0] for event in self.events]

    def of(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of one method."""
        return [event[1:] for event in self.events if event[0] == name]


class _Pipe:
    """
    The gate's end of one descriptor: what Twisted's ProcessReader and ProcessWriter are.
    """

    def __init__(self, child: FakeChild, number: int, fd: int) -> None:
        self._child = child
        self._number = number
        self._fd = fd
        self.closed = False
        self.dataBuffer = b""
        self.offset = 0
        self._tempDataLen = 0

    def fileno(self) -> int:
        return self._fd

    def doRead(self) -> BaseException | None:
        """Replaced by the code under test."""
        return None

    def write(self, data: bytes) -> None:
        self.dataBuffer += bytes(data)

    def writeSequence(self, pieces: Sequence[bytes]) -> None:
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
        if self._number == _STDIN:
            while self.push():
                continue
        self.lose()

    def lose(self) -> None:
        """This descriptor is closed, by whichever side."""
        if not self.closed:
            self.connectionLost(None)

    def connectionLost(self, reason: object) -> None:  # noqa: ARG002 (Twisted's signature)
        """What Twisted calls then; the code under test may have put itself in front."""
        self.closed = True
        self._child.pipe_closed(self._number)


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
        reactor: SpawningReactor,
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
        self.pipes: dict[int, _Pipe] = {}
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
            self._be_read()

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

    # --- what reactor and pipes tell it

    def signalled(self, number: int) -> None:
        """The gate sent it a signal."""
        signal = signals.Signals(number)
        self.received.append(signal)
        if signal in self.dies_of:
            self.reactor.callLater(0, self._killed_by, signal)

    def pipe_closed(self, number: int) -> None:
        """One descriptor is closed."""
        self.protocol.childConnectionLost(number)
        self._end_if_over()

    # --- inside

    def _open(self, number: int) -> None:
        reads, writes = os.pipe()
        self._fds += [reads, writes]
        os.set_blocking(reads, False)
        os.set_blocking(writes, False)
        if number == _STDIN:
            self._stdin_fd = reads
            self.pipes[number] = _Pipe(self, number, writes)
        else:
            self.pipes[number] = _Pipe(self, number, reads)
            if number == _STDOUT:
                self._stdout_fd = writes

    def _be_read(self) -> None:
        """What a reactor does as long as the pipe is readable."""
        before = -1
        while not self.pipes[_STDOUT].closed:
            left = _in_pipe(self.pipes[_STDOUT].fileno())
            if not left or left == before:
                return
            before = left
            if self.pipes[_STDOUT].doRead() is not None:
                return

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


def _in_pipe(fd: int) -> int:
    """Bytes that wait in a pipe."""
    import array
    import fcntl
    import termios

    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


class _System:
    """
    The module `os` as the pool sees it while a SpawningReactor is in use: no signal leaves it.
    """

    def __init__(self, reactor: SpawningReactor) -> None:
        self._reactor = reactor

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(os, name)

    def killpg(self, group: int, number: int) -> None:
        self._reactor.signal(group, number)

    def kill(self, pid: int, number: int) -> None:
        self._reactor.signal(pid, number)


class SpawningReactor(MemoryReactorClock):
    """
    A MemoryReactorClock whose processes are FakeChildren.

    Use it as a context manager (or `install` and `discard` it): as long as it is in
    use, signals that the pool sends go to FakeChildren and nowhere else.

    Attributes:
        spawned: Every child, oldest first, the gate's warden included.
        refuse: Set to an OSError to have the next spawns fail with it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spawned: list[FakeChild] = []
        self.refuse: OSError | None = None
        self._system: Any = None

    @property
    def workers(self) -> list[FakeChild]:
        """Every child that is no warden, oldest first."""
        return [child for child in self.spawned if warden.__file__ not in child.args]

    @property
    def alive(self) -> list[FakeChild]:
        """Those workers that have not exited."""
        return [child for child in self.workers if child.alive]

    def spawnProcess(
        self,
        processProtocol: Any,  # noqa: ANN401
        executable: str,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        path: str | None = None,
        uid: int | None = None,  # noqa: ARG002
        gid: int | None = None,  # noqa: ARG002
        usePTY: bool = False,  # noqa: ARG002, FBT001, FBT002
        childFDs: Mapping[int, Any] | None = None,
    ) -> FakeChild:
        """Make a child that does nothing by itself."""
        if self.refuse is not None:
            raise self.refuse
        fds = {0: "w", 1: "r", 2: "r"} if childFDs is None else childFDs
        pid = _FIRST_PID + len(self.spawned)
        child = FakeChild(self, processProtocol, executable, args, env, path, fds, pid)
        self.spawned.append(child)
        processProtocol.makeConnection(child)
        return child

    def signal(self, pid: int, number: int) -> None:
        """
        Deliver a signal to a child.

        Raises:
            ProcessLookupError: No living child has that id.
        """
        for child in self.spawned:
            if child.group == pid and child.alive:
                child.signalled(number)
                return
        raise ProcessLookupError

    def install(self) -> None:
        """Take the pool's signals."""
        self._system = vars(process)["os"]
        vars(process)["os"] = _System(self)

    def discard(self) -> None:
        """Give the pool's signals back and close all descriptors."""
        if self._system is not None:
            vars(process)["os"], self._system = self._system, None
        for child in self.spawned:
            child.discard()

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.discard()


def inline_journal(
    clock: IReactorTime, path: str = ":memory:", *, epoch: float = 1e9
) -> SqliteJournal:
    """
    A store of jobs without a thread: what it is asked has happened when the call returns.

    Args:
        clock: Its time, such as a `Clock`; it tries again by its timers.
        path: A file, for a store that can be opened anew.
        epoch: What the clock on the wall shows when `clock` shows 0.
    """
    return SqliteJournal(
        path, clock, clock=clock.seconds, wall=lambda: epoch + clock.seconds(), inline=True
    )
