"""
A gate with jobs on a reactor of fakes, and what its tests ask of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import ensureDeferred
from twisted.trial.unittest import SynchronousTestCase

from jobgate.config import Backoff, GateConfig, GateSettings
from jobgate.gate import Gate
from jobgate.jobs.job import Job, NewJob, Reply, State
from jobgate.jobs.journal import LeaseTerms
from jobgate.jobs.lots import gather, ids_of
from jobgate.jobs.pull import Pull
from jobgate.testing import FakeChild, SpawningReactor, inline_journal
from jobgate.wire import frames
from tests.unit.fakes import queue_config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobgate.jobs.sqlite import SqliteJournal

STEADY = Backoff(first=1.0, factor=2.0, max=60.0, jitter=0.0)


class JobsCase(SynchronousTestCase):
    """Build a gate; assert at the end that it has lost count of nothing."""

    def setUp(self) -> None:
        self.reactor = SpawningReactor()
        self.reactor.rightNow = 1000.0  # a command that began at 0 would not have begun
        self.reactor.install()
        self.addCleanup(self.reactor.discard)
        self.pongs: dict[FakeChild, int] = {}
        self.journal: SqliteJournal
        self.gate: Gate

    def tables(self, *, gate: dict[str, Any] | None = None, **queues: Any) -> GateConfig:
        """A configuration; a queue without a command is one for pullers."""
        return GateConfig(
            gate=GateSettings(**(gate or {})),
            queues={
                name: queue_config(name=name, **{"backoff": STEADY, **keys})
                for name, keys in queues.items()
            },
        )

    def build(
        self, *, gate: dict[str, Any] | None = None, path: str = ":memory:", **queues: Any
    ) -> Gate:
        """A gate whose workers are ready."""
        config = self.tables(gate=gate, **queues)
        self.journal = inline_journal(self.reactor, path)
        self.gate = Gate(config, self.reactor, self.journal)
        self.gate.start()
        self.turn()
        for child in self.reactor.alive:
            child.hello()
        self.turn()
        return self.gate

    def turn(self, seconds: float = 0.0) -> None:
        """Let time pass; workers that are asked whether they live say so."""
        self.reactor.advance(seconds)
        for child in self.reactor.alive:
            asked = child.kinds.count(frames.PING)
            while self.pongs.get(child, 0) < asked:
                self.pongs[child] = self.pongs.get(child, 0) + 1
                child.frame(frames.PONG)

    def push(self, queue: str = "q", body: bytes = b"", **how: Any) -> str:
        """Push; its id."""
        name: str = self.successResultOf(self.gate.push(queue, body, **how))
        self.turn()
        return name

    def push_lines(self, lines: Sequence[bytes], queue: str = "q", **how: Any) -> list[str]:
        """Push jobs that come together, as the web does; their ids."""
        config = self.gate.queue(queue).config
        like = NewJob("", queue, b"", "t/p", once=config.retry == "never", **how)
        jobs = list(gather(like, self.gate.ids.some(len(lines)), lines))
        self.successResultOf(self.gate.jobs.put(jobs))
        self.turn()
        return [id_ for job in jobs for id_ in ids_of(job)]

    def job(self, name: str) -> Job:
        """What the store knows of it."""
        found: Job = self.successResultOf(self.gate.jobs.get(name))
        return found

    def state(self, name: str) -> State:
        """Where it stands."""
        return self.job(name).state

    def reply_of(self, name: str) -> Reply | None:
        """Its stored reply."""
        found: Reply | None = self.successResultOf(self.journal.result(name))
        return found

    @property
    def child(self) -> FakeChild:
        """The only worker that lives; a new one is made ready."""
        self.turn()
        [child] = self.reactor.alive
        if frames.WELCOME not in child.kinds:
            child.hello()
            self.turn()
        return child

    def pulling(self, queue: str = "q", wait: float = 0.0, **how: Any) -> tuple[Pull, list[Any]]:
        """A pull as the web makes it, and where its commands go."""
        got: list[Any] = []
        pull = Pull(
            self.gate.jobs.backlogs[queue],
            self.reactor,
            done=got.append,
            over=self.gate.leases.over,
            **{"most": 1, "least": 1, "lines": False, **how},
        )
        pull.start(wait)
        return pull, got

    def lease(
        self, queue: str = "q", seconds: float = 10.0, lease: str = "lease", **how: Any
    ) -> list[Any]:
        """Pull with a lease."""
        _, [commands] = self.pulling(queue, **how)
        road = self.gate.dispatcher[queue]
        self.successResultOf(self.gate.leases.lend(road, commands, LeaseTerms(lease, seconds)))
        return list(commands)

    def done(self, coroutine: Any) -> Any:
        """The result of a coroutine that need not wait."""
        return self.successResultOf(ensureDeferred(coroutine))

    def refused(self, coroutine: Any, *kinds: type[Exception]) -> Any:
        """The error of such a one."""
        return self.failureResultOf(ensureDeferred(coroutine), *kinds).value

    def conserved(self) -> None:
        """Assert that accepted is what has ended, waits and runs; and that nothing is forgotten."""
        jobs, _ = self.successResultOf(self.journal.page("", None, 1000, ""))
        for name, backlog in self.gate.jobs.backlogs.items():
            stats, tally = backlog.road.stats, backlog.tally
            ended = stats.succeeded + stats.failed + stats.shed + stats.cancelled
            inside = tally.waiting + tally.running
            self.assertEqual(stats.accepted, ended + inside, (name, vars(stats), tally.open))
            states = [job.state for job in jobs if job.queue == name and not job.call]
            self.assertEqual(tally.open, [states.count(state) for state in list(State)[:4]], name)
            self.assertGreaterEqual(backlog.demand.wanted, 0)
            self.assertEqual(backlog.arrivals.coming, 0)
            demand = backlog.demand
            self.assertEqual(demand.wanted == 0, not demand.pulls)
