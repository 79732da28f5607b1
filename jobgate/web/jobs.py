"""
Requests about jobs: what each does to them, and who may.

Their documents are in `job_views`. Must not know stores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from jobgate import errors
from jobgate.jobs import keyed
from jobgate.jobs.job import TERMINAL, State
from jobgate.web import fields as read
from jobgate.web import job_views
from jobgate.web.exchange import Response, json_response
from jobgate.web.job_events import follow
from jobgate.web.pushes import reply_of

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from jobgate.gate import Gate
    from jobgate.jobs.job import Job
    from jobgate.web.access import Access
    from jobgate.web.exchange import Exchange

__all__ = ["JobRequests"]

_MOST_WAIT = 3600.0
"""Seconds that a long poll lasts at the most."""
_PAGE = 100
_MOST_A_PAGE = 1000
_STATES = {state.word: state for state in State}


class JobRequests:
    """
    What can be asked of jobs and done to them.

    Args:
        gate: Whose jobs.
        access: Who may.
    """

    def __init__(self, gate: Gate, access: Access) -> None:
        self._gate = gate
        self._access = access

    async def show(self, exchange: Exchange, name: str) -> Response:
        """The state document."""
        job = await self.readable(exchange, name)
        return json_response(await job_views.full(self._gate, job))

    async def result(self, exchange: Exchange, name: str) -> Response:
        """The reply, or the problem it ended with; 202 and the state document until then."""
        seconds = wait(exchange.head.target)
        job = await self.readable(exchange, name)
        if job.state < TERMINAL and seconds:
            job = await self._gate.jobs.wait(name, seconds)
        if job.state < TERMINAL:
            document = await job_views.full(self._gate, job)
            return json_response(document, 202, fields=f"Location: /jobs/{name}\r\n")
        return reply_of(await keyed.outcome(self._gate.jobs, name, 0))

    async def inputs(self, exchange: Exchange, name: str) -> Response:
        """The names of what a job receives, for who may pull it or read it."""
        job = await self._gate.jobs.get(name)
        if exchange.token is None or not exchange.token.may(f"pull:{job.queue}"):
            await self.readable(exchange, name)
        return json_response(job_views.Inputs(inputs=list(job.needs)))

    async def events(self, exchange: Exchange, name: str) -> Response:
        """What happens to it, as server-sent events."""
        await self.readable(exchange, name)
        return await follow(self._gate, exchange, name)

    async def cancel(self, exchange: Exchange, name: str) -> Response:
        """End it; what runs is treated as the queue's `cancel` says."""
        await self.readable(exchange, name)
        before = await self._gate.jobs.journal.cancel(name, "it was cancelled by request")
        if before is None:
            message = f"no job is called {name!r}"
            raise errors.UnknownJob(message)
        if before.state >= TERMINAL:
            message = f"it is over: {before.state.word}"
            raise errors.WrongState(message, executed="maybe", id=name)
        return json_response(await job_views.full(self._gate, await self._gate.jobs.get(name)))

    async def retry(self, exchange: Exchange, name: str) -> Response:
        """Queue a dead or failed job anew."""
        job = await self.readable(exchange, name)
        if not await self._gate.jobs.journal.retry(name):
            message = f"it is {job.state.word}, where dead or failed is wanted"
            raise errors.WrongState(message, id=name)
        document = await job_views.full(self._gate, await self._gate.jobs.get(name))
        return json_response(document, 202, fields=f"Location: /jobs/{name}\r\n")

    async def input(self, exchange: Exchange, name: str, need: str) -> Response:
        """What became of a job that this one needed, as a worker would be handed it."""
        job = await self._gate.jobs.get(name)
        token = exchange.token
        if token is None or not token.may(f"pull:{job.queue}"):
            await self.readable(exchange, name)
        found = await self._gate.graphs.input(job, need)
        return Response(200, found.content_type, found.body, "Cache-Control: no-store\r\n")

    async def page(self, exchange: Exchange) -> Response:
        """Jobs, newest first."""
        self._access.need(exchange, "jobs")
        asked = read.query(exchange.head.target, ("queue", "state", "limit", "after"))
        word = asked.get("state", "")
        if word and word not in _STATES:
            message = f"state: found {word!r}, wanted one of {', '.join(_STATES)}"
            raise errors.BadRequest(message)
        limit = read.count("limit", asked.get("limit", str(_PAGE)), _MOST_A_PAGE)
        jobs, after = await self._gate.jobs.journal.page(
            asked.get("queue", ""), _STATES.get(word), limit, asked.get("after", "")
        )
        documents = [job_views.document(self._gate, job) for job in jobs]
        return json_response(job_views.Jobs(jobs=documents, after=after or None))

    async def readable(self, exchange: Exchange, name: str) -> Job:
        """
        A job that this caller may read.

        Raises:
            UnknownJob: There is none.
            Forbidden: It is somebody else's.
        """
        job = await self._gate.jobs.get(name)
        token = exchange.token
        if token is not None and not token.may("jobs"):
            own = job.caller == token.name
            if not (own and (token.may(f"call:{job.queue}") or token.may(f"push:{job.queue}"))):
                message = f"the token {token.name!r} may not read this job"
                raise errors.Forbidden(message)
        return job


def wait(target: bytes, default: float = 0.0) -> float:
    """
    `?wait=`: seconds that a long poll may last.

    Raises:
        BadRequest: It is no number of seconds, or there is another parameter.
    """
    asked = read.query(target, ("wait",)).get("wait")
    if asked is None:
        return default
    return min(read.span("wait", asked.encode()), _MOST_WAIT)


def run(answer: Coroutine[Deferred[object], object, Response]) -> Deferred[Response]:
    """A route's coroutine as the Deferred that Klein cancels when the caller leaves."""
    return Deferred.fromCoroutine(answer)
