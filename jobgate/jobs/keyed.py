"""
A call with an idempotency key: a job with its caller attached.

It is stored before it starts and its outcome after it has ended, so the same key joins
the running call or repeats the finished one, whatever became of the first caller. On its
Road it is a call like any other. Must not know HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as TooLate

from jobgate import errors
from jobgate.command import DONE
from jobgate.jobs.job import TERMINAL, Ending, Job, NewJob, Reply, State, document
from jobgate.jobs.waiting import Gathering, shielded

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from jobgate import command as travelling
    from jobgate.command import Command
    from jobgate.gate.road import Road
    from jobgate.jobs.jobs import Jobs
    from jobgate.jobs.journal import Kept, Key

__all__ = ["Outcome", "call", "check", "outcome"]

_FOREVER = float("inf")
_LONG = 86400.0
"""Seconds for which one without a deadline waits for another's outcome."""
_AT_LEAST, _AT_MOST = 0.5, 5.0
"""Seconds that the store has for an outcome, whatever is left of the caller's."""


class Outcome(msgspec.Struct, frozen=True):
    """
    A stored outcome.

    Attributes:
        job: What is known of it.
        reply: What it ended with; None if that was a problem (`job.error`).
        replayed: It had been there, or had been running, before this caller came.
    """

    job: Job
    reply: Reply | None
    replayed: bool = False


def check(kept: Kept, key: Key) -> None:
    """
    Insist that a key is used again for the same thing.

    Raises:
        Unprocessable: It was used for something else.
    """
    if kept.fingerprint != key.fingerprint:
        message = "Idempotency-Key: it was used before with another body or content type"
        raise errors.Unprocessable(message)


async def outcome(jobs: Jobs, name: str, seconds: float, *, replayed: bool = False) -> Outcome:
    """
    A job's outcome, once it has one, or the job as it is when the time is up.

    Raises:
        UnknownJob: There is none of that id.
    """
    return await _outcome(jobs, await jobs.wait(name, seconds), replayed=replayed)


async def call(
    jobs: Jobs, road: Road, command: Command, key: Key, *, shard: str = "", no_queue: bool = False
) -> Outcome:
    """
    Run a command once for all who come with its key.

    Args:
        jobs: Where it is kept.
        road: Where it runs.
        command: The command; its deadline bounds how long this caller waits.
        key: The key.
        shard: Its `Jobgate-Key`.
        no_queue: Refuse it unless a worker is free.

    Raises:
        JobgateError: It was refused, nobody had it run, or the caller's time is up.
    """
    config = road.config
    job = NewJob(
        id=command.id,
        queue=command.queue,
        body=command.body,
        content_type=command.content_type,
        priority=command.priority,
        attempts=config.attempts,
        keep=float(config.result_ttl),
        headers=msgspec.json.encode(command.headers).decode() if command.headers else "",
        caller=command.caller,
        call=True,
    )
    while True:
        kept = await _put(jobs, job, command, key)
        if kept is None:
            return await _run(jobs, road, command, shard=shard, no_queue=no_queue)
        found = await _join(jobs, road, kept.id, command)
        if found is not None:
            return found
        # Nobody had it run, so nothing is kept: now it is this caller's turn.


async def _put(jobs: Jobs, job: NewJob, command: Command, key: Key) -> Kept | None:
    """Store it; what there is if its key is known."""
    jobs.calls[command.id] = command
    known = True
    try:
        kept = (await jobs.journal.put([job], claim=1, key=key)).kept
        known = kept is not None
    finally:
        if known:
            del jobs.calls[command.id]
    if kept is not None:
        check(kept, key)
    return kept


async def _outcome(jobs: Jobs, job: Job, *, replayed: bool = False) -> Outcome:
    reply = None
    if job.state == State.SUCCEEDED and not job.gone:
        # What a puller has taken for good, or acknowledged, has succeeded without a reply.
        reply = await jobs.journal.result(job.id) or Reply(200, "application/octet-stream", b"")
    return Outcome(job, reply, replayed)


