"""
Requests of pullers for commands.

A command leaves its queue once the answer that carries it has been given to the puller's
connection; a puller that has hung up before leaves it there. What pullers say of commands they
have is in `leases`. Must not know stores.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Final

import msgspec
from twisted.internet.defer import succeed
from twisted.python.failure import Failure

from jobgate import errors
from jobgate.jobs.journal import LeaseTerms
from jobgate.jobs.lots import ids_of, singles
from jobgate.jobs.pull import Pull
from jobgate.web import fields as read
from jobgate.web import pull_terms
from jobgate.web.exchange import Response
from jobgate.web.problems import failed, problem
from jobgate.web.pull_terms import PULL_QUERY
from jobgate.web.pushes import key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twisted.internet.defer import Deferred

    from jobgate.command import Command
    from jobgate.gate import Gate
    from jobgate.gate.road import Road
    from jobgate.jobs.job import Taken
    from jobgate.jobs.journal import Key, Leased
    from jobgate.web.access import Access
    from jobgate.web.exchange import Exchange
    from jobgate.web.pull_terms import Terms

__all__ = ["Pulls"]

_decode: Final = msgspec.json.Decoder(dict[str, str]).decode
_REMEMBERED: Final = 1024
_SHORT: Final = 256
"""Targets whose terms are remembered, and the bytes that one may have for that."""


class Pulls:
    """
    What pullers ask for.

    Args:
        gate: Whose queues.
        access: Who may.
    """

    def __init__(self, gate: Gate, access: Access) -> None:
        self._gate = gate
        self._access = access
        self._read: dict[bytes, Terms] = {}

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
                self.take(exchange, road, terms, key, answer, not_done)
                return
        except errors.JobgateError as error:
            answer(problem(error))
            return

        def known(again: Response | None) -> None:
            if again is None and exchange.connection.alive():
                self.take(exchange, road, terms, key, answer, not_done)
            else:
                answer(again or Response(204, ""))

        self.repeated(key, terms).addCallback(known).addErrback(not_done)

    def terms(self, asked: Mapping[str, str]) -> Terms:
        """
        What a pull with these parameters asks for.

        Raises:
            BadRequest: One of them cannot be.
        """
        return pull_terms.terms(asked, float(self._gate.config.gate.long_poll_timeout))

    def repeated(self, key: Key | None, terms: Terms) -> Deferred[Response | None]:
        """What the same pull was answered before, while that lease lives; else None."""
        if key is None or not terms.lease:
            return succeed(None)

        def known(again: tuple[Leased, list[Taken]] | None) -> Response | None:
            return None if again is None else _leased_again(*again, terms)

        asked = self._gate.jobs.journal.leased_by_key(key)
        answer: Deferred[Response | None] = asked.addCallback(known)
        return answer

    def take(
        self,
        exchange: Exchange,
        road: Road,
        terms: Terms,
        key: Key | None,
        answer: Callable[[Response], None],
        not_done: Callable[[Failure], None],
    ) -> None:
        """
        Take commands, and answer or fail with what comes of it.

        Args:
            exchange: The request.
            road: The queue.
            terms: What it asks for.
            key: Its idempotency key.
            answer: Takes the response, now or later.
            not_done: Takes why there is none.
        """

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

    # --- inside

    def _hand_over(
        self,
        commands: list[Command],
        exchange: Exchange,
        road: Road,
        terms: Terms,
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
            self._gate.ids.make(),
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

    def _remember(self, target: bytes) -> Terms:
        """What a target asks for: pullers repeat themselves."""
        terms = self.terms(read.query(target, PULL_QUERY))
        if len(self._read) >= _REMEMBERED:
            self._read.clear()
        if len(target) <= _SHORT:
            self._read[target] = terms
        return terms


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


def _leased_again(leased: Leased, jobs: list[Taken], terms: Terms) -> Response:
    if not terms.lines:
        jobs = [each for job in jobs for each in singles(job)]
    response = _carrying(jobs, lines=terms.lines)
    response.fields += f"Jobgate-Lease: {leased.id}\r\nIdempotency-Replayed: true\r\n"
    return response
