"""
A worker that reads frames carelessly, in the way that its argument names.
"""

import os
import struct
import sys
import time

HEADER = struct.Struct(">IBBHII")
HELLO, COMMAND, REPLY, CANCEL, PING, PONG, DRAIN = 1, 3, 4, 8, 10, 11, 12
FAULT = sys.argv[1]


def say(kind: int, number: int = 0, meta: bytes = b"", body: bytes = b"") -> None:
    """Write one frame."""
    data = HEADER.pack(12 + len(meta) + len(body), 1, kind, 0, number, len(meta)) + meta + body
    while data:
        data = data[os.write(1, data) :]


def exactly(count: int) -> bytes:
    """Read so many bytes."""
    data = b""
    while len(data) < count:
        more = os.read(0, count - len(data))
        if not more:
            while FAULT == "lives-on":
                time.sleep(60)
            sys.exit(0)
        data += more
        if FAULT == "one-read":
            break
    return data


def main() -> None:
    """Say HELLO, then answer."""
    if FAULT == "mute":
        time.sleep(60)
    say(HELLO, 0, b'{"ordered": true}')
    while True:
        length, _, kind, _, number, meta = HEADER.unpack(exactly(16))
        rest = exactly(length - 12)
        if kind == COMMAND:
            if FAULT == "ascii-meta":
                rest[:meta].decode("ascii")
            if FAULT == "no-empty-body" and len(rest) == meta:
                continue
            say(REPLY, number, b"{}", rest[meta:])
        elif kind == PING and FAULT != "no-pong":
            say(PONG, number)
        elif kind == DRAIN and FAULT != "no-drain":
            sys.exit(3 if FAULT == "bad-exit" else 0)
        elif kind == CANCEL and FAULT == "answers-cancel":
            say(REPLY, number)
        elif kind > DRAIN and FAULT == "knows-all-types":
            os.write(2, b"no such type\n")
            sys.exit(1)


main()
