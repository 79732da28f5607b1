"""
A worker that counts words, slowly.
"""

import time

from jobgate.worker import Command, serve


def count(command: Command) -> dict[str, int]:
    """Count the words of the body."""
    time.sleep(1)
    return {"words": len(command.body.split())}


serve(count)
