"""
Answers with the SHA-256 of what it is given, inputs included, and writes down when it begins.
"""

import os
import time
from hashlib import sha256

from jobgate.worker import Command, serve

LOG = os.open(os.environ["CHAOS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def digest(command: Command) -> str:
    """One line in one system call: time (of all processes), id and attempt; then the work."""
    os.write(LOG, f"{time.monotonic_ns()} {command.id} {command.attempt}\n".encode())
    time.sleep(command.body[0] % 16 / 1000 if command.body else 0)
    whole = sha256(command.body)
    for given in command.inputs.values():
        whole.update(given.body)
    return whole.hexdigest()


serve(digest)
