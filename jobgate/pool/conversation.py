"""
What is said between the gate and one worker, whatever carries it.

Which commands are in the worker's hands, in what order they were given, and which have
begun. The two protocols, `frames` and `lines`, are in the modules of those names. Must not
know how the worker was started or who takes the outcome of a command: that is its `Taker`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from jobgate.errors import JobgateError, WorkerProtocolError
from jobgate.wire.frames import WireError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobgate.command import Batch, Command, Reply
    from jobgate.config import WorkerConfig

__all__ = ["Conversation", "Taker", "Transport"]

_JOIN_BELOW: Final = 64 * 1024
"""Bytes up to which a part of a batch is copied, to be written with its neighbours."""


class Taker(Protocol):
    """Who takes what becomes of a command: the gate's Runner."""

    def began(self, command: Command, now: float) -> None:
        """The worker has begun to run it."""

    def replied(self, command: Command, reply: Reply, now: float) -> None:
        """It ended well; a streamed reply's last part has been passed on."""

    def failed(self, command: Command, error: JobgateError, now: float) -> None:
        """The worker said FAIL."""

    def streaming(self, command: Command, reply: Reply) -> None:
        """The first part of a streamed reply has come."""

    def declined(self, command: Command) -> None:
        """The worker will not have it."""

    def unfit(self, command: Command, error: JobgateError) -> None:
        """This kind of worker cannot be given it; nothing has been written."""

    def rested(self) -> None:
        """The worker has room again, although no command has just ended."""

    def stray(self) -> None:
        """A reply to nothing that is in flight was dropped."""


class Transport(Protocol):
    """What carries a conversation."""

    def write(self, head: bytes, body: bytes, *, idle: bool) -> int:
        """Send bytes; returns how many have been offered in all, these included."""

    def written(self) -> int:
        """How many of them the worker may have seen."""

    def look(self) -> None:
        """Take in what the worker has said already but nobody has read."""

    def soon(self, then: Callable[[], None], after: float = 0.0) -> None:
        """Call back once everything else that has happened by now, or in so long, is dealt with."""

    def ready(self) -> None:
        """The worker can take commands."""

    def broken(self, why: str) -> None:
        """The worker broke the protocol: end it."""

    def leaving(self) -> None:
        """The worker has said that it is about to go."""

    def hold(self, *, on: bool) -> None:
        """Read nothing (True), or again (False)."""

    def aside(self, text: bytes) -> None:
        """The worker said something that is no message: log it."""

    def settled(self, now: float) -> None:
        """The worker has one command less in hand."""


