"""
An SDK worker that comes by itself: `outside.py '{"connect": ..., "queue": ...}'`, or with a
`url` instead one that pulls.

A body is a word and an argument; any other body is given back.
"""

import json
import os
import signal
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from jobgate.worker import Command, Decline, Fail, Reply, pull, serve

settings = json.loads(sys.argv[1])


def act(command: Command) -> Any:
    """Do what the body says."""
    word, _, argument = command.body.partition(b" ")
    if word == b"sleep":
        time.sleep(float(argument))
        return b"slept"
    if word == b"until":
        while not Path(argument.decode()).exists():
            time.sleep(0.005)
        return b"done"
    if word == b"cancelled":
        while not command.cancelled:
            time.sleep(0.005)
        Path(argument.decode()).touch()
    if word == b"pid":
        return str(os.getpid())
    if word == b"kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == b"kill-first" and command.attempt <= int(argument):
        os.kill(os.getpid(), signal.SIGKILL)
    if word == b"stream":
        return (b"%d\n" % number for number in range(int(argument)))
    if word == b"attempt":
        return str(command.attempt)
    if word == b"digest":
        return sha256(argument).hexdigest()
    if word == b"reply":
        return Reply("<p>made</p>", "text/html", 201)
    if word == b"fail":
        raise Fail("no such thing", "it was never made", 422)
    if word == b"once":
        raise Fail("never again", retry=False)
    if word == b"raise":
        raise KeyError(argument.decode())
    if word == b"large":
        return b"x" * int(argument)
    if word == b"decline" and not Path(argument.decode()).exists():
        Path(argument.decode()).touch()
        raise Decline
    if word == b"headers":
        return {"type": command.content_type, "queue": command.queue, **command.headers}
    if word == b"inputs":
        return {name: given.body.decode() for name, given in command.inputs.items()}
    return command.body


(pull if "url" in settings else serve)(act, **settings)
