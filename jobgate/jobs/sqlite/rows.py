"""
A row of the table of jobs, as the ledger works on it, and how it is asked for.
"""

from __future__ import annotations

from typing import Final

import msgspec

from jobgate.jobs.job import State

__all__ = [
    "CALL",
    "COLUMNS",
    "EITHER",
    "GONE",
    "HELD",
    "INPUTS",
    "NEEDED",
    "ONCE",
    "ROW",
    "SPOKEN",
    "STATES",
    "WAITING",
    "Row",
    "alarm",
    "decode",
    "encode",
    "public",
]

HELD: Final = 9
"""`QUEUED`, and taken by this gate: known in RAM only, so that to take stores nothing."""
STATES: Final[tuple[State, ...]] = (*State, State.QUEUED, State.QUEUED)
"""What others see, by a row's state; with a gap at 8."""
WAITING: Final = frozenset({State.BLOCKED, State.SCHEDULED, State.QUEUED, HELD})

CALL: Final = 1
"""In the column `flags`: a caller is attached."""
ONCE: Final = 2
EITHER: Final = 4
"""What it needs may end as it likes."""
INPUTS: Final = 8
"""It needs others."""
NEEDED: Final = 16
"""Others need it."""
GONE: Final = 32
"""Its outcome is no longer kept."""
SPOKEN: Final = 64
"""It has an outcome already, of an earlier attempt or end."""

encode = msgspec.json.Encoder().encode
decode = msgspec.json.decode


class Row(msgspec.Struct, array_like=True, gc=False):
    """A row of the table of jobs, one or a lot; times and spans in milliseconds."""

    seq: int
    id: str
    queue: str
    state: int
    turn: int
    priority: int
    attempt: int
    spent: int
    attempts: int
    created: int
    due: int
    started: int
    finished: int
    alarm: int
    expires: int
    patience: int
    keep: int
    waits: int
    flags: int
    worker: str
    caller: str
    callback: str
    graph: int
    lease: int
    size: int = 1
    graph_id: str = ""
    name: str = ""
    ids: list[str] = []
    """Of all its jobs, if it is a lot."""
    dirty: int = 0
    """Which columns the table does not know yet."""


COLUMNS: Final = Row.__struct_fields__[:-4]
_COLUMNS: Final = ", ".join(f"job.{column}" for column in COLUMNS)
ROW: Final = (
    f"json_array({_COLUMNS},"  # noqa: S608 (our own names)
    " CASE job.graph WHEN 0 THEN '' ELSE (SELECT id FROM graph WHERE seq = job.graph) END,"
    " CASE job.graph WHEN 0 THEN ''"
    " ELSE (SELECT name FROM node WHERE graph = job.graph AND seq = job.seq) END,"
    " CASE job.size WHEN 1 THEN json('[]')"
    " ELSE (SELECT json(ids) FROM lot WHERE lot.seq = job.seq) END)"
)


def public(state: int) -> State:
    """What others see of the column `state`."""
    return STATES[state]


def alarm(state: int, due: int, expires: int) -> int:
    """When time alone does something to a job that has not ended; 0: never."""
    if state == State.SCHEDULED:
        return min(due, expires) if expires else due
    return 0 if state == State.RUNNING else expires
