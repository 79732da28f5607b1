"""
Whether a command may come in: for what it is, and for the room there is for it: in number, in
bytes, and in the time that its caller has.

Must not know clocks or workers.
"""

from __future__ import annotations

from math import ceil, inf
from typing import TYPE_CHECKING, Final

from jobgate.errors import BadRequest, PoisonCommand, QueueFull, WouldMissDeadline
from jobgate.wire.lines import one_line

if TYPE_CHECKING:
    from jobgate.command import Command
    from jobgate.config import QueueConfig
    from jobgate.gate.poison import Poison
    from jobgate.gate.queues import CommandQueue

__all__ = ["check_content", "check_room", "expected_wait", "retry_after"]

_LONGEST: Final = 3600
"""Seconds: no Retry-After is longer."""


def expected_wait(ahead: int, service_time: float, lanes: int) -> float:
    """
    How long a command will wait that finds `ahead` others before it.

    What runs now counts as one more: it is not known how far it is.

    Args:
        ahead: Commands that wait and would be taken first.
        service_time: Seconds a command runs, as measured; 0 while unknown.
        lanes: How many commands run at the same time.

    Returns:
        Seconds; `inf` when nothing runs at all.
    """
    if not lanes:
        return inf
    return (ahead + 1) * service_time / lanes


def retry_after(waiting: int, service_time: float, lanes: int) -> int:
    """
    Whole seconds after which the queue will have drained at its own rate (RFC 9110, 10.2.3).
    """
    wait = expected_wait(waiting, service_time, lanes)
    return _LONGEST if wait > _LONGEST else max(1, ceil(wait))


def check_content(command: Command, config: QueueConfig, poison: Poison) -> None:
    """
    Look at a command itself, and make it one line where its workers speak lines.

    Args:
        command: Who wants to come in.
        config: Its queue's configuration.
        poison: Those that are kept out.

    Raises:
        BadRequest: It cannot be made one line.
        PoisonCommand: It is known to kill workers.
    """
    if config.protocol == "lines":
        try:
            command.body = one_line(command.body, command.content_type)
        except ValueError as error:
            raise BadRequest(str(error)) from None
    if poison and poison.knows(config.name, command.content_type, command.body, command.accepted):
        raise PoisonCommand(
            "a command with this body has killed workers within the last hour", executed="no"
        )


def check_room(
    command: Command,
    shard: CommandQueue,
    config: QueueConfig,
    service_time: float,
    lanes: int,
    *,
    no_queue: bool,
) -> None:
    """
    Look at what waits before a command for which no worker is free.

    Args:
        command: Who wants to come in.
        shard: Where it would wait.
        config: What bounds there are.
        service_time: Seconds a command runs, as measured; 0 while unknown.
        lanes: How many commands of that shard run at the same time.
        no_queue: Its caller does not want it to wait.

    Raises:
        QueueFull: There is no room, in number or in bytes.
        WouldMissDeadline: It would wait for longer than it has.
    """
    pending = shard.pending
    waiting = pending.count
    calls = waiting - pending.jobs
    if no_queue or calls >= config.size:
        detail = "no worker is free now" if no_queue else f"{calls} calls wait already"
        raise QueueFull(detail, retry_after=retry_after(waiting, service_time, lanes))
    call_bytes = pending.size_bytes - pending.job_bytes
    if calls and call_bytes + len(command.body) > config.max_waiting_bytes:
        raise QueueFull(
            f"bodies of {call_bytes} bytes wait already",
            retry_after=retry_after(waiting, service_time, lanes),
        )
    left = command.deadline - command.accepted
    if config.queue_timeout and config.queue_timeout < left:
        left = config.queue_timeout
    # Only when everything that waits would be too much is it worth asking what goes first.
    if expected_wait(waiting, service_time, lanes) <= left or shard.paused:
        return
    wait = expected_wait(shard.ahead_of(command.priority), service_time, lanes)
    if wait > left:
        raise WouldMissDeadline(
            f"it would wait about {wait:.1f} s, and {left:.1f} s are left",
            retry_after=retry_after(waiting, service_time, lanes),
        )
