"""
Every key of the configuration, with its type and its default (contract section 3).

Plain data; that the values go together is seen to in `reading`.
"""

from __future__ import annotations

from typing import (
    Annotated,
    Literal,
)

import msgspec
from msgspec import Meta

from jobgate.config.units import AUTO, Bytes, Linger, Rate, Seconds, Secret

__all__ = [
    "AUTO_SIZE",
    "Backoff",
    "BatchConfig",
    "CallbackSettings",
    "GateConfig",
    "GateSettings",
    "QueueConfig",
    "Scale",
    "TokenConfig",
    "WorkerConfig",
    "file_of",
    "usual_backlog",
]

_TARGET = 0.05
"""Seconds that `auto` keeps to if nothing else is said."""
_MOST_TOGETHER = 4096
AUTO_SIZE = 256
"""Members that a batch may have under `auto` if nothing else is said."""

_Count = Annotated[int, Meta(ge=0)]
_Positive = Annotated[int, Meta(ge=1)]
_MOST_WORKERS = 1000


class Scale(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    How many workers a queue has: as its load asks for, within bounds.

    Attributes:
        min: As many live always.
        max: More never do.
        up_after: Seconds that commands wait before one more worker is started.
        down_after: Seconds without work after which one that is not needed goes.
    """

    min: Annotated[int, Meta(ge=0, le=_MOST_WORKERS)] = 1
    max: Annotated[int, Meta(ge=1, le=_MOST_WORKERS)] = 8
    up_after: Seconds = Seconds(1)
    down_after: Seconds = Seconds(60)


class BatchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    How commands are put together; one at a time while `size` is 1.
    """

    size: Annotated[int, Meta(ge=1, le=_MOST_TOGETHER)] = 1
    linger: Linger = Linger(0)
    target: Seconds | None = None
    max_bytes: Bytes = Bytes(8 * 1024**2)

    @property
    def target_seconds(self) -> float:
        """What waiting and running are to stay under, with `auto`; 0 without."""
        if self.linger != AUTO:
            return 0.0
        return _TARGET if self.target is None else float(self.target)


class Backoff(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a failed job waits for its next attempt: longer each time, within bounds."""

    first: Seconds = Seconds(1)
    factor: Annotated[float, Meta(ge=1, le=100)] = 2.0
    max: Seconds = Seconds(60)
    jitter: Annotated[float, Meta(ge=0, le=1)] = 0.2


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    How the workers of one queue are started and spoken to.

    A change of any of these replaces the workers; `cwd` is absolute once loaded.
    """

    command: tuple[str, ...] | str = ()
    env: dict[str, str] = {}
    cwd: str = "."
    protocol: Literal["frames", "lines"] = "frames"
    in_flight: Annotated[int, Meta(ge=1, le=256)] = 1
    batch: BatchConfig = BatchConfig()
    timeout: Seconds = Seconds(60)
    soft_timeout: Seconds = Seconds(0)
    boot_timeout: Seconds = Seconds(30)
    kill_timeout: Seconds = Seconds(5)
    cancel: Literal["drop", "cooperative", "kill"] = "cooperative"
    max_commands: _Count = 0
    max_age: Seconds = Seconds(0)
    max_memory: Bytes = Bytes(0)
    send: str = "{line}\n"
    until: str = ""
    until_regex: str = ""
    boot_until: str = ""
    boot_until_regex: str = ""
    reply_type: str = "text/plain; charset=utf-8"


def file_of(store: str) -> str:
    """The path of the file that a `store` names; empty if it names none."""
    kind, _, path = store.partition(":")
    # SQLite's own name for a place in RAM would be that of a file here, which nobody means.
    return path if kind == "sqlite" and path != ":memory:" else ""


def usual_backlog(store: str) -> int:
    """How many jobs may wait where nothing is said: memory holds fewer than a file."""
    return 1_000_000 if store == "memory:" else 10_000_000


class QueueConfig(WorkerConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    One queue: its workers, its bounds and its times.

    Attributes:
        name: The queue's name; the table's key, not a key in it.
    """

    name: str = ""
    workers: Annotated[int, Meta(ge=1, le=_MOST_WORKERS)] | Scale = 4
    idle_shutdown: Seconds = Seconds(0)
    shards: _Positive = 1
    size: _Count = 128
    max_waiting_bytes: Bytes = Bytes(64 * 1024**2)
    full_status: Literal[503, 429] = 503
    queue_timeout: Seconds = Seconds(30)
    retry: Literal["never", "if-not-started", "safe"] = "if-not-started"
    attempts: _Positive = 3
    backoff: Backoff = Backoff()
    max_backlog: _Count = 10_000_000
    expires: Seconds = Seconds(0)
    result_ttl: Seconds = Seconds(3600)

    @property
    def scale(self) -> Scale:
        """How many workers it has; with a fixed number both bounds are that."""
        if isinstance(self.workers, Scale):
            return self.workers
        return Scale(min=self.workers, max=self.workers)

    def worker(self) -> WorkerConfig:
        """The part of it that its workers are started with; how long batches wait is none of it."""
        fields = {name: getattr(self, name) for name in WorkerConfig.__struct_fields__}
        return WorkerConfig(**{**fields, "batch": BatchConfig(size=self.batch.size)})


class GateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[gate]`."""

    name: str = "gate"
    listen: tuple[str, ...] = ("tcp:8080:interface=127.0.0.1",)
    worker_listen: tuple[str, ...] = ()
    max_body: Bytes = Bytes(16 * 1024**2)
    max_connections: _Positive = 20_000
    max_buffered: Bytes = Bytes(256 * 1024**2)
    header_timeout: Seconds = Seconds(10)
    body_timeout: Seconds = Seconds(60)
    idle_timeout: Seconds = Seconds(75)
    drain_timeout: Seconds = Seconds(75)
    store: str = "sqlite:jobgate.db"
    long_poll_timeout: Seconds = Seconds(20)
    auto_queues: bool = True
    max_auto_queues: _Count = 1000
    front: Literal["fast", "klein"] = "fast"
    audit: str = ""
    insecure: bool = False


class TokenConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the tables `[[tokens]]`."""

    name: str
    sha256: str
    allow: tuple[str, ...] = ()
    rate: Rate | None = None


class CallbackSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[callbacks]`."""

    secret: Secret = Secret()
    allow: tuple[str, ...] = ()
    runners: Annotated[int, Meta(ge=1, le=1000)] = 8


class GateConfig(msgspec.Struct, frozen=True, kw_only=True):
    """
    Everything the gate is told.

    Attributes:
        gate: The table `[gate]`.
        callbacks: The table `[callbacks]`.
        queues: The tables `[queues.NAME]` by name.
        tokens: The tables `[[tokens]]`.
        source: The file it came from, for messages; empty without one.
    """

    gate: GateSettings = GateSettings()
    callbacks: CallbackSettings = CallbackSettings()
    queues: dict[str, QueueConfig] = {}
    tokens: tuple[TokenConfig, ...] = ()
    source: str = ""

    def queue(self, name: str) -> QueueConfig:
        """A queue that nobody has configured."""
        return QueueConfig(name=name, max_backlog=usual_backlog(self.gate.store))
