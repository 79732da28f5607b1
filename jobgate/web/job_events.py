"""
`GET /jobs/<id>/events`: what happens to a job, as server-sent events.

Events are `state`, `progress` and `chunk`. A state's id is its attempt and state, so a
reader that comes back with `Last-Event-ID` is told the present state only if that is news,
and told to come no more if it knows how the job ended (WHATWG HTML, section 9.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from jobgate.jobs.job import TERMINAL, State
from jobgate.stream import ReplyStream
from jobgate.web.events import as_event
from jobgate.web.exchange import Response
from jobgate.web.job_views import progress_of

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

    from jobgate.gate import Gate
    from jobgate.jobs.job import Change, Job
    from jobgate.web.exchange import Exchange

__all__ = ["follow"]

_ALIVE = 15.0
"""Seconds between comments, so that nothing between the two ends takes silence for death."""
_json = msgspec.json.Encoder().encode


async def follow(gate: Gate, exchange: Exchange, name: str) -> Response:
    """
    The response that tells of a job from now on, until it ends.

    Args:
        gate: Whose job.
        exchange: The request.
        name: The job's id.

    Raises:
        UnknownJob: There is none of that id (any more).
    """
    last = exchange.head.headers.get(b"last-event-id", b"").decode("latin-1")
    follower = _Follower(gate, name, last)
    response = Response(200, "text/event-stream", fields="Cache-Control: no-store\r\n")
    response.stream = follower.stream
    exchange.on_lost = follower.end
    # First to listen, then to ask: what changes in between is not missed.
    follower.listen()
    try:
        job = await gate.jobs.get(name)
    except BaseException:
        follower.end()
        raise
    follower.start(job)
    if job.state >= TERMINAL and last == _event_id(job.state, job.attempt):
        return Response(204, "")
    return response


class _Follower:
    """A Watcher that writes what it is told into a stream."""

    def __init__(self, gate: Gate, name: str, last: str) -> None:
        self.stream = ReplyStream()
        self._gate = gate
        self._name = name
        self._alive: IDelayedCall | None = None
        self._last = last
        self._told = False

    def listen(self) -> None:
        """Take in what happens from now on."""
        self._gate.jobs.watches.add(self._name, self)
        self._gate.jobs.watches.waiting.add(self)
        self._beat()

    def start(self, job: Job) -> None:
        """Tell how it stands, unless something newer has been told already."""
        if not self._told:
            self._state(job.state, job.attempt)
            said = progress_of(self._gate, job)
            if said is not None:
                self._how_far(*said)
        if job.state >= TERMINAL or self._gate.draining:
            self.end()

    def changed(self, change: Change) -> None:
        """It is in another state."""
        self._told = True
        self._state(change.state, change.attempt)
        if change.state >= TERMINAL:
            self.end()

    def progressed(self, attempt: int, done: float, total: float | None, note: str | None) -> None:
        """Its worker has said how far it is."""
        self._runs(attempt)
        self._how_far(done, total, note)

    def chunk(self, attempt: int, data: bytes | bytearray) -> None:
        """A part of its reply has come."""
        self._runs(attempt)
        self.stream.chunk(as_event(data, "chunk"))

    def end(self) -> None:
        """It has ended, or nobody listens, or the gate stops."""
        self._gate.jobs.watches.remove(self._name, self)
        self._gate.jobs.watches.waiting.discard(self)
        if self._alive is not None and self._alive.active():
            self._alive.cancel()
        self._alive = None
        self.stream.end()

    def _how_far(self, done: float, total: float | None, note: str | None) -> None:
        said = _json({"done": done, "total": total, "note": note})
        self.stream.chunk(as_event(said, "progress"))

    def _runs(self, attempt: int) -> None:
        """Its worker is at it, which it may say before the store does."""
        self._told = True
        self._state(State.RUNNING, attempt)

    def _state(self, state: State, attempt: int) -> None:
        name = _event_id(state, attempt)
        if name == self._last:
            return
        self._last = name
        said = _json({"id": self._name, "state": state.word, "attempt": attempt})
        self.stream.chunk(as_event(said, "state", name))

    def _beat(self) -> None:
        self._alive = self._gate.reactor.callLater(_ALIVE, self._beat)
        self.stream.chunk(b": alive\n\n")


def _event_id(state: State, attempt: int) -> str:
    return f"{attempt}.{state:d}"
