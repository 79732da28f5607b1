"""
One replacement of all workers of a queue, a canary first.

Pure state: which step it is at and how it ended; the Supervisor takes the steps. The first
new worker, the canary, works beside the one it shall replace. Only when it has shown that
it can serve does the old one go, and the others follow one by one::

    canary --served--> rolling --nobody left--> done

A new worker that fails leads from either of the first two to `stopped`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobgate.pool.member import Member

__all__ = ["ENOUGH", "Rollout"]

ENOUGH = 3
"""Answers by which a canary has shown that it can serve; else it has a second to fail in."""


class Rollout:
    """
    Where it is, and how it went.

    Attributes:
        cause: What it was begun for: "reload" or "config".
        total: How many workers were to be replaced.
        state: "canary", "rolling", "done" or "stopped".
        why: Why it was stopped, in words.
        trial: The canary while it serves on trial.
    """

    def __init__(self, cause: str, total: int) -> None:
        self.cause = cause
        self.total = total
        self.state = "canary"
        self.why = ""
        self.trial: Member | None = None

    def __repr__(self) -> str:
        return f"<Rollout {self.cause} {self.state} {self.why}>"

    @property
    def over(self) -> bool:
        """Whether nothing more will be done."""
        return self.state in ("done", "stopped")

    @property
    def wants_canary(self) -> bool:
        """Whether the next worker that becomes ready in another's place is on trial."""
        return self.state == "canary" and self.trial is None

    def passed(self) -> None:
        """The canary can serve: the others follow."""
        self.trial = None
        self.state = "rolling"

    def finished(self) -> None:
        """Nobody is left to be replaced."""
        self.trial = None
        self.state = "done"

    def stopped(self, why: str) -> None:
        """A new worker has failed: the old ones stay."""
        self.trial = None
        self.state, self.why = "stopped", why
