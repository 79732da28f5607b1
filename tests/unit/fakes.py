"""
Fakes that only our own tests need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock

from jobgate.command import Batch, Command, Reply
from jobgate.config import QueueConfig
from jobgate.pool.roles import Loss

if TYPE_CHECKING:
    from jobgate.gate.runner import Runner

FOREVER = float("inf")


def command(
    body: bytes = b"",
    *,
    id: str = "c",  # noqa: A002
    now: float = 0.0,
    priority: int = 3,
    timeout: float = FOREVER,
    content_type: str = "text/plain",
    queue: str = "q",
) -> Command:
    """A command as a gate would make it."""
    return Command(queue, id, body, content_type, priority, now, now + timeout)


def queue_config(**changes: Any) -> QueueConfig:
    """A queue's configuration, without a command unless one is given."""
    return QueueConfig(**{"name": "q", **changes})


class SteppingClock(Clock):
    """A Clock that, like a real one, never stands still: a timer for now is for a little later."""

    turns = 0

    def advance(self, amount: float) -> None:
        until = self.rightNow + amount
        self._sortCalls()
        while self.calls and self.calls[0].getTime() <= until:
            self.turns += 1
            assert self.turns < 10_000, "a timer is set again and again for the same moment"
            call = self.calls.pop(0)
            self.rightNow = max(self.rightNow + 1e-9, call.getTime())
            call.called = 1
            call.func(*call.args, **call.kw)
            self._sortCalls()
        self.rightNow = max(self.rightNow, until)


class FakeWorker:
    """
    A worker for a Runner: keeps what it is given until the test says what becomes of it.

    Attributes:
        held: The commands in hand, oldest first.
        seen: Every command it was ever given.
        batches: Every batch it was ever given.
        cancelled: What `cancel` was called with.
        overruns: The causes `overran` was called with.
        sends: Whether `send` says True.
    """

    def __init__(
        self, clock: Any, name: str = "w", capacity: int = 1, *, ordered: bool = False
    ) -> None:
        self.name = name
        self.output = ""
        self.clock = clock
        self.capacity = capacity
        self.ordered = ordered
        self.held: list[Command] = []
        self.seen: list[Command] = []
        self.batches: list[Batch] = []
        self.cancelled: list[Command] = []
        self.overruns: list[str] = []
        self.sends = True
        self.fit = True
        self.runner: Runner | None = None
        self.lots = 1
        self.takes_batches = True

    @property
    def lanes(self) -> int:
        return 1 if self.ordered else self.capacity

    @property
    def room(self) -> int:
        if not self.fit:
            return 0
        places = {command.batch or command for command in self.held}
        if not self.ordered and any(isinstance(p, Batch) and p.suspect for p in places):
            return 0
        return self.capacity - len(places)

    @property
    def idle(self) -> bool:
        return not self.held

    def send(self, command: Command) -> bool:
        if not self.sends:
            self.fit = False
            return False
        self.seen.append(command)
        self.held.append(command)
        if self.runner is not None and (len(self.held) == 1 or not self.ordered):
            self.runner.began(command, self.clock.seconds())
        return True

    def send_batch(self, batch: Batch) -> bool:
        if not self.sends:
            self.fit = False
            return False
        begins = not self.held or not self.ordered
        self.batches.append(batch)
        self.seen += batch.members
        self.held += batch.members
        if self.runner is not None and begins:
            for member in batch.members:
                self.runner.began(member, self.clock.seconds())
        return True

    def cancel(self, command: Command) -> None:
        self.cancelled.append(command)

    def overran(self, cause: str) -> None:
        self.overruns.append(cause)
        self.lose(Loss("timeout", cause))

    # --- what the test makes it do

    def work_for(self, road: Any, post: int = 0) -> FakeWorker:
        """Be hired."""
        self.runner = road.hire(self, post)
        self.runner.start()
        self.road = road
        return self

    def at_work(self) -> list[Command]:
        """What an ordered worker has begun: the oldest, or all of the oldest batch."""
        batch = self.held[0].batch if self.held else None
        return self.held[:1] if batch is None else [c for c in self.held if c.batch is batch]

    def _drop(self, command: Command | None) -> Command:
        command = self.held[0] if command is None else command
        self.held.remove(command)
        now = self.clock.seconds()
        assert self.runner is not None
        if command.batch is not None:
            command.batch.left -= 1
        if self.ordered and self.held and not self.held[0].began:
            for begins in self.at_work():
                self.runner.began(begins, now)
        return command

    def reply(self, command: Command | None = None, body: bytes = b"ok") -> Reply:
        reply = Reply(body, "text/plain")
        command = self._drop(command)
        self.runner.replied(command, reply, self.clock.seconds())
        return reply

    def fail(self, error: Any, command: Command | None = None) -> None:
        command = self._drop(command)
        self.runner.failed(command, error, self.clock.seconds())

    def decline(self, command: Command | None = None) -> None:
        command = self._drop(command)
        self.runner.declined(command)

    def lose(self, loss: Loss | None = None, begun: list[Command] | None = None) -> None:
        """Die: what it holds is given back as the pool does it, youngest first."""
        if not self.fit:
            return
        self.fit = False
        at_work = self.at_work()
        taken, self.held = self.held, []
        if begun is None:
            begun = at_work if self.ordered else list(taken)
        self.road.dismiss(self)
        self.runner.stop()
        only = len(begun) == 1
        loss = loss or Loss("died", "killed by SIGKILL", None, "SIGKILL")
        for held in begun:
            held.has_run = True  # type: ignore[attr-defined]
        for held in reversed(taken):
            alone = only if held in begun else not begun
            self.runner.lost(held, loss, begun=held in begun, alone=alone)
        self.road.pool_changed()


