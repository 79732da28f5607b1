"""
What operators are shown: queues and workers as documents.

Each document is a struct, so `/openapi.json` can tell its shape.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import psutil

if TYPE_CHECKING:
    from jobgate.gate import Gate
    from jobgate.gate.road import Road
    from jobgate.pool.member import Member
    from jobgate.pool.post import Post

__all__ = [
    "Purged",
    "Queue",
    "Queues",
    "Recycling",
    "Running",
    "Status",
    "Worker",
    "Workers",
    "queue",
    "worker",
]


class Status(msgspec.Struct):
    """
    Health or readiness.

    Attributes:
        status: In a word.
        queues: The queues that cannot accept, and why.
    """

    status: str
    queues: dict[str, str] = {}


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
        shards: How many wait in each CommandQueue.
        accepted: Commands offered since the start, refused ones included.
        succeeded: Of these, ended with a reply.
        failed: Ended with a problem.
        shed: Refused.
        cancelled: Left by their callers.
        service_time: Seconds a command runs, a moving average.
        rate: Commands a second that its workers can do at that.
        expected_wait: Seconds that one more command would wait.
    """

    name: str
    state: str
    depth: int
    bytes_waiting: int
    size: int
    running: int
    workers: int
    shards: list[int]
    accepted: int
    succeeded: int
    failed: int
    shed: int
    cancelled: int
    service_time: float
    rate: float | None
    expected_wait: float | None


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
        state: "starting", "ready", "busy", "draining" or "ending".
        command: The id of the command it is running, or null.
        since: When that began, RFC 3339.
        commands: Everything it has in hand, oldest first.
        done: Commands it has answered.
        rss: Its resident memory in bytes, or null.
        restarts: How often its place has been filled anew.
        started: When it was started, RFC 3339.
        last_crash: Why the last one of this name died, or null.
    """

    name: str
    queue: str
    pid: int | None
    address: str | None
    state: str
    command: str | None
    since: str | None
    commands: list[Running]
    done: int
    rss: int | None
    restarts: int
    started: str
    last_crash: str | None


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
    wait = road.expected_wait
    workers = len(gate.supervisor(road.config.name).alive)
    return Queue(
        name=road.config.name,
        state="paused" if road.paused else road.refusal() or "open",
        depth=road.waiting,
        bytes_waiting=road.bytes_waiting,
        size=road.config.size,
        running=road.running,
        workers=workers,
        shards=[len(shard) for shard in road.shards],
        accepted=stats.accepted,
        succeeded=stats.succeeded,
        failed=stats.failed,
        shed=stats.shed,
        cancelled=stats.cancelled,
        service_time=round(stats.service_time, 6),
        rate=round(workers / stats.service_time, 3) if stats.service_time else None,
        expected_wait=round(wait, 6) if wait != float("inf") else None,
    )


def worker(gate: Gate, post: Post, process: Member) -> Worker:
    """A worker as operators see it."""
    now = gate.reactor.seconds()
    running = [
        Running(
            id=command.id,
            since=_ago(now - command.began) if command.began else None,
            attempt=command.attempt,
        )
        for command in process.conversation.in_hand.values()
    ]
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
        done=process.conversation.done,
        rss=_rss(process.pid),
        restarts=max(0, post.restarts),
        started=_ago(now - process.born),
        last_crash=post.report.cause if post.report is not None else None,
    )


def _ago(seconds: float) -> str:
    at = datetime.now(UTC) - timedelta(seconds=seconds)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _rss(pid: int | None) -> int | None:
    try:
        return int(psutil.Process(pid).memory_info().rss) if pid else None
    except psutil.Error:
        return None
