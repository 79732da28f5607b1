"""
An SDK worker that takes batches and does what each body says.

    batcher.py [SECONDS]

Every reply tells how many were together; SECONDS is how long a batch runs besides.
"""

import json
import os
import signal
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from jobgate.worker import Command, Decline, Fail, serve

SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0


def run(commands: list[Command]) -> list[Any]:
    """Answer them all."""
    time.sleep(SECONDS)
    replies = [answer(command, len(commands)) for command in commands]
    return replies[:-1] if any(c.body == b"short" for c in commands) else replies


def answer(command: Command, together: int) -> Any:
    """Answer one."""
    word, _, argument = command.body.decode("latin-1").partition(" ")
    if word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "until":
        while not Path(argument).exists():
            time.sleep(0.005)
    elif word == "boom":
        raise ValueError("boom")
    elif word == "error":
        return ValueError("its own")
    elif word == "fail":
        return Fail("no such thing", status=404)
    elif word == "decline":
        return Decline()
    elif word == "digest":
        return sha256(command.body).hexdigest()
    elif word == "stream":
        return iter([b"a", b"b"])
    return {"together": together, "body": word, "attempt": command.attempt, "pid": os.getpid()}


serve(run, batch=True, **json.loads(os.environ.get("OUTSIDE", "{}")))
