"""
`max_commands`: no worker is given more than it may be, whatever else it may have in hand.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from jobgate import errors
from jobgate.config import GateConfig
from jobgate.config.settings import BatchConfig
from jobgate.gate import Gate
from jobgate.pool import lifespan
from jobgate.testing import SpawningReactor, inline_journal
from jobgate.wire import frames
from tests.unit.fakes import queue_config

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from jobgate.testing import FakeChild


class GivenTests(SynchronousTestCase):
    """A gate, and children that answer when the test says so."""

    def setUp(self) -> None:
        self.earliest()

    def earliest(self) -> None:
        """Another worker is started as early as may be."""
        self.patch(lifespan, "Random", lambda: SimpleNamespace(uniform=min))

    def latest(self) -> None:
        """Only with the last command."""
        self.patch(lifespan, "Random", lambda: SimpleNamespace(uniform=max))

    def build(self, **keys: Any) -> None:
        self.reactor = SpawningReactor()
        self.reactor.install()
        self.addCleanup(self.reactor.discard)
        queue = queue_config(name="q", command=("w",), workers=1, **keys)
        self.gate = Gate(
            GateConfig(queues={"q": queue}), self.reactor, inline_journal(self.reactor)
        )
        self.gate.start()
        self.turn()

    def turn(self, seconds: float = 0.0) -> None:
        """Time passes; who was told to go goes."""
        self.reactor.advance(seconds)
        for child in self.reactor.alive:
            if child.stdin_closed:
                child.exit(0)
        self.reactor.advance(0)

    def calls(self, count: int) -> list[Deferred[Any]]:
        return [self.gate.call("q", b"") for _ in range(count)]

    @property
    def newest(self) -> FakeChild:
        return self.reactor.workers[-1]

    @property
    def causes(self) -> dict[str, int]:
        return dict(self.gate.supervisor("q").causes)

    @staticmethod
    def count(child: FakeChild) -> int:
        """How many commands it was ever given."""
        return child.kinds.count(frames.COMMAND)

    def test_one(self) -> None:
        """1 means 1: what waits waits for the next worker, which is started at once."""
        self.build(max_commands=1, in_flight=8)
        for number in range(4):
            if not number:
                first, second, third = self.calls(3)
            child = self.newest
            self.assertEqual(len(self.reactor.workers), number + 1)
            child.hello(ordered=True)
            self.assertEqual(self.count(child), int(number < 3))
            if number < 3:
                child.reply(b"%d" % number)
                self.assertTrue(child.stdin_closed)
            self.turn()
        bodies = [self.successResultOf(called).body for called in (first, second, third)]
        self.assertEqual(bodies, [b"0", b"1", b"2"])
        self.assertEqual([child.alive for child in self.reactor.workers], [False] * 3 + [True])
        self.assertEqual(self.causes, {"max_commands": 3})

    def test_the_next_is_ready_in_time(self) -> None:
        """Another is started up to a tenth before; the old one serves until that is ready."""
        self.build(max_commands=10, in_flight=2)
        old = self.newest
        old.hello(ordered=True)
        called = self.calls(20)
        for _ in range(7):
            self.turn()
            self.assertEqual(len(self.reactor.workers), 1)
            old.reply()
        self.turn()
        self.assertEqual(len(self.reactor.workers), 2, "nine were given")
        self.newest.hello(ordered=True)
        self.turn()
        self.assertEqual((self.count(old), self.count(self.newest)), (9, 2))
        old.reply()
        old.reply()
        self.assertTrue(old.stdin_closed)
        self.turn()
        self.assertEqual((old.alive, self.causes), (False, {"max_commands": 1}))
        self.assertTrue(all(d.called for d in called[:9]))

    def test_the_next_is_not_ready_in_time(self) -> None:
        """The old one gets no more than it may; the rest waits."""
        self.build(max_commands=10, in_flight=4)
        old = self.newest
        old.hello()
        called = self.calls(12)
        self.turn()
        while old.commands:
            old.reply()
            self.turn()
        self.assertEqual((self.count(old), old.alive, len(self.reactor.workers)), (10, False, 2))
        [post] = self.gate.supervisor("q").posts
        self.assertEqual((post.restarts, post.next, len(post.leaving)), (1, None, 0))
        self.newest.hello()
        self.turn()
        self.assertEqual(self.count(self.newest), 2)
        while self.newest.commands:
            self.newest.reply()
        self.assertTrue(all(d.called for d in called))

    def test_the_last_one_takes_long(self) -> None:
        """While it runs another worker is started."""
        self.build(max_commands=1)
        old = self.newest
        old.hello()
        self.calls(2)
        self.turn(0.6)
        self.newest.hello()
        self.assertEqual((self.count(old), self.count(self.newest)), (1, 1))
        self.assertEqual((old.alive, len(self.reactor.workers)), (True, 2))

    def test_the_next_cannot_be_had(self) -> None:
        """It is tried again, as with any worker."""
        self.latest()
        self.build(max_commands=2)
        self.newest.hello()
        called = self.calls(3)
        self.reactor.refuse = OSError(11, "no processes")
        self.newest.reply()
        self.newest.reply()
        self.turn()
        self.assertEqual(self.reactor.alive, [])
        self.reactor.refuse = None
        self.turn(1.1)
        self.newest.hello()
        self.newest.reply()
        self.assertTrue(all(d.called for d in called))

    def test_on_trial(self) -> None:
        """A canary that has answered all it may has stood its trial."""
        self.build(max_commands=2)
        old = self.newest
        old.hello()
        self.gate.supervisor("q").reload()
        canary = self.newest
        canary.hello()
        self.turn()
        self.calls(4)
        self.assertEqual((self.count(old), self.count(canary)), (1, 1))
        canary.reply()
        canary.reply()
        self.turn()
        rollout = self.gate.supervisor("q").rollouts.last
        assert rollout is not None
        self.assertEqual((rollout.state, canary.alive), ("done", False))
        self.assertEqual(self.count(canary), 2)

    def test_fail_and_decline(self) -> None:
        """FAIL is an answer; what was declined has not been run."""
        self.latest()
        self.build(max_commands=2)
        child = self.newest
        child.hello()
        called = self.calls(4)
        child.decline()
        child.fail("no")
        self.assertFalse(child.stdin_closed)
        child.fail("no")
        self.assertTrue(child.stdin_closed)
        self.assertEqual(self.count(child), 3)
        kinds = [errors.NoWorker, errors.CommandFailed, errors.CommandFailed]
        for each, kind in zip(called, kinds, strict=False):
            self.failureResultOf(each, kind)
        self.assertNoResult(called[3])

    def test_lines(self) -> None:
        """They are counted as well."""
        self.latest()
        self.build(max_commands=2, protocol="lines")
        child = self.newest
        child.executed()
        called = self.calls(3)
        for _ in range(2):
            child.read_all()
            child.say(b"x\n")
            self.turn()
        self.assertEqual((child.written, child.alive), (b"\n\n", False))
        self.newest.executed()
        self.newest.read_all()
        self.newest.say(b"y\n")
        self.assertEqual([self.successResultOf(d).body for d in called], [b"x", b"x", b"y"])

    @settings(max_examples=40, deadline=None)
    @given(
        most=st.integers(1, 25),
        in_flight=st.integers(1, 6),
        size=st.integers(1, 5),
        ordered=st.booleans(),
        late=st.booleans(),
        booting=st.integers(0, 9),
    )
    def test_whatever(
        self, *, most: int, in_flight: int, size: int, ordered: bool, late: bool, booting: int
    ) -> None:
        """No worker gets more, but for the rest of a batch; and all calls are answered."""
        if late:
            self.latest()
        else:
            self.earliest()
        batch = BatchConfig(size=size)
        self.build(max_commands=most, in_flight=in_flight, batch=batch)
        called = self.calls(60)
        patience = booting
        for _ in range(2000):
            for child in self.reactor.alive:
                if frames.WELCOME not in child.kinds:
                    patience -= 1
                    if patience < 0:
                        child.hello(ordered=ordered)
                        patience = booting
                elif child.commands:
                    child.reply()
            self.turn()
            if all(d.called for d in called):
                break
        self.assertTrue(all(d.called for d in called))
        given_at_most = max(map(self.count, self.reactor.workers))
        self.assertLess(given_at_most, most + size)
        self.reactor.discard()
