r"""
Lots: jobs that came together and are one thing, for as long as they share their fate.

A push of lines is stored, taken by a puller, leased and ended in lots, at about the cost of a
single job each. Whoever wants one job of a lot alone has the lot parted. Here is what makes
them and parts them; must not know stores, queues or HTTP.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from msgspec.structs import replace

from jobgate.jobs.job import NewJob, Taken

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Jobs", "bodies_of", "gather", "ids_of", "one_body", "parted", "singles", "size_of"]

_SIZE: Final = 100
"""
Jobs of a lot at most: what it costs to part one is bounded.

As many as pullers usually ask for, so that most lots never need be.
"""
_BYTES: Final = 1 << 18
"""And bytes of their bodies."""


Jobs = TypeVar("Jobs", NewJob, Taken)


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
        lot = replace(like, id=its[0], ids=its if len(its) > 1 else (), body=body)
        if len(body) <= _BYTES and not like.callback:
            yield lot
        else:
            yield from singles(lot)


def parted(lot: Jobs, starts: Sequence[int]) -> list[Jobs]:
    """
    The parts of a lot.

    Args:
        lot: It.
        starts: Where the others begin: indices into its ids, rising.
    """
    ids, bodies = lot.ids, bodies_of(len(lot.ids), lot.body)
    bounds = [0, *starts, len(ids)]
    return [
        replace(
            lot,
            id=ids[start],
            ids=ids[start:end] if end - start > 1 else (),
            body=one_body(bodies[start:end]),
        )
        for start, end in pairwise(bounds)
    ]


def singles(lot: Jobs) -> list[Jobs]:
    """The jobs of a lot, each alone."""
    return parted(lot, range(1, len(lot.ids))) if lot.ids else [lot]
