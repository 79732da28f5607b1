"""
Lots: jobs that came together and are one row, for as long as they share their fate.

A push of lines is stored, taken by a puller, leased and ended in lots, at about the cost
of a single job each. Nobody need know: whoever wants one job of a lot gets a row of its
own, since the lot is split then, in the same step. Here is what makes them, finds jobs in
them and splits them; must not know why.
"""

from __future__ import annotations

from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import msgspec

from jobgate.jobs.sqlite.rows import COLUMNS, SPOKEN, encode

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

    from jobgate.jobs.job import NewJob
    from jobgate.jobs.sqlite.rows import Row

__all__ = ["bodies_of", "containing", "gather", "known", "one_body", "split", "stem"]

_SIZE: Final = 128
"""Jobs of a lot at most: what it costs to split one is bounded."""
_BYTES: Final = 1 << 18
"""And bytes of their bodies."""
_OWN: Final = 32
"""Characters at the end of an id that are a job's own; a lot's ids have all before that alike."""

_alike = attrgetter(
    "queue", "content_type", "priority", "attempts", "delay", "expires", "keep", "headers",
    "caller", "callback", "call", "once", "name", "needs", "when",
)  # fmt: skip

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


def gather(jobs: Sequence[NewJob]) -> Iterator[list[NewJob]]:
    """New jobs, in order, as lots and single ones."""
    if len(jobs) == 1:
        yield [jobs[0]]
        return
    for _, alike in groupby(jobs, _alike):
        for _, kin in groupby(alike, lambda job: job.id[:-_OWN]):
            run = list(kin)
            first = run[0]
            if not first.id[:-_OWN] or first.call or first.callback:
                yield from ([job] for job in run)
                continue
            for at in range(0, len(run), _SIZE):
                some = run[at : at + _SIZE]
                text = b"".join([job.body for job in some])
                if len(text) <= _BYTES and b"\n" not in text:
                    yield some
                else:
                    yield from ([job] for job in some)


def one_body(bodies: Sequence[bytes]) -> bytes:
    """The bodies of a row's jobs as it keeps them."""
    return bodies[0] if len(bodies) == 1 else b"\n".join([*bodies, b""])


def bodies_of(row: Row, data: bytes) -> list[bytes]:
    """And what they were."""
    return [data] if row.size == 1 else data.split(b"\n")[:-1]


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
