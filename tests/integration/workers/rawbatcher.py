"""
A worker that speaks frames by itself and takes batches: what it answers, the bodies say.

    rawbatcher.py [--ordered]

It answers a batch from the last to the first. `skip` gets no answer at all, `stray` one for an id
that nobody gave it besides its own, `pause` is answered, after which a file is awaited.
"""

import json
import sys
import time
from pathlib import Path

from speaking import BATCH, COMMAND, DRAIN, HELLO, REPLY, WELCOME, frame, receive, say


def answer(batch: list[tuple[int, bytes]], welcome: int) -> None:
    """Answer all that want to be."""
    for number, body in reversed(batch):
        word, _, argument = body.decode().partition(" ")
        if word == "stray":
            say(frame(REPLY, number + 1000, b"", b"astray"))
        if word != "skip":
            say(frame(REPLY, number, b"", b"%d of %d: " % (len(batch), welcome) + body))
        if word == "pause":
            while not Path(argument).exists():
                time.sleep(0.005)


def main() -> None:
    """Say HELLO, then answer."""
    ordered = "--ordered" in sys.argv
    say(frame(HELLO, 0, json.dumps({"protocol": 1, "ordered": ordered}).encode()))
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
