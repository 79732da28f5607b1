"""
An SDK worker that comes by itself: `outside.py '{"connect": ..., "queue": ...}'`.

A body is a word and an argument; any other body is given back.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from jobgate.worker import Command, serve

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
    return command.body


serve(act, **settings)
