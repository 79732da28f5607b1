"""
The short way: the hot routes, found and served without Klein.

It knows the plain forms of their addresses and nothing else: whatever it does not
recognise, byte for byte, goes to Klein, whose routes do the same.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Final

from twisted.internet.defer import Deferred

from jobgate.web.problems import failed

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from jobgate.web.calls import Calls
    from jobgate.web.exchange import Exchange, Handle, Head, Response
    from jobgate.web.leases import LeaseRequests
    from jobgate.web.pulls import Pulls
    from jobgate.web.pushes import Pushes

    Answer = Coroutine[Deferred[object], object, Response]

__all__ = ["ShortWay"]

_PLAIN: Final = re.compile(
    rb"/(push|pull|jobs|leases)/([A-Za-z0-9._-]+)(?:/(reply|ack))?(?:\?[^#]*)?\Z"
)


class ShortWay:
    """
    Finds who serves a request, if it is one of the hot ones.

    Args:
        calls: The call route's body.
        pushes: The push route's body.
        pulls: What pullers ask for.
        leases: What they say of what they have.
        queues: The names of those that are declared.
    """

    def __init__(
        self,
        calls: Calls,
        pushes: Pushes,
        pulls: Pulls,
        leases: LeaseRequests,
        queues: Iterable[str],
    ) -> None:
        # Targets that are known by heart.
        self._posts: dict[bytes, tuple[Handle, str]] = {}
        for name in queues:
            self._posts[f"/call/{name}".encode()] = calls.call, name
            for query in ("", "?each=line"):
                self._posts[f"/push/{name}{query}".encode()] = pushes.push, name
        self._routes: dict[tuple[bytes, bytes, bytes | None], Handle] = {
            (b"POST", b"push", None): pushes.push,
            (b"GET", b"pull", None): pulls.pull,
            (b"POST", b"pull", None): pulls.pull,
            (b"POST", b"jobs", b"reply"): _answering(leases.reply),
            (b"POST", b"leases", b"ack"): leases.finish_lease,
        }

    def find(self, head: Head) -> tuple[Handle, str] | None:
        """Who serves this request, and the name that it is about; None if Klein does."""
        method, target = head.method, head.target
        known = self._posts.get(target) if method == b"POST" else None
        if known is not None:
            return known
        plain = _PLAIN.match(target)
        if plain is None:
            return None
        verb, name, rest = plain.groups()
        handle = self._routes.get((method, verb, rest))
        return None if handle is None else (handle, name.decode())


def _answering(route: Callable[[Exchange, str], Answer]) -> Handle:
    """A route that Klein would wait for, as one that gives its answer away."""

    def handle(exchange: Exchange, name: str, answer: Callable[[Response], None]) -> None:
        done = Deferred.fromCoroutine(route(exchange, name))
        done.addCallbacks(answer, partial(failed, exchange, answer))

    return handle
