"""
An SDK worker that does what the body says: a JSON list of steps `[verb, argument]`.

The last `reply` is the reply; without one it tells what it was given.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobgate.worker import Command, Decline, Fail, Reply, serve

HOARD: list[bytes] = []
"""What it has been told to keep."""


def note(path: str, text: str) -> None:
    """Append a line to a file, at once."""
    with Path(path).open("a") as file:
        file.write(text + "\n")


def act(command: Command) -> Any:
    """Take the steps."""
    steps = command.json() if command.body else []
    if any(verb == "chunks" for verb, _ in steps):
        return stream(command, steps)
    return perform(command, steps)


def perform(command: Command, steps: list[tuple[str, Any]]) -> Any:
    """Take steps that end in one reply."""
    answer = {
        "pid": os.getpid(),
        "id": command.id,
        "queue": command.queue,
        "attempt": command.attempt,
        "headers": command.headers,
        "content_type": command.content_type,
        "remaining": None if command.remaining == float("inf") else command.remaining,
        "worker": os.environ["JOBGATE_WORKER"],
    }
    for verb, argument in steps:
        if verb == "reply":
            answer = argument
        elif verb == "answer":
            answer = Reply(argument["body"], argument.get("type"), argument.get("status"))
        elif verb == "big":
            answer = b"x" * argument
        elif verb == "note":
            note(*argument)
        elif verb == "note-attempt":
            note(argument, f"{command.attempt} {os.getpid()}")
        elif verb == "hoard":
            HOARD.append(b"x" * argument)
        elif verb == "sleep":
            time.sleep(argument)
        elif verb == "until":
            while not Path(argument).exists():
                time.sleep(0.005)
        elif verb == "cancelled":
            while not command.cancelled:
                time.sleep(0.005)
            note(argument, f"cancelled {command.id}")
        elif verb == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                pass
        elif verb == "kill":
            os.kill(os.getpid(), argument)
        elif verb == "kill-first":
            if command.attempt <= argument:
                os.kill(os.getpid(), signal.SIGKILL)
        elif verb == "exit":
            sys.stderr.flush()
            os._exit(argument)
        elif verb == "fail":
            raise Fail(*argument)
        elif verb == "raise":
            raise ValueError(argument)
        elif verb == "decline":
            raise Decline
        elif verb == "decline-at":
            if os.environ["JOBGATE_WORKER"] in argument:
                raise Decline
        elif verb == "progress":
            command.progress(*argument)
        elif verb == "print":
            print(argument)
        elif verb == "complain":
            sys.stderr.write(argument)
            sys.stderr.flush()
        elif verb == "flood":
            line = b"f" * 1023 + b"\n"
            for _ in range(argument // 1024):
                os.write(2, line)
        elif verb == "grandchild":
            os.system("echo from a child of the worker")
            child = subprocess.Popen(["sleep", str(argument)])
            answer = {"pid": os.getpid(), "grandchild": child.pid}
        elif verb == "descriptors":
            answer = sorted(int(file.name) for file in Path("/proc/self/fd").iterdir())
        elif verb == "environment":
            answer = dict(os.environ)
        else:
            raise ValueError(verb)
    return answer


def stream(command: Command, steps: list[tuple[str, Any]]) -> Iterator[bytes]:
    """Take steps that end in a stream."""
    for verb, argument in steps:
        if verb == "chunks":
            for number in range(argument["count"]):
                if "note" in argument:
                    note(argument["note"], f"chunk {number}")
                part = f"{number}:".encode() + b"c" * argument.get("size", 0) + b"\n"
                yield Reply(part, argument["type"]) if "type" in argument else part
                time.sleep(argument.get("pause", 0))
        elif verb == "gone":
            yield b""
        else:
            perform(command, [(verb, argument)])


if __name__ == "__main__":
    serve(act)
