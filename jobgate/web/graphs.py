"""
Requests about graphs: to submit, watch, fetch and end them.

Their documents are structs, so `/openapi.json` can tell their shape. Must not know stores.
"""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import UNSET, UnsetType
from twisted.internet.threads import deferToThreadPool

from jobgate import errors
from jobgate.jobs import keyed
from jobgate.jobs.graph import Node, outcome
from jobgate.jobs.graphs import Submission
from jobgate.jobs.job import TERMINAL, State
from jobgate.jobs.picture import picture
from jobgate.web import fields as read
from jobgate.web.exchange import Response, json_response
from jobgate.web.job_views import error_of, moment
from jobgate.web.jobs import wait
from jobgate.web.problems import problem, problem_document
from jobgate.web.pushes import key_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobgate.gate import Gate
    from jobgate.jobs.job import Ending, Job, Reply
    from jobgate.jobs.journal import Graph
    from jobgate.web.access import Access
    from jobgate.web.exchange import Exchange

__all__ = ["GraphAccepted", "GraphDocument", "GraphRequests", "GraphResult", "GraphState"]

_EMBEDDED: Final = 16 * 1024 * 1024
"""Bytes of replies in one answer; what is beyond is only linked to."""
_SLOW: Final = 1000
"""Jobs of which drawing takes long enough for others to be held up."""
_json = msgspec.json.Encoder().encode
_raw = msgspec.json.Decoder(msgspec.Raw).decode


class GraphDocument(msgspec.Struct):
    """
    A graph as it is submitted.

    Attributes:
        jobs: Its jobs, by names of 1 to 200 printable characters.
    """

    jobs: dict[str, Node]


class GraphJob(msgspec.Struct, kw_only=True):
    """
    A job of a graph.

    Attributes:
        id: Its id: `GET /jobs/ID` tells more.
        queue: Its queue.
        state: blocked, scheduled, queued, running, succeeded, failed, cancelled or dead.
        needs: The state of what it needs, by name.
        attempt: Starts so far.
        error: The problem that it, or its last attempt, ended with.
    """

    id: str
    queue: str
    state: str
    needs: dict[str, str]
    attempt: int
    error: dict[str, Any] | None


class GraphState(msgspec.Struct, kw_only=True):
    """
    A graph.

    Attributes:
        id: Its id.
        state: scheduled, queued, running; in the end succeeded, failed or cancelled.
        created: When it was accepted, RFC 3339.
        finished: When its last job ended, or null.
        counts: How many of its jobs are in which state.
        jobs: Its jobs, by name.
        links: Where to go from here.
    """

    id: str
    state: str
    created: str | None
    finished: str | None
    counts: dict[str, int]
    jobs: dict[str, GraphJob]
    links: dict[str, str]


class GraphJobResult(msgspec.Struct, kw_only=True, omit_defaults=True):
    """
    What a job of a graph has come to.

    Attributes:
        id: Its id.
        state: succeeded, failed, cancelled or dead.
        reply: Its reply: JSON as it is, a text as a string, also if its worker did not say that it
            is one; null if there was none.
        reply_base64: Its reply, if its worker did not say that it is JSON or a text.
        content_type: What the reply is.
        status: The status that its worker chose, if that is not 200.
        error: The problem it ended with.
        link: Where its reply is, if it is too large to stand here.
    """

    id: str
    state: str
    reply: msgspec.Raw | str | UnsetType | None = UNSET
    reply_base64: str | UnsetType = UNSET
    content_type: str | UnsetType = UNSET
    status: int | UnsetType = UNSET
    error: dict[str, Any] | UnsetType = UNSET
    link: str | UnsetType = UNSET


class GraphResult(msgspec.Struct, kw_only=True):
    """
    What a graph has come to.

    Attributes:
        id: Its id.
        state: succeeded, failed or cancelled.
        jobs: What each of its jobs has come to, by name.
    """

    id: str
    state: str
    jobs: dict[str, GraphJobResult]


class GraphAccepted(msgspec.Struct):
    """
    What has been stored.

    Attributes:
        id: The graph.
        jobs: The ids of its jobs, by name.
    """

    id: str
    jobs: dict[str, str]


