"""
Requests that become jobs: `POST /push/<queue>`, and calls that are to be stored.

A 202 is sent once the store has what it speaks of, never earlier. Both ways in, the
short one and Klein's, come through here.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

import msgspec
from msgspec.structs import replace
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from jobgate import errors
from jobgate.jobs import keyed
from jobgate.jobs.job import TERMINAL, NewJob
from jobgate.jobs.journal import Key
from jobgate.jobs.lots import gather, ids_of, size_of
from jobgate.jobs.targets import callback_url
from jobgate.web import fields as read
from jobgate.web.exchange import Response
from jobgate.web.fields import PUSH_FIELDS
from jobgate.web.job_views import error_of
from jobgate.web.problems import problem
from jobgate.wire.lines import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure

    from jobgate.command import Command
    from jobgate.gate import Gate
    from jobgate.gate.road import Road
    from jobgate.jobs.journal import Stored
    from jobgate.jobs.keyed import Outcome
    from jobgate.web.access import Access
    from jobgate.web.exchange import Exchange

__all__ = ["Asked", "Pushes", "key_of", "reply_of"]

_MOST_LINES: Final = 250_000
"""Of one push: each is a job that RAM holds until all are stored."""
_json: Final = msgspec.json.Encoder().encode


class Asked(NamedTuple):
    """
    What a call's headers ask for, beside what is set on the command.

    Attributes:
        shard: `Jobgate-Key`.
        no_queue: Refuse it unless a worker is free.
        respond_async: Its caller would take a 202.
        wait: Seconds after which such a caller gets one.
        applied: Header lines that say what was done of it.
    """

    shard: str = ""
    no_queue: bool = False
    respond_async: bool = False
    wait: float | None = None
    applied: str = ""


class Pushes:
    """
    What comes in to be stored.

    Args:
        gate: Where it goes.
        access: Who may send it.
    """

    _log: ClassVar = Logger()

    def __init__(self, gate: Gate, access: Access) -> None:
        self._gate = gate
        self._access = access
        durability = gate.jobs.journal.durability
        self._durability = "Jobgate-Durability: memory\r\n" if durability == "memory" else ""

    # --- push

    def push(self, exchange: Exchange, queue: str, answer: Callable[[Response], None]) -> None:
        """
        Store the body as a job, or each of its lines, and answer 202 once that is done.

        Args:
            exchange: The request, all of it.
            queue: The queue's name.
            answer: Takes the response, now or later.
        """
        try:
            if exchange.token is not None:
                self._access.need(exchange, f"push:{queue}")
            road = self._gate.queue(queue)
            key = key_of(exchange)
            by_line = b"?" in exchange.head.target and self._by_line(exchange)
            jobs = self._jobs(exchange, road, by_line=by_line)
            if not by_line:
                # Names and ids need no escaping.
                (job,) = jobs
                state = "scheduled" if job.delay else "queued"
                text = f'{{"id":"{job.id}","state":"{state}","queue":"{queue}"}}'.encode()
                location = f"Location: /jobs/{job.id}\r\nJobgate-Id: {job.id}\r\n"
            else:
                said: dict[str, Any] = {"accepted": sum(map(size_of, jobs))}
                if jobs:
                    said |= {"first": jobs[0].id, "last": ids_of(jobs[-1])[-1]}
                text, location = _json(said), ""
                if not jobs:
                    answer(self._accepted(text, location))
                    return
            if key is not None:
                key = replace(
                    key, answer=_json([location, text.decode()]).decode(), keep=jobs[0].keep
                )
            stored = self._gate.jobs.put(jobs, key=key)
        except errors.JobgateError as error:
            answer(problem(error, full_status=self._full_status(queue)))
            return
        stored.addCallbacks(
            self._pushed,
            self._not_done,
            callbackArgs=(key, text, location, answer),
            errbackArgs=(queue, answer),
        )

    def _pushed(
        self,
        stored: Stored,
        key: Key | None,
        text: bytes,
        location: str,
        answer: Callable[[Response], None],
    ) -> None:
        if stored.kept is None or key is None:
            answer(self._accepted(text, location))
            return
        try:
            keyed.check(stored.kept, key)
        except errors.Unprocessable as error:
            answer(problem(error))
            return
        location, said = msgspec.json.decode(stored.kept.answer, type=tuple[str, str])
        answer(self._accepted(said.encode(), f"{location}Idempotency-Replayed: true\r\n"))

    def _accepted(self, text: bytes, fields: str) -> Response:
        return Response(202, "application/json", text, fields + self._durability)

    @staticmethod
    def _by_line(exchange: Exchange) -> bool:
        each = read.query(exchange.head.target, ("each",)).get("each")
        if each not in (None, "line"):
            message = f"each: found {each!r}, wanted line"
            raise errors.BadRequest(message)
        return each is not None

    def _jobs(self, exchange: Exchange, road: Road, *, by_line: bool) -> list[NewJob]:
        """The jobs that a request is about, lines in lots, with what its headers ask for."""
        config = road.config
        head = exchange.head
        headers, content_type = head.headers, head.content_type
        queue = config.name
        checked = config.protocol == "lines"
        body = exchange.body
        bodies = _lines(body) if by_line else [body]
        if checked:
            bodies = [_as_line(body, content_type) for body in bodies]
        like = NewJob(
            id="" if by_line else self._gate.ids.make(),
            queue=queue,
            body=b"" if by_line else bodies[0],
            content_type=content_type,
            attempts=config.attempts,
            expires=config.expires,
            keep=config.result_ttl,
            caller=exchange.token.name if exchange.token is not None else "",
            once=config.retry == "never",
        )
        if not PUSH_FIELDS.isdisjoint(headers):
            like = replace(like, **self._asked_for(headers))
        if not by_line:
            return [like]
        return list(gather(like, self._gate.ids.some(len(bodies)), bodies))

    @staticmethod
    def _asked_for(headers: dict[bytes, bytes]) -> dict[str, Any]:
        more = _later(headers)
        handed_on: dict[str, str] = {}
        if b"priority" in headers:
            more["priority"] = read.priority(headers[b"priority"])
        if b"jobgate-key" in headers:
            handed_on["jobgate-key"] = read.key(headers[b"jobgate-key"])
        if b"traceparent" in headers:
            trace = read.traceparent(headers[b"traceparent"])
            if trace is not None:
                handed_on["traceparent"] = trace
        if handed_on:
            more["headers"] = _json(handed_on).decode()
        return more

    # --- calls that are stored

    def call(
        self,
        exchange: Exchange,
        command: Command,
        answer: Callable[[Response], None],
        asked: Asked,
    ) -> None:
        """
        Have a call run that is to be stored: it has a key, or its caller would take a 202.

        Args:
            exchange: The request.
            command: What it has become; its deadline bounds how long the caller waits.
            answer: Takes the response, later.
            asked: What its headers ask for.

        Raises:
            JobgateError: It is refused.
        """
        road = self._gate.dispatcher[command.queue]
        key = key_of(exchange)
        if asked.respond_async:
            later = _later(exchange.head.headers)
            done = Deferred.fromCoroutine(self._as_job(command, road, key, asked, later))
        else:
            assert key is not None, "one of the two was asked for"
            done = Deferred.fromCoroutine(self._with_key(road, command, key, asked))
        done.addCallbacks(answer, self._not_done, errbackArgs=(command.queue, answer, command))

    async def _with_key(self, road: Road, command: Command, key: Key, asked: Asked) -> Response:
        key = replace(key, keep=float(road.config.result_ttl))
        done = await keyed.call(
            self._gate.jobs, road, command, key, shard=asked.shard, no_queue=asked.no_queue
        )
        response = reply_of(done)
        response.fields += asked.applied + self._durability
        return response

    async def _as_job(
        self, command: Command, road: Road, key: Key | None, asked: Asked, later: dict[str, Any]
    ) -> Response:
        jobs = self._gate.jobs
        config = road.config
        wait = asked.wait
        if asked.no_queue and not road.free:
            raise errors.QueueFull("no worker is free now")
        job = NewJob(
            id=command.id,
            queue=command.queue,
            body=(
                _as_line(command.body, command.content_type)
                if config.protocol == "lines"
                else command.body
            ),
            content_type=command.content_type,
            priority=command.priority,
            attempts=config.attempts,
            expires=config.expires,
            keep=config.result_ttl,
            headers=_json(command.headers).decode() if command.headers else "",
            caller=command.caller,
            once=config.retry == "never",
            **later,
        )
        if key is not None:
            key = replace(key, keep=job.keep)
        stored = await jobs.put([job], key=key)
        name = job.id
        replayed = ""
        if stored.kept is not None and key is not None:
            keyed.check(stored.kept, key)
            name = stored.kept.id
            replayed = "Idempotency-Replayed: true\r\n"
        applied = "Preference-Applied: respond-async"
        if wait is not None:
            applied += f", wait={wait:.0f}"
        left = command.deadline - command.accepted
        done = await keyed.outcome(jobs, name, min(wait or 0.0, left), replayed=bool(replayed))
        if done.job.state >= TERMINAL:
            response = reply_of(done)
            response.fields += self._durability
            return response
        text = _json({"id": name, "state": done.job.state.word, "queue": job.queue})
        location = f"Location: /jobs/{name}\r\nJobgate-Id: {name}\r\n"
        return self._accepted(text, f"{location}{applied}\r\n{replayed}")

    # --- what goes wrong

    def _full_status(self, queue: str) -> int:
        road = self._gate.dispatcher.roads.get(queue)
        return road.config.full_status if road is not None else 503

    def _not_done(
        self,
        failure: Failure,
        queue: str,
        answer: Callable[[Response], None],
        command: Command | None = None,
    ) -> None:
        error = failure.value
        if isinstance(error, CancelledError):
            return
        if not isinstance(error, errors.JobgateError):
            self._log.failure("a request to {queue} failed", failure=failure, queue=queue)
            error = errors.InternalError("the gate's log has the details")
        # Whoever has joined what another has sent is told of that: of his own there is nothing.
        name = error.extra.get("id") or (command.id if command is not None else "")
        answer(problem(error, str(name), self._full_status(queue)))


def key_of(exchange: Exchange) -> Key | None:
    """
    The idempotency key of a request: scope is token, method and path.

    Raises:
        BadRequest: It cannot be read.
    """
    head = exchange.head
    value = head.headers.get(b"idempotency-key")
    if value is None:
        return None
    scope = sha256(exchange.token.name.encode() if exchange.token is not None else b"")
    for part in (head.method, head.path, read.idempotency_key(value).encode()):
        scope.update(b"%d:%b" % (len(part), part))
    kind = head.headers.get(b"content-type", b"")
    fingerprint = sha256(b"%d:%b" % (len(kind), kind))
    fingerprint.update(exchange.body)
    return Key(scope.hexdigest(), fingerprint.hexdigest())


def reply_of(done: Outcome) -> Response:
    """
    The response that tells of a stored outcome.

    Args:
        done: The outcome of a job that has ended.
    """
    job = done.job
    said = f"Jobgate-Attempt: {job.attempt}\r\n"
    if job.worker:
        said += f"Jobgate-Worker: {job.worker}\r\n"
    if done.replayed:
        said += "Idempotency-Replayed: true\r\n"
    if done.reply is not None:
        run = max(0.0, job.finished - job.started) * 1000
        wait = max(0.0, job.started - job.created) * 1000
        said += (
            f"Jobgate-Id: {job.id}\r\nServer-Timing: queue;dur={wait:.3f}, run;dur={run:.3f}\r\n"
        )
        return Response(done.reply.status, done.reply.content_type, done.reply.body, said)
    if job.gone:
        response = problem(errors.Gone("its outcome was kept for its time"), job.id)
    else:
        response = problem(error_of(job), job.id)
    response.fields += said
    return response


def _later(headers: dict[bytes, bytes]) -> dict[str, Any]:
    """When a job may start, and who is told of its end, as far as its sender says so."""
    later: dict[str, Any] = {}
    if b"jobgate-delay" in headers:
        later["delay"] = read.span("Jobgate-Delay", headers[b"jobgate-delay"])
    if b"jobgate-callback" in headers:
        later["callback"] = callback_url(headers[b"jobgate-callback"].decode("latin-1"))
    return later


def _lines(body: bytes) -> list[bytes]:
    r"""
    The lines of a body: they end at \n only, and a final one adds nothing.

    Raises:
        Unprocessable: They are too many.
    """
    if not body:
        return []
    lines = body.split(b"\n")
    if not lines[-1]:
        lines.pop()
    if len(lines) > _MOST_LINES:
        message = f"body: found {len(lines)} lines, wanted at most {_MOST_LINES} in one push"
        raise errors.Unprocessable(message)
    return lines


def _as_line(body: bytes, content_type: str) -> bytes:
    try:
        return one_line(body, content_type)
    except ValueError as error:
        raise errors.BadRequest(str(error)) from None
