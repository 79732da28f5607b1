"""
Four timelines of a job server: what prefetch is good for.

Three workers, a hand-over of half a millisecond each way, and always something to do. With
``in_flight = 1`` each worker waits for two hand-overs between two commands; with 2 the next
command travels while the last is worked on. Both once with workers that take 2, 2 and 2 ms and
once with 3, 2 and 1 ms; they sleep, since three do not fit two cores.

A gate in this process does what it does anywhere; it is only watched: when it writes a command,
when it reads a reply. Ends with 0 if prefetch keeps the workers busy, 1 if not.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awake import awake
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater, react

from jobgate.command import PRIORITY, Command
from jobgate.config import from_tables
from jobgate.gate import Gate
from jobgate.pool.frames import FramesConversation
from jobgate.pool.process import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobgate.command import Reply

HERE = Path(__file__).resolve().parent
HAND_OVER = 0.5
Scene = tuple[tuple[int, ...], int]
SCENES: list[Scene] = [(work, in_flight) for work in ((2, 2, 2), (3, 2, 1)) for in_flight in (1, 2)]
"""Milliseconds of work of each worker, and commands handed over at once: the four panels."""
CALLERS = 12
"""More than the workers can hold: something always waits."""
WARM_UP = 0.3
"""Seconds before it counts."""
AT_LEAST = 0.85
"""Mean utilisation with prefetch."""
BETTER_BY = 0.1
"""By which it must be above that without."""
TIMES = struct.Struct(">ddd")


@dataclass(frozen=True)
class Run:
    """
    One command at one worker; times are seconds on the clock of all processes.

    Attributes:
        worker: The worker's name.
        sent: The gate had written it.
        there: The worker had it.
        began: The work began.
        ended: It ended.
        read: The gate had the reply.
    """

    worker: str
    sent: float
    there: float
    began: float
    ended: float
    read: float


@dataclass
class Timeline:
    """
    What was seen in one scene.

    Attributes:
        work: Milliseconds of work of each worker.
        in_flight: Commands handed over at once.
        runs: Every command that was answered.
        server: When the gate wrote to workers (True) and read from them (False).
        since, until: The bounds of what counts.
    """

    work: tuple[int, ...]
    in_flight: int
    runs: list[Run] = field(default_factory=list)
    server: list[tuple[bool, float, float]] = field(default_factory=list)
    since: float = 0.0
    until: float = 0.0

    @property
    def workers(self) -> list[str]:
        """
        List the names of the workers, in order.
        """
        return sorted({run.worker for run in self.runs})

    def utilisation(self, worker: str) -> float:
        """
        Return the share of the time in which a worker worked.
        """
        spans = ((r.began, r.ended) for r in self.runs if r.worker == worker)
        return self._share(spans)

    @property
    def mean(self) -> float:
        """
        Return the mean utilisation of the workers.
        """
        return statistics.mean(map(self.utilisation, self.workers))

    @property
    def server_share(self) -> float:
        """
        Return the share of the time in which the gate was busy with workers.
        """
        # Writing happens inside reading where a reply makes room for the next command.
        edges, busy, end = sorted((a, b) for _, a, b in self.server), [], 0.0
        for a, b in edges:
            if b > end:
                busy.append((max(a, end), b))
                end = b
        return self._share(iter(busy))

    def _share(self, spans: Iterator[tuple[float, float]]) -> float:
        inside = (max(0.0, min(b, self.until) - max(a, self.since)) for a, b in spans)
        return sum(inside) / (self.until - self.since)


class Watcher:
    """
    Notes when the gate writes to workers and reads from them.

    Attributes:
        sent: When each command was written, and to whom, by its id.
        server: As in `Timeline`.
    """

    def __init__(self) -> None:
        self.sent: dict[str, tuple[str, float]] = {}
        self.server: list[tuple[bool, float, float]] = []
        send, receive = WorkerProcess.send, FramesConversation.receive

        def watched_send(worker: WorkerProcess, command: Command) -> bool:
            began = time.monotonic()
            done = send(worker, command)
            now = time.monotonic()
            self.sent[command.id] = worker.name, now
            self.server.append((True, began, now))
            return done

        def watched_receive(conversation: FramesConversation, data: bytes) -> None:
            began = time.monotonic()
            receive(conversation, data)
            self.server.append((False, began, time.monotonic()))

        WorkerProcess.send = watched_send  # type: ignore[method-assign]
        FramesConversation.receive = watched_receive  # type: ignore[method-assign]


async def play(reactor: Any, watcher: Watcher, scene: Scene, seconds: float) -> Timeline:  # noqa: ANN401
    """
    Run one scene.
    """
    work, in_flight = scene
    script = str(HERE / "workers" / "timed.py")
    command = [sys.executable, script, ",".join(map(str, work)), str(HAND_OVER)]
    queue = {"command": command, "workers": len(work), "in_flight": in_flight}
    gate = Gate(from_tables({"queues": {"bench": queue}}, "overlap", Path.cwd()), reactor)
    await gate.start()
    while len(gate.supervisor("bench").alive) < len(work):
        await deferLater(reactor, 0.01)
    timeline = Timeline(work, in_flight)
    watcher.server.clear()
    over = False

    async def call_again_and_again() -> None:
        while not over:
            now = gate.reactor.seconds()
            made = Command("bench", gate.ids.make(), b"", "", PRIORITY, now, float("inf"))
            gate.dispatcher["bench"].submit(made)
            reply: Reply = await made.reply
            now = time.monotonic()
            worker, sent = watcher.sent.pop(made.id)
            timeline.runs.append(Run(worker, sent, *TIMES.unpack(reply.body), now))

    callers = [Deferred.fromCoroutine(call_again_and_again()) for _ in range(CALLERS)]
    await deferLater(reactor, WARM_UP)
    timeline.since = time.monotonic()
    await deferLater(reactor, seconds)
    timeline.until = time.monotonic()
    over = True
    await gatherResults(callers)
    timeline.server = list(watcher.server)
    await gate.stop()
    return timeline


def told(timeline: Timeline) -> str:
    """
    Describe one timeline in a line.
    """
    each = " ".join(f"{timeline.utilisation(worker):.3f}" for worker in timeline.workers)
    work = ", ".join(map(str, timeline.work))
    return (
        f"{work} ms   in_flight = {timeline.in_flight}   {each}   "
        f"mean {timeline.mean:.3f}   gate {timeline.server_share:.3f}"
    )


def judge(timelines: dict[Scene, Timeline]) -> list[str]:
    """
    List what is not as claimed.
    """
    wrong = []
    for work in dict.fromkeys(work for work, _ in timelines):
        without, prefetch = timelines[work, 1].mean, timelines[work, 2].mean
        if prefetch < AT_LEAST:
            wrong.append(f"{work}: {prefetch:.3f} with prefetch, wanted {AT_LEAST}")
        if prefetch < without + BETTER_BY:
            wrong.append(f"{work}: {prefetch:.3f} with prefetch, {without:.3f} without")
    return wrong


async def run(reactor: Any, options: argparse.Namespace) -> None:  # noqa: ANN401
    """
    Play every scene as often as asked for, in turn, and show the middle one of each.
    """
    watcher = Watcher()
    played: dict[Scene, list[Timeline]] = {scene: [] for scene in SCENES}
    for _ in range(options.rounds):
        for scene in SCENES:
            played[scene].append(await play(reactor, watcher, scene, options.seconds))
    shown = {}
    for scene, timelines in played.items():
        ordered = sorted(timelines, key=lambda timeline: timeline.mean)
        shown[scene] = ordered[len(ordered) // 2]
        print(told(shown[scene]), f"  ({ordered[0].mean:.3f} - {ordered[-1].mean:.3f})")
    if options.svg:
        from timelines import draw

        draw(list(shown.values()), HAND_OVER, options.svg)
    wrong = judge(shown)
    for line in wrong:
        print("NOT AS CLAIMED:", line)
    raise SystemExit(1 if wrong else 0)


def main() -> None:
    """
    Read the command line and run.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often; the middle one is shown")
    parser.add_argument("--seconds", type=float, default=0.5, help="that each counts")
    parser.add_argument("--svg", type=Path, help="where to draw it (needs matplotlib)")
    parser.add_argument(
        "--awake",
        action="store_true",
        help="keep the CPUs from sleeping, for which a host would give them to others",
    )
    options = parser.parse_args()
    with awake() if options.awake else contextlib.nullcontext():
        react(lambda reactor: Deferred.fromCoroutine(run(reactor, options)))


if __name__ == "__main__":
    main()
