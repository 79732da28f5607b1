"""
A worker that sleeps for as long as it is told, behind a hand-over that takes time each way.

``timed.py WORK HAND_OVER``: milliseconds of work for each worker of the queue, as ``3,2,1``, and
of every hand-over. A thread of its own takes commands in and another gives replies out, as a
network would: what is on its way holds up nobody. The reply is when the command was there, when
the work began and when it ended, on the clock that all processes of a machine share.
"""

import os
import struct
import sys
import threading
import time
from queue import SimpleQueue

from punctual import punctual

HEADER = struct.Struct(">IBBHII")
HELLO, COMMAND, REPLY, PING, PONG = 1, 3, 4, 10, 11

number = int(os.environ["JOBGATE_WORKER"].rpartition("-")[2])
WORK = float(sys.argv[1].split(",")[number - 1]) / 1000
HAND_OVER = float(sys.argv[2]) / 1000
coming: SimpleQueue[tuple[int, float]] = SimpleQueue()
going: SimpleQueue[tuple[int, bytes]] = SimpleQueue()


def say(kind: int, frame_id: int, meta: bytes, body: bytes) -> None:
    """
    Write one frame.
    """
    head = HEADER.pack(12 + len(meta) + len(body), 1, kind, 0, frame_id, len(meta))
    os.write(1, head + meta + body)


def take_in() -> None:
    """
    Read commands; each is there when its hand-over is done.
    """
    punctual()
    stdin = sys.stdin.buffer
    while len(head := stdin.read(HEADER.size)) == HEADER.size:
        length, _, kind, _, frame_id, _ = HEADER.unpack(head)
        stdin.read(length - 12)
        if kind == PING:
            say(PONG, frame_id, b"", b"")
        elif kind == COMMAND:
            time.sleep(HAND_OVER)
            coming.put((frame_id, time.monotonic()))
    os._exit(0)


def give_out() -> None:
    """
    Write replies; each hand-over takes its time.
    """
    punctual()
    while True:
        frame_id, body = going.get()
        time.sleep(HAND_OVER)
        say(REPLY, frame_id, b"", body)


punctual()
say(HELLO, 0, b'{"protocol": 1, "ordered": true}', b"")
for thread in (take_in, give_out):
    threading.Thread(target=thread, daemon=True).start()
while True:
    command, there = coming.get()
    began = time.monotonic()
    time.sleep(WORK)
    going.put((command, struct.pack(">ddd", there, began, time.monotonic())))
