"""
Batches: `jobgate.gate.batching` and `batch_queue`, and what Road and Runner make of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from twisted.trial.unittest import SynchronousTestCase

from jobgate import errors
from jobgate.command import DONE, RUNNING, WAITING, Batch, Command
from jobgate.config import AUTO, FULL, BatchConfig, Bytes, Linger, Seconds
from jobgate.gate.batching import PAUSE, Batching, Fit
from jobgate.pool.roles import Loss
from tests.unit import fakes
from tests.unit.fakes import FOREVER, FakeWorker
from tests.unit.test_road import RoadCase, RoadMachine, leave

if TYPE_CHECKING:
    from jobgate.gate.batch_queue import BatchQueue

DIED = Loss("died", "killed by SIGSEGV", None, "SIGSEGV")
TICK = 0.0001


def batch_config(size: int = 4, linger: float = 0.0, **more: Any) -> BatchConfig:
    return BatchConfig(size=size, linger=Linger(linger), **more)


class FitTests(SynchronousTestCase):
    """time = a * n + b."""

    def test_nothing_known(self) -> None:
        """Before the first measurement a batch is expected to take no time."""
        fit = Fit()
        self.assertFalse(fit)
        self.assertEqual((fit.line, fit.seconds(8)), ((0.0, 0.0), 0.0))

    def test_one_size_only(self) -> None:
        """From one size nothing follows for others: the time is taken not to depend on it."""
        fit = Fit()
        for _ in range(5):
            fit.add(4, 0.02)
        self.assertTrue(fit)
        a, b = fit.line
        self.assertEqual(a, 0.0)
        self.assertAlmostEqual(b, 0.02)

    @given(
        a=st.floats(0, 0.01),
        b=st.floats(0, 0.1),
        sizes=st.lists(st.integers(1, 64), min_size=2, max_size=30),
    )
    def test_a_line_is_found(self, a: float, b: float, sizes: list[int]) -> None:
        """What lies on a line is foretold, for the sizes that were measured."""
        fit = Fit()
        for n in sizes:
            fit.add(n, a * n + b)
        for n in sizes:
            self.assertAlmostEqual(fit.seconds(n), a * n + b, delta=1e-6)
        self.assertEqual(fit.largest, max(sizes))

    @given(st.lists(st.tuples(st.integers(1, 64), st.floats(0, 10)), min_size=1, max_size=40))
    def test_never_negative(self, measured: list[tuple[int, float]]) -> None:
        """Whatever is measured, no batch takes less than no time, and none less than a smaller."""
        fit = Fit()
        for n, seconds in measured:
            fit.add(n, seconds)
        a, b = fit.line
        self.assertGreaterEqual(a, 0)
        self.assertGreaterEqual(b, 0)

    def test_old_measurements_fade(self) -> None:
        """A worker that has become quicker is believed."""
        fit = Fit()
        for n in (1, 8):
            for _ in range(50):
                fit.add(n, 1.0)
        for _ in range(200):
            fit.add(1, 0.01)
            fit.add(8, 0.02)
        self.assertLess(fit.seconds(8), 0.05)


class BatchingTests(SynchronousTestCase):
    """When a batch goes."""

    def test_full(self) -> None:
        """By count or by bytes, whichever is first."""
        batching = Batching(batch_config(4, max_bytes=Bytes(100)))
        self.assertFalse(batching.full(3, 99))
        self.assertTrue(batching.full(4, 0))
        self.assertTrue(batching.full(1, 100))

    def test_pause(self) -> None:
        """Without a linger an idle worker gives company a moment; a busy one need not be asked."""
        batching = Batching(batch_config())
        self.assertEqual(batching.goes_at(10.0, 10.0, 5.0), 10.0 + PAUSE)
        self.assertEqual(batching.goes_at(10.0, 11.0, 12.0), 12.0 + PAUSE)
        self.assertEqual(batching.goes_at(10.0, 11.0, None), FOREVER)

    def test_newcomers(self) -> None:
        """As long as they come the others wait, but for no more than a part of what a run takes."""
        batching = Batching(batch_config())
        self.assertEqual(batching.goes_at(10.0, 10.0005, 5.0), 10.0 + PAUSE)
        batching.measured(4, 0.010)
        self.assertAlmostEqual(batching.goes_at(10.0, 10.0005, 5.0), 10.0005 + PAUSE)
        self.assertAlmostEqual(batching.goes_at(10.0, 10.0029, 5.0), 10.0 + 0.010 / 3)
        self.assertAlmostEqual(batching.goes_at(10.0, 10.0029, 10.001), 10.0029 + PAUSE)
        batching.measured(4, 0.0)
        self.assertGreaterEqual(batching.patience, PAUSE)

    def test_linger(self) -> None:
        """The oldest decides; whoever has lingered goes to a busy worker, too."""
        batching = Batching(batch_config(linger=0.5))
        self.assertEqual(batching.goes_at(10.0, 10.2, 5.0), 10.5)
        self.assertEqual(batching.goes_at(10.0, 10.2, None), 10.5)
        self.assertEqual(batching.goes_at(10.0, 10.2, 12.0), 12.0 + PAUSE)

    def test_only_full(self) -> None:
        """`full` waits for ever, if no deadline forces it."""
        batching = Batching(batch_config(linger=FULL))
        self.assertEqual(batching.goes_at(10.0, 10.0, 5.0), FOREVER)

    def test_deadlines(self) -> None:
        """Half of a member's time while nothing is known; then what is left after the run."""
        batching = Batching(batch_config())
        self.assertEqual(batching.must_go(10.0, 14.0, FOREVER), 12.0)
        self.assertEqual(batching.must_go(10.0, FOREVER, FOREVER), FOREVER)
        self.assertLess(batching.must_go(10.0, FOREVER, 40.0), 40.0)
        batching.measured(4, 1.0)
        at = batching.must_go(10.0, 14.0, FOREVER)
        self.assertLess(at, 13.0)
        self.assertGreater(at, 12.0)

    def test_auto_begins_small(self) -> None:
        """It grows with what it knows, and never beyond what is allowed."""
        batching = Batching(batch_config(32, AUTO, target=Seconds(0.05)))
        self.assertEqual((batching.size, batching.linger), (2, 0.0))
        sizes = []
        for _ in range(8):
            sizes.append(batching.size)
            batching.measured(batching.size, 0.01)
        self.assertEqual(sizes, [2, 4, 8, 16, 32, 32, 32, 32])

    def test_auto_without_a_target(self) -> None:
        """There is a default."""
        self.assertEqual(batch_config(8, AUTO).target_seconds, 0.05)
        self.assertEqual(batch_config(8, 0.1).target_seconds, 0.0)

    @given(
        a=st.floats(0.0001, 0.01),
        b=st.floats(0, 0.05),
        target=st.floats(0.02, 1.0),
        limit=st.integers(2, 64),
        sizes=st.lists(st.floats(0, 1), min_size=5, max_size=40),
    )
    def test_auto_stays_under_the_target(
        self, a: float, b: float, target: float, limit: int, sizes: list[float]
    ) -> None:
        """Once known: one run before and one's own fit, and so do lingering and one's own."""
        batching = Batching(batch_config(limit, AUTO, target=Seconds(target)))
        batching.measured(1, a + b)
        for part in sizes:
            n = 1 + int(part * (batching.size - 1))
            batching.measured(n, a * n + b)
            self.assertTrue(1 <= batching.size <= limit)
            self.assertGreaterEqual(batching.linger, 0.0)
        batching.measured(1, a + b)
        batching.measured(2, 2 * a + b)
        run = a * batching.size + b
        if batching.size > 2:
            self.assertLessEqual(2 * run, target + 1e-6)
        self.assertLessEqual(batching.linger + run, max(target, run) + 1e-6)


