"""
The kinds of value that a configuration has beside TOML's own, and how each is written.

Pure: a value as TOML gives it in, a number or a text out, a ValueError otherwise.
"""

from __future__ import annotations

import binascii
import re
from math import isfinite
from typing import (
    Self,
)

__all__ = ["AUTO", "FULL", "HIDDEN", "Bytes", "Linger", "Rate", "Seconds", "Secret"]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\Z")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|[KMGT]i?B)?\Z")
_RATE = re.compile(r"(\d+(?:\.\d+)?)/(s|m|h|d)\Z")
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_PERIODS = {"s": "a second", "m": "a minute", "h": "an hour", "d": "a day"}
_SIZES = {"K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_SHORTEST_KEY = 16
"""Bytes of a secret; fewer could be guessed."""
HIDDEN = "***"
"""Stands for a secret wherever it would be seen."""


class Seconds(float):
    """A duration: a number of seconds, or a text such as `500ms` or `2m`."""

    __slots__ = ()
    wanted = 'a number of seconds, or a text such as "500ms" or "2m"'

    @classmethod
    def read(cls, value: object) -> Seconds:
        """
        Raises:
            ValueError: It is no duration.
        """
        if isinstance(value, str) and (match := _DURATION.match(value)):
            return cls(float(match[1]) * _UNITS[match[2]])
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(cls.wanted)  # noqa: TRY004 (the text's own errors are ValueErrors)
        if value >= 0 and isfinite(value):
            return cls(value)
        raise ValueError


class Bytes(int):
    """A size: a number of bytes, or a text such as `16MiB`."""

    wanted = 'a number of bytes, or a text such as "64KiB" or "16MiB"'

    @classmethod
    def read(cls, value: object) -> Bytes:
        """
        Raises:
            ValueError: It is no size.
        """
        if isinstance(value, str) and (match := _SIZE.match(value)):
            unit = match[2] or "B"
            return cls(int(float(match[1]) * _SIZES.get(unit[0], 1)))
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(value)
        raise ValueError


class Rate(float):
    """Requests a second, written `100/s`, `600/m` or `1000/h`."""

    __slots__ = ()
    wanted = 'a text such as "100/s", "600/m" or "1000/h"'

    @property
    def count(self) -> tuple[float, str]:
        """How many in the shortest time in which that is a whole number, or in a day; and which."""
        counts = ((round(self * _UNITS[unit], 6), unit) for unit in _PERIODS)
        daily = round(self * _UNITS["d"], 6), "d"
        return next((each for each in counts if each[0].is_integer()), daily)

    @property
    def words(self) -> str:
        """The same for people."""
        count, unit = self.count
        return f"{count:g} request{'s' * (count != 1)} {_PERIODS[unit]}"

    @classmethod
    def read(cls, value: object) -> Rate:
        """
        Raises:
            ValueError: It is no rate.
        """
        if isinstance(value, str) and (match := _RATE.match(value)) and float(match[1]) > 0:
            return cls(float(match[1]) / _UNITS[match[2]])
        raise ValueError


class Secret(str):
    """
    A key that signs, as Standard Webhooks writes it; it is never shown.

    Attributes:
        key: The bytes that it stands for; none if it is empty.
    """

    __slots__ = ("key",)
    wanted = f'"whsec_" and then at least {_SHORTEST_KEY} bytes in base64'
    key: bytes

    def __new__(cls, text: str = "") -> Self:
        """
        Raises:
            ValueError: It is no such text.
        """
        secret = super().__new__(cls, text)
        secret.key = binascii.a2b_base64(text.removeprefix("whsec_"), strict_mode=True)
        if text and not (text.startswith("whsec_") and len(secret.key) >= _SHORTEST_KEY):
            raise ValueError(cls.wanted)
        return secret

    def __repr__(self) -> str:
        return HIDDEN if self else ""

    @classmethod
    def read(cls, value: object) -> Secret:
        """
        Raises:
            ValueError: It is no secret.
        """
        if isinstance(value, str):
            return cls(value)
        raise ValueError(cls.wanted)


class Linger(Seconds):
    """How long the oldest of a batch waits for company: a duration, `full` or `auto`."""

    __slots__ = ()
    wanted = 'a number of seconds, a text such as "5ms", "full" or "auto"'

    @classmethod
    def read(cls, value: object) -> Linger:
        """
        Raises:
            ValueError: It is neither a duration nor one of the two words.
        """
        if value == "full":
            return FULL
        if value == "auto":
            return AUTO
        return cls(super().read(value))

    @property
    def word(self) -> str:
        """What it is written as, if it is no duration."""
        return "full" if self == FULL else "auto" if self == AUTO else ""


FULL = Linger("inf")
"""Only full batches go, or when a deadline forces it."""
AUTO = Linger(-1)
"""The gate decides, from what it measures."""
