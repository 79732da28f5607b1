"""
`jobgate.pool`: workers that have served long enough, reloads, and what is known afterwards.
"""

from __future__ import annotations

import os
import signal
from random import Random
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from twisted.internet import process as twisted_process
from twisted.trial.unittest import SynchronousTestCase

from jobgate import errors
from jobgate.config import GateConfig, WorkerConfig
from jobgate.gate import Gate
from jobgate.pool import lifespan, machine, reaping, watch
from jobgate.pool.environment import STACKS_SIGNAL
from jobgate.pool.lifespan import Lifespan
from jobgate.pool.machine import Appetite, Machine
from jobgate.pool.post import Post
from jobgate.pool.report import Output
from jobgate.pool.supervisor import Supervisor
from jobgate.testing import FakeChild, Recorder, SpawningReactor, inline_journal
from jobgate.wire import frames
from tests.unit.fakes import command, queue_config


class LifespanTests(SynchronousTestCase):
    """How long one worker may serve."""

    def test_without_bounds(self) -> None:
        """For ever."""
        self.assertEqual(Lifespan(WorkerConfig()).over(10**9, 1e9, 10**12), "")

    def test_each_bound(self) -> None:
        """Each says its name."""
        config = WorkerConfig(max_commands=100, max_age=50, max_memory=1000)  # type: ignore[arg-type]
        span = Lifespan(config, Random(1))
        self.assertEqual(span.over(89, 44, 1000), "")
        self.assertEqual(span.over(111, 0, 0), "max_commands")
        self.assertEqual(span.over(0, 56, 0), "max_age")
        self.assertEqual((span.over(0, 0, 1001), span.fatal), ("max_memory", 2000))

    @given(st.integers(1, 10_000), st.integers(0, 2**32))
    def test_jitter(self, most: int, seed: int) -> None:
        """A tenth at most, and never nothing."""
        commands = Lifespan(WorkerConfig(max_commands=most), Random(seed)).commands
        self.assertTrue(max(1, round(most * 0.9)) <= commands <= round(most * 1.1))

    def test_they_differ(self) -> None:
        """Workers that were started together are not replaced together."""
        spans = {Lifespan(WorkerConfig(max_commands=1000)).commands for _ in range(50)}
        self.assertGreater(len(spans), 5)


class MachineTests(SynchronousTestCase):
    """CPU to spare."""

    def times(self, user: float, idle: float) -> None:
        found = SimpleNamespace(user=user, idle=idle, iowait=0.0)
        numbers = (user, idle, 0.0)
        times = type("Times", (tuple,), vars(found))(numbers)
        self.patch(machine.psutil, "cpu_times", lambda: times)

    def test_spare(self) -> None:
        """It has some if a quarter of a core was idle since the last question."""
        self.patch(machine.os, "cpu_count", lambda: 2)
        self.times(100, 100)
        asked = Machine()
        self.times(102, 100)
        self.assertFalse(asked.spare())
        self.times(102.1, 100.1)
        self.assertFalse(asked.spare(), "too short to tell")
        self.times(103.5, 100.5)
        self.assertTrue(asked.spare())
        self.times(105.3, 100.6)
        self.assertFalse(asked.spare())

    def test_appetite(self) -> None:
        """Workers that wait while they have work need no CPU; unknown ones may."""
        used = {7: 10.0, 8: 20.0}
        self.patch(machine, "_cpu", used.get)
        talks = [SimpleNamespace(busy=5.0), SimpleNamespace(busy=6.0)]
        workers: Any = [
            SimpleNamespace(pid=7, conversation=talks[0]),
            SimpleNamespace(pid=8, conversation=talks[1]),
            SimpleNamespace(pid=None, conversation=talks[1]),
        ]
        appetite = Appetite()
        self.assertFalse(appetite.is_small(workers), "not known yet")
        talks[0].busy += 0.1
        self.assertFalse(appetite.is_small(workers), "too short to tell")
        talks[0].busy, used[7] = 6.0, 10.05
        self.assertTrue(appetite.is_small(workers))
        talks[1].busy, used[8] = 7.0, 20.9
        self.assertFalse(appetite.is_small(workers))

    def test_this_machine(self) -> None:
        """The real numbers can be read."""
        self.assertIn(Machine().spare(), (True, False))
        self.assertIsNone(machine.rss(None))
        self.assertIsNone(machine.rss(2**30))
        self.assertGreater(machine.rss(1) or 0, 0)
        self.assertGreaterEqual(machine.peak(), machine.rss(os.getpid()) or 0)


