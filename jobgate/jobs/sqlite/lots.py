"""
Lots in the tables: jobs that came together and are one row.

Whoever wants one job of a lot alone gets a row of its own, since the lot is split then, in
the same step. Here is what finds jobs in lots and splits them; must not know why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from jobgate.jobs.lots import one_body
from jobgate.jobs.sqlite.rows import COLUMNS, SPOKEN, encode

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from jobgate.jobs.sqlite.rows import Row

__all__ = ["containing", "known", "split", "stem"]

_OWN: Final = 32
"""Characters at the end of an id that are a job's own; a lot's ids have all before that alike."""

_COPIES: Final = {
    table: f"INSERT INTO {table} ({', '.join([*own, *same])}) SELECT "  # noqa: S608 (our own names)
    + ", ".join([f"json_extract(part.value, '$[{at}]')" for at in range(len(own))] + same)
    + f" FROM json_each(?1) AS part, {table} WHERE {table}.seq = ?2"
    for table, own, same in (
        ("job", ["seq", "id", "size"], [x for x in COLUMNS if x not in ("seq", "id", "size")]),
        ("outcome", ["seq"], ["status", "content_type", "data", "error"]),
        ("try", ["seq"], ["attempt", "worker", "started", "finished", "error", "output"]),
    )
}
"""What a lot's further parts get of it, by their numbers, ids and sizes."""


def stem(id_: str) -> str:
    """What the ids of a lot have in common."""
    return id_[:-_OWN]


def containing(db: sqlite3.Connection, id_: str) -> int | None:
    """The number of the lot that a job is in, if it is in one."""
    found = db.execute(
        "SELECT seq FROM lot WHERE stem = ? AND instr(ids, ?)", (stem(id_), f'"{id_}"')
    ).fetchone()
    return None if found is None else int(found[0])


def known(db: sqlite3.Connection, ids: Sequence[str]) -> list[str]:
    """Those of the ids under which there is a job, alone or in a lot."""
    found = db.execute(
        "SELECT id FROM job WHERE id IN (SELECT value FROM json_each(?1))"
        " UNION SELECT j.value FROM json_each(?1) AS j CROSS JOIN lot"
        " ON lot.stem = substr(j.value, 1, max(0, length(j.value) - ?2))"
        " AND instr(lot.ids, '\"' || j.value || '\"')",
        (encode(ids).decode(), _OWN),
    )
    return [id_ for (id_,) in found.fetchall()]


def split(db: sqlite3.Connection, row: Row, starts: Sequence[int]) -> list[Row]:
    """
    Make several rows of a lot's.

    Args:
        db: The tables; they know all of the row.
        row: The lot; it remains as the first part.
        starts: Where the other parts begin: indices into its ids, rising.

    Returns:
        All parts.
    """
    ids, seq = row.ids, row.seq
    ends = [*starts[1:], row.size]
    parts = [
        msgspec.structs.replace(
            row,
            seq=seq + start,
            id=ids[start],
            size=end - start,
            ids=ids[start:end] if end - start > 1 else [],
        )
        for start, end in zip(starts, ends, strict=True)
    ]
    text = encode([(part.seq, part.id, part.size) for part in parts]).decode()
    db.execute(_COPIES["job"], (text, seq))
    if row.attempt or row.finished or row.flags & SPOKEN:
        db.execute(_COPIES["outcome"], (text, seq))
        db.execute(_COPIES["try"], (text, seq))
    row.size = starts[0]
    row.ids = ids[: starts[0]] if starts[0] > 1 else []
    db.execute("UPDATE job SET size = ? WHERE seq = ?", (row.size, seq))
    body = db.execute(
        "SELECT content_type, headers, data FROM body WHERE seq = ?", (seq,)
    ).fetchone()
    if body is not None:
        *kind, data = body
        lines = data.split(b"\n")
        db.execute("UPDATE body SET data = ? WHERE seq = ?", (one_body(lines[: row.size]), seq))
        db.executemany(
            "INSERT INTO body VALUES (?, ?, ?, ?)",
            [(part.seq, *kind, one_body(lines[part.seq - seq :][: part.size])) for part in parts],
        )
    parts.insert(0, row)
    db.execute("DELETE FROM lot WHERE seq = ?", (seq,))
    db.executemany(
        "INSERT INTO lot VALUES (?, ?, ?)",
        [(part.seq, stem(part.id), encode(part.ids).decode()) for part in parts if part.ids],
    )
    return parts
