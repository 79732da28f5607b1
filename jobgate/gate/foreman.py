"""
Between the workers of a queue and its Road: who is ready is put to work.

Must not know why workers come or go, nor what commands are for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobgate.command import Worker
    from jobgate.gate.road import Road
    from jobgate.jobs.backlog import Backlog
    from jobgate.pool.roles import Hand

__all__ = ["Foreman"]


class Foreman:
    """
    Puts workers to work on one Road: those of its Supervisor, or those who call back.

    Args:
        road: Where their commands come from.
        backlog: The jobs of that queue: it brings more when there is somebody to run them.
    """

    def __init__(self, road: Road, backlog: Backlog) -> None:
        self._road = road
        self._backlog = backlog

    def worker_ready(self, worker: Hand, post: int) -> None:
        """A worker can take commands."""
        runner = self._road.hire(worker, post)
        worker.hire(runner)
        runner.start()
        self._backlog.fill()

    def worker_leaving(self, worker: Worker) -> None:
        """It takes no more."""
        self._road.dismiss(worker)

    def pool_changed(self) -> None:
        """Workers have come or gone."""
        self._road.pool_changed()

    def waits(self) -> list[float | None]:
        """How long commands wait, shard by shard."""
        return self._road.waits()
