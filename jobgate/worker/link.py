"""
The two file descriptors to the gate: frames (contract 5.1) become commands, answers frames.

Must not know handlers, nor what their values mean.
"""

from __future__ import annotations

import _thread
import os
from io import BytesIO
from select import PIPE_BUF, POLLIN, poll
from time import monotonic, sleep

from jobgate.worker.commands import Command, Fail, describe
from jobgate.worker.frames import (
    BATCH,
    CANCEL,
    COMMAND,
    DRAIN,
    FAIL,
    HEADER_SIZE,
    MAX_FRAME,
    PING,
    PONG,
    WELCOME,
    pack,
    unpack,
)
from jobgate.worker.quick_json import loads

TYPE_CHECKING = False  # as in `jobgate.worker`
if TYPE_CHECKING:
    from typing import Any

__all__ = ["READ", "Link"]

# glibc maps and unmaps an allocation of 128 KiB or more each time, which costs more than the read.
READ = 64 * 1024
_GATHER = 256 * 1024  # bytes of a batch's replies that are written at once
_READ_AHEAD = 64 * 1024 * 1024  # bytes of waiting bodies beyond which the helper stops reading
_TICK = 0.02  # seconds that a handler runs before the helper reads in its place
_LONG = 0.001  # seconds that a batch runs for the helper to read during the next one at once
_QUIET = 50  # ticks without work after which the helper sleeps until there is some
_GLANCE = 0.001  # seconds between two looks at the pipe, however often `cancelled` is asked


