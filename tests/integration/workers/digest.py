"""Answers with the SHA-256 of the body, after a moment that the body's length decides."""

import time
from hashlib import sha256

from jobgate.worker import Command, serve


def digest(command: Command) -> str:
    """The digest in hex."""
    time.sleep(len(command.body) % 5 / 2000)
    return sha256(command.body).hexdigest()


serve(digest)
