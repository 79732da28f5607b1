"""
Frames spoken by hand, for workers that are to owe nothing to what they test.
"""

import os
import struct
import sys

HEADER = struct.Struct(">IBBHII")
HELLO, WELCOME, COMMAND, REPLY, FAIL, CHUNK, PROGRESS = range(1, 8)
CANCEL, DECLINE, PING, PONG, DRAIN, BATCH = range(8, 14)


def frame(kind: int, number: int = 0, meta: bytes = b"", body: bytes = b"") -> bytes:
    """One frame."""
    return HEADER.pack(12 + len(meta) + len(body), 1, kind, 0, number, len(meta)) + meta + body


def say(data: bytes) -> None:
    """Write all of it."""
    while data:
        data = data[os.write(1, data) :]


def exactly(count: int) -> bytes:
    """Read so many bytes; leaves at the end of the input."""
    data = b""
    while len(data) < count:
        more = os.read(0, count - len(data))
        if not more:
            sys.exit(0)
        data += more
    return data


def receive() -> tuple[int, int, bytes, bytes]:
    """Read one frame."""
    length, _, kind, _, number, meta = HEADER.unpack(exactly(16))
    rest = exactly(length - 12)
    return kind, number, rest[:meta], rest[meta:]
