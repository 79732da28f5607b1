"""
A configuration as TOML, and its values as messages show them.
"""

from __future__ import annotations

import re
from typing import (
    TYPE_CHECKING,
)

import msgspec

from jobgate.config.units import Linger, Rate, Secret

if TYPE_CHECKING:
    from jobgate.config.settings import GateConfig

__all__ = ["show", "to_toml"]


def to_toml(config: GateConfig) -> str:
    """The effective configuration, as a file that says the same."""
    lines = _table("gate", config.gate, ()) + _table("callbacks", config.callbacks, ())
    for name, queue in config.queues.items():
        # Without a command others drain it, as many as there are.
        skip = ("name",) if queue.command else ("name", "command", "workers")
        lines += _table(f"queues.{_key(name)}", queue, skip)
    for token in config.tokens:
        lines += _table("tokens", token, (), array=True)
    return "\n".join(lines)


def show(value: object) -> str:
    """A value as TOML writes it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Secret):
        return show(repr(value))
    if isinstance(value, Rate):
        count, unit = value.count
        return show(f"{show(count)}/{unit}")
    if isinstance(value, str):
        return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(show(item) for item in value)}]"
    if isinstance(value, dict):
        return (
            f"{{ {', '.join(f'{_key(k)} = {show(v)}' for k, v in value.items())} }}"
            if value
            else "{}"
        )
    if isinstance(value, msgspec.Struct):
        fields = ((name, getattr(value, name)) for name in value.__struct_fields__)
        return show({name: field for name, field in fields if field is not None})
    if isinstance(value, Linger) and value.word:
        return show(value.word)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(float(value))
    return str(value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else show(name)


def _table(
    name: str, struct: msgspec.Struct, skip: tuple[str, ...], *, array: bool = False
) -> list[str]:
    lines = [f"[[{name}]]" if array else f"[{name}]"]
    for field in struct.__struct_fields__:
        value = getattr(struct, field)
        if field not in skip and value is not None:
            lines.append(f"{field} = {show(value)}")
    return [*lines, ""]
