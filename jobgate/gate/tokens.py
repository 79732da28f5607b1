"""
Tokens: who somebody is, and what he may do. Must not know how a token was sent.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from hashlib import sha256
from typing import TYPE_CHECKING

from jobgate.errors import QuotaExceeded

if TYPE_CHECKING:
    from jobgate.config import GateConfig, TokenConfig

__all__ = ["Token", "Tokens"]

_REMEMBERED = 4096
"""Rights whose verdict is remembered: callers repeat themselves."""


class Token:
    """
    A caller, known by its token.

    Args:
        config: Its name, what it may do, and its quota.

    Attributes:
        name: What it is called.
        sha256: Its digest, in hex.
    """

    def __init__(self, config: TokenConfig) -> None:
        self.name = config.name
        self.sha256 = config.sha256
        self._allow = config.allow
        self._rate = config.rate
        self._burst = max(1.0, config.rate or 0.0)
        self._left = self._burst
        self._at = 0.0
        self._known: dict[str, bool] = {}

    def may(self, right: str) -> bool:
        """Whether it has a right, such as `call:resize` or `admin`."""
        known = self._known.get(right)
        if known is None:
            known = any(fnmatchcase(right, grant) for grant in self._allow)
            if len(self._known) < _REMEMBERED:
                self._known[right] = known
        return known

    def spend(self, now: float) -> None:
        """
        Take one request off its quota.

        Raises:
            QuotaExceeded: There is none left.
        """
        if self._rate is None:
            return
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            message = f"{self.name} may send {self._rate.words}"
            raise QuotaExceeded(message, retry_after=(1 - self._left) / self._rate)
        self._left -= 1


class Tokens:
    """
    All of a configuration's tokens; false if there are none.

    Args:
        config: The configuration.
    """

    def __init__(self, config: GateConfig) -> None:
        self._by_digest = {token.sha256: Token(token) for token in config.tokens}
        self._by_name = {token.name: token for token in self._by_digest.values()}

    def __bool__(self) -> bool:
        return bool(self._by_digest)

    def named(self, name: str) -> Token | None:
        """The token that is called so, or None."""
        return self._by_name.get(name)

    def find(self, secret: bytes) -> Token | None:
        """Whose token this is, or None."""
        # A digest is looked up, never a secret compared: its timing tells nothing.
        return self.of(sha256(secret).hexdigest())

    def of(self, digest: str) -> Token | None:
        """Whose token has this SHA-256, in hex; None if nobody's."""
        return self._by_digest.get(digest)
