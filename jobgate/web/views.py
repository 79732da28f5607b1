"""
What operators are shown: queues and workers as documents.

Each document is a struct, so `/openapi.json` can tell its shape.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from jobgate.pool.machine import rss

if TYPE_CHECKING:
    from jobgate.gate import Gate
    from jobgate.gate.batching import Batching
    from jobgate.gate.road import Road
    from jobgate.gate.stats import Histogram
    from jobgate.pool.member import Member
    from jobgate.pool.post import Post
    from jobgate.pool.supervisor import Supervisor

__all__ = [
    "Purged",
    "Queue",
    "Queues",
    "Recycling",
    "Reload",
    "Running",
    "Status",
    "Worker",
    "Workers",
    "queue",
    "worker",
    "workers",
]


class Status(msgspec.Struct):
    """
    Health or readiness.

    Attributes:
        status: In a word.
        queues: The queues that cannot accept, and why.
        store: Why nothing can be stored; absent while it can.
    """

    status: str
    queues: dict[str, str] = {}
    store: str | msgspec.UnsetType = msgspec.UNSET


class Reload(msgspec.Struct):
    """
    The replacement of all workers of a queue: the last one, or the present one.

    Attributes:
        cause: "reload", or "config" if the configuration has changed.
        state: "canary": the first new worker has to show that it can serve; "rolling": the others
            follow; "done"; or "stopped": a new worker has failed, the old ones stay.
        workers: How many were to be replaced.
        why: Why it was stopped; else empty.
    """

    cause: str
    state: str
    workers: int
    why: str


class Batches(msgspec.Struct):
    """
    How commands of a queue are put together.

    Attributes:
        size: How many may go together at present.
        linger: Seconds the oldest waits for company at present; null: until the batch is full.
        sent: Batches answered since the start.
        mean: How many members they had, on average.
        each: Seconds that each member adds to a batch, as measured.
        base: Seconds that any batch takes, as measured.
    """

    size: int
    linger: float | None
    sent: int
    mean: float | None
    each: float
    base: float


class Queue(msgspec.Struct):
    """
    One queue.

    Attributes:
        name: Its name.
        state: "open", "paused", or why it cannot accept.
        depth: Commands that wait.
        bytes_waiting: Their bodies, together.
        size: How many may wait.
        running: Commands with a worker.
        workers: Workers that can take commands.
        wanted: Workers that there are to be now, between its `min` and its `max`.
        shards: How many wait in each CommandQueue.
        accepted: Commands offered since the start, refused ones included.
        succeeded: Of these, ended with a reply.
        failed: Ended with a problem.
        shed: Refused.
        cancelled: Left by their callers.
        service_time: Seconds a command runs, a moving average.
        rate: Commands a second that its workers can do at that.
        expected_wait: Seconds that one more command would wait.
        reload: The last replacement of all its workers, or null.
        batch: How commands are put together; null if each goes by itself.
    """

    name: str
    state: str
    depth: int
    bytes_waiting: int
    size: int
    running: int
    workers: int
    wanted: int
    shards: list[int]
    accepted: int
    succeeded: int
    failed: int
    shed: int
    cancelled: int
    service_time: float
    rate: float | None
    expected_wait: float | None
    reload: Reload | None
    batch: Batches | None


class Queues(msgspec.Struct):
    """All queues."""

    queues: list[Queue]


class Running(msgspec.Struct):
    """
    A command that a worker has.

    Attributes:
        id: The command.
        since: When it began, RFC 3339; null while it waits behind another at the worker.
        attempt: Its start, counted from 1.
    """

    id: str
    since: str | None
    attempt: int


class Worker(msgspec.Struct):
    """
    One worker.

    Attributes:
        name: Its name; a worker that takes over has the same.
        queue: The queue it works for.
        pid: Its process id; null for one that registered over a socket.
        address: Where it registered from; null for one that the gate started.
        state: "starting", "ready", "busy", "draining", "ending"; or "backing-off": there is none,
            because they keep dying, and it is not time yet to start the next.
        command: The id of the command it is running, or null.
        since: When that began, RFC 3339; with "backing-off", when the last one died.
        commands: Everything it has in hand, oldest first.
        batches: How many members each batch in hand has, oldest first.
        done: Commands it has answered.
        service_time: Seconds in which it had work for each command it has answered, or null.
        utilisation: The share of its time, since it was ready, in which it had work.
        rss: Its resident memory in bytes, or null.
        restarts: How often its place has been filled anew.
        restarts_by_cause: The same, by why: the kind of a death ("died", "protocol", "timeout",
            "memory", "stopped"), a bound ("max_commands", "max_age", "max_memory"), or "recycle",
            "reload", "config".
        started: When it was started, RFC 3339; null with "backing-off".
        last_crash: Why the last one of this name died, or null.
        next_start: When the next one is started, RFC 3339; null if another place of the queue is
            tried first; absent where there is a worker.
    """

    name: str
    queue: str
    pid: int | None
    address: str | None
    state: str
    command: str | None
    since: str | None
    commands: list[Running]
    batches: list[int]
    done: int
    service_time: float | None
    utilisation: float
    rss: int | None
    restarts: int
    restarts_by_cause: dict[str, int]
    started: str | None
    last_crash: str | None
    next_start: str | msgspec.UnsetType | None = msgspec.UNSET


class Workers(msgspec.Struct):
    """All workers."""

    workers: list[Worker]


class Purged(msgspec.Struct):
    """How many commands were thrown out."""

    purged: int


class Recycling(msgspec.Struct):
    """The worker that is being replaced."""

    worker: str


def queue(gate: Gate, road: Road) -> Queue:
    """A queue as operators see it."""
    stats = road.stats
    tally = gate.jobs.backlogs[road.config.name].tally
    wait = road.expected_wait
    supervisor = gate.supervisor(road.config.name)
    workers = len(supervisor.alive) or road.staff
    return Queue(
        name=road.config.name,
        state="paused" if road.paused else road.refusal() or "open",
        depth=tally.waiting,
        bytes_waiting=road.bytes_waiting,
        size=road.config.size,
        running=tally.running,
        workers=workers,
        wanted=supervisor.wanted,
        shards=[len(shard) for shard in road.shards],
        accepted=stats.accepted,
        succeeded=stats.succeeded,
        failed=stats.failed,
        shed=stats.shed,
        cancelled=stats.cancelled,
        service_time=round(stats.service_time, 6),
        rate=round(workers / stats.service_time, 3) if stats.service_time else None,
        expected_wait=round(wait, 6) if wait != float("inf") else None,
        reload=_reload(supervisor),
        batch=_batches(road.batching, stats.together) if road.batching is not None else None,
    )


def _batches(batching: Batching, together: Histogram) -> Batches:
    each, base = batching.fit.line
    sent = sum(together.counts)
    return Batches(
        size=batching.size,
        linger=round(batching.linger, 6) if batching.linger != float("inf") else None,
        sent=sent,
        mean=round(together.total / sent, 3) if sent else None,
        each=round(each, 6),
        base=round(base, 6),
    )


def _reload(supervisor: Supervisor) -> Reload | None:
    rollout = supervisor.rollouts.last
    if rollout is None:
        return None
    return Reload(rollout.cause, rollout.state, rollout.total, rollout.why)


def worker(gate: Gate, post: Post, process: Member) -> Worker:
    """A worker as operators see it."""
    now = gate.reactor.seconds()
    talk = process.conversation
    running = [
        Running(
            id=command.id,
            since=_ago(now - command.began) if command.began else None,
            attempt=command.attempt,
        )
        for command in talk.in_hand.values()
    ]
    # A set would lose their order.
    batches = dict.fromkeys(c.batch for c in talk.in_hand.values() if c.batch)
    state = process.state.value
    if state == "ready" and running:
        state = "busy"
    return Worker(
        name=process.name,
        queue=process.queue,
        pid=process.pid,
        address=process.address,
        state=state,
        command=running[0].id if running else None,
        since=running[0].since if running else None,
        commands=running,
        batches=[len(batch.members) for batch in batches],
        done=talk.done,
        service_time=round(talk.busy / talk.done, 6) if talk.done else None,
        utilisation=round(process.utilisation, 4),
        rss=rss(process.pid),
        restarts=post.restarts,
        restarts_by_cause=dict(post.causes),
        started=_ago(now - process.born),
        last_crash=post.report.cause if post.report is not None else None,
    )


def _backing_off(gate: Gate, keeper: Supervisor, post: Post) -> Worker:
    """A place where workers keep dying, as operators see it."""
    report, restart = post.report, post.restart
    wait = None if restart is None else restart.getTime() - gate.reactor.seconds()
    return Worker(
        name=post.name,
        queue=keeper.queue,
        pid=None,
        address=None,
        state="backing-off",
        command=None,
        since=report.at if report is not None else None,
        commands=[],
        batches=[],
        done=0,
        service_time=None,
        utilisation=0.0,
        rss=None,
        restarts=post.restarts,
        restarts_by_cause=dict(post.causes),
        started=None,
        last_crash=report.cause if report is not None else keeper.last_cause,
        next_start=None if wait is None else _ago(-wait),
    )


def workers(gate: Gate) -> Workers:
    """All workers, and the places where they keep dying."""
    alive = [worker(gate, post, process) for post, process in gate.workers()]
    return Workers(alive + [_backing_off(gate, *place) for place in gate.backing_off()])


def _ago(seconds: float) -> str:
    at = datetime.now(UTC) - timedelta(seconds=seconds)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
