"""
Requests of pullers about commands that they have: what became of them, and more time.

Each may come late, or again: whether a lease still holds, the gate's `leases` know. Must not know
stores.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec
from twisted.internet.defer import Deferred

from jobgate import errors
from jobgate.jobs.job import Reply
from jobgate.web import fields as read
from jobgate.web.exchange import Response, json_response
from jobgate.web.job_views import moment
from jobgate.web.problems import failed, problem
from jobgate.web.pull_terms import PULL_QUERY, lease_seconds
from jobgate.web.pushes import key_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobgate.gate import Gate
    from jobgate.jobs.journal import Leased
    from jobgate.web.access import Access
    from jobgate.web.exchange import Exchange
    from jobgate.web.pulls import Pulls

__all__ = ["Lease", "LeaseRequests", "PullerFailure", "Said"]

_LEASE = 60.0
"""Seconds that a lease is extended by if nothing is said."""


class Lease(msgspec.Struct):
    """
    A lease.

    Attributes:
        lease: Its id.
        until: When it runs out, RFC 3339; null where only calls are under it.
    """

    lease: str
    until: str | None = None


class Said(msgspec.Struct):
    """
    What has been taken note of.

    Attributes:
        id: The job or the lease.
        state: What became of it.
    """

    id: str
    state: str


class PullerFailure(msgspec.Struct):
    """
    The body of a `fail`: like a FAIL frame's meta.

    Attributes:
        title: What went wrong, in a line.
        detail: More about it.
        status: The status that the caller gets, 400 to 599.
        retry: Whether trying again may help.
    """

    title: str = "The puller could not do it"
    detail: str = ""
    status: int = 500
    retry: bool = True


class LeaseRequests:
    """
    What pullers say of what they have.

    Args:
        gate: Whose commands.
        access: Who may.
        pulls: Where those who have replied get the next command.
    """

    def __init__(self, gate: Gate, access: Access, pulls: Pulls) -> None:
        self._gate = gate
        self._access = access
        self._pulls = pulls

    async def reply(self, exchange: Exchange, name: str) -> Response:
        """A command's result; with `?next=` the answer carries the next command."""
        asked = read.query(exchange.head.target, ("next", *PULL_QUERY))
        following = asked.pop("next", "")
        terms = self._pulls.terms(asked)
        await self._may(exchange, name)
        headers = exchange.head.headers
        status = read.status(headers[b"jobgate-status"]) if b"jobgate-status" in headers else 200
        reply = Reply(status, exchange.head.content_type, exchange.body)
        # What would be refused is refused before the reply is taken: one cannot give it twice.
        key = key_of(exchange)
        road = None
        if following:
            self._access.need(exchange, f"pull:{following}")
            road = self._gate.queue(following)
            again = await self._pulls.repeated(key, terms)
            if again is not None:
                return again
        await self._gate.leases.reply(name, _lease_of(exchange), reply)
        if road is None or not exchange.connection.alive():
            return json_response(Said(id=name, state="succeeded"))
        following_one: Deferred[Response] = Deferred()
        self._pulls.take(exchange, road, terms, key, following_one.callback, following_one.errback)
        try:
            return await following_one
        except (errors.StoreUnavailable, errors.ShuttingDown):
            # The reply has been taken, and an error would have it given again: there is nothing
            # to be had now, and why, the next pull hears.
            return Response(204, "", fields="Cache-Control: no-store\r\n")

    async def fail(self, exchange: Exchange, name: str) -> Response:
        """A command that its puller could not do."""
        error = _failure(exchange)
        await self._may(exchange, name)
        state = await self._gate.leases.fail(name, _lease_of(exchange), error)
        return json_response(Said(id=name, state=state.word))

    async def decline(self, exchange: Exchange, name: str) -> Response:
        """A command that its puller will not have: another shall, and no attempt is counted."""
        await self._may(exchange, name)
        state = await self._gate.leases.decline(name, _lease_of(exchange))
        return json_response(Said(id=name, state=state.word))

    async def extend(self, exchange: Exchange, name: str) -> Response:
        """More time for a command."""
        seconds = _seconds(exchange)
        await self._may(exchange, name)
        lease = _lease_of(exchange)
        return _extended(lease, await self._gate.leases.extend_one(name, lease, seconds))

    def finish_lease(
        self, exchange: Exchange, lease: str, answer: Callable[[Response], None]
    ) -> None:
        """All commands under a lease have been done; arguments as for `Pulls.pull`."""
        try:
            self._need_any(exchange)
        except errors.JobgateError as error:
            answer(problem(error))
            return

        def finished(_: None) -> None:
            # There is such a lease, so its id is one of ours, which needs no escaping.
            text = f'{{"id":"{lease}","state":"succeeded"}}'
            answer(Response(200, "application/json", text.encode()))

        done = self._gate.leases.finish(lease, None)
        done.addCallbacks(finished, partial(failed, exchange, answer))

    async def fail_lease(self, exchange: Exchange, lease: str) -> Response:
        """None of the commands under a lease could be done."""
        self._need_any(exchange)
        await self._gate.leases.finish(lease, _failure(exchange))
        return json_response(Said(id=lease, state="failed"))

    async def extend_lease(self, exchange: Exchange, lease: str) -> Response:
        """More time for all that is under a lease."""
        self._need_any(exchange)
        return _extended(lease, await self._gate.leases.extend(lease, _seconds(exchange)))

    # --- inside

    async def _may(self, exchange: Exchange, name: str) -> None:
        """Insist on the right to pull from the queue that a command is of."""
        if exchange.token is None:
            return
        queue = self._gate.leases.queue_of(name)
        if queue is None:
            queue = (await self._gate.jobs.get(name)).queue
        self._access.need(exchange, f"pull:{queue}")

    def _need_any(self, exchange: Exchange) -> None:
        """Insist on the right to pull from some queue: a lease's id is itself a secret."""
        token = exchange.token
        if token is not None and not any(
            token.may(f"pull:{road.config.name}") for road in self._gate.dispatcher
        ):
            message = f"the token {token.name!r} may not pull"
            raise errors.Forbidden(message)


def _extended(lease: str, leased: Leased | None) -> Response:
    return json_response(Lease(lease, moment(leased.until) if leased is not None else None))


def _lease_of(exchange: Exchange) -> str:
    return exchange.head.headers.get(b"jobgate-lease", b"").decode("latin-1")


def _failure(exchange: Exchange) -> errors.CommandFailed:
    """
    What a `fail` says.

    Raises:
        BadRequest: Its body is neither empty nor such an object.
    """
    try:
        said = msgspec.json.decode(exchange.body or b"{}", type=PullerFailure)
    except msgspec.MsgspecError as error:
        message = f"body: {error}; wanted nothing, or title, detail, status and retry as JSON"
        raise errors.BadRequest(message) from None
    status = said.status if 400 <= said.status <= 599 else 500
    return errors.CommandFailed(said.title, said.detail, status, again=said.retry)


def _seconds(exchange: Exchange) -> float:
    asked = read.query(exchange.head.target, ("lease",)).get("lease")
    return _LEASE if asked is None else lease_seconds(asked)
