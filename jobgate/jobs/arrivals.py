"""
Jobs on their way from the journal into the window of their queue, until they run.

They are expected from the moment they are asked for or claimed; those that come let each other
in, one behind the other. Must not know how many may come, nor where they go.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from jobgate.jobs.lots import ids_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobgate.jobs.inputs import Feeder
    from jobgate.jobs.job import Taken

__all__ = ["Arrivals"]


class Arrivals:
    """
    What is on its way to one queue's window.

    Args:
        feeder: Has those that have come and wait for their inputs.
        run: Makes a job, or a lot, a command here and on the Road.
        apart: Takes a lot apart as far as it must be to run here.
        leave: Leaves jobs in the journal.

    Attributes:
        coming: How many are expected.
        starting: How many have come whose start is being stored.
        recalls: How often all that only waited here was given back: what was on its way then
            goes back as well, since it must not pass that by.
    """

    def __init__(
        self,
        feeder: Feeder,
        run: Callable[[Taken], None],
        apart: Callable[[Taken], list[Taken]],
        leave: Callable[[list[Sequence[str]]], None],
    ) -> None:
        self.coming = 0
        self.starting = 0
        self.recalls = 0
        self._hungry = feeder.hungry
        self._run = run
        self._apart = apart
        self._leave = leave
        self._arrived: deque[tuple[Taken, int]] = deque()
        self._letting_in = False
        self._when_here: list[Callable[[], None]] = []

    def arrived(self, jobs: Sequence[Taken], recalls: int) -> None:
        """Jobs that were expected when there had been so many recalls have come: they run."""
        self.add(jobs, recalls)
        self.let_in()

    def add(self, jobs: Sequence[Taken], recalls: int) -> None:
        """Likewise, but they wait to be let in."""
        for job in jobs:
            if job.ids:
                self._arrived.extend([(each, recalls) for each in self._apart(job)])
            else:
                self._arrived.append((job, recalls))

    def let_in(self) -> None:
        """Let those that have arrived run, one behind the other, whatever each of them leads to."""
        if self._letting_in:
            return
        self._letting_in = True
        back = []
        try:
            while self._arrived:
                job, recalls = self._arrived.popleft()
                self.coming -= len(job.ids) or 1
                if recalls != self.recalls:
                    back.append(ids_of(job))
                else:
                    self._run(job)
        finally:
            self._letting_in = False
        if back:
            self._leave(back)
        self.tell_if_here()

    def started(self) -> None:
        """The start of a job has been stored."""
        self.starting -= 1
        self.tell_if_here()

    def when_here(self, call: Callable[[], None]) -> None:
        """Call once nothing is on its way here from the journal any more; perhaps now."""
        self._when_here.append(call)
        self.tell_if_here()

    def tell_if_here(self) -> None:
        """Something is on its way no more: tell those who wait for that, if it was the last."""
        if self._when_here and not self.coming and not self._hungry and not self.starting:
            calls, self._when_here = self._when_here, []
            for call in calls:
                call()
