"""
Commands that are known to kill workers, and are kept out for an hour.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import sha256
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from jobgate.command import Command

__all__ = ["Poison"]

_KEPT_FOR: Final = 3600.0
"""Seconds a fingerprint is refused."""
_AT_MOST: Final = 10_000
"""Fingerprints kept; the oldest goes first."""


class Poison:
    """
    The fingerprints (SHA-256 of queue, content type and body) of poison commands.
    """

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._until)

    def add(self, command: Command, now: float) -> None:
        """Refuse commands like this one from now on."""
        fingerprint = _fingerprint(command.queue, command.content_type, command.body)
        self._until[fingerprint] = now + _KEPT_FOR
        self._until.move_to_end(fingerprint)
        while len(self._until) > _AT_MOST:
            self._until.popitem(last=False)

    def knows(self, queue: str, content_type: str, body: bytes, now: float) -> bool:
        """Whether such a command is to be refused."""
        fingerprint = _fingerprint(queue, content_type, body)
        until = self._until.get(fingerprint)
        if until is None:
            return False
        if until < now:
            del self._until[fingerprint]
            return False
        return True

    def clear(self) -> None:
        """Forget them all: the workers' code may have been mended."""
        self._until.clear()


def _fingerprint(queue: str, content_type: str, body: bytes) -> bytes:
    digest = sha256(f"{queue}\n{content_type}\n".encode())
    digest.update(body)
    return digest.digest()
