"""
A worker's states, as one table.

Pure: events in, states out; `docs/workers.md` shows the same table as a picture. Must
not know what makes an event happen, nor what follows from a state::

    STARTING --ready--> READY --retire--> DRAINING --drained--> ENDING --exit--> GONE

A kill leads from every living state to ENDING, an exit from every state to GONE.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from jobgate.enums import plain

__all__ = ["TABLE", "Event", "IllegalEventError", "State", "after"]


@plain
class State(Enum):
    """Where a worker is in its life."""

    STARTING = "starting"
    """Spawned, not ready for commands yet."""
    READY = "ready"
    """Takes commands."""
    DRAINING = "draining"
    """Takes no more, finishes what it has."""
    ENDING = "ending"
    """Has been asked, or forced, to exit."""
    GONE = "gone"
    """Reaped."""


@plain
class Event(Enum):
    """What happens to a worker."""

    READY = "ready"
    RETIRE = "retire"
    DRAINED = "drained"
    KILL = "kill"
    EXIT = "exit"


class IllegalEventError(Exception):
    """An event in a state in which it cannot happen: a bug in the pool."""


TABLE: Final[dict[tuple[State, Event], State]] = {
    (State.STARTING, Event.READY): State.READY,
    (State.STARTING, Event.RETIRE): State.ENDING,
    (State.STARTING, Event.KILL): State.ENDING,
    (State.STARTING, Event.EXIT): State.GONE,
    (State.READY, Event.RETIRE): State.DRAINING,
    (State.READY, Event.KILL): State.ENDING,
    (State.READY, Event.EXIT): State.GONE,
    (State.DRAINING, Event.RETIRE): State.DRAINING,
    (State.DRAINING, Event.DRAINED): State.ENDING,
    (State.DRAINING, Event.KILL): State.ENDING,
    (State.DRAINING, Event.EXIT): State.GONE,
    (State.ENDING, Event.RETIRE): State.ENDING,
    (State.ENDING, Event.KILL): State.ENDING,
    (State.ENDING, Event.EXIT): State.GONE,
    (State.GONE, Event.RETIRE): State.GONE,
    (State.GONE, Event.KILL): State.GONE,
}


def after(state: State, event: Event) -> State:
    """
    The state that follows.

    Raises:
        IllegalEventError: The table has no such pair.
    """
    try:
        return TABLE[state, event]
    except KeyError:
        message = f"a worker that is {state.value} cannot see {event.value!r}"
        raise IllegalEventError(message) from None
