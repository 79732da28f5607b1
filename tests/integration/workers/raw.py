"""
A worker that speaks frames by itself, and breaks their rules when a body says so.

    raw.py [--noise TEXT] [--in-flight N] [--ordered] [--hello JSON] [--boot SECONDS] [--deaf]

A body is a word, a space and an argument; any other body is echoed.
"""

import argparse
import json
import os
import signal
import struct
import time

from speaking import (
    CHUNK,
    COMMAND,
    DRAIN,
    FAIL,
    HEADER,
    HELLO,
    PING,
    PONG,
    REPLY,
    frame,
    receive,
    say,
)


def silence() -> None:
    """Do nothing any more."""
    while True:
        time.sleep(60)


def misbehave(number: int, word: str, argument: str, held: list[int]) -> bool:
    """Do what the word says; False if it is no such word."""
    good = frame(REPLY, number, b"", b"good")
    if word == "garbage":
        say(b"this is no frame at all\n")
    elif word == "garbage-in-header":
        say(good[:6] + b"garbage instead of the rest")
    elif word == "good-then-garbage":
        say(good + b"garbage behind it\n")
    elif word == "torn-eof":
        say(good[:-2])
        os._exit(0)
    elif word == "torn-closed":
        say(good[:-2])
        os.close(1)
        silence()
    elif word == "torn-silence":
        say(good[:-2])
        silence()
    elif word == "huge":
        say(struct.pack(">I", 2**31) + b"\x01\x04\x00\x00" + bytes(8))
    elif word == "over-the-limit":
        say(HEADER.pack(64 * 1024 * 1024 + 1, 1, REPLY, 0, number, 0))
    elif word == "long-meta":
        say(HEADER.pack(20, 1, REPLY, 0, number, 4_000_000) + bytes(8))
    elif word == "wrong-version":
        say(HEADER.pack(12, 2, REPLY, 0, number, 0))
    elif word == "wrong-type":
        say(HEADER.pack(12, 1, 77, 0, number, 0))
    elif word == "gate-type":
        say(frame(COMMAND, number))
    elif word == "second-hello":
        say(frame(HELLO))
    elif word == "bad-meta":
        say(frame(REPLY, number, b"{not json", b"x"))
    elif word == "bad-status":
        say(frame(REPLY, number, json.dumps({"status": int(argument)}).encode(), b"x"))
    elif word == "bad-type":
        say(frame(REPLY, number, json.dumps({"content_type": "text/plain\r\nX: y"}).encode(), b"x"))
    elif word == "wrong-id":
        say(frame(REPLY, number + 1000, b"", b"wrong") + good)
    elif word == "wrong-id-only":
        say(frame(REPLY, number + 1000, b"", b"wrong"))
    elif word == "twice":
        say(good + frame(REPLY, number, b"", b"again"))
    elif word == "late":
        held.append(number)
    elif word == "flush-late":
        for late in held:
            say(frame(REPLY, late, b"", b"late"))
        held.clear()
        say(good)
    elif word == "close-stdout":
        os.close(1)
        silence()
    elif word == "close-stdin":
        os.close(0)
        silence()
    elif word == "chunk-then-garbage":
        say(frame(CHUNK, number, b"", b"part"))
        time.sleep(0.2)
        say(b"this is no frame at all\n")
    elif word == "stray-chunk":
        say(frame(CHUNK, number + 1000, b"", b"stray") + frame(FAIL, number + 1000) + good)
    elif word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "bytewise":
        for byte in frame(REPLY, number, b'{"status": 201}', b"slowly"):
            say(bytes([byte]))
            time.sleep(0.001)
    else:
        return False
    return True


def main() -> None:
    """Say HELLO, then answer."""
    options = argparse.ArgumentParser()
    options.add_argument("--noise", default="")
    options.add_argument("--in-flight", type=int, default=1)
    options.add_argument("--ordered", action="store_true")
    options.add_argument("--hello", default="")
    options.add_argument("--boot", type=float, default=0)
    options.add_argument("--deaf", action="store_true", help="die with what follows WELCOME unread")
    options.add_argument("--gather", type=int, default=1, help="answer so many at once, reversed")
    given = options.parse_args()
    if given.noise:
        say(given.noise.encode())
        time.sleep(0.05)
    time.sleep(given.boot)
    hello = {"protocol": 1, "in_flight": given.in_flight, "ordered": given.ordered}
    say(frame(HELLO, 0, given.hello.encode() or json.dumps(hello).encode()))
    held: list[int] = []
    gathered: list[bytes] = []
    while True:
        kind, number, _, body = receive()
        if given.deaf:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == DRAIN:
            return
        if kind == PING:
            say(frame(PONG, number))
        if kind != COMMAND:
            continue
        word, _, argument = body.decode("latin-1").partition(" ")
        if word == "die-later":
            # Only once the others have been handed over too.
            gathered.append(b"")
            if len(gathered) >= given.gather:
                os.kill(os.getpid(), signal.SIGKILL)
        elif not misbehave(number, word, argument, held):
            gathered.append(frame(REPLY, number, b'{"content_type":"text/plain"}', body))
            if word == "and-die":
                say(b"".join(gathered))
                os.kill(os.getpid(), signal.SIGKILL)
            if len(gathered) >= given.gather:
                say(b"".join(reversed(gathered)))
                gathered.clear()


if __name__ == "__main__":
    main()
