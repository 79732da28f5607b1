"""
A worker that reads frames carelessly, in the way that its argument names.
"""

import os
import sys
import time

from speaking import CANCEL, COMMAND, DRAIN, HEADER, HELLO, PING, PONG, REPLY, frame, say

FAULT = sys.argv[1]


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
    say(frame(HELLO, 0, b'{"ordered": true}'))
    while True:
        length, _, kind, _, number, meta = HEADER.unpack(exactly(16))
        rest = exactly(length - 12)
        if kind == COMMAND:
            if FAULT == "ascii-meta":
                rest[:meta].decode("ascii")
            if FAULT == "no-empty-body" and len(rest) == meta:
                continue
            say(frame(REPLY, number, b"{}", rest[meta:]))
        elif kind == PING and FAULT != "no-pong":
            say(frame(PONG, number))
        elif kind == DRAIN and FAULT != "no-drain":
            sys.exit(3 if FAULT == "bad-exit" else 0)
        elif kind == CANCEL and FAULT == "answers-cancel":
            say(frame(REPLY, number))
        elif kind > DRAIN and FAULT == "knows-all-types":
            os.write(2, b"no such type\n")
            sys.exit(1)


main()
