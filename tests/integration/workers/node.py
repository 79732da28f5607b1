"""
An SDK worker for graphs: its body is a JSON object of what it is to do, in this order.

`{"note": [path, text], "sleep": s, "until": path, "kill": n, "fail": title, "size": n, "jobs": …}`;
it answers with what it was handed.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

from jobgate.worker import Command, Fail, Reply, serve


def node(command: Command) -> Any:
    """Do as told."""
    told = command.json() if command.body else {}
    if "note" in told:
        path, text = told["note"]
        with Path(path).open("a") as file:
            file.write(f"{text}\n")
    time.sleep(told.get("sleep", 0))
    while "until" in told and not Path(told["until"]).exists():
        if command.cancelled:
            raise Fail("it was told to stop")
        time.sleep(0.005)
    if command.attempt <= told.get("kill", 0):
        os.kill(os.getpid(), signal.SIGKILL)
    if "fail" in told:
        raise Fail(told["fail"], "as it was told", 409, retry=False)
    if "size" in told:
        return bytes(told["size"])
    if "text" in told:
        return told["text"]
    answer = {
        "told": {key: value for key, value in told.items() if key != "jobs"},
        "inputs": [
            [name, its.content_type, its.body.decode("latin-1")]
            for name, its in command.inputs.items()
        ],
        "headers": command.headers,
    }
    return Reply(answer, jobs=told.get("jobs"))


serve(node)