class Crew(Recorder):
    """A Runner that only notes when a command began."""

    def began(self, command: Any, now: float) -> None:
        command.began = now


class Foreman(Recorder):
    """Gives every worker a Crew."""

    def worker_ready(self, worker: Any, post: int) -> None:
        worker.hire(Crew())


class PoolCase(SynchronousTestCase):
    """A Supervisor with fake children, each with a Runner that does what it is told."""

    def setUp(self) -> None:
        self.reactor = SpawningReactor()
        self.reactor.install()
        self.addCleanup(self.reactor.discard)
        self.reactor.advance(1000)
        self.foreman = Foreman(waits=[None])

    def start(self, workers: int = 1, **changes: Any) -> list[FakeChild]:
        config = queue_config(command=("w",), workers=workers, **changes)
        self.supervisor = Supervisor(config, self.reactor, self.foreman, Recorder())  # type: ignore[arg-type]
        self.supervisor.start()
        self.turn()
        for child in self.reactor.workers:
            child.hello()
        return self.reactor.workers

    def turn(self, seconds: float = 0.0) -> None:
        """Time passes; who was told to go goes."""
        self.reactor.advance(seconds)
        self.reactor.advance(0)
        for child in self.reactor.alive:
            if child.stdin_closed:
                child.exit(0)
        self.reactor.advance(0)

    @property
    def newest(self) -> FakeChild:
        return self.reactor.workers[-1]

    def give(self, post: int = 0, *, to_next: bool = False) -> None:
        holder = self.supervisor.posts[post]
        worker = holder.next if to_next else holder.worker
        assert worker is not None
        worker.send(command(b"the body", id="c-7"))

    def serve(self, child: FakeChild, count: int, *, to_next: bool = False) -> None:
        """Have the first post's worker answer so many."""
        for _ in range(count):
            self.give(to_next=to_next)
            child.reply()


class CountedTests(SynchronousTestCase):
    """What counts towards `max_commands`, with a gate that hands commands over."""

    def build(self, **keys: Any) -> SpawningReactor:
        self.patch(lifespan, "Random", lambda: SimpleNamespace(uniform=lambda *_: 1.0))
        reactor = SpawningReactor()
        reactor.install()
        self.addCleanup(reactor.discard)
        queue = queue_config(name="q", command=("w",), workers=1, max_commands=2, **keys)
        gate = Gate(GateConfig(queues={"q": queue}), reactor, inline_journal(reactor))
        gate.start()
        reactor.advance(0)
        self.called = [gate.call("q", b"") for _ in range(3)]
        return reactor

    def test_fail_and_decline(self) -> None:
        """FAIL is an answer; what was declined has not been run."""
        reactor = self.build()
        [child] = reactor.workers
        child.hello()
        child.decline()
        child.fail("no")
        reactor.advance(0)
        self.assertEqual(len(reactor.workers), 1)
        child.fail("no")
        reactor.advance(0)
        self.assertEqual(len(reactor.workers), 2)
        self.failureResultOf(self.called[0], errors.NoWorker)
        for called in self.called[1:]:
            self.failureResultOf(called, errors.CommandFailed)

    def test_lines(self) -> None:
        """They are counted as well, and the old one serves until the new one is ready."""
        reactor = self.build(protocol="lines")
        [child] = reactor.workers
        child.executed()
        for there in (1, 2, 2):
            child.read_all()
            child.say(b"x\n")
            reactor.advance(0)
            self.assertEqual(len(reactor.workers), there)
        self.assertEqual([self.successResultOf(d).body for d in self.called], [b"x"] * 3)