async def _join(jobs: Jobs, road: Road, name: str, command: Command) -> Outcome | None:
    """Wait for what another has started; None if that one was not run after all."""
    began = jobs.clock.seconds()
    left = command.deadline - began
    seconds = _LONG if left == _FOREVER else max(0.0, left)
    # What has come as a job may wait for ever, but nobody who calls waits so long for its start.
    patience = min(road.config.queue_timeout or _FOREVER, seconds)
    try:
        # A gate that stops has its callers' commands run still, and jobs when it starts again.
        its_callers = (await jobs.get(name)).call
        found = await jobs.wait(name, patience, to_the_end=its_callers)
        left = began + seconds - jobs.clock.seconds()
        if found.state == State.RUNNING and left > 0:
            found = await jobs.wait(name, left, to_the_end=True)
    except errors.UnknownJob:
        return None
    if found.state == State.FAILED and (found.error or {}).get("executed") == "no":
        await jobs.journal.forget(name)
        return None
    if found.state >= TERMINAL:
        return await _outcome(jobs, found, replayed=True)
    if found.state == State.RUNNING:
        message = f"the call with this key has not ended within {seconds:.3f} s"
        raise errors.WorkerTimeout(message, id=name)
    # It may wait for its next attempt.
    executed = "maybe" if found.attempt else "no"
    if jobs.held and not its_callers:
        message = "it waits until the gate has been started again"
        raise errors.ShuttingDown(message, id=name, executed=executed)
    message = f"the call with this key has not begun within {patience:.3f} s"
    raise errors.QueueTimeout(message, id=name, executed=executed)


async def _run(jobs: Jobs, road: Road, command: Command, *, shard: str, no_queue: bool) -> Outcome:
    if command.state is DONE:
        return await outcome(jobs, command.id, 0)
    command.on_start = jobs.outcomes.started
    try:
        sent: Deferred[travelling.Reply] = Deferred(command.leave)
        road.submit(command, key=shard, no_queue=no_queue, waiter=sent)
        reply = await _whole(sent)
    except CancelledError:
        # It was cancelled by its id, which is stored.
        return await outcome(jobs, command.id, 0)
    except errors.JobgateError as error:
        ended = jobs.outcomes.finish(command, Ending(State.FAILED, error=document(error)))
        if error.executed == "no":
            jobs.outcomes.forget(command, ended)
            raise
    else:
        ended = jobs.outcomes.finish(command, Ending(State.SUCCEEDED, reply=reply))
    await _stored(jobs, ended, command)
    return await outcome(jobs, command.id, 0)


async def _stored(jobs: Jobs, ended: Deferred[bool], command: Command) -> None:
    """
    Wait until an outcome is stored: an answer that the next one might not repeat is none.

    Raises:
        StoreUnavailable: The caller's time is up, or the store's.
    """
    left = min(max(command.deadline - command.ended, _AT_LEAST), _AT_MOST)
    try:
        await shielded(ended).addTimeout(left, jobs.clock)
    except TooLate:
        message = "it has run, and its outcome cannot be stored now; ask again with the same key"
        raise errors.StoreUnavailable(message, retry_after=1.0, executed="yes") from None


def _whole(sent: Deferred[travelling.Reply]) -> Deferred[Reply]:
    """The reply that was sent, all parts of it together."""
    whole: Deferred[Reply] = Deferred()

    def replied(reply: travelling.Reply) -> None:
        if reply.stream is None:
            whole.callback(Reply(reply.status, reply.content_type, bytes(reply.body)))
            return

        def gathered(body: bytes | None, failure: Failure | None) -> None:
            if body is not None:
                whole.callback(Reply(reply.status, reply.content_type, body))
            else:
                whole.errback(failure)

        gathering = Gathering(lambda _: None, gathered)
        reply.stream.read(gathering.chunk, gathering.end)

    sent.addCallbacks(replied, whole.errback)
    return whole
