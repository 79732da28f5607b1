"""
How a command ends: the exit statuses, and the error that carries one.
"""

from __future__ import annotations

__all__ = [
    "BROKEN_PIPE",
    "BUSY",
    "DONE",
    "FAILED",
    "INTERRUPTED",
    "NOTHING",
    "REFUSED",
    "UNREACHABLE",
    "USAGE",
    "CliError",
]

DONE = 0
"""What was asked for has been done."""
FAILED = 1
"""It was tried and did not end well: a worker failed, a configuration or a worker is no good."""
USAGE = 2
"""The command line makes no sense."""
REFUSED = 3
"""The gate will not have it (status 400 to 499): asking again would not help."""
BUSY = 4
"""The gate cannot have it now (status 429 or 503): nothing was started, try again later."""
UNREACHABLE = 5
"""No gate answered, or the connection was lost before it had: it may have been done."""
NOTHING = 6
"""Nothing came in time: no command to pull, no result yet."""
INTERRUPTED = 130
"""Ctrl-C."""
BROKEN_PIPE = 141
"""Whoever read the output has left."""


class CliError(Exception):
    """
    It ends here; the message is one line for people.

    Args:
        message: What went wrong.
        status: The exit status.
    """

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status
