"""
The `frames` protocol: bytes to frames and back.

Sans-IO: it must not know where bytes come from, what time it is or what a frame
is for. The layout (contract section 5.1), big-endian::

    u32 length of all that follows   u8 version = 1   u8 type   u16 flags = 0
    u32 id   u32 meta length   meta (UTF-8 JSON, may be empty)   body

A frame is at most 64 MiB, so its first byte is at most 0x04: text is told from a
frame by its first byte.
"""

from __future__ import annotations

import re
import struct
from typing import Final

__all__ = [
    "BATCH",
    "CANCEL",
    "CHUNK",
    "COMMAND",
    "DECLINE",
    "DRAIN",
    "FAIL",
    "HEADER",
    "HELLO",
    "MAX_FRAME",
    "PING",
    "PONG",
    "PROGRESS",
    "REPLY",
    "WELCOME",
    "Frame",
    "FrameDecoder",
    "WireError",
    "encode",
    "split_text",
]

HELLO: Final = 1
WELCOME: Final = 2
COMMAND: Final = 3
REPLY: Final = 4
FAIL: Final = 5
CHUNK: Final = 6
PROGRESS: Final = 7
CANCEL: Final = 8
DECLINE: Final = 9
PING: Final = 10
PONG: Final = 11
DRAIN: Final = 12
BATCH: Final = 13

HEADER: Final = struct.Struct(">IBBHII")
MAX_FRAME: Final = 64 * 1024 * 1024
"""The largest value of a frame's length field, in bytes."""

_VERSION: Final = 1
_COUNTED: Final = HEADER.size - 4
"""How many bytes of the header the length field counts."""
_ASSEMBLE: Final = 64 * 1024
"""A frame that is longer than this and not all there is put together in one buffer."""
_FRAME_START: Final = re.compile(rb"[\x00-\x04]")


class WireError(Exception):
    """What came is not what the protocol allows; the message says what it was."""


Frame = tuple[int, int, bytes, bytes | bytearray]
"""
Type, id, meta and body. The body is a bytearray where it was put together from many reads.
"""


def encode(kind: int, frame_id: int = 0, meta: bytes = b"", body: bytes = b"") -> bytes:
    """
    One frame as bytes.

    Raises:
        WireError: The frame would be over 64 MiB.
    """
    length = _COUNTED + len(meta) + len(body)
    if length > MAX_FRAME:
        message = f"a frame of {length} bytes is over the limit of {MAX_FRAME}"
        raise WireError(message)
    return HEADER.pack(length, _VERSION, kind, 0, frame_id, len(meta)) + meta + body


def split_text(data: bytes) -> tuple[bytes, bytes]:
    """Part what a program printed before its first frame from that frame."""
    found = _FRAME_START.search(data)
    if found is None:
        return data, b""
    return data[: found.start()], data[found.start() :]


class FrameDecoder:
    """
    Puts frames together from any split of a byte stream.

    A long frame is assembled in one preallocated buffer that a reader may fill
    itself (`wanted`, `filled`), so nothing is copied twice.

    Attributes:
        error: Why the stream can be read no further, or None.
    """

    __slots__ = ("_buffer", "_filled", "_head", "_max_frame", "_payload", "error")

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self._max_frame = max_frame
        self._buffer = b""
        self._payload: bytearray | None = None
        self._filled = 0
        self._head = (0, 0, 0)
        self.error: WireError | None = None

    @property
    def torn(self) -> bool:
        """Whether the stream stands in the middle of a frame."""
        return bool(self._buffer) or self._payload is not None

    def wanted(self) -> memoryview | None:
        """The rest of the buffer of a long frame under way, to be filled in place."""
        if self._payload is None:
            return None
        return memoryview(self._payload)[self._filled :]

    def filled(self, count: int) -> list[Frame]:
        """`count` bytes have been put into `wanted()`, whose view has been released."""
        payload = self._payload
        assert payload is not None, "nothing was wanted"
        self._filled += count
        if self._filled < len(payload):
            return []
        kind, frame_id, meta_length = self._head
        self._payload = None
        meta = bytes(payload[:meta_length])
        del payload[:meta_length]
        return [(kind, frame_id, meta, payload)]

    def feed(self, data: bytes) -> list[Frame]:
        """
        Take bytes in.

        Returns:
            The frames that are complete now, in order. What came before an error
            is still returned; the error is then in `error` and nothing more is.
        """
        if self.error is not None:
            return []
        frames: list[Frame] = []
        if self._payload is not None:
            view = memoryview(self._payload)
            count = min(len(view) - self._filled, len(data))
            view[self._filled : self._filled + count] = data[:count]
            view.release()
            frames = self.filled(count)
            if count == len(data):
                return frames
            data = data[count:]
        if self._buffer:
            data = self._buffer + data
        position, end = 0, len(data)
        unpack = HEADER.unpack_from
        while end - position >= 16:
            length, version, kind, flags, frame_id, meta_length = unpack(data, position)
            if (
                version != _VERSION
                or flags
                or length > self._max_frame
                or not HELLO <= kind <= BATCH
                or meta_length > length - _COUNTED
            ):
                self._fail(data[position : position + HEADER.size])
                return frames
            stop = position + 4 + length
            if stop > end:
                if length > _ASSEMBLE:
                    self._assemble(
                        data, position + HEADER.size, length, kind, frame_id, meta_length
                    )
                    position = end
                break
            body_at = position + 16 + meta_length
            frames.append((kind, frame_id, data[position + 16 : body_at], data[body_at:stop]))
            position = stop
        self._buffer = data[position:]
        if position < end < position + HEADER.size:
            self._check_beginning()
        return frames

    def _assemble(
        self, data: bytes, start: int, length: int, kind: int, frame_id: int, meta_length: int
    ) -> None:
        payload = bytearray(length - _COUNTED)
        self._filled = len(data) - start
        payload[: self._filled] = data[start:]
        self._payload = payload
        self._head = (kind, frame_id, meta_length)

    def _check_beginning(self) -> None:
        """Text must be caught by its first byte, not when a header's worth of it is there."""
        head = self._buffer
        length = int.from_bytes(head[:4], "big") if len(head) >= 4 else _COUNTED
        if (
            head[0] > self._max_frame >> 24
            or not _COUNTED <= length <= self._max_frame
            or (len(head) > 4 and head[4] != _VERSION)
        ):
            self._fail(head)

    def _fail(self, head: bytes) -> None:
        self._buffer = b""
        self.error = WireError(f"not a frame: {head[: HEADER.size]!r}")