class LimitsTests(PoolCase):
    """`max_commands`, `max_age`, `max_memory`, `soft_timeout`."""

    def test_max_commands(self) -> None:
        """After so many another is started; the old one serves until that is ready."""
        [old] = self.start(max_commands=10)
        self.serve(old, 8)
        self.assertEqual(len(self.reactor.workers), 1)
        self.serve(old, 3)
        self.assertEqual(len(self.reactor.workers), 2)
        self.serve(old, 5)
        self.assertEqual((len(self.reactor.workers), old.stdin_closed), (2, False))
        self.newest.hello()
        self.turn()
        self.assertFalse(old.alive)
        self.assertEqual(self.supervisor.posts[0].causes, {"max_commands": 1})
        self.assertIsNone(self.supervisor.posts[0].story)

    def test_a_replacement_that_fails_is_tried_again(self) -> None:
        """The old one serves on meanwhile."""
        [old] = self.start(max_age=10)
        self.turn(12)
        self.assertEqual(len(self.reactor.workers), 2)
        self.newest.exit(1)
        self.turn(0.5)
        self.assertEqual(len(self.reactor.workers), 2)
        self.turn(0.6)
        self.assertEqual(len(self.reactor.workers), 3)
        self.newest.hello()
        self.turn()
        self.assertEqual((old.alive, len(self.supervisor.alive)), (False, 1))

    def test_max_memory(self) -> None:
        """Over the soft limit it is replaced, and finishes what it has."""
        [old] = self.start(max_memory=1000)
        self.give()
        self.patch(watch, "rss", lambda pid: 1500 if pid == old.pid else 10)
        self.turn(0.6)
        self.newest.hello()
        self.turn(0.6)
        self.assertTrue(old.alive)
        old.reply()
        self.turn(0.6)
        self.assertEqual((old.alive, len(self.reactor.workers)), (False, 2))
        self.assertEqual(self.supervisor.causes, {"max_memory": 1})

    def test_twice_max_memory(self) -> None:
        """Over twice the limit it is killed at once, and its report says why."""
        [old] = self.start(max_memory=1000)
        self.give()
        self.patch(watch, "rss", lambda pid: 2001 if pid == old.pid else 10)
        self.turn(0.6)
        self.turn()
        self.assertEqual(old.received, [signal.SIGKILL])
        self.assertFalse(old.alive)
        report = self.supervisor.posts[0].report
        assert report is not None
        self.assertEqual(
            (report.kind, report.signal, report.running), ("memory", "SIGKILL", ["c-7"])
        )
        self.assertIn("2001 bytes of RSS", report.cause)
        self.assertEqual(self.supervisor.causes, {"memory": 1})

    def test_who_leaves_or_starts_is_watched_too(self) -> None:
        """Memory knows no state."""
        [old] = self.start(max_memory=1000)
        self.give()
        self.supervisor.recycle(self.supervisor.posts[0])
        self.newest.hello()
        self.patch(watch, "rss", lambda pid: 5000 if pid == old.pid else 10)
        self.turn(0.6)
        self.turn()
        self.assertFalse(old.alive)

    def test_soft_timeout(self) -> None:
        """A slow worker that can is asked where it is; it says so and runs on."""
        [child] = self.start(soft_timeout=2)
        self.assertEqual(child.env["JOBGATE_STACKS"], str(int(STACKS_SIGNAL)))
        child.exit(0)
        self.turn(2)
        child = self.newest
        child.hello(ordered=True, stacks=True)
        self.give()
        self.turn(1.5)
        self.assertEqual(child.received, [])
        self.turn(0.6)
        self.assertEqual(child.received, [STACKS_SIGNAL])
        child.complain(b"Current thread 0x1\n")
        self.turn(0.3)
        post = self.supervisor.posts[0]
        story = post.story
        assert story is not None
        assert story.slow is not None
        self.assertEqual((story.slow.command, story.slow.stacks), ("c-7", "Current thread 0x1\n"))
        self.assertGreaterEqual(story.slow.ran, 2)
        self.turn(5)
        self.assertEqual((child.received, child.alive), ([STACKS_SIGNAL], True))
        child.reply()
        self.give()
        self.turn(2.5)
        self.assertEqual(len(child.received), 2)

    def test_soft_timeout_of_others(self) -> None:
        """A worker that has not said that it can is never sent that signal."""
        [child] = self.start(soft_timeout=2)
        self.give()
        for _ in range(20):
            self.turn(0.5)
        self.assertEqual(child.received, [])
        slow = self.supervisor.posts[0].slow
        assert slow is not None
        self.assertEqual((slow.command, slow.stacks), ("c-7", ""))

    def test_dies_while_it_says_where_it_is(self) -> None:
        """What it said goes into the report of its death."""
        self.start(soft_timeout=1)
        self.newest.exit(0)
        self.turn(2)
        self.newest.hello(stacks=True)
        self.give()
        self.turn(1.1)
        self.newest.complain(b"File x, line 1\n")
        self.newest.kill()
        self.turn()
        story = self.supervisor.posts[0].story
        assert story is not None
        assert story.slow is not None
        self.assertEqual((story.kind, story.slow.stacks), ("died", "File x, line 1\n"))

    def test_nothing_is_watched_without_bounds(self) -> None:
        """No timer runs that nobody needs, and none is left at the end."""
        self.start()
        self.turn(2)
        timers = len(self.reactor.getDelayedCalls())
        self.supervisor.reconfigure(queue_config(command=("w",), workers=1, max_memory=9**12))
        self.newest.hello()
        self.turn(3)
        self.assertGreater(len(self.reactor.getDelayedCalls()), timers)
        gone = self.supervisor.stop()
        self.turn()
        self.turn(5)
        self.successResultOf(gone)
        self.assertEqual(self.reactor.getDelayedCalls(), [])