class GraphRequests:
    """
    What can be asked of graphs and done to them.

    Args:
        gate: Whose graphs.
        access: Who may.
    """

    def __init__(self, gate: Gate, access: Access) -> None:
        self._gate = gate
        self._access = access

    async def submit(self, exchange: Exchange) -> Response:
        """Store a graph; with `Prefer: wait` its results, once it has them."""
        headers = exchange.head.headers
        key = key_of(exchange)
        trace = read.traceparent(headers.get(b"traceparent", b""))
        token = exchange.token
        by = Submission(
            lambda queue: self._access.need(exchange, f"push:{queue}"),
            token.name if token is not None else "",
            _json({"traceparent": trace}).decode() if trace else "",
            key,
        )
        wanted = read.preferences(headers.get(b"prefer", b""))
        try:
            done = await self._gate.graphs.submit(exchange.body, by)
        except errors.QueueFull as error:
            return problem(error, full_status=self._gate.queue(error.queue).config.full_status)
        said = f"Location: /graphs/{done.id}\r\n"
        if done.stored.kept is not None and key is not None:
            keyed.check(done.stored.kept, key)
            said += "Idempotency-Replayed: true\r\n"
        if self._gate.jobs.journal.durability == "memory":
            said += "Jobgate-Durability: memory\r\n"
        if wanted.wait is not None:
            said += f"Preference-Applied: wait={wanted.wait:.0f}\r\n"
            graph = await self._gate.graphs.wait(done.id, wanted.wait, lambda _: None)
            if _ended(graph):
                return await self._result(graph, said)
        return Response(202, "application/json", done.answer.encode(), said)

    async def show(self, exchange: Exchange, name: str) -> Response:
        """The state of a graph and of all its jobs."""
        return json_response(_state(await self._readable(exchange, name)))

    async def result(self, exchange: Exchange, name: str) -> Response:
        """What all jobs of a graph have come to; 202 and its state until they have."""
        seconds = wait(exchange.head.target)
        graph = await self._gate.graphs.wait(
            name, seconds, lambda caller: self._may(exchange, caller)
        )
        self._may(exchange, graph.caller, graph)
        if _ended(graph):
            return await self._result(graph)
        return json_response(_state(graph), 202, fields=f"Location: /graphs/{name}\r\n")

    async def draw(self, exchange: Exchange, name: str) -> Response:
        """A graph as a picture."""
        graph = await self._readable(exchange, name)
        if len(graph.jobs) < _SLOW:
            drawn = picture(graph)
        else:
            reactor = self._gate.reactor
            drawn = await deferToThreadPool(reactor, reactor.getThreadPool(), picture, graph)
        # What names and errors say is text in it; should that ever fail, nothing of it may run.
        fields = (
            "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n"
            "X-Content-Type-Options: nosniff\r\nCache-Control: no-cache\r\n"
        )
        return Response(200, "image/svg+xml", drawn.encode(), fields)

    async def cancel(self, exchange: Exchange, name: str) -> Response:
        """End all jobs of a graph that have not ended."""
        graph = await self._readable(exchange, name)
        if _ended(graph):
            message = f"it has ended: it is {outcome(_states(graph)).word}"
            raise errors.WrongState(message, executed="maybe", id=name)
        await self._gate.jobs.journal.cancel(name, "its graph was cancelled by request")
        return json_response(_state(await self._gate.graphs.get(name)))

    # --- inside

    async def _readable(self, exchange: Exchange, name: str) -> Graph:
        """
        A graph that this caller may read, and end.

        Raises:
            UnknownJob: There is none.
            Forbidden: It is somebody else's.
        """
        graph = await self._gate.graphs.get(name)
        self._may(exchange, graph.caller, graph)
        return graph

    @staticmethod
    def _may(exchange: Exchange, caller: str, graph: Graph | None = None) -> None:
        """Insist on the right to read somebody's graph, and to end it."""
        token = exchange.token
        if token is not None and not token.may("jobs"):
            queues = {job.queue for job in graph.jobs.values()} if graph is not None else ()
            own = caller == token.name
            if not (own and all(token.may(f"push:{queue}") for queue in queues)):
                message = f"the token {token.name!r} may not read this graph"
                raise errors.Forbidden(message)

    async def _result(self, graph: Graph, fields: str = "") -> Response:
        if graph.gone:
            raise errors.Gone("its outcome was kept for its time", id=graph.id)
        ids = [job.id for job in graph.jobs.values()]
        endings = await self._gate.jobs.journal.endings(ids, _EMBEDDED)
        results = {name: _result(job, endings) for name, job in graph.jobs.items()}
        state = outcome(_states(graph)).word
        return json_response(GraphResult(id=graph.id, state=state, jobs=results), fields=fields)


def _states(graph: Graph) -> list[State]:
    return [job.state for job in graph.jobs.values()]


def _ended(graph: Graph) -> bool:
    return all(job.state >= TERMINAL for job in graph.jobs.values())


def _state(graph: Graph) -> GraphState:
    states = _states(graph)
    address = f"/graphs/{graph.id}"
    return GraphState(
        id=graph.id,
        state=outcome(states).word,
        created=moment(graph.created),
        finished=moment(max(job.finished for job in graph.jobs.values()) * _ended(graph)),
        counts={state.word: states.count(state) for state in State if state in states},
        jobs={
            name: GraphJob(
                id=job.id,
                queue=job.queue,
                state=job.state.word,
                needs={need: state.word for need, state in job.needs.items()},
                attempt=job.attempt,
                error=problem_document(error_of(job), job.id) if job.error else None,
            )
            for name, job in graph.jobs.items()
        },
        links={"self": address, "result": f"{address}/result", "picture": f"{address}.svg"},
    )


def _result(job: Job, endings: Mapping[str, Ending]) -> GraphJobResult:
    result = GraphJobResult(id=job.id, state=job.state.word)
    ending = endings.get(job.id)
    if job.state != State.SUCCEEDED:
        result.error = problem_document(error_of(job), job.id)
    elif ending is None:
        result.link = f"/jobs/{job.id}/result"
    elif ending.reply is None:
        result.reply = None
    else:
        reply = ending.reply
        result.content_type = reply.content_type
        if reply.status != 200:
            result.status = reply.status
        embedded = _embedded(reply)
        if embedded is None:
            result.reply_base64 = b64encode(reply.body).decode()
            embedded = _text_of_no_type(reply)
        if embedded is not None:
            result.reply = embedded
    return result


def _text_of_no_type(reply: Reply) -> str | None:
    """What people want to read, although its worker said nothing of what it is."""
    if reply.content_type != "application/octet-stream" or b"\0" in reply.body:
        return None
    try:
        return reply.body.decode()
    except UnicodeDecodeError:
        return None


def _embedded(reply: Reply) -> msgspec.Raw | str | None:
    """A reply as it can stand within a JSON document; None if it is neither JSON nor text."""
    kind = reply.content_type.partition(";")[0].strip().lower()
    try:
        if kind == "application/json" or kind.endswith("+json"):
            # What is not UTF-8 would make the whole answer unreadable.
            reply.body.decode()
            return _raw(reply.body)
        if kind.startswith("text/"):
            return reply.body.decode()
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        pass
    return None
