"""
`jobgate.pool.scaling`, and a Gate whose workers come and go with its load.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from twisted.trial.unittest import SynchronousTestCase

from jobgate.config import Scale, Seconds, from_tables
from jobgate.gate import Gate
from jobgate.pool.lifecycle import State
from jobgate.pool.scaling import Place, Scaler, Step
from jobgate.testing import FakeChild, SpawningReactor, inline_journal
from jobgate.wire import frames

NOTHING = Step()


def scale(low: int, high: int, up: float = 1.0, down: float = 60.0) -> Scale:
    """Bounds and delays."""
    return Scale(min=low, max=high, up_after=Seconds(up), down_after=Seconds(down))


class ScalerTests(SynchronousTestCase):
    """One decision at a time."""

    def test_fixed(self) -> None:
        """With one number for both bounds there is nothing to decide."""
        scaler = Scaler(scale(3, 3))
        self.assertTrue(scaler.is_fixed)
        self.assertEqual(scaler.must(), [0, 1, 2])

    def test_first_on_demand(self) -> None:
        """With `min = 0` the first is started as soon as anything waits, whatever the CPU."""
        scaler = Scaler(scale(0, 2))
        self.assertEqual(scaler.must(), [])
        self.assertEqual(scaler.decide(0, [], [None], spare=True), NOTHING)
        self.assertEqual(scaler.decide(0, [], [0.0], spare=False), Step((0,)))
        starting = [Place(0, None, starting=True)]
        self.assertEqual(scaler.decide(9, starting, [9.0], spare=True), NOTHING)

    def test_up(self) -> None:
        """One more once the first has waited for `up_after`, one at a time, while CPU is idle."""
        scaler = Scaler(scale(1, 3))
        busy = [Place(0)]
        self.assertEqual(scaler.decide(10, busy, [0.9], spare=True), NOTHING)
        self.assertEqual(scaler.decide(10, busy, [1.0], spare=False), NOTHING)
        self.assertEqual(scaler.decide(10, busy, [1.0], spare=True), Step((1,)))
        busy += [Place(1, None, starting=True)]
        self.assertEqual(scaler.decide(12, busy, [3.0], spare=True), NOTHING)
        busy[1] = Place(1)
        self.assertEqual(scaler.decide(12, busy, [3.0], spare=True), Step((2,)))
        busy += [Place(2)]
        self.assertEqual(scaler.decide(20, busy, [9.0], spare=True), NOTHING)

    def test_up_waits_between_two(self) -> None:
        """A worker that is ready at once has `up_after` to show what difference it makes."""
        scaler = Scaler(scale(1, 9))
        self.assertEqual(scaler.decide(10, [Place(0)], [5.0], spare=True), Step((1,)))
        two = [Place(0), Place(1)]
        self.assertEqual(scaler.decide(10.9, two, [5.9], spare=True), NOTHING)
        self.assertEqual(scaler.decide(11, two, [6.0], spare=True), Step((2,)))

    def test_up_in_the_shard_that_waits(self) -> None:
        """The new one is for the shard whose commands wait; a shard has only its own places."""
        scaler = Scaler(scale(2, 5), shards=2)
        places = [Place(0), Place(1, 0.0)]
        self.assertEqual(scaler.decide(9, places, [None, 2.0], spare=True), Step((3,)))
        places += [Place(3)]
        self.assertEqual(scaler.decide(19, places, [None, 2.0], spare=True), NOTHING)
        self.assertEqual(scaler.decide(19, places, [2.0, 2.0], spare=True), Step((2,)))

    def test_down(self) -> None:
        """Whoever has rested longest goes, one by one, `down_after` apart, to `min` at most."""
        scaler = Scaler(scale(1, 3, down=60))
        places = [Place(0, 70), Place(1, 80), Place(2, 59)]
        self.assertEqual(scaler.decide(100, places, [None], spare=True), Step((), (1,)))
        left = [Place(0, 100), Place(2, 100)]
        self.assertEqual(scaler.decide(159, left, [None], spare=True), NOTHING)
        self.assertEqual(scaler.decide(160, left, [None], spare=True), Step((), (2,)))
        self.assertEqual(scaler.decide(999, [Place(0, 900)], [None], spare=True), NOTHING)

    def test_down_to_nobody(self) -> None:
        """With `min = 0` the last one goes as well."""
        scaler = Scaler(scale(0, 3), idle_shutdown=5)
        self.assertEqual(scaler.decide(1, [Place(0, 5.0)], [None], spare=True), Step((), (0,)))

    def test_not_down_soon_after_up(self) -> None:
        """No flapping: after a start nobody goes for as long as one must have rested."""
        scaler = Scaler(scale(1, 3, down=10))
        places = [Place(0), Place(1, 50)]
        self.assertEqual(scaler.decide(100, places, [2.0], spare=True), Step((2,)))
        places = [Place(0, 10), Place(1, 50), Place(2, 9)]
        self.assertEqual(scaler.decide(109, places, [None], spare=True), NOTHING)
        self.assertEqual(scaler.decide(110, places, [None], spare=True), Step((), (1,)))

    def test_not_the_last_of_a_shard(self) -> None:
        """A shard keeps one, as long as `min` is not 0."""
        scaler = Scaler(scale(2, 4, down=10), shards=2)
        places = [Place(0, 90), Place(1, 20), Place(3, 30)]
        self.assertEqual(scaler.decide(100, places, [None, None], spare=True), Step((), (3,)))

    def test_must_after_a_change(self) -> None:
        """Other bounds: whoever fits stays, and every shard has its own."""
        self.assertEqual(Scaler(scale(2, 4)).must([1, 3]), [1, 3])
        self.assertEqual(Scaler(scale(2, 2)).must([0, 2, 3]), [0, 1])
        self.assertEqual(Scaler(scale(2, 4), shards=2).must([0, 2]), [0, 1, 2])
        self.assertEqual(Scaler(scale(0, 4)).must([3]), [3])
        self.assertEqual(Scaler(scale(3, 4)).must(), [0, 1, 2])


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_load(data: Any) -> None:
    """Whatever is seen, every step keeps the bounds and the delays."""
    low = data.draw(st.integers(0, 4))
    high = data.draw(st.integers(max(1, low), 8))
    shards = data.draw(st.integers(1, max(1, low)))
    bounds = scale(low, high, up=2, down=7)
    scaler = Scaler(bounds, shards)
    places = {number: Place(number, None, starting=True) for number in scaler.must()}
    now, grown, changed = 0.0, [-99.0] * shards, -99.0
    for _ in range(data.draw(st.integers(1, 40))):
        now += data.draw(st.sampled_from([0.0, 0.5, 2.0, 7.0]))
        for number in places:
            idle = data.draw(st.sampled_from([None, 0.0, 6.9, 7.0, 50.0]))
            starting = idle is None and data.draw(st.booleans())
            places[number] = Place(number, idle, starting)
        waits = [data.draw(st.sampled_from([None, 0.0, 1.9, 2.0, 30.0])) for _ in range(shards)]
        spare = data.draw(st.booleans())
        step = scaler.decide(now, list(places.values()), waits, spare=spare)
        assert not (step.start and step.retire)
        assert len(step.retire) <= 1
        for number in step.start:
            shard = number % shards
            wait = waits[shard]
            here = [place for place in places.values() if place.number % shards == shard]
            assert number not in places
            assert wait is not None
            if here:
                assert spare
                assert wait >= bounds.up_after
                assert now - grown[shard] >= bounds.up_after
                assert not any(place.starting for place in here)
            grown[shard], changed = now, now
            places[number] = Place(number, None, starting=True)
        for number in step.retire:
            assert (places[number].idle or 0) >= 7
            assert now - changed >= 7
            del places[number]
            changed = now
        assert low <= len(places) <= high
        if low:
            assert {number % shards for number in places} == set(range(shards))


class Machine:
    """A machine that says what the test wants."""

    idle = True

    def spare(self) -> bool:
        return self.idle


class Load(RuleBasedStateMachine):
    """
    A Gate with `workers = { min, max }` on a fake clock, its callers, its children.

    Any order of calls, answers, starts, deaths and time: what was called is answered, and
    there are never fewer workers than `min` nor more than `max`.
    """

    @initialize(low=st.integers(0, 2), more=st.integers(1, 3), idle=st.sampled_from([0, 3]))
    def start(self, low: int, more: int, idle: int) -> None:
        self.low, self.high = low, low + more
        self.rest = idle or 8
        queue = {
            "command": ["w"],
            "workers": {"min": low, "max": low + more, "up_after": 1, "down_after": 8},
            "idle_shutdown": idle,
            "retry": "safe",
            "attempts": 1000,
            "queue_timeout": 0,
            "timeout": 0,
            "boot_timeout": 0,
        }
        self.reactor = SpawningReactor()
        self.reactor.install()
        self.gate = Gate(
            from_tables({"queues": {"q": queue}}, "test", Path("/")),
            self.reactor,
            inline_journal(self.reactor),
        )
        self.machine = Machine()
        self.supervisor = self.gate.supervisor("q")
        self.supervisor._headcount._machine = self.machine  # type: ignore[assignment]
        self.gate.start()
        self.called: list[Any] = []
        self.pongs: Counter[int] = Counter()
        self.pass_time(0)

    def teardown(self) -> None:
        if hasattr(self, "gate"):
            gone: list[object] = []
            for reply in self.called:
                reply.addErrback(lambda _: None)
            self.gate.stop().addCallback(gone.append)
            self.gate.hurry()
            for _ in range(4):
                self.pass_time(1)
            self.reactor.discard()
            assert gone

    def pass_time(self, seconds: float) -> None:
        """In steps, as a real clock passes; who was told to go goes."""
        for _ in range(max(1, round(seconds / 0.25))):
            self.reactor.advance(seconds and 0.25)
            self.leave()

    def leave(self) -> None:
        """Children that were told to go do, and those that were asked say that they live."""
        for child in self.reactor.alive:
            if child.stdin_closed:
                child.exit(0)
            elif child.kinds.count(frames.PING) > self.pongs[child.group]:
                self.pongs[child.group] += 1
                child.frame(frames.PONG)
        self.reactor.advance(0)

    def booting(self) -> list[FakeChild]:
        return [c for c in self.reactor.alive if frames.WELCOME not in c.kinds]

    def serving(self) -> list[FakeChild]:
        return [c for c in self.reactor.alive if frames.WELCOME in c.kinds and not c.stdin_closed]

    @rule()
    def call(self) -> None:
        self.called.append(self.gate.call("q", os.urandom(4)))
        self.reactor.advance(0)

    @rule(number=st.integers(0, 9))
    def ready(self, number: int) -> None:
        children = self.booting()
        if children:
            children[number % len(children)].hello()
        self.leave()

    @rule(number=st.integers(0, 9))
    def answer(self, number: int) -> None:
        children = [child for child in self.serving() if child.commands]
        if children:
            child = children[number % len(children)]
            child.reply(child.commands[0].body)
        self.leave()

    @rule(number=st.integers(0, 9))
    def die_at_work(self, number: int) -> None:
        children = [child for child in self.serving() if child.commands]
        if children:
            children[number % len(children)].kill()
        self.leave()

    @rule(seconds=st.sampled_from([0.25, 1.0, 4.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.pass_time(seconds)

    @rule(idle=st.booleans())
    def cpu(self, idle: bool) -> None:
        self.machine.idle = idle

    @precondition(lambda self: hasattr(self, "gate"))
    @rule()
    def settle(self) -> None:
        """All are served, and when time has passed `min` workers are left."""
        self.machine.idle = True
        for _ in range(400):
            for child in self.booting():
                child.hello()
            for child in self.serving():
                while child.alive and child.commands:
                    child.reply(child.commands[0].body)
            self.pass_time(0.25)
            if not self.gate.dispatcher["q"].waiting and not self.gate.dispatcher["q"].running:
                break
        assert all(reply.called for reply in self.called)
        self.pass_time((self.high + 1) * (self.rest + 1))
        assert self.supervisor.wanted == self.low
        assert len(self.reactor.alive) == self.low

    @invariant()
    def bounds(self) -> None:
        if not hasattr(self, "gate"):
            return
        assert self.low <= self.supervisor.wanted <= self.high
        held = [post for post in self.supervisor.posts if post.worker is not None or post.trying]
        assert self.low <= len(held) <= self.high
        road = self.gate.dispatcher["q"]
        assert road.refusal() in ("", f"the queue is full ({road.waiting} waiting)")
        if road.waiting:
            assert held, "commands wait, and nobody is there or on the way"
        for worker in self.supervisor.workers:
            assert worker.state is not State.DRAINING or not worker.idle


Load.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    # A step may be minutes of the fake clock: to shorten a failure takes longer than to read it.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
LoadTests = Load.TestCase