class ReloadTests(PoolCase):
    """`reload`: rolling, a canary first."""

    def test_canary_by_answers(self) -> None:
        """The canary works beside the old one; three answers later the others follow."""
        old = list(self.start(3))
        self.supervisor.reload()
        self.assertEqual(len(self.reactor.workers), 4)
        canary = self.newest
        canary.hello()
        self.turn()
        self.assertEqual((len(self.supervisor.alive), self.rollout), (4, "canary"))
        self.serve(canary, 2, to_next=True)
        self.assertEqual(self.rollout, "canary")
        self.serve(canary, 1, to_next=True)
        self.turn()
        self.assertEqual((self.rollout, old[0].alive), ("rolling", False))
        for number in (1, 2):
            self.assertEqual(len(self.reactor.alive), 4)
            self.newest.hello()
            self.turn()
            self.assertFalse(old[number].alive)
        self.assertEqual((self.rollout, len(self.reactor.alive)), ("done", 3))
        self.assertEqual(self.supervisor.causes, {"reload": 3})

    @property
    def rollout(self) -> str:
        assert self.supervisor.rollouts.last is not None
        return self.supervisor.rollouts.last.state

    def test_canary_without_work(self) -> None:
        """If nothing is to be done it only has to live for a second."""
        [old] = self.start()
        self.supervisor.reload()
        self.newest.hello()
        self.turn(0.9)
        self.assertTrue(old.alive)
        self.turn(0.2)
        self.assertEqual((old.alive, self.rollout), (False, "done"))

    def test_canary_with_a_long_command(self) -> None:
        """Its first command is waited for."""
        [old] = self.start()
        self.supervisor.reload()
        canary = self.newest
        canary.hello()
        self.give(to_next=True)
        for _ in range(5):
            self.turn(1.1)
        self.assertEqual((old.alive, self.rollout), (True, "canary"))
        canary.reply()
        self.turn(1.1)
        self.assertEqual((old.alive, self.rollout), (False, "done"))

    def test_canary_that_does_not_boot(self) -> None:
        """The reload stops, all old ones stay, and it says why."""
        old = list(self.start(2))
        self.supervisor.reload()
        self.newest.exit(3)
        self.turn()
        self.turn(60)
        self.assertEqual(self.reactor.alive, old)
        rollout = self.supervisor.rollouts.last
        assert rollout is not None
        self.assertEqual((rollout.state, rollout.why), ("stopped", "q-1: exited with status 3"))

    def test_canary_that_cannot_be_spawned(self) -> None:
        """Likewise."""
        [old] = self.start()
        self.reactor.refuse = OSError(11, "no processes")
        self.supervisor.reload()
        self.assertEqual((old.alive, self.rollout), (True, "stopped"))

    def test_canary_that_dies_on_its_first_command(self) -> None:
        """Likewise, although it had said HELLO."""
        old = list(self.start(2))
        self.supervisor.reload()
        self.newest.hello()
        self.serve(self.newest, 2, to_next=True)
        self.give(to_next=True)
        self.newest.kill()
        self.turn()
        self.turn(60)
        self.assertEqual((self.reactor.alive, self.rollout), (old, "stopped"))

    def test_one_that_fails_later(self) -> None:
        """Also after the canary: who has not been replaced stays."""
        old = list(self.start(3))
        self.supervisor.reload()
        self.newest.hello()
        self.turn(1.1)
        self.newest.exit(1)
        self.turn()
        self.turn(60)
        self.assertEqual(self.rollout, "stopped")
        self.assertEqual([child.alive for child in old], [False, True, True])
        self.assertEqual(len(self.supervisor.alive), 3)

    def test_the_old_one_dies_meanwhile(self) -> None:
        """The canary takes its place, still on trial."""
        [old] = self.start()
        self.supervisor.reload()
        self.newest.hello()
        old.kill()
        self.turn()
        self.assertEqual((len(self.reactor.alive), self.rollout), (1, "canary"))
        self.turn(1.1)
        self.assertEqual((len(self.reactor.alive), self.rollout), (1, "done"))

    def test_again_and_again(self) -> None:
        """A reload during a reload starts over; in the end everyone is of the last."""
        old = list(self.start(2))
        for _ in range(3):
            self.supervisor.reload()
            self.newest.hello()
            self.turn(0.3)
        for _ in range(12):
            for child in self.reactor.alive:
                if frames.WELCOME not in child.kinds:
                    child.hello()
            self.turn(1.1)
        self.assertEqual((self.rollout, len(self.reactor.alive)), ("done", 2))
        self.assertFalse(any(child.alive for child in old))
        self.assertFalse(self.reactor.workers[2].alive)
        self.assertFalse(self.reactor.workers[3].alive)

    def test_another_change_while_the_canary_is_on_trial(self) -> None:
        """One that does not concern how workers are started: the canary stands its trial."""
        [old] = self.start()
        changed = queue_config(command=("w",), workers=1, timeout=9)
        self.supervisor.reconfigure(changed)
        canary = self.newest
        canary.hello()
        self.turn(0.5)
        self.supervisor.reconfigure(replace(changed, size=3))
        self.turn(0.6)
        self.assertEqual((old.alive, canary.alive, self.rollout), (False, True, "done"))
        self.assertEqual(self.supervisor.alive[0].pid, canary.pid)

    def test_in_a_crash_loop(self) -> None:
        """It tries at once: the program may have been mended."""
        self.start()
        self.turn(2)
        for _ in range(5):
            self.newest.exit(1)
            self.turn()
        self.assertGreater(self.supervisor.retry_in, 0.2)
        before = len(self.reactor.workers)
        self.supervisor.reload()
        self.turn()
        self.assertEqual(len(self.reactor.workers), before + 1)

    def test_stop_ends_it(self) -> None:
        """Nobody is started after `stop`."""
        self.start(2)
        self.supervisor.reload()
        gone = self.supervisor.stop()
        count = len(self.reactor.workers)
        for _ in range(3):
            self.turn(2)
        self.supervisor.reload()
        self.turn(9)
        self.successResultOf(gone)
        self.assertEqual(len(self.reactor.workers), count)