class FakeSocket:
    """The kernel's side of a FakeTransport."""

    def __init__(self, transport: FakeTransport) -> None:
        self._transport = transport

    def send(self, data: Any) -> int:
        return self._transport.kernel_takes(bytes(data))

    def sendmsg(self, pieces: Any) -> int:
        return self._transport.kernel_takes(b"".join(map(bytes, pieces)))


class FakeTransport:
    """
    A TCP transport whose reader takes as much as the test allows.

    Behaves as `twisted.internet.abstract.FileDescriptor` does, producers included.

    Args:
        room: Bytes the kernel's buffer takes before the reader reads.

    Attributes:
        sent: What has reached the kernel.
        paused: The protocol asked for no more input.
        aborted, write_closed, disconnecting: How it was ended.
    """

    def __init__(self, room: float = FOREVER) -> None:
        self.room = room
        self.sent = b""
        self.dataBuffer = b""
        self.offset = 0
        self._tempDataLen = 0
        self.connected = True
        self.disconnecting = False
        self.disconnected = False
        self.aborted = False
        self.write_closed = False
        self.paused = False
        self.bufferSize = 65536
        self.producer: Any = None
        self.socket = FakeSocket(self)
        self.protocol: Any = None

    def writeSomeData(self, data: bytes) -> int:
        return self.kernel_takes(data)

    def kernel_takes(self, data: bytes) -> int:
        count = int(min(len(data), self.room))
        if not count and data:
            raise BlockingIOError
        self.sent += data[:count]
        self.room -= count
        return count

    def reads(self, count: float = FOREVER) -> None:
        """The reader takes `count` more bytes; the reactor's writing follows."""
        self.room += count
        while not self.disconnected:
            if self.dataBuffer:
                if not self.room:
                    return
                taken = self.kernel_takes(self.dataBuffer)
                self.dataBuffer = self.dataBuffer[taken:]
            elif self.producer is not None:
                self.producer.resumeProducing()
            else:
                if self.disconnecting:
                    self._lost()
                return

    def write(self, data: bytes) -> None:
        if self.connected and not self.disconnected:
            self.dataBuffer += bytes(data)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self.producer is not None:
            raise RuntimeError("a producer was never unregistered")
        if self.disconnected:
            producer.stopProducing()
            return
        self.producer = producer
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        self.producer = None

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 80)

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 12345)

    def loseConnection(self) -> None:
        self.disconnecting = True

    def loseWriteConnection(self) -> None:
        self.write_closed = True

    def abortConnection(self) -> None:
        self.aborted = True
        self.disconnecting = True

    def turn(self) -> None:
        """The reactor's next turn: what was closed is lost now, never earlier."""
        if self.aborted or (self.disconnecting and not self.dataBuffer and self.producer is None):
            self._lost()

    def _lost(self) -> None:
        if not self.disconnected:
            self.disconnected = True
            self.connected = False
            producer, self.producer = self.producer, None
            if producer is not None:
                producer.stopProducing()
            if self.protocol is not None:
                self.protocol.connectionLost(None)

    @property
    def closed(self) -> bool:
        """Nothing more will be sent on it."""
        return self.disconnecting or self.disconnected or self.aborted or self.write_closed
