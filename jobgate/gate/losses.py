"""
What becomes of a command whose worker is lost (contract section 6).

Pure but for the command's own counts. Must not know queues or workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from jobgate import errors

if TYPE_CHECKING:
    from jobgate.command import Command
    from jobgate.config import QueueConfig
    from jobgate.errors import JobgateError

__all__ = ["Loss", "after_loss"]

_UNREAD = 20
"""Workers that may be lost before a command, or any other they had, has reached them whole: what
ends all of them is the command itself, its length for instance, or they can run none at all."""


class Loss(Protocol):
    """How a worker was lost (`jobgate.pool.roles.Loss`)."""

    kind: str
    cause: str
    exit_status: int | None
    signal: str | None


def after_loss(
    command: Command, loss: Loss, config: QueueConfig, now: float, *, begun: bool, alone: bool
) -> JobgateError | None:
    """
    Count a loss against a command, and judge.

    Args:
        command: What the worker had, and nobody has settled.
        loss: How it was lost.
        config: Its queue's configuration.
        now: The time.
        begun: Whether the worker may have begun it.
        alone: Whether it was the only one that had begun, or nothing had.

    Returns:
        What it ends with; None if it is to wait again.
    """
    about: dict[str, Any] = {"attempt": command.attempt}
    if not begun:
        command.attempt -= 1
        command.unread += alone and loss.kind in ("died", "memory", "protocol")
        if command.unread >= _UNREAD:
            return _never_read(command, loss)
        if command.job or config.retry != "never":
            return None
    else:
        command.unread = 0
    if loss.kind == "protocol":
        return errors.WorkerProtocolError(loss.cause, **about)
    batch = command.batch
    if loss.kind == "timeout" and batch is not None and _ran_too_long(command, config, now):
        return errors.WorkerTimeout(loss.cause, **about)
    again = config.retry == "safe" and command.stream is None and not command.job
    if loss.kind in ("died", "memory"):
        if batch is not None and len(batch.members) > 1:
            command.excused += 1
            again = again or (command.job and config.retry != "never")
        elif alone:
            command.deaths += 1
        if batch is not None and again:
            command.batch = batch.half_of(command)
    starts = command.attempt - command.excused
    if again and starts < config.attempts and now < command.deadline:
        return None
    about |= {"exit_status": loss.exit_status, "signal": loss.signal}
    if again and command.deaths >= config.attempts:
        return errors.PoisonCommand(f"it has killed {command.deaths} workers", **about)
    died = errors.WorkerDied(loss.cause, **about)
    if not begun and not command.attempt:
        died.executed = "no"
    return died


def _ran_too_long(command: Command, config: QueueConfig, now: float) -> bool:
    """Whether it is over the queue's `timeout` itself."""
    return bool(config.timeout) and 0.0 < command.began <= now - config.timeout


def _never_read(command: Command, loss: Loss) -> JobgateError:
    cause = f"{command.unread} workers were lost before they had read it, the last: {loss.cause}"
    kind = errors.WorkerProtocolError if loss.kind == "protocol" else errors.WorkerDied
    executed = "maybe" if command.attempt else "no"
    return kind(cause, executed=executed, exit_status=loss.exit_status, signal=loss.signal)