class KnowledgeTests(PoolCase):
    """What is known of workers that died, and of those that live."""

    def test_the_command_it_died_with(self) -> None:
        """Its id is in the report, its body beside it."""
        [child] = self.start()
        self.give()
        child.kill()
        post = self.supervisor.posts[0]
        assert post.report is not None
        self.assertEqual((post.report.command, post.report.kind), ("c-7", "died"))
        self.assertEqual(post.evidence, ("c-7", "text/plain", b"the body"))

    def test_nothing_in_hand(self) -> None:
        """Then there is none."""
        [child] = self.start()
        child.exit(1)
        post = self.supervisor.posts[0]
        assert post.report is not None
        self.assertEqual((post.report.command, post.evidence), (None, None))

    def test_bodies_are_bounded(self) -> None:
        """The oldest go when all together are too many."""
        import jobgate.pool.post as module

        self.patch(module, "_KEPT", 12)
        children = list(self.start(3))
        for number, child in enumerate(children):
            self.give(number)
            child.kill()
        kept = [post.evidence is not None for post in self.supervisor.posts]
        self.assertEqual(kept.count(True), 1)
        self.assertIsNotNone(self.supervisor.posts[2].evidence)

    def test_restarts_by_cause(self) -> None:
        """Every start after the first has a reason."""
        [child] = self.start()
        self.give()
        child.kill()
        self.turn()
        self.newest.hello()
        worker = self.supervisor.posts[0].worker
        assert worker is not None
        self.give()
        worker.overran("too long")
        self.turn()
        self.newest.hello()
        self.supervisor.recycle(self.supervisor.posts[0])
        self.newest.hello()
        post = self.supervisor.posts[0]
        self.assertEqual(post.causes, {"died": 1, "timeout": 1, "recycle": 1})
        self.assertEqual((post.restarts, self.supervisor.causes.total()), (3, 3))

    def test_utilisation(self) -> None:
        """The time with work, of all time; what the dead did is not forgotten."""
        [child] = self.start()
        worker = self.supervisor.posts[0].worker
        assert worker is not None
        self.assertEqual(worker.utilisation, 0.0)
        self.turn(3)
        self.give()
        self.turn(1)
        self.assertEqual(worker.utilisation, 0.25)
        child.reply()
        self.turn(4)
        self.assertEqual(worker.utilisation, 0.125)
        self.give()
        self.turn(2)
        child.kill()
        self.turn()
        self.assertEqual(self.supervisor.posts[0].served, (1, 3.0))

    def test_usage(self) -> None:
        """What the system counted, for the report."""
        told: list[Any] = []
        ended: list[int] = []
        used = SimpleNamespace(ru_utime=1.5, ru_stime=0.25, ru_maxrss=10**9, ru_majflt=2)
        transport: Any = SimpleNamespace(pid=77, processEnded=ended.append)
        answers = iter([(0, 0, used), (77, 9, used)])
        self.patch(reaping.os, "wait4", lambda pid, how: next(answers))
        self.patch(twisted_process, "reapProcessHandlers", {77: transport})
        reaping.reap_with_usage(transport, told.append)
        transport.reapProcess()
        self.assertEqual((told, ended), ([], []))
        transport.reapProcess()
        self.assertEqual((told[0].user, told[0].system, ended), (1.5, 0.25, [9]))
        self.assertEqual((told[0].max_rss, told[0].major_faults), (10**9 * 1024, 2))
        used.ru_maxrss = 1
        self.assertIsNone(reaping._usage(used).max_rss)  # type: ignore[arg-type]

    def test_marks(self) -> None:
        """What is said after a mark is told once."""
        output = Output("w", lambda: "", lambda: 0.0)
        output.take(b"before\n")
        output.mark()
        output.take(b"after\n")
        self.assertEqual((output.since_mark(), output.since_mark()), ("after\n", ""))
        self.assertEqual(output.text(), "before\nafter\n")

    def test_nothing_has_happened(self) -> None:
        """Then there is no story."""
        self.assertIsNone(Post(0, "q-1").story)