class HalvesTests(SynchronousTestCase):
    """Who runs again with whom."""

    @given(st.integers(1, 40), st.data())
    def test_every_death_halves(self, count: int, data: Any) -> None:
        """Until the culprit stands alone, all others are let go in time, and nobody is lost."""
        culprit = data.draw(st.integers(0, count - 1))
        members = [Command("q", str(n), b"", "", 3, 0.0, FOREVER) for n in range(count)]
        together, deaths = Batch(members), 0
        while len(together.members) > 1:
            deaths += 1
            for member in together.members:
                member.state = RUNNING
            asked = data.draw(st.permutations(together.members))
            halves = {member: together.half_of(member) for member in asked}
            for half in set(halves.values()):
                self.assertTrue(half.suspect)
                self.assertEqual([m for m in members if halves.get(m) is half], half.members)
                self.assertLessEqual(len(half.members), (len(together.members) + 1) // 2)
            together = halves[members[culprit]]
        self.assertLessEqual(deaths, max(0, (count - 1).bit_length()))

    def test_those_who_were_answered_are_no_suspects(self) -> None:
        """What is done does not run again, and the halves are of the rest."""
        members = [Command("q", str(n), b"", "", 3, 0.0, FOREVER) for n in range(6)]
        for member in members:
            member.state = RUNNING
        batch = Batch(members)
        members[0].state = members[4].state = DONE
        halves = [batch.half_of(m).members for m in members if m.state is RUNNING]
        self.assertEqual(halves[0], [members[1], members[2]])
        self.assertEqual(halves[-1], [members[3], members[5]])


class BatchRoadCase(RoadCase):
    """A road whose commands go in batches."""

    def build(self, **changes: Any) -> None:
        self.batch(**changes)

    def batch(
        self,
        size: int = 4,
        linger: float = 0.0,
        max_bytes: int = 1000,
        target: float | None = None,
        bound: int = 128,
        **changes: Any,
    ) -> None:
        config = batch_config(
            size,
            linger,
            max_bytes=Bytes(max_bytes),
            target=None if target is None else Seconds(target),
        )
        super().build(batch=config, **{"size": bound, "timeout": 60, "retry": "safe", **changes})

    def ids(self, worker: FakeWorker) -> list[list[str]]:
        return [[member.id for member in batch.members] for batch in worker.batches]

    def submits(self, count: int, **how: Any) -> list[Command]:
        return [self.submit(**how) for _ in range(count)]

    def reply_all(self, worker: FakeWorker) -> None:
        for command in list(worker.at_work()):
            worker.reply(command, command.id.encode())

    def ok(self, commands: list[Command]) -> None:
        for command in commands:
            self.assertEqual(self.successResultOf(command.reply).body, command.id.encode())
        self.conserved()


class GoingTests(BatchRoadCase):
    """When a batch goes, and with whom."""

    def test_at_once_when_full(self) -> None:
        """Nobody waits for a clock when nobody else can join."""
        worker = self.worker()
        commands = self.submits(4)
        self.assertEqual(self.ids(worker), [["1", "2", "3", "4"]])
        self.assertEqual({c.attempt for c in commands}, {1})
        self.reply_all(worker)
        self.ok(commands)
        self.assertEqual(self.road.stats.together.total, 4)
        self.assertEqual(sum(self.road.stats.together.counts), 1)

    def test_a_lone_call_waits_a_moment(self) -> None:
        """A millisecond, for company that may come."""
        worker = self.worker()
        made = self.submit()
        self.assertEqual(made.state, WAITING)
        self.clock.advance(PAUSE - TICK)
        self.assertEqual(worker.batches, [])
        self.clock.advance(2 * TICK)
        self.assertEqual(self.ids(worker), [["1"]])

    def test_what_queued_meanwhile_is_the_next_batch(self) -> None:
        """Natural batching: a partial batch goes a moment after the worker has become idle."""
        worker = self.worker()
        first = self.submits(4)
        others = self.submits(3)
        self.clock.advance(1.0)
        self.assertEqual(self.road.waiting, 3)
        self.reply_all(worker)
        self.ok(first)
        self.assertEqual(len(worker.batches), 1)
        last = self.submit()
        self.assertEqual(self.ids(worker)[1:], [["5", "6", "7", "8"]])
        self.reply_all(worker)
        self.ok([*others, last])

    def test_linger(self) -> None:
        """The oldest member decides, whoever joins later."""
        self.batch(linger=0.5)
        worker = self.worker()
        self.submit()
        self.clock.advance(0.4)
        self.submit()
        self.clock.advance(0.1 - TICK)
        self.assertEqual(worker.batches, [])
        self.clock.advance(2 * TICK)
        self.assertEqual(self.ids(worker), [["1", "2"]])

    def test_drained(self) -> None:
        """When nothing new is let in there is no company to wait for."""
        for how in ({"linger": FULL}, {"linger": 5.0}, {"linger": AUTO, "target": 10.0}):
            self.batch(**how)
            worker, busy = self.worker("1"), self.worker("2")
            others = self.submits(4)
            made = self.submits(2)
            self.road.drain()
            self.clock.advance(2 * PAUSE)
            for one in (worker, busy):
                while one.held:
                    self.reply_all(one)
                    self.clock.advance(2 * PAUSE)
            self.ok([*others, *made])

    def test_bytes_of_inputs(self) -> None:
        """What a job is given of others counts like its body."""
        self.batch(max_bytes=100, linger=5)
        for _ in range(2):
            made = fakes.command(b"x" * 10, id=str(next(self.numbers)), now=self.clock.seconds())
            made.job, made.extra = True, 50
            self.road.submit(made)
        self.assertEqual([len(ids) for ids in self.ids(self.worker())], [1])

    def test_bytes(self) -> None:
        """A batch is full by its bodies, too; whoever does not fit is the first of the next."""
        self.batch(max_bytes=100, linger=5)
        worker = self.worker()
        self.submit(b"x" * 60)
        self.assertEqual(worker.batches, [])
        self.submit(b"y" * 60)
        self.assertEqual(self.ids(worker), [["1"]])
        worker.reply()
        self.clock.advance(5.1)
        self.assertEqual(self.ids(worker), [["1"], ["2"]])
        worker.reply()
        self.submit(b"z" * 500)
        self.assertEqual(self.ids(worker)[2:], [["3"]])

    def test_priorities(self) -> None:
        """The most urgent go first, as from any queue."""
        self.batch(size=2)
        worker = self.worker()
        self.submits(2)
        for priority in (5, 1, 3, 0):
            self.submit(priority=priority)
        self.reply_all(worker)
        self.reply_all(worker)
        self.assertEqual(self.ids(worker), [["1", "2"], ["6", "4"], ["5", "3"]])

    def test_full_only(self) -> None:
        """`full` holds a partial batch until a deadline forces it."""
        self.batch(linger=FULL, queue_timeout=30)
        worker = self.worker()
        self.submits(3)
        self.clock.advance(29.9)
        self.assertEqual(worker.batches, [])
        self.clock.advance(0.09)
        self.assertEqual(self.ids(worker), [["1", "2", "3"]])
        self.reply_all(worker)
        made = self.submit(timeout=2.0)
        self.clock.advance(1.9)
        self.assertEqual(made.state, WAITING)
        self.clock.advance(0.08)
        self.assertEqual(made.state, RUNNING)
        worker.reply(made, made.id.encode())
        self.ok([made])

    def test_a_deadline_that_has_left_forces_nothing(self) -> None:
        """Who was in a hurry and has gone does not hurry the others."""
        self.batch(linger=FULL, queue_timeout=0)
        worker = self.worker()
        hasty = self.submit(timeout=2.0)
        patient = self.submit()
        leave(hasty)
        self.clock.advance(10.0)
        self.assertEqual((worker.batches, patient.state), ([], WAITING))
        self.conserved()

    def test_sent_ahead(self) -> None:
        """With two places the next batch travels while one runs, if it is full."""
        worker = self.worker(capacity=2, ordered=True)
        self.submits(7)
        self.assertEqual(self.ids(worker), [["1", "2", "3", "4"]])
        self.submit()
        self.assertEqual(self.ids(worker)[1:], [["5", "6", "7", "8"]])
        self.submits(4)
        self.assertEqual((len(worker.batches), self.road.waiting), (2, 4))
        self.reply_all(worker)
        self.assertEqual(len(worker.batches), 3)
        self.assertEqual([c.began > 0 for c in worker.held], [True] * 4 + [False] * 4)

    def test_a_partial_batch_goes_when_the_worker_is_idle(self) -> None:
        """However its last command ended."""
        for end in ("reply", "fail", "decline"):
            self.build()
            worker = self.worker(capacity=2)
            first = self.submits(4)
            rest = self.submits(2)
            for command in first[:-1]:
                worker.reply(command, command.id.encode())
            self.clock.advance(1)
            self.assertEqual(len(worker.batches), 1)
            if end == "reply":
                worker.reply(first[-1])
            elif end == "fail":
                worker.fail(errors.CommandFailed("no"), first[-1])
                self.failed(first[-1], errors.CommandFailed)
            else:
                worker.decline(first[-1])
                self.failed(first[-1], errors.NoWorker)
            self.clock.advance(PAUSE + TICK)
            self.assertEqual([c.state for c in rest], [RUNNING] * 2, end)

    def test_two_workers(self) -> None:
        """Each gets a batch of its own, the idle one first."""
        one, two = self.worker("1"), self.worker("2")
        self.submits(8)
        self.assertEqual((len(one.batches), len(two.batches)), (1, 1))

    def test_cancelled_before_it_goes(self) -> None:
        """A member that leaves is replaced by the next."""
        worker = self.worker()
        commands = self.submits(3)
        leave(commands[1])
        self.submits(2)
        self.assertEqual(self.ids(worker), [["1", "3", "4", "5"]])
        self.conserved()

    def test_cancelled_after_it_went(self) -> None:
        """Its reply is dropped; its neighbours notice nothing."""
        worker = self.worker()
        commands = self.submits(4)
        leave(commands[1])
        self.assertEqual(worker.cancelled, [commands[1]])
        self.reply_all(worker)
        self.ok([commands[0], *commands[2:]])
        self.assertEqual(self.road.stats.cancelled, 1)

    def test_the_bound(self) -> None:
        """What waits for company at a free worker is not counted; what waits behind is."""
        self.batch(size=8, queue_timeout=0, bound=2)
        worker = self.worker()
        self.submits(8)
        self.assertEqual(self.ids(worker), [["1", "2", "3", "4", "5", "6", "7", "8"]])
        self.submits(2)
        self.refused(errors.QueueFull)
        self.reply_all(worker)
        self.submits(6)
        self.assertEqual(len(worker.batches), 2)
        self.conserved()

    def test_paused(self) -> None:
        """While paused nothing goes, however full; then all that may."""
        worker = self.worker()
        self.road.pause()
        self.submits(5)
        self.clock.advance(1)
        self.assertEqual(worker.batches, [])
        self.road.resume()
        self.assertEqual(self.ids(worker), [["1", "2", "3", "4"]])

    def test_service_time_is_a_members_part(self) -> None:
        """So that what is expected of a queue is true."""
        worker = self.worker()
        self.submits(4)
        self.clock.advance(1.0)
        self.reply_all(worker)
        self.assertAlmostEqual(self.road.stats.service_time, 0.25)
        self.assertEqual(self.road.batching.fit.largest, 4)

    def test_a_get_of_ones_own(self) -> None:
        """Whoever is no Runner gets commands one by one."""
        queue: BatchQueue = self.road.shards[0]
        got = queue.get()
        made = self.submit()
        self.clock.advance(PAUSE + TICK)
        self.assertIs(self.successResultOf(got), made)

    def test_reload(self) -> None:
        """Other batches, none at all, and batches again: what waits stays, workers go on."""
        worker = self.worker()
        first = self.submits(4)
        waiting = self.submits(6)
        plain = msgspec.structs.replace(self.road.config, batch=BatchConfig())
        batched = self.road.config
        self.road.reconfigure(plain)
        self.reply_all(worker)
        self.ok(first)
        self.assertEqual([c.state for c in waiting], [RUNNING] + [WAITING] * 5)
        worker.reply(waiting[0], b"5")
        self.road.reconfigure(batched)
        worker.reply(waiting[1], b"6")
        self.assertEqual(self.ids(worker)[1:], [["7", "8", "9", "10"]])
        self.reply_all(worker)
        self.ok(waiting)

    def test_a_worker_that_cannot_be_written_to(self) -> None:
        """Nobody of the batch is lost, and nothing is counted."""
        broken = self.worker("broken")
        broken.sends = False
        commands = self.submits(4)
        self.assertEqual({(c.state, c.attempt) for c in commands}, {(WAITING, 0)})
        worker = self.worker("good")
        self.clock.advance(PAUSE + TICK)
        self.assertEqual(self.ids(worker), [["1", "2", "3", "4"]])

    def test_a_worker_that_raises(self) -> None:
        """Likewise, and the worker is ended."""
        worker = self.worker()

        def send(_: Batch) -> bool:
            raise RuntimeError("no")

        worker.send_batch = send  # type: ignore[method-assign]
        commands = self.submits(4)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(worker.overruns, ["the gate failed to write to it"])
        self.assertEqual({(c.state, c.attempt) for c in commands}, {(WAITING, 0)})

    def test_auto(self) -> None:
        """It learns from what runs, and gives larger batches."""
        self.batch(size=16, linger=AUTO, target=0.05, queue_timeout=0)
        worker = self.worker()
        for _ in range(60):
            if not worker.held:
                self.submit()
                self.clock.advance(0.02)
                continue
            self.submits(16 - min(16, self.road.waiting))
            self.clock.advance(0.01)
            self.reply_all(worker)
        self.assertEqual(self.road.batching.size, 16)
        self.assertEqual(max(len(ids) for ids in self.ids(worker)), 16)
        self.conserved()


class PoisonTests(BatchRoadCase):
    """A batch that kills its worker."""

    def run_until_quiet(self, culprits: set[str], workers: int = 1, **how: Any) -> int:
        """Workers that die of the culprits are replaced; returns how many died."""
        deaths = 0
        crew = [self.worker(str(n), **how) for n in range(workers)]
        for _ in range(500):
            self.clock.advance(0.002)
            for place, worker in enumerate(crew):
                if any(c.id in culprits for c in worker.at_work()):
                    worker.lose(DIED)
                    crew[place] = self.worker(f"{place}+", **how)
                    deaths += 1
                else:
                    self.reply_all(worker)
            if not self.road.waiting and not self.road.running:
                return deaths
        raise AssertionError("it never ends")

    def test_one_among_32(self) -> None:
        """Its 31 neighbours get their replies; at most 11 workers die."""
        for culprit in ("1", "13", "32"):
            for workers, capacity, ordered in ((1, 1, True), (1, 2, True), (3, 2, False)):
                self.batch(size=32, attempts=3)
                self.numbers = iter(range(1, 100))
                commands = self.submits(32)
                deaths = self.run_until_quiet(
                    {culprit}, workers, capacity=capacity, ordered=ordered
                )
                self.assertLessEqual(deaths, 11)
                bad = next(c for c in commands if c.id == culprit)
                self.failed(bad, errors.PoisonCommand)
                self.assertEqual(bad.deaths, 3)
                self.ok([c for c in commands if c is not bad])

    def test_without_safe(self) -> None:
        """Section 6: what may have begun does not run again."""
        for retry in ("never", "if-not-started"):
            self.batch(retry=retry)
            worker = self.worker(capacity=2, ordered=True)
            commands = self.submits(8)
            worker.lose(DIED)
            for command in commands[:4]:
                self.assertEqual(self.failed(command, errors.WorkerDied).extra["attempt"], 1)
            again = self.worker("again")
            if retry == "never":
                for command in commands[4:]:
                    self.failed(command, errors.WorkerDied)
            else:
                self.clock.advance(PAUSE + TICK)
                self.assertEqual(again.batches[0].members, commands[4:])

    def test_suspects_do_not_mix(self) -> None:
        """Halves run by themselves; who comes later goes after them."""
        worker = self.worker()
        self.submits(4)
        self.submits(2)
        worker.lose(DIED)
        again = self.worker("again")
        self.assertEqual(self.ids(again), [["1", "2"]])
        self.reply_all(again)
        self.assertEqual(self.ids(again)[1:], [["3", "4"]])
        self.reply_all(again)
        self.clock.advance(PAUSE + TICK)
        self.assertEqual(self.ids(again)[2:], [["5", "6"]])

    def test_suspects_run_beside_nothing(self) -> None:
        """A worker that runs several batches at once gets nothing else with suspects."""
        self.worker("1", 2).lose(DIED)
        worker = self.worker("2", 2)
        self.submits(4)
        worker.lose(DIED)
        again = self.worker("3", 2)
        self.submits(4)
        self.assertEqual(self.ids(again), [["1", "2"]])
        self.assertEqual(again.room, 0)

    def test_no_attempts_used_up_by_others(self) -> None:
        """A bystander survives more deaths than it has attempts."""
        self.batch(size=8, attempts=1)
        commands = self.submits(8)
        self.run_until_quiet({"8"})
        self.ok(commands[:7])
        self.assertGreater(commands[6].attempt, 1)
        self.failed(commands[7], errors.PoisonCommand)

    def test_cancelled_suspects(self) -> None:
        """Whoever leaves leaves its half, too."""
        worker = self.worker()
        commands = self.submits(4)
        worker.lose(DIED)
        leave(commands[1])
        again = self.worker("again")
        self.assertEqual(self.ids(again), [["1"]])
        self.conserved()

    def test_a_deadline_ends_it(self) -> None:
        """Nobody runs again who has no time left."""
        worker = self.worker()
        hasty = self.submit(timeout=5.0)
        others = self.submits(3)
        self.clock.advance(5.0)
        worker.lose(DIED)
        self.failed(hasty, errors.WorkerDied)
        again = self.worker("again")
        self.assertEqual([c.state for c in others], [RUNNING, WAITING, WAITING])
        self.assertEqual(self.ids(again), [["2"]])

    def test_too_long(self) -> None:
        """A batch that runs too long has run too long for all of its members."""
        self.batch(timeout=2.0)
        self.worker()
        commands = self.submits(4)
        self.clock.advance(2.1)
        for command in commands:
            self.failed(command, errors.WorkerTimeout)

    def test_neighbours_of_another_batch_may_go_on(self) -> None:
        """What ran beside a batch that ran too long has not run too long itself."""
        self.batch(timeout=2.0)
        self.worker(capacity=2)
        late = self.submits(4)
        self.clock.advance(1.5)
        others = self.submits(4)
        self.clock.advance(0.6)
        for command in late:
            self.failed(command, errors.WorkerTimeout)
        self.assertEqual({c.state for c in others}, {WAITING})

    def test_declined_suspect(self) -> None:
        """Another worker gets it, still by itself."""
        other, worker = self.worker("1"), self.worker("2")
        commands = self.submits(4)
        self.assertEqual(len(worker.batches), 1)
        worker.lose(DIED)
        self.clock.advance(PAUSE)
        self.assertEqual(self.ids(other), [["1", "2"]])
        third = self.worker("3")
        self.assertEqual(self.ids(third), [["3", "4"]])
        other.decline(commands[0])
        self.reply_all(third)
        self.clock.advance(PAUSE)
        self.assertEqual(self.ids(third)[1:], [["1"]])


class BatchMachine(RoadMachine):
    """Everything that holds of a Road holds with batches; and what is said of batches."""

    RETRY = "safe"
    SIZE, LINGER, BYTES = 3, 0.7, 7

    @initialize()
    def batches(self) -> None:
        config = batch_config(self.SIZE, self.LINGER, max_bytes=Bytes(self.BYTES))
        self.road.reconfigure(msgspec.structs.replace(self.road.config, batch=config))

    @rule(size=st.integers(1, 9), how_many=st.integers(1, 5))
    def crowd(self, size: int, how_many: int) -> None:
        """Many come at once."""
        for _ in range(how_many):
            self.submit(3, FOREVER, "", no_queue=False, body=b"z" * size)

    def die(self, which: int, kind: str, begun: str) -> None:
        """As for single commands; but a death of many uses up nobody's attempts."""

    @rule(which=st.integers(0, 9), kind=st.sampled_from(["died", "died", "protocol", "stopped"]))
    def batch_dies(self, which: int, kind: str) -> None:
        fit = [w for w in self.workers if w.fit]
        if not fit:
            return
        worker = fit[which % len(fit)]
        begun = list(worker.at_work() if worker.ordered else worker.held)
        live = [c for c in worker.held if c.state is RUNNING]
        starts = {c: c.attempt - c.excused for c in live}
        shared = {c: c.batch is not None and len(c.batch.members) > 1 for c in live}
        worker.lose(Loss(kind, kind, None, "SIGKILL"), begun)
        now = self.clock.seconds()
        for c in live:
            if c not in begun or (kind == "died" and shared[c]):
                assert c.state is not DONE or now >= c.deadline, "blamed for another's doing"
            elif kind == "protocol" or starts[c] >= self.road.config.attempts:
                assert c.state is DONE

    @invariant()
    def bounds(self) -> None:
        """No batch is larger than allowed; no suspects are mixed with others."""
        limit = self.road.config.batch
        for worker in self.workers:
            for batch in worker.batches:
                if len(batch.members) > 1:
                    assert len(batch.members) <= limit.size
                    assert sum(len(m.body) for m in batch.members) <= limit.max_bytes
                assert len(set(batch.members)) == len(batch.members)

    @invariant()
    def one_place_each(self) -> None:
        places: dict[Command, int] = {}
        for shard in self.road.shards:
            for c in shard.pending:
                places[c] = places.get(c, 0) + 1
                assert c.state is WAITING
                assert c.worker is None
                assert c.shard is shard
        for w in self.workers:
            assert len({c.batch or c for c in w.held}) <= w.capacity
            for c in w.held:
                places[c] = places.get(c, 0) + 1
                assert c.state is not WAITING
        for c, outcomes in self.made.items():
            assert places.get(c, 0) == 1 or outcomes, f"{c} is in {places.get(c, 0)} places"
            assert places.get(c, 0) <= 1

    @invariant()
    def no_idle_worker_beside_work(self) -> None:
        """A worker with room leaves nothing full, nothing lingered and no suspects waiting."""
        now = self.clock.seconds()
        for runner in self.road._runners:
            queue, worker = runner.queue, runner.worker
            waiting = [c for c in queue.pending if worker not in (c.declined or ())]
            if queue.paused or not worker.room or not waiting:
                continue
            patience = queue._batching.patience
            soon = queue._timer is not None and queue._timer.getTime() <= now + patience + 1e-6
            if worker.idle and not soon:
                assert all(c.batch is None for c in waiting), "suspects wait beside an idle worker"
                oldest = min(c.accepted for c in waiting)
                assert now <= oldest + self.LINGER, "lingered beside an idle worker"
                assert queue._timer is not None or self.LINGER == FOREVER, "waits for nothing"
            if not soon and all(c.batch is None and not c.declined for c in queue.pending):
                count, size_bytes = len(queue), queue.bytes_waiting
                assert not queue._batching.full(count, size_bytes), "full and not gone"

    def teardown(self) -> None:
        for _ in range(3):
            self.clock.advance(self.LINGER + PAUSE)
        super().teardown()


class NaturalBatchMachine(BatchMachine):
    """Without a linger."""

    SIZE, LINGER, BYTES = 4, 0.0, 1000


class FullBatchMachine(BatchMachine):
    """Only full ones."""

    SIZE, LINGER, BYTES = 2, FOREVER, 1000
    CONFIG = {"shards": 2}  # noqa: RUF012


STEPS = settings(max_examples=100, stateful_step_count=40)

BatchMachineTests = BatchMachine.TestCase
BatchMachineTests.settings = STEPS
NaturalBatchMachineTests = NaturalBatchMachine.TestCase
NaturalBatchMachineTests.settings = STEPS
FullBatchMachineTests = FullBatchMachine.TestCase
FullBatchMachineTests.settings = STEPS
