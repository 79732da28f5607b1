"""
Answers with the SHA-256 of the body, after a moment that the body's length decides.

A child; with arguments for `pull` as JSON it pulls.
"""

import json
import sys
import time
from hashlib import sha256

from jobgate.worker import Command, pull, serve


def digest(command: Command) -> str:
    """The digest in hex."""
    time.sleep(len(command.body) % 5 / 2000)
    return sha256(command.body).hexdigest()


if len(sys.argv) > 1:
    pull(digest, **json.loads(sys.argv[1]))
else:
    serve(digest)