class Conversation:
    """
    What both protocols have in common.

    Attributes:
        capacity: How many commands, or batches of them, may be in hand at once.
        ordered: The worker answers in the order given: only the oldest has begun, or all of the
            oldest batch.
        in_hand: The commands it has, by frame id, oldest first.
        company: How many of them take no place of their own: all but one of each batch.
        is_ready: It has said HELLO, or what stands for it, and has not fallen out since.
        closed: The worker is lost; whatever it still says is ignored.
        tells_stacks: It dumps its stacks when told to (`JOBGATE_STACKS`).
        done: How many commands it has answered.
        busy_since: When it was last given a command while it had none.
        busy_before: Seconds that it had commands in hand, up to when it last had none.
    """

    capacity: int
    ordered: bool
    tells_stacks = False

    def __init__(
        self, config: WorkerConfig, transport: Transport, seconds: Callable[[], float]
    ) -> None:
        self._config = config
        self._transport = transport
        self._seconds = seconds
        self.taker: Taker | None = None
        self.in_hand: dict[int, Command] = {}
        self.company = 0
        self.is_ready = False
        self.closed = False
        self.done = 0
        self.busy_since = 0.0
        self.busy_before = 0.0
        self._next_id = 0

    @property
    def busy(self) -> float:
        """Seconds that it has had commands in hand."""
        now = self._seconds() if self.in_hand else self.busy_since
        return self.busy_before + now - self.busy_since

    def send(self, command: Command) -> bool:
        """Hand a command over; False if the worker turns out to be unfit for it."""
        raise NotImplementedError

    def send_batch(self, batch: Batch) -> bool:
        """
        Hand over commands that are to be run together; likewise.

        Those that this kind of worker cannot be given are told so, and leave the batch.
        """
        pieces: list[list[bytes]] = []
        unfit: list[tuple[Command, JobgateError]] = []
        frame_id = self._next_id
        for command in batch.members:
            try:
                pieces.append(self._pieces(command, frame_id))
                frame_id = (frame_id + 1) & 0xFFFFFFFF
            except JobgateError as error:
                unfit.append((command, error))
        for command, _ in unfit:
            batch.members.remove(command)
        batch.left = len(pieces)
        if pieces:
            self._give_batch(batch, pieces)
        for command, why in unfit:
            if self.taker is not None:
                self.taker.unfit(command, why)
        return True

    def _opening(self, count: int) -> bytes:  # noqa: ARG002 (a program that knows nothing of us)
        """What is written before so many commands that are a batch."""
        return b""

    def _pieces(self, command: Command, frame_id: int) -> list[bytes]:
        """
        What is written for a command.

        Raises:
            JobgateError: This kind of worker cannot be given it.
        """
        raise NotImplementedError

    def receive(self, data: bytes) -> None:
        """The worker has said something."""
        raise NotImplementedError

    def wanted(self) -> memoryview | None:
        """A buffer for the next bytes, if a long message is under way."""
        return None

    def filled(self, count: int) -> None:
        """`count` bytes were put into `wanted()`."""

    def started(self) -> None:
        """The program runs."""

    def cancel(self, command: Command) -> None:
        """Nobody wants this reply any more; a program that knows nothing of us cannot be told."""

    def ping(self) -> bool:
        """Ask for a sign of life; False if this worker cannot give one."""
        return False

    @property
    def answered_ping(self) -> bool:
        """Whether the last `ping` was answered."""
        return True

    def drain(self) -> None:
        """Say that no more commands will come."""

    def ended(self) -> str | None:
        """The worker's output is at its end; returns what was left unfinished."""
        return None

    def take_all(self) -> list[tuple[Command, bool]]:
        """The worker is lost: the commands it had, oldest first, and whether each had begun."""
        written = self._transport.written()
        taken: list[tuple[Command, bool]] = []
        self.busy_before = self.busy
        self.is_ready = False
        self.closed = True
        first: Batch | None = None
        for command in self.in_hand.values():
            behind = self.ordered and taken and (first is None or command.batch is not first)
            begun = command.offered <= written and not behind
            if not taken:
                first = command.batch
            taken.append((command, begun))
        self.in_hand.clear()
        self.company = 0
        return taken

    def _give(self, command: Command, head: bytes, body: bytes, more: Sequence[bytes] = ()) -> None:
        """Write a command, whose body may be followed by more, and remember it."""
        frame_id = self._next_id
        self._next_id = (frame_id + 1) & 0xFFFFFFFF
        in_hand = self.in_hand
        idle = not in_hand
        in_hand[frame_id] = command
        if (idle or not self.ordered) and self.taker is not None:
            now = self._seconds()
            if idle:
                self.busy_since = now
            self.taker.began(command, now)
        command.offered = self._transport.write(head, body, idle=idle)
        for piece in more:
            command.offered = self._transport.write(piece, b"", idle=idle)

    def _give_batch(self, batch: Batch, pieces: list[list[bytes]]) -> None:
        """
        Write a batch and remember it.

        Args:
            batch: Its members take the next frame ids, in order.
            pieces: What is written for each.
        """
        in_hand, members = self.in_hand, batch.members
        idle = not in_hand
        if batch.suspect and not self.ordered:
            # Whoever kills a worker now must be known: nothing else is given to it meanwhile.
            self.company -= self.capacity - 1
        self.company += len(members) - 1
        frame_id = self._next_id
        for command in members:
            in_hand[frame_id] = command
            frame_id = (frame_id + 1) & 0xFFFFFFFF
        self._next_id = frame_id
        if (idle or not self.ordered) and self.taker is not None:
            now = self._seconds()
            if idle:
                self.busy_since = now
            for command in members:
                self.taker.began(command, now)
        small = [self._opening(len(members))]
        offered, total = 0, len(small[0])
        for command, parts in zip(members, pieces, strict=True):
            for part in parts:
                size = len(part)
                total += size
                if size < _JOIN_BELOW:
                    small.append(part)
                    continue
                offered = self._transport.write(b"".join(small), part, idle=idle) - total
                small.clear()
            command.offered = total
        if small:
            offered = self._transport.write(b"".join(small), b"", idle=idle) - total
        for command in members:
            command.offered += offered

    def _finish(self, frame_id: int, now: float) -> Command | None:
        """The last word on a command has come; the next oldest has begun."""
        in_hand = self.in_hand
        command = in_hand.get(frame_id)
        if command is None:
            if self.taker is not None:
                self.taker.stray()
            return None
        if self.ordered and next(iter(in_hand)) != frame_id:
            self._overtaken(command, now)
        del in_hand[frame_id]
        if command.batch is not None and self._leave(command.batch):
            return command
        if not in_hand:
            self.busy_before += now - self.busy_since
        elif self.ordered:
            self._begin_oldest(now)
        return command

    def _leave(self, batch: Batch) -> bool:
        """
        One of a batch has been answered; the last of them frees the place.

        Returns:
            Whether others of it are still in hand.
        """
        batch.left -= 1
        if batch.left:
            self.company -= 1
            return True
        if batch.suspect and not self.ordered:
            self.company += self.capacity - 1
        return False

    def _begin_oldest(self, now: float) -> None:
        """What has become the oldest is what the worker is at now."""
        oldest = next(iter(self.in_hand.values()))
        if self.taker is not None and not oldest.began:
            for command in (oldest,) if oldest.batch is None else oldest.batch.members:
                self.taker.began(command, now)

    def _overtaken(self, command: Command, now: float) -> None:
        """
        An answer has come before that of an older command, from a worker that keeps the order.

        Within a batch any order will do. One that was left out of a batch before will not be
        answered any more: that is its own caller's harm alone.

        Raises:
            WireError: It is no matter of batches.
        """
        batch = command.batch
        oldest = next(iter(self.in_hand.values()))
        if batch is None or oldest.batch is None:
            raise WireError("an answer out of order from a worker that said it keeps it")
        if oldest.batch is batch:
            return
        skipped: dict[int, Command] = {}
        for frame_id, held in self.in_hand.items():
            if held.batch is batch:
                break
            skipped[frame_id] = held
        for frame_id, held in skipped.items():
            del self.in_hand[frame_id]
            if held.batch is not None:
                self._leave(held.batch)
            if self.taker is not None:
                error = WorkerProtocolError("the worker answered its batch without it")
                self.taker.failed(held, error, now)
        self._begin_oldest(now)