class Link:
    """
    The two file descriptors to the gate, and what has been read from them but not yet run.

    Two locks, taken in this order if both: `reading` guards all that reading touches, and the main
    thread holds it for as long as it waits for work; `writing` keeps frames whole. Frames of up to
    PIPE_BUF bytes are whole by themselves, so that most replies need no lock.
    """

    def __init__(self, source: int, sink: int, *, batching: bool = False) -> None:
        self.source = source
        self.sink = sink
        self.reading = _thread.allocate_lock()
        self.writing = _thread.allocate_lock()
        self.current: Command | None = None  # the one that is run; None: waiting for work
        self.batch: list[Command] = []  # all that are run together with it, if they are
        self.inbox: list[Command] = []  # what waits, oldest first
        self.batching = batching  # whether the handler takes batches
        self.plain = True  # none of `batch` has inputs or was cancelled before
        self._odd = False  # something in the inbox has, or was
        self._taken = 0  # how many have left the inbox; counted for batches only
        self._batches: list[tuple[int, int]] = []  # how many came before a batch, and its size
        self._began = 0.0  # when the last one began to run
        self._long = False  # whether it took long, and the next had come meanwhile
        self.draining = False  # leave once the inbox is empty
        self.ended = False  # nothing more can be read
        self.trouble = ""  # what the gate sent that is no frame
        self._welcome = b""
        self._limit = PIPE_BUF  # larger frames wait for a look at WELCOME's max_frame
        self._poll = poll()
        self._poll.register(source, POLLIN)
        self._glanced = 0.0
        self._rest = b""  # the beginning of a frame
        # A frame larger than one read is filled in place instead, straight from the pipe:
        self._large: BytesIO | None = None
        self._missing = 0  # bytes of it still to come
        self._head = (0, 0, b"", 0)  # its type, id, meta, and how many bytes of meta are in _large

    def take(self) -> Command | None:
        """Wait for the next command; None when there will be no more."""
        with self.reading:
            if not self.inbox:
                self.current = None
                while not self.inbox:
                    if self.draining or self.ended:
                        self.ended = True
                        return None
                    self._read()
            self.current = command = self.inbox.pop(0)
        return command

    def take_batch(self) -> list[Command]:
        """Wait for all of the next batch; what came without one is a batch of its own."""
        long = monotonic() - self._began > _LONG
        with self.reading:
            self.batch = []
            self.current = None
            # While there is no next batch yet, a helper that waits for it as well would be in the
            # way when it comes.
            here = len(self.inbox) >= self._next_size()
            self._long = long and (here or self._readable())
            while len(self.inbox) < (size := self._next_size()):
                if self.ended or (self.draining and not self.inbox):
                    self.ended = True
                    return []
                self._read()
            if self._batches and self._batches[0][0] == self._taken:
                self._batches.pop(0)
            batch, self.inbox = self.inbox[:size], self.inbox[size:]
            self._taken += size
            self.plain, self._odd = not self._odd, self._odd and bool(self.inbox)
            self.batch = batch
            self.current = batch[0]
        self._began = monotonic()
        return batch

    def _next_size(self) -> int:
        """Return how many commands the next batch has, as far as is known."""
        if self._batches and self._batches[0][0] == self._taken:
            return self._batches[0][1]
        return 1

    def glance(self) -> None:
        """Take in what the pipe holds, unless another thread is at it or has just been."""
        now = monotonic()
        if now - self._glanced > _GLANCE and self.reading.acquire(blocking=False):
            try:
                self._glanced = now
                self._read_if_any()
            finally:
                self.reading.release()

    def read_ahead(self) -> None:
        """
        Read in place of the main thread while that is busy with one handler: the helper thread.

        While handlers are quick it only looks up at every tick, and the main thread does nothing
        for it. While batches are not, it reads the next one as soon as that is there: parsing so
        many commands between the two would be felt. Without work it sleeps on the `reading` lock,
        which the main thread then holds.
        """
        quiet = 0
        ready = poll()
        ready.register(self.source, POLLIN)
        while not self.ended:
            before = self.current
            sleep(_TICK)
            quiet = 0 if before else quiet + 1
            if quiet > _QUIET:
                with self.reading:
                    quiet = 0
            while before and self._at_work(before) and not self.ended:
                ready.poll(1000)
                with self.reading:
                    took = self._at_work(before) and self._read_if_any()
                if not took:
                    sleep(_TICK)

    def _at_work(self, before: Command) -> bool:
        """Whether a handler is busy with the same command still, or with long batches."""
        return self.current is before or (self._long and self.current is not None)

    def _read_if_any(self) -> bool:
        """Read once if that does not wait, and there is room. The caller holds `reading`."""
        held = sum(len(command.body) for command in self.inbox)
        if self.ended or held > _READ_AHEAD or not self._readable():
            return False
        self._read()
        return True

    # What carries the bytes: these three, `send` and `_write` are another's over a socket.

    def _readable(self) -> bool:
        """Whether reading would not wait."""
        return bool(self._poll.poll(0))

    def _receive(self) -> bytes:
        """Read some bytes, waiting if need be; none at the end."""
        return os.read(self.source, READ)

    def _receive_into(self, view: memoryview) -> int:
        """Read into a buffer; returns how many bytes, 0 at the end."""
        return os.readv(self.source, [view])

    def _read(self) -> None:
        """Read once, waiting if need be, and take in what came. The caller holds `reading`."""
        try:
            if self._large:
                self._read_large(self._large)
                return
            data = self._receive()
        except ConnectionError:  # a socket may end like this
            data = b""
        if not data:
            self.ended = True
            return
        now = monotonic()
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        while end - at >= HEADER_SIZE:
            length, version, kind, flags, number, meta = unpack(data, at)
            if version != 1 or flags or length > MAX_FRAME or meta > length - 12:
                self.ended, self.trouble = True, f"no frame: {data[at : at + HEADER_SIZE]!r}"
                return
            middle = at + 16 + meta
            stop = at + 4 + length
            if stop > end:
                if length > READ:
                    self._begin_large(kind, number, meta, data[at + 16 :], stop - end)
                    return
                break
            if kind == COMMAND:
                told = data[at + 16 : middle]
                self.inbox.append(Command(self, number, told, data[middle:stop], now))
                if self.batching and b'"inputs"' in told:
                    self._odd = True
            else:
                self._control(kind, number, data[at + 16 : middle])
            at = stop
        self._rest = data[at:]

    def _begin_large(self, kind: int, number: int, meta: int, part: bytes, missing: int) -> None:
        """Make room for a frame that comes in many reads; `part` of it is here."""
        cut = 0 if len(part) >= meta else meta  # rarely is the meta itself torn
        self._head = (kind, number, b"" if cut else part[:meta], cut)
        # BytesIO hands out its own buffer in the end: bytes, without a second copy of the body.
        self._large = BytesIO()
        filled = self._large.write(part if cut else part[meta:])
        self._large.seek(filled + missing - 1)
        self._large.write(b"\0")
        self._missing = missing
        self._rest = b""

    def _read_large(self, large: BytesIO) -> None:
        """Read once into a large frame, and no further."""
        with large.getbuffer() as view, view[-self._missing :] as rest:
            got = self._receive_into(rest)
        self._missing -= got
        self.ended = not got
        if self._missing:
            return
        self._large = None
        kind, number, meta, cut = self._head
        body = large.getvalue()
        if cut:
            meta, body = body[:cut], body[cut:]
        if kind == COMMAND:
            self._odd = self._odd or b'"inputs"' in meta
            self.inbox.append(Command(self, number, meta, body, monotonic()))
        else:
            self._control(kind, number, meta)

    def _control(self, kind: int, number: int, meta: bytes) -> None:
        """Do what a frame other than COMMAND asks; unknown types are for later versions."""
        if kind == CANCEL:
            for command in (self.current, *self.batch, *self.inbox):
                if command and command._number == number:  # noqa: SLF001 - family
                    command._cancelled = True  # noqa: SLF001
                    self._odd = True
        elif kind == PING:
            self.tell(PONG, number)
        elif kind == DRAIN:
            self.draining = True
        elif kind == BATCH and self.batching:
            count = int(loads(meta).get("count") or 0) if meta else 0
            if count > 0:
                self._batches.append((self._taken + len(self.inbox), count))
        elif kind == WELCOME:
            self._welcome = meta

    def tell(self, kind: int, number: int, meta: bytes = b"") -> None:
        """Write one frame of at most PIPE_BUF bytes, from any thread."""
        with self.writing:
            self.send(kind, number, meta)

    def send(self, kind: int, number: int, meta: bytes = b"", body: Any = b"") -> None:  # noqa: ANN401
        """
        Write one frame, to its last byte. `body` is bytes, or a buffer of bytes.

        Raises:
            Fail: The frame is larger than the gate takes; nothing has been written.
            SystemExit: The gate is gone.
        """
        length = 12 + len(meta) + len(body)
        head = pack(length, 1, kind, 0, number, len(meta)) + meta
        try:
            if length <= PIPE_BUF - 4:
                os.write(self.sink, head + body)
                return
            if length > self._limit:
                self._check_length(length)
            with self.writing:
                written = os.writev(self.sink, (head, body))
                while written < length + 4:  # a signal came in between
                    rest = memoryview(b"".join((head, body)))[written:]
                    written += os.write(self.sink, rest)
        except ConnectionError:
            raise SystemExit(0) from None

    def send_all(self, frames: list[bytes | tuple[int, int, bytes, Any]]) -> None:
        """
        Write many frames with few writes; they are as `send` takes them, or small and packed.

        All are in the pipe at the end.

        Raises:
            SystemExit: The gate is gone.
        """
        gathered: list[bytes] = []
        size = 0
        for frame in frames:
            if isinstance(frame, bytes):
                if size > _GATHER:
                    self._write(b"".join(gathered))
                    gathered, size = [], 0
                gathered.append(frame)
                size += len(frame)
                continue
            kind, number, meta, body = frame
            length = 12 + len(meta) + len(body)
            if size + length > _GATHER or length > self._limit:
                self._write(b"".join(gathered))
                gathered, size = [], 0
            if length > self._limit:
                try:
                    self.send(kind, number, meta, body)
                except Fail as fail:
                    self.send(FAIL, number, describe(fail))
                continue
            gathered += (pack(length, 1, kind, 0, number, len(meta)), meta, body)
            size += length
        self._write(b"".join(gathered))

    def _write(self, data: bytes) -> None:
        """Write whole frames, to the last byte."""
        try:
            with self.writing:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(self.sink, rest) :]
        except ConnectionError:
            raise SystemExit(0) from None

    def _check_length(self, length: int) -> None:
        """Refuse a frame that the gate would not take; its limit is read when first needed."""
        if self._limit == PIPE_BUF:
            told = loads(self._welcome).get("max_frame") if self._welcome else None
            self._limit = min(told or MAX_FRAME, MAX_FRAME)
        if length > self._limit:
            title = "the worker's reply is larger than a frame"
            raise Fail(title, f"{length} bytes; a frame holds {self._limit}", retry=False)

    def disown(self) -> None:
        """In a forked child: let go of the gate, whose frames belong to the parent alone."""
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, self.source, inheritable=False)
        os.dup2(null, self.sink, inheritable=False)
        os.close(null)
        # The helper may have held them; it lives in the parent only.
        self.reading = _thread.allocate_lock()
        self.writing = _thread.allocate_lock()
