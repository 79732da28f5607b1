"""
Requests of pullers: to get commands, and to say what became of them.

A command leaves its queue once the answer that carries it has been given to the puller's
connection; a puller that has hung up before leaves it there. Must not know stores.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from jobgate import errors
from jobgate.jobs.job import Reply
from jobgate.jobs.journal import LeaseTerms
from jobgate.jobs.lots import ids_of, singles
from jobgate.jobs.pull import Pull
from jobgate.web import fields as read
from jobgate.web.exchange import Response, json_response
from jobgate.web.job_views import moment
from jobgate.web.problems import failed, problem
from jobgate.web.pushes import key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobgate.command import Command
    from jobgate.gate import Gate
    from jobgate.gate.road import Road
    from jobgate.jobs.job import Taken
    from jobgate.jobs.journal import Key, Leased
    from jobgate.web.access import Access
    from jobgate.web.exchange import Exchange

__all__ = ["PULL_QUERY", "Lease", "PullerFailure", "Pulls", "Said"]

PULL_QUERY = ("wait", "lease", "max", "min", "each")
_decode = msgspec.json.Decoder(dict[str, str]).decode
_LEASE = 60.0
"""Seconds that a lease is extended by if nothing is said."""
_MOST = 1000
"""Commands in one answer: their ids must fit one header."""
_LONGEST_LEASE = 7 * 86400.0
_MOST_WAIT = 3600.0
_REMEMBERED, _SHORT = 1024, 256
"""Targets whose terms are remembered, and the bytes that one may have for that."""


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


class _Terms(NamedTuple):
    """What a pull asks for."""

    wait: float
    lease: float
    most: int
    least: int
    lines: bool


class Pulls:
    """
    What pullers ask for and say.

    Args:
        gate: Whose queues.
        access: Who may.
    """

    def __init__(self, gate: Gate, access: Access) -> None:
        self._gate = gate
        self._access = access
        self._read: dict[bytes, _Terms] = {}

    def pull(self, exchange: Exchange, queue: str, answer: Callable[[Response], None]) -> None:
        """
        Commands of a queue, once there are any.

        Args:
            exchange: The request.
            queue: The queue's name.
            answer: Takes the response, now or later.
        """
        not_done = partial(failed, exchange, answer)
        try:
            if exchange.head.method == b"HEAD":
                raise errors.MethodNotAllowed("GET, POST")
            if exchange.token is not None:
                self._access.need(exchange, f"pull:{queue}")
            target = exchange.head.target
            terms = self._read.get(target) or self._remember(target)
            road = self._gate.queue(queue)
            key = key_of(exchange)
            if key is None or not terms.lease:
                self._take(exchange, road, terms, key, answer, not_done)
                return
        except errors.JobgateError as error:
            answer(problem(error))
            return

        def known(again: Response | None) -> None:
            if again is None and exchange.connection.alive():
                self._take(exchange, road, terms, key, answer, not_done)
            else:
                answer(again or Response(204, ""))

        self._known(key, terms).addCallback(known).addErrback(not_done)

    async def reply(self, exchange: Exchange, name: str) -> Response:
        """A command's result; with `?next=` the answer carries the next command."""
        asked = read.query(exchange.head.target, ("next", *PULL_QUERY))
        following = asked.pop("next", "")
        terms = self._terms(asked)
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
            again = await self._known(key, terms)
            if again is not None:
                return again
        await self._gate.leases.reply(name, _lease_of(exchange), reply)
        if road is None or not exchange.connection.alive():
            return json_response(Said(id=name, state="succeeded"))
        following_one: Deferred[Response] = Deferred()
        self._take(exchange, road, terms, key, following_one.callback, following_one.errback)
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
        return self._extended(lease, await self._gate.leases.extend_one(name, lease, seconds))

    def finish_lease(
        self, exchange: Exchange, lease: str, answer: Callable[[Response], None]
    ) -> None:
        """All commands under a lease have been done; arguments as for `pull`."""
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
        return self._extended(lease, await self._gate.leases.extend(lease, _seconds(exchange)))

    # --- inside

    def _known(self, key: Key | None, terms: _Terms) -> Deferred[Response | None]:
        """What the same request was answered before, while that lease lives; else None."""
        if key is None or not terms.lease:
            return succeed(None)

        def known(again: tuple[Leased, list[Taken]] | None) -> Response | None:
            return None if again is None else self._leased_again(*again, terms)

        asked = self._gate.jobs.journal.leased_by_key(key)
        answer: Deferred[Response | None] = asked.addCallback(known)
        return answer

    def _take(
        self,
        exchange: Exchange,
        road: Road,
        terms: _Terms,
        key: Key | None,
        answer: Callable[[Response], None],
        not_done: Callable[[Failure], None],
    ) -> None:
        """Pull, and answer or fail with what comes of it."""

        def done(commands: list[Command]) -> None:
            try:
                if late and not commands:
                    # Nobody may wait any more, so 204 would have it asked again and again.
                    message = "the gate finishes what it has, and there is nothing to pull of that"
                    raise errors.ShuttingDown(message)  # noqa: TRY301 (as what follows may)
                self._hand_over(commands, exchange, road, terms, key, pull, answer, not_done)
            except Exception:  # noqa: BLE001 (whatever it is, the puller must get an answer)
                pull.leave()
                not_done(Failure())

        pull = Pull(
            self._gate.jobs.backlogs[road.config.name],
            self._gate.reactor,
            most=terms.most,
            least=terms.least,
            lines=terms.lines,
            done=done,
            over=self._gate.leases.over,
        )
        waiting = exchange.on_lost
        late = self._gate.draining

        def left() -> None:
            pull.leave()
            if waiting is not None:
                waiting()

        exchange.on_lost = left
        pull.start(terms.wait)

    def _hand_over(
        self,
        commands: list[Command],
        exchange: Exchange,
        road: Road,
        terms: _Terms,
        key: Key | None,
        pull: Pull,
        answer: Callable[[Response], None],
        not_done: Callable[[Failure], None],
    ) -> None:
        """Give the puller what it got, or, if it is gone, give it back."""
        leases = self._gate.leases
        if not commands:
            trouble = self._gate.jobs.journal.trouble
            if trouble:  # there may be jobs that nobody can take
                message = f"the store cannot be used: {trouble}"
                raise errors.StoreUnavailable(message, retry_after=1)
            answer(Response(204, "", fields="Cache-Control: no-store\r\n"))
            return
        if not exchange.connection.alive():
            pull.leave()
            answer(Response(204, ""))
            return
        response = _carrying(commands, lines=terms.lines)
        if not terms.lease:
            exchange.on_lost = pull.leave
            response.on_sent = lambda: leases.hand_over(road, commands)
            answer(response)
            return
        lease = LeaseTerms(
            self._gate.new_id(),
            terms.lease,
            exchange.token.name if exchange.token is not None else "",
            key and msgspec.structs.replace(key, keep=terms.lease),
        )
        response.fields += f"Jobgate-Lease: {lease.id}\r\n"
        # What is being stored is not taken back by a puller that leaves now: its lease lapses.
        exchange.on_lost = None

        def lent(_: None) -> None:
            answer(response)

        def not_lent(failure: Failure) -> None:
            if failure.check(errors.StoreUnavailable):
                pull.leave()
            not_done(failure)

        leases.lend(road, commands, lease).addCallbacks(lent, not_lent)

    def _leased_again(self, leased: Leased, jobs: list[Taken], terms: _Terms) -> Response:
        if not terms.lines:
            jobs = [each for job in jobs for each in singles(job)]
        response = _carrying(jobs, lines=terms.lines)
        response.fields += f"Jobgate-Lease: {leased.id}\r\nIdempotency-Replayed: true\r\n"
        return response

    def _remember(self, target: bytes) -> _Terms:
        """What a target asks for: pullers repeat themselves."""
        terms = self._terms(read.query(target, PULL_QUERY))
        if len(self._read) >= _REMEMBERED:
            self._read.clear()
        if len(target) <= _SHORT:
            self._read[target] = terms
        return terms

    def _terms(self, asked: Mapping[str, str]) -> _Terms:
        wait = asked.get("wait")
        lease = asked.get("lease")
        each = asked.get("each")
        if each not in (None, "line"):
            message = f"each: found {each!r}, wanted line"
            raise errors.BadRequest(message)
        most = _number("max", asked.get("max", "1"))
        least = _number("min", asked.get("min", "1"))
        if most > 1 and each is None:
            raise errors.BadRequest("max: found more than 1, wanted each=line with it")
        if least > most:
            message = f"min: found {least}, wanted at most max = {most}"
            raise errors.BadRequest(message)
        return _Terms(
            wait=(
                float(self._gate.config.gate.long_poll_timeout)
                if wait is None
                else min(read.span("wait", wait.encode()), _MOST_WAIT)
            ),
            lease=0.0 if lease is None else _span("lease", lease),
            most=most,
            least=least,
            lines=each is not None,
        )

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

    @staticmethod
    def _extended(lease: str, leased: Leased | None) -> Response:
        return json_response(Lease(lease, moment(leased.until) if leased is not None else None))


