"""
Which store a configuration names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobgate.errors import ConfigError
from jobgate.jobs.sqlite import SqliteJournal

if TYPE_CHECKING:
    from jobgate.jobs.journal import Journal

__all__ = ["open_journal"]


def open_journal(store: str, reactor: object) -> Journal:
    """
    The store that `[gate] store` names, not yet opened.

    Args:
        store: `memory:` or `sqlite:PATH`, with a path from which the file can be reached.
        reactor: Where its Deferreds fire.

    Raises:
        ConfigError: There is no such store.
    """
    kind, colon, path = store.partition(":")
    if store == "memory:":
        return SqliteJournal(":memory:", reactor)
    if kind == "sqlite" and path and path != ":memory:":
        return SqliteJournal(path, reactor)
    if kind in ("redis", "rediss") and colon:
        raise ConfigError(
            f"gate.store: {store!r}: redis is not built yet; use memory: or sqlite:PATH"
        )
    raise ConfigError(f"gate.store: found {store!r}, wanted memory: or sqlite:PATH")
