"""
A worker that speaks frames by itself and takes batches: what it answers, the bodies say.

    rawbatcher.py [--ordered]

It answers a batch from the last to the first. `skip` gets no answer at all, `stray` one for an id
that nobody gave it besides its own, `pause` is answered, after which a file is awaited.
"""

import json
import os
import struct
import sys
import time
from pathlib import Path

HEADER = struct.Struct(">IBBHII")
HELLO, WELCOME, COMMAND, REPLY, DRAIN, BATCH = 1, 2, 3, 4, 12, 13


def say(kind: int, number: int, meta: bytes = b"", body: bytes = b"") -> None:
    """Write one frame."""
    length = 12 + len(meta) + len(body)
    os.write(1, HEADER.pack(length, 1, kind, 0, number, len(meta)) + meta + body)


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


def answer(batch: list[tuple[int, bytes]], welcome: int) -> None:
    """Answer all that want to be."""
    for number, body in reversed(batch):
        word, _, argument = body.decode().partition(" ")
        if word == "stray":
            say(REPLY, number + 1000, b"", b"astray")
        if word != "skip":
            say(REPLY, number, b"", b"%d of %d: " % (len(batch), welcome) + body)
        if word == "pause":
            while not Path(argument).exists():
                time.sleep(0.005)


def main() -> None:
    """Say HELLO, then answer."""
    ordered = "--ordered" in sys.argv
    say(HELLO, 0, json.dumps({"protocol": 1, "ordered": ordered}).encode())
    welcome = 0
    while True:
        kind, number, meta, body = receive()
        if kind == WELCOME:
            welcome = json.loads(meta)["batch"]
        elif kind == DRAIN:
            return
        elif kind == BATCH:
            batch = []
            for _ in range(json.loads(meta)["count"]):
                kind, number, _, body = receive()
                assert kind == COMMAND, kind
                batch.append((number, body))
            answer(batch, welcome)
        elif kind == COMMAND:
            answer([(number, body)], welcome)


main()