def _carrying(commands: list[Command] | list[Taken], *, lines: bool) -> Response:
    """The response that hands commands over."""
    first = commands[0]
    fields = "Cache-Control: no-store\r\n"
    if not lines or (b"\n" in first.body and not first.ids):
        attempt = first.attempt
        fields += f"Jobgate-Id: {first.id}\r\nJobgate-Attempt: {attempt}\r\n"
        if first.headers:
            fields += _handed_on(first.headers)
        if lines:
            fields += f"Jobgate-Ids: {first.id}\r\n"
        return Response(200, first.content_type, first.body, fields)
    ids = chain.from_iterable(map(ids_of, commands))
    fields += f"Jobgate-Ids: {', '.join(ids)}\r\n"
    body = b"".join([each.body if each.ids else each.body + b"\n" for each in commands])
    return Response(200, first.content_type, body, fields)


def _handed_on(headers: dict[str, str] | str) -> str:
    """What the command's request had for its worker: `traceparent`, `jobgate-key`."""
    said = _decode(headers) if isinstance(headers, str) else headers
    return "".join([f"{name}: {value}\r\n" for name, value in said.items()])


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
    return _LEASE if asked is None else _span("lease", asked)


def _span(name: str, text: str) -> float:
    seconds = read.seconds(name, text.encode())
    if seconds > _LONGEST_LEASE:
        message = f"{name}: found {text}, wanted at most {_LONGEST_LEASE:.0f} seconds"
        raise errors.BadRequest(message)
    return seconds


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= _MOST):
        message = f"{name}: found {text!r}, wanted a number from 1 to {_MOST}"
        raise errors.BadRequest(message)
    return int(text)
