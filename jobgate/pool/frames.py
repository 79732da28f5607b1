"""
The `frames` protocol (contract section 5.1), from the gate's side.

What their metas say is read in `metas`. Must not know what carries the frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from jobgate.command import DONE, Reply
from jobgate.errors import Unprocessable
from jobgate.pool.conversation import Conversation, Transport
from jobgate.pool.metas import OCTETS, read_failure, read_hello, read_progress, read_said
from jobgate.stream import ReplyStream
from jobgate.wire import frames
from jobgate.wire.frames import CHUNK, COMMAND, REPLY, Frame, FrameDecoder, WireError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobgate.command import Command
    from jobgate.config import WorkerConfig

__all__ = ["FramesConversation"]

_TEXT_LIMIT: Final = 64 * 1024
"""Bytes a worker may print before HELLO."""
_FOREVER: Final = float("inf")
_MOST_MS: Final = 2.0**53
"""The largest `remaining_ms`: what every JSON parser can hold."""
_JOIN_BELOW: Final = 1024 * 1024
"""Bytes up to which copying inputs together is cheaper than a write for each."""
_COPY_BELOW: Final = 4096
"""Bytes up to which copying a body behind its head is cheaper than carrying two pieces."""
_REMEMBERED: Final = 256
"""Content types and metas that are kept: workers and callers repeat themselves."""

_json: Final = msgspec.json.Encoder().encode
_pack: Final = frames.HEADER.pack


class FramesConversation(Conversation):
    """The `frames` protocol (contract section 5.1), from the gate's side."""

    def __init__(
        self,
        config: WorkerConfig,
        transport: Transport,
        seconds: Callable[[], float],
        worker: str,
        queue: str,
    ) -> None:
        super().__init__(config, transport, seconds)
        self.capacity = config.in_flight
        self.ordered = False
        self._worker = worker
        self._decoder = FrameDecoder()
        self._before_hello = 0
        self._meta_queue = _json(queue).decode()
        self._meta_rests: dict[str, str] = {}
        self._said: dict[bytes, tuple[str, int, bytes]] = {b"": (OCTETS, 200, b"")}
        self._pinged = False

    def send(self, command: Command) -> bool:
        """Hand a command over as a COMMAND frame."""
        if command.inputs:
            return self._send_with_inputs(command)
        self._give(command, self._head(command, self._next_id), command.body)
        return True

    def _send_with_inputs(self, command: Command) -> bool:
        try:
            head, body, *more = self._pieces(command, self._next_id)
        except Unprocessable as error:
            if self.taker is not None:
                self.taker.unfit(command, error)
        else:
            self._give(command, head, body, more)
        return True

    def _opening(self, count: int) -> bytes:
        return frames.encode(frames.BATCH, 0, b'{"count":%d}' % count)

    def _pieces(self, command: Command, frame_id: int) -> list[bytes]:
        if not command.inputs:
            head, body = self._head(command, frame_id), command.body
            return [head + body] if len(body) < _COPY_BELOW else [head, body]
        inputs = [
            {"name": name, "content_type": kind, "length": len(body)}
            for name, kind, body in command.inputs
        ]
        meta = f'{{"id":"{command.id}","attempt":{command.attempt},"inputs":'.encode()
        meta += _json(inputs) + self._meta_rest(command).encode()
        bodies = [command.body, *(its.body for its in command.inputs)]
        length = 12 + len(meta) + sum(map(len, bodies))
        if length > frames.MAX_FRAME:
            message = f"body and inputs are {length} bytes; a frame holds {frames.MAX_FRAME}"
            raise Unprocessable(message)
        head = _pack(length, 1, COMMAND, 0, frame_id, len(meta)) + meta
        return [head, *(bodies if length > _JOIN_BELOW else [b"".join(bodies)])]

    def _head(self, command: Command, frame_id: int) -> bytes:
        """All of a COMMAND frame that comes before the body, if it has no inputs."""
        rest = self._meta_rests.get(command.content_type)
        if rest is None or command.deadline != _FOREVER or command.headers:
            rest = self._meta_rest(command)
        meta = f'{{"id":"{command.id}","attempt":{command.attempt}{rest}'.encode()
        length = 12 + len(meta) + len(command.body)
        return _pack(length, 1, COMMAND, 0, frame_id, len(meta)) + meta

    def _meta_rest(self, command: Command) -> str:
        """The part of a command's meta that most commands of a content type share."""
        plain = command.deadline == _FOREVER and not command.headers
        if plain and command.content_type in self._meta_rests:
            return self._meta_rests[command.content_type]
        kind = _json(command.content_type).decode()
        time = self._config.timeout or _FOREVER
        time = min(time, command.deadline - self._seconds())
        remaining = "null" if time == _FOREVER else max(0, int(min(time * 1000, _MOST_MS)))
        headers = _json(command.headers or {}).decode()
        rest = (
            f',"queue":{self._meta_queue},"content_type":{kind},'
            f'"remaining_ms":{remaining},"headers":{headers}}}'
        )
        if plain and len(self._meta_rests) < _REMEMBERED:
            self._meta_rests[command.content_type] = rest
        return rest

    def wanted(self) -> memoryview | None:
        """The rest of a long frame's buffer."""
        return self._decoder.wanted()

    def filled(self, count: int) -> None:
        """The long frame has grown."""
        for frame in self._decoder.filled(count):
            self._frame(frame)

    def receive(self, data: bytes) -> None:
        """Take in what the worker wrote; after it is lost, nothing."""
        if not self.is_ready and not self.closed:
            text, data = self._text_before_hello(data)
            if text:
                self._transport.aside(text)
        decoder = self._decoder
        for frame in decoder.feed(data):
            if not self.closed:
                self._frame(frame)
        if decoder.error is not None and not self.closed:
            self._transport.aside(data[:4096])
            self._transport.broken(str(decoder.error))

    def _text_before_hello(self, data: bytes) -> tuple[bytes, bytes]:
        if self._decoder.torn:
            return b"", data
        text, rest = frames.split_text(data)
        self._before_hello += len(text)
        if self._before_hello > _TEXT_LIMIT:
            self._transport.aside(text)
            self._transport.broken(f"over {_TEXT_LIMIT} bytes of text before HELLO")
            return b"", b""
        return text, rest

    def _frame(self, frame: Frame) -> None:
        kind, frame_id, meta, body = frame
        try:
            if kind == REPLY and self.is_ready:
                self._reply(frame_id, meta, body)
            elif not self.is_ready and kind != frames.HELLO:
                self._transport.broken(f"a frame of type {kind} before HELLO")
            elif kind == CHUNK:
                self._chunk(frame_id, meta, body)
            elif kind == frames.FAIL:
                self._fail(frame_id, meta)
            elif kind == frames.DECLINE:
                self._decline(frame_id)
            elif kind == frames.PROGRESS:
                self._progress(frame_id, meta)
            elif kind == frames.PONG:
                self._pinged = False
            elif kind == frames.PING:
                self._transport.write(frames.encode(frames.PONG, frame_id), b"", idle=True)
            elif kind == frames.HELLO:
                self._hello(meta)
            elif kind == frames.DRAIN:
                self._transport.leaving()
            else:
                self._transport.broken(f"a frame of type {kind}, which workers do not send")
        except (msgspec.MsgspecError, WireError, ValueError, RecursionError) as error:
            self._transport.broken(f"a frame of type {kind} with meta {meta[:200]!r}: {error}")

    def _hello(self, meta: bytes) -> None:
        if self.is_ready:
            message = "HELLO was said before"
            raise WireError(message)
        hello = read_hello(meta)
        self.ordered = hello.ordered
        self.tells_stacks = hello.stacks
        if hello.in_flight:
            self.capacity = max(1, min(self.capacity, hello.in_flight))
        batch = self._config.batch.size
        welcome = _json({"worker": self._worker, "max_frame": frames.MAX_FRAME, "batch": batch})
        self._transport.write(frames.encode(frames.WELCOME, 0, welcome), b"", idle=True)
        self.is_ready = True
        self._transport.ready()

    def _read(self, meta: bytes) -> tuple[str, int, bytes]:
        """Content type, status and jobs of a REPLY or CHUNK, kept: workers repeat themselves."""
        known = _, _, jobs = read_said(meta)
        if not jobs and len(self._said) < _REMEMBERED and len(meta) < _REMEMBERED:
            self._said[meta] = known
        return known

    def _reply(self, frame_id: int, meta: bytes, body: bytes | bytearray) -> None:
        content_type, status, jobs = self._said.get(meta) or self._read(meta)
        if jobs:
            self._check_growth(self.in_hand.get(frame_id))
        now = self._seconds()
        command = self._finish(frame_id, now)
        if command is None:
            return
        self.done += 1
        if command.stream is not None and command.state is not DONE:
            command.stream.chunk(body)
            command.stream.jobs = jobs
            body = b""
        if self.taker is not None:
            self.taker.replied(command, Reply(body, content_type, status, jobs=jobs), now)
        self._transport.settled(now)

    @staticmethod
    def _check_growth(command: Command | None) -> None:
        """Only within a graph is there anything that could grow."""
        if command is not None and not command.graph:
            raise WireError("jobs in a REPLY to a command that belongs to no graph")

    def _chunk(self, frame_id: int, meta: bytes, body: bytes | bytearray) -> None:
        command = self.in_hand.get(frame_id)
        if command is None:
            if self.taker is not None:
                self.taker.stray()
            return
        if command.state is DONE or self.taker is None:
            return
        if command.stream is None:
            content_type, status, jobs = self._said.get(meta) or self._read(meta)
            if jobs:
                raise WireError("jobs in a CHUNK, where only a REPLY has them")
            command.stream = ReplyStream(self._hold)
            self.taker.streaming(command, Reply(b"", content_type, status, command.stream))
        command.stream.chunk(body)

    def _hold(self, *, on: bool) -> bool:
        if on and len(self.in_hand) > 1:
            return False
        self._transport.hold(on=on)
        return True

    def _fail(self, frame_id: int, meta: bytes) -> None:
        error = read_failure(meta)
        now = self._seconds()
        command = self._finish(frame_id, now)
        if command is None:
            return
        self.done += 1
        if self.taker is not None:
            self.taker.failed(command, error, now)
        self._transport.settled(now)

    def _decline(self, frame_id: int) -> None:
        begun = self.in_hand.get(frame_id)
        if begun is not None and begun.stream is not None:
            raise WireError("DECLINE after CHUNK")
        now = self._seconds()
        command = self._finish(frame_id, now)
        if command is not None and self.taker is not None:
            self.taker.declined(command)
            self._transport.settled(now)

    def _progress(self, frame_id: int, meta: bytes) -> None:
        said = read_progress(meta)
        command = self.in_hand.get(frame_id)
        if command is not None:
            if command.on_progress is not None and command.state is not DONE:
                command.on_progress(command, said.done or 0.0, said.total, said.note)
        elif self.taker is not None:
            self.taker.stray()

    def cancel(self, command: Command) -> None:
        """Send CANCEL; the worker's one last word on it will be dropped."""
        for frame_id, held in self.in_hand.items():
            if held is command:
                self._transport.write(frames.encode(frames.CANCEL, frame_id), b"", idle=True)
                return

    def ping(self) -> bool:
        """Send PING."""
        self._pinged = True
        self._transport.write(frames.encode(frames.PING), b"", idle=True)
        return True

    @property
    def answered_ping(self) -> bool:
        """Whether the last PING has had its PONG."""
        return not self._pinged

    def drain(self) -> None:
        """Send DRAIN."""
        if self.is_ready:
            self._transport.write(frames.encode(frames.DRAIN), b"", idle=True)

    def ended(self) -> str | None:
        """A frame that was cut off, if there was one."""
        return "the output ended inside a frame" if self._decoder.torn else None
