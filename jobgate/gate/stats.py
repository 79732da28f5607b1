"""
What a queue counts.

Plain numbers, bumped where things happen and read when somebody asks, so a
command costs a few additions. Conservation (contract section 8): accepted =
succeeded + failed + shed + cancelled + waiting + running.
"""

from __future__ import annotations

from typing import Final

__all__ = ["BOUNDS", "SIZES", "Histogram", "QueueStats"]

_STEP: Final = 4096
"""Parts of a second: durations are counted by the power of two of these they stay under."""
BOUNDS: Final = tuple(2**power / _STEP for power in range(22))
"""Upper bounds of the histograms in seconds, from a quarter of a millisecond to eight minutes."""
SIZES: Final = tuple(2**power for power in range(len(BOUNDS)))
"""Upper bounds of the histogram of batches, in members."""
_LAST: Final = len(BOUNDS)
_WEIGHT: Final = 0.05
"""What one more measurement counts in the moving average; the first few count more."""
_FEW: Final = 1 / _WEIGHT


class Histogram:
    """
    Durations in seconds, or sizes.

    Attributes:
        counts: How many there were under each of `BOUNDS` or `SIZES`, and over the last.
        total: Their sum.
    """

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0


class QueueStats:
    """
    The counters of one queue.

    Attributes:
        accepted: Every command that was offered to the queue, refused ones included.
        succeeded: Ended with the worker's reply.
        failed: Ended with a problem after having been let in.
        shed: Refused at the door.
        cancelled: Left by their callers, or purged.
        retried: Starts beyond a command's first.
        declined: Times a worker said DECLINE.
        stray_replies: Replies to no command in flight: late, doubled or invented.
        waited: How long commands waited before they began, in seconds.
        ran: How long they ran.
        together: How many members batches had.
        service_time: Moving average of how long a command occupies a worker, in seconds; one
            of a batch occupies it for its part of the time.
        measured: How many durations it was made from.
    """

    def __init__(self) -> None:
        self.accepted = 0
        self.succeeded = 0
        self.failed = 0
        self.shed = 0
        self.cancelled = 0
        self.retried = 0
        self.declined = 0
        self.stray_replies = 0
        self.waited = Histogram()
        self.ran = Histogram()
        self.together = Histogram()
        self.service_time = 0.0
        self.measured = 0

    def measure(self, waited: float, ran: float, together: int = 1) -> None:
        """Take in one command that ran to its end, with how many in all."""
        # Twice the same lines rather than a loop: this runs once for every command.
        histogram = self.waited
        power = int(waited * _STEP).bit_length()
        histogram.counts[power if power < _LAST else _LAST] += 1
        histogram.total += waited
        histogram = self.ran
        power = int(ran * _STEP).bit_length()
        histogram.counts[power if power < _LAST else _LAST] += 1
        histogram.total += ran
        self.measured += 1
        weight = _WEIGHT if self.measured > _FEW else 1 / self.measured
        self.service_time += weight * (ran / together - self.service_time)

    def measure_batch(self, members: int) -> None:
        """Take in one batch that was answered."""
        histogram = self.together
        histogram.counts[min((members - 1).bit_length(), _LAST)] += 1
        histogram.total += members
