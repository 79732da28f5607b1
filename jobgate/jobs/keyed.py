"""
A call with an idempotency key: a job with its caller attached.

It is stored before it starts and its outcome after it has ended, so the same key joins
the running call or repeats the finished one, whatever became of the first caller. On its
Road it is a call like any other. Must not know HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from twisted.internet.defer import Deferred

from jobgate import errors
from jobgate.jobs.job import TERMINAL, Ending, Job, NewJob, Reply, State, document
from jobgate.jobs.waiting import Gathering

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from jobgate import command as travelling
    from jobgate.command import Command
    from jobgate.gate.road import Road
    from jobgate.jobs.jobs import Jobs
    from jobgate.jobs.journal import Kept, Key

__all__ = ["Outcome", "call", "check", "outcome"]

_FOREVER = float("inf")


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
    job = await jobs.wait(name, seconds)
    reply = None
    if job.state == State.SUCCEEDED and not job.gone:
        reply = await jobs.journal.result(name)
    return Outcome(job, reply, replayed)


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
    jobs.calls.add(command.id)
    try:
        while True:
            stored = await jobs.journal.put([job], claim=1, key=key)
            if stored.kept is None:
                return await _run(jobs, road, command, shard=shard, no_queue=no_queue)
            try:
                return await _join(jobs, stored.kept, key, command)
            except errors.UnknownJob:
                # It was refused, so nothing of it is kept: now it is this one's turn.
                continue
    finally:
        jobs.calls.discard(command.id)


async def _join(jobs: Jobs, kept: Kept, key: Key, command: Command) -> Outcome:
    """Wait for what another has started."""
    check(kept, key)
    left = command.deadline - command.accepted
    found = await outcome(jobs, kept.id, 1e9 if left == _FOREVER else left, replayed=True)
    if found.job.state < TERMINAL:
        message = f"the call with this key ran longer than the {left:.3f} s there were"
        raise errors.WorkerTimeout(message)
    return found


async def _run(jobs: Jobs, road: Road, command: Command, *, shard: str, no_queue: bool) -> Outcome:
    command.on_start = jobs.started
    try:
        road.submit(command, key=shard, no_queue=no_queue)
        reply = await _whole(command)
    except errors.JobgateError as error:
        if error.executed == "no":
            await jobs.journal.forget(command.id)
            raise
        ending = Ending(State.FAILED, error=document(error))
    else:
        ending = Ending(State.SUCCEEDED, reply=reply)
    if command.recorded:
        await jobs.journal.finish(command.id, command.recorded, ending)
    else:
        await jobs.journal.finish_waiting(command.id, ending)
    return await outcome(jobs, command.id, 0)


def _whole(command: Command) -> Deferred[Reply]:
    """The reply, all parts of it together."""
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

    command.reply.addCallbacks(replied, whole.errback)
    return whole
