"""
Enums whose members cost no call.

In Python 3.11 `State.READY` runs a function each time and costs ten times a global; from
3.12 on a member is an attribute of its class like any other. Some are asked for dozens
of times a command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from enum import Enum

__all__ = ["plain"]

AnyEnum = TypeVar("AnyEnum", bound="type[Enum]")


def plain(enum: AnyEnum) -> AnyEnum:
    """Decorate an enum: its members are found as later Pythons find them."""
    for name, member in enum.__members__.items():
        # The class itself refuses to have its members set anew.
        type.__setattr__(enum, name, member)
    return enum
