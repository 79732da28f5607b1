"""
Does a command cost more when many wait before it? At the Gate, in process: no HTTP, no child.

So many calls come, half of them are given up again by their callers in no particular order, and
a worker takes the rest. Whatever scans, sorts or shifts what waits would show as a cost per
command that grows with the number.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from checks import Bar, Check
from measure import spread_of
from processes import BenchmarkError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twisted.python.failure import Failure

    from jobgate.command import Batch, Command, Reply
    from jobgate.gate import Gate
    from jobgate.gate.road import Road
    from jobgate.gate.runner import Runner

__all__ = ["checks"]

LENGTHS = (10, 100, 1_000, 10_000, 100_000)
COMMANDS = LENGTHS[-1]
"""In all, at each length: short queues are filled and emptied many times."""
RISE = Bar(2.0, more=False)
"""What scans costs thousands of times more; caches and the collector, less than twice."""
BODY = b"x" * 100


def checks(rounds: int) -> Iterator[Check]:
    """
    Measure the cost of a command at each length; the claim is about the longest and shortest.
    """
    costs: dict[int, list[float]] = {length: [] for length in LENGTHS}
    for length in LENGTHS[:2]:
        cost_at(length)  # warm up
    for number in range(rounds):
        for length in LENGTHS if number % 2 == 0 else reversed(LENGTHS):
            costs[length].append(cost_at(length))
    pairs = zip(costs[LENGTHS[-1]], costs[LENGTHS[0]], strict=True)
    rise = spread_of([long / short for long, short in pairs])
    each = ", ".join(f"{length:,}: {spread_of(costs[length]).median:.1f}" for length in LENGTHS)
    name = f"cost of a command, {LENGTHS[-1]:,} waiting / {LENGTHS[0]}"
    yield Check(name, "x", rise, RISE, other=f"us at {each}")


def cost_at(length: int) -> float:
    """
    Return what one command costs when so many wait together, in microseconds of CPU.

    The gate's clock stands still, and its worker is an object in this process: what is measured
    is the gate's own road from the call to its reply, with admission, deadlines and counters.
    """
    # The gate is imported here: the other rows must run without it being importable.
    from twisted.internet.task import Clock

    from jobgate.config import from_tables
    from jobgate.gate import Gate
    from jobgate.loop import settle

    limits = {"size": length, "max_waiting_bytes": length * len(BODY)}
    gate = Gate(from_tables({"queues": {"bench": limits}}, "benchmark", Path()), Clock())
    road = gate.dispatcher["bench"]
    worker = Instant()
    worker.runner = road.hire(worker, 0)
    worker.runner.start()
    times = COMMANDS // length
    settle()  # as a gate that is ready does; and what was before is not this one's to clear away
    seconds = sum(fill_and_empty(gate, road, worker, length) for _ in range(times))
    road.close()
    return seconds * 1e6 / (times * length)


def fill_and_empty(gate: Gate, road: Road, worker: Instant, length: int) -> float:
    """
    Let so many calls come while the queue is paused, half be given up, and the rest be answered.

    Returns:
        Seconds of CPU.

    Raises:
        BenchmarkError: Not every call had the outcome it should have.
    """
    places = random.sample(range(length), length // 2)
    outcomes = Outcomes()
    began = time.process_time()
    road.pause()
    replies = [
        gate.call("bench", BODY).addCallbacks(outcomes.replied, outcomes.failed)
        for _ in range(length)
    ]
    for place in places:
        replies[place].cancel()
    road.resume()
    while worker.command is not None:
        worker.answer()
    seconds = time.process_time() - began
    if outcomes != Outcomes(length - len(places), len(places)):
        raise BenchmarkError(f"of {length} calls, {outcomes}")
    return seconds


@dataclass
class Outcomes:
    """
    How many calls ended how.
    """

    good: int = 0
    bad: int = 0

    def replied(self, _reply: Reply) -> None:
        """
        Count a reply.
        """
        self.good += 1

    def failed(self, _failure: Failure) -> None:
        """
        Count a call that was given up.
        """
        self.bad += 1


class Instant:
    """
    A worker (`jobgate.command.Worker`) that has its answer ready when it is asked for.
    """

    name = "instant"
    lots = 1
    lanes = 1
    runner: Runner

    def __init__(self) -> None:
        """
        Begin without a command.
        """
        self.command: Command | None = None

    @property
    def room(self) -> int:
        """
        How many more commands it can be handed now.
        """
        return int(self.command is None)

    @property
    def idle(self) -> bool:
        """
        Whether it has no command in hand.
        """
        return self.command is None

    def send(self, command: Command) -> bool:
        """
        Take a command.
        """
        self.command = command
        return True

    def send_batch(self, batch: Batch) -> bool:
        """
        Never called here: commands go one at a time.
        """
        raise NotImplementedError

    def cancel(self, command: Command) -> None:
        """
        Never called here: whoever leaves, leaves before his command runs.
        """

    def overran(self, cause: str) -> None:
        """
        Never called here: the clock stands still.
        """

    def answer(self) -> None:
        """
        Give the command's own body back.
        """
        from jobgate.command import Reply

        command, self.command = self.command, None
        if command is not None:
            self.runner.began(command, 0.0)
            self.runner.replied(command, Reply(command.body, command.content_type), 0.0)
