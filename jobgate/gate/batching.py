"""
When a batch goes, and how large it may be.

Pure: numbers and times in, decisions out. A batch goes when it is full, when its oldest
member has lingered, and when a member's deadline would otherwise be missed. Must not know
queues, workers or clocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from jobgate.config import BatchConfig

__all__ = ["PAUSE", "Batching", "Fit"]

PAUSE: Final = 0.001
"""
Seconds without a newcomer after which an idle worker waits for no more company. The callers of its
last batch come back one by one: whoever goes with the first of them runs half-full batches for
ever.
"""
_PATIENCE: Final = 1 / 3
"""Of the time that a batch runs: what an idle worker waits at most, if newcomers do not cease."""
_MARGIN: Final = 0.025
"""Seconds before a deadline at which a batch is forced, besides the time that it will run."""
_CAREFUL: Final = 1.2
"""How much longer than expected a batch may run without missing a member's deadline."""
_DECAY: Final = 0.98
"""What a measurement still counts after one more: about the last fifty matter."""
_SHARE: Final = 0.5
"""Of `target`: what a full batch may run, for a member may have to wait for one before its own."""
_KEPT: Final = 0.8
"""Of `target`: what lingering and running together may take."""

_NEVER: Final = float("inf")


class Fit:
    """
    How long a batch of n runs: a straight line, time = a * n + b, by least squares.

    Attributes:
        largest: The most members that were ever measured together.
    """

    def __init__(self) -> None:
        self._weight = 0.0
        self._n = 0.0
        self._t = 0.0
        self._nn = 0.0
        self._nt = 0.0
        self.largest = 0

    def __bool__(self) -> bool:
        return self.largest > 0

    def add(self, n: int, seconds: float) -> None:
        """Take in one batch of `n` that ran for so long."""
        self._weight = self._weight * _DECAY + 1
        self._n = self._n * _DECAY + n
        self._t = self._t * _DECAY + seconds
        self._nn = self._nn * _DECAY + n * n
        self._nt = self._nt * _DECAY + n * seconds
        self.largest = max(self.largest, n)

    @property
    def line(self) -> tuple[float, float]:
        """
        Seconds that each member adds, and seconds that any batch takes.

        Neither is negative. While all batches have been of one size nothing is known about
        other sizes, and the time is taken not to depend on it.
        """
        if not self._weight:
            return 0.0, 0.0
        mean_n, mean_t = self._n / self._weight, self._t / self._weight
        variance = self._nn / self._weight - mean_n * mean_n
        if variance < 1e-6 * mean_n * mean_n:
            return 0.0, mean_t
        a = max(0.0, (self._nt / self._weight - mean_n * mean_t) / variance)
        b = mean_t - a * mean_n
        if b < 0:
            return self._nt / self._nn, 0.0
        return a, b

    def seconds(self, n: int) -> float:
        """How long a batch of `n` is expected to run."""
        a, b = self.line
        return a * n + b


class Batching:
    """
    The decisions about one queue's batches.

    Args:
        config: The queue's `batch`.

    Attributes:
        max_bytes: The bodies and inputs that may go together; one alone may be longer.
        size: How many may go together at present.
        linger: Seconds that the oldest member waits for company at present; `inf`: until the
            batch is full.
        patience: Seconds that an idle worker waits for company at most, if newcomers do not cease.
        fit: How long batches run.
    """

    def __init__(self, config: BatchConfig) -> None:
        self.max_bytes = int(config.max_bytes)
        self.fit = Fit()
        self.patience = PAUSE
        self._limit = config.size
        self._target = config.target_seconds
        if self._target:
            self.size, self.linger = 1, 0.0
            self._choose()
        else:
            self.size, self.linger = config.size, float(config.linger)

    def full(self, count: int, size_bytes: int) -> bool:
        """Whether so many, with so many bytes of bodies, need wait for nobody else."""
        return count >= self.size or size_bytes >= self.max_bytes

    def goes_at(self, oldest: float, newest: float, idle_since: float | None) -> float:
        """
        When a batch goes that is not full.

        Args:
            oldest: When its oldest member came.
            newest: When its newest did.
            idle_since: Since when the worker has had nothing in hand; None if it has: then only
                those who have lingered are sent ahead, the others may still get company.
        """
        if idle_since is None:
            return oldest + self.linger if self.linger else _NEVER
        pause = max(newest, idle_since) + PAUSE
        most = max(oldest, idle_since) + self.patience
        return max(oldest + self.linger, min(pause, most))

    def must_go(self, accepted: float, deadline: float, queue_deadline: float) -> float:
        """
        When a batch goes for the sake of one member's deadline, whatever else is wanted.

        While nothing has been measured a member waits for half of its time at most.
        """
        if deadline != _NEVER:
            if self.fit:
                deadline -= _CAREFUL * self.fit.seconds(self.size) + _MARGIN
            else:
                deadline = (accepted + deadline) / 2
        queue_deadline -= _MARGIN
        return deadline if deadline < queue_deadline else queue_deadline

    def hurry(self) -> None:
        """Nobody else will come: wait for company no more, whatever is configured."""
        self._target = self.linger = 0.0

    def measured(self, n: int, seconds: float) -> None:
        """A batch of `n` has run for so long."""
        self.fit.add(n, seconds)
        self.patience = max(PAUSE, _PATIENCE * self.fit.seconds(n))
        if self._target:
            self._choose()

    def _choose(self) -> None:
        """
        Keep everybody under the target.

        The size is the largest whose run leaves time to wait for one such run before; it grows
        to twice what was ever measured at most, for the line is a guess beyond. The linger is
        never more than what sharing a run can save.
        """
        a, b = self.fit.line
        allowed = _SHARE * self._target - b
        size = self._limit if allowed >= a * self._limit else int(allowed / a) if a else 1
        self.size = max(1, min(size, self._limit, max(2, 2 * self.fit.largest)))
        if self.fit:
            run = self.fit.seconds(self.size)
            self.linger = max(0.0, min(b, _KEPT * self._target - run))
