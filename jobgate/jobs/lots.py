r"""
Lots: jobs that came together and are one thing, for as long as they share their fate.

A push of lines is stored, taken by a puller, leased and ended in lots, at about the cost of a
single job each. Whoever wants one job of a lot alone has the lot parted. Here is what makes
them and parts them; must not know stores, queues or HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jobgate.jobs.job import NewJob

__all__ = ["bodies_of", "gather", "ids_of", "one_body", "singles", "size_of"]

_SIZE: Final = 100
"""
Jobs of a lot at most: what it costs to part one is bounded.

As many as pullers usually ask for, so that most lots never need be.
"""
_BYTES: Final = 1 << 18
"""And bytes of their bodies."""


class _Lot(Protocol):
    """What may stand for one job or for a lot."""

    @property
    def id(self) -> str:
        """The first one's."""

    @property
    def ids(self) -> Sequence[str]:
        """Of all its jobs; empty if it is a single one."""


def ids_of(lot: _Lot) -> Sequence[str]:
    """The ids of its jobs, be it a lot or a single one."""
    return lot.ids or (lot.id,)


def size_of(lot: _Lot) -> int:
    """How many jobs it is."""
    return len(lot.ids) or 1


def one_body(bodies: Sequence[bytes]) -> bytes:
    """The bodies of so many jobs as one."""
    return bodies[0] if len(bodies) == 1 else b"\n".join([*bodies, b""])


def bodies_of(size: int, body: bytes) -> list[bytes]:
    """And what they were."""
    return [body] if size == 1 else body.split(b"\n")[:-1]


def gather(like: NewJob, ids: Sequence[str], bodies: Sequence[bytes]) -> Iterator[NewJob]:
    """
    New jobs that have come together, as lots.

    Args:
        like: What they have in common.
        ids: Theirs.
        bodies: Likewise; none has a newline.
    """
    for at in range(0, len(ids), _SIZE):
        its, some = ids[at : at + _SIZE], bodies[at : at + _SIZE]
        body = one_body(some)
        if len(its) > 1 and len(body) <= _BYTES and not like.callback:
            yield replace(like, id=its[0], ids=its, body=body)
        else:
            yield from _alone(like, its, some)


def singles(job: NewJob) -> list[NewJob]:
    """The jobs of a lot, each alone."""
    if not job.ids:
        return [job]
    return _alone(job, job.ids, bodies_of(len(job.ids), job.body))


def _alone(like: NewJob, ids: Sequence[str], bodies: Sequence[bytes]) -> list[NewJob]:
    return [replace(like, id=id_, ids=(), body=body) for id_, body in zip(ids, bodies, strict=True)]
