"""
`jobgate.gate.queues`: order, bounds, and nothing lost or doubled.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.defer import DeferredQueue, QueueOverflow
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from jobgate.gate.queues import AGEING, CommandQueue
from tests.unit.fakes import FakeWorker, command

if TYPE_CHECKING:
    from jobgate.command import Command


class CommandQueueTests(SynchronousTestCase):
    """One promise each."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.queue = CommandQueue(3, self.clock)
        self.worker = FakeWorker(self.clock)

    def put(self, name: str, priority: int = 3, body: bytes = b"") -> Command:
        made = command(body, id=name, now=self.clock.seconds(), priority=priority)
        self.queue.put(made)
        return made

    def names(self) -> list[str]:
        found = []
        while (taken := self.queue.take(self.worker)) is not None:
            found.append(taken.id)
        return found

    def test_is_a_deferred_queue(self) -> None:
        """It is a DeferredQueue: `put`, `get`, QueueOverflow at `size`."""
        self.assertIsInstance(self.queue, DeferredQueue)
        first = self.put("a")
        self.assertIs(self.successResultOf(self.queue.get()), first)
        waiting = self.queue.get()
        self.assertNoResult(waiting)
        second = self.put("b")
        self.assertIs(self.successResultOf(waiting), second)

    def test_overflow(self) -> None:
        """The command over `size` is refused and leaves no trace."""
        for name in "abc":
            self.put(name, body=b"xx")
        self.assertRaises(QueueOverflow, self.put, "d")
        self.assertEqual((len(self.queue), self.queue.bytes_waiting), (3, 6))
        self.assertEqual(self.names(), ["a", "b", "c"])

    def test_handed_over_is_not_counted(self) -> None:
        """A queue of size 0 still hands over to whoever waits."""
        queue = CommandQueue(0, self.clock)
        got = queue.get()
        queue.put(command(id="a"))
        self.assertEqual(self.successResultOf(got).id, "a")
        self.assertRaises(QueueOverflow, queue.put, command(id="b"))

    def test_priority_then_arrival(self) -> None:
        """Lower numbers first, and in the order of arrival within one."""
        self.queue.size = 9
        for name, priority in [("a", 3), ("b", 7), ("c", 0), ("d", 3), ("e", 0)]:
            self.put(name, priority)
            self.clock.advance(0.001)
        self.assertEqual(self.names(), ["c", "e", "a", "d", "b"])

    def test_ageing(self) -> None:
        """Who waits rises one level every ten seconds, and overtakes whoever came later."""
        self.put("old", 5)
        self.clock.advance(AGEING - 0.01)
        self.put("new", 4)
        self.assertEqual(self.queue.take(self.worker).id, "new")  # type: ignore[union-attr]
        self.clock.advance(0.02)
        self.put("newer", 4)
        self.assertEqual(self.names(), ["old", "newer"])

    def test_never_above_the_first_level(self) -> None:
        """At level 0 it is arrival that counts: nobody rises above it."""
        self.put("first", 0)
        self.clock.advance(1)
        self.put("second", 1)
        self.clock.advance(200)
        self.put("third", 0)
        self.assertEqual(self.names(), ["first", "second", "third"])

    def test_put_back_stands_first(self) -> None:
        """A command that comes back is taken before its equals, over the bound if need be."""
        first = self.put("a")
        self.put("b")
        self.queue.take(self.worker)
        self.put("c")
        self.put("d")
        self.queue.put_back(first)
        self.assertEqual(len(self.queue), 4)
        self.assertEqual(self.names(), ["a", "b", "c", "d"])

    def test_discard(self) -> None:
        """A command taken out is gone, once; a stranger is not there."""
        first = self.put("a", body=b"xyz")
        self.assertTrue(self.queue.discard(first))
        self.assertFalse(self.queue.discard(first))
        self.assertFalse(self.queue.discard(command(id="stranger")))
        self.assertEqual((len(self.queue), self.queue.bytes_waiting, self.names()), (0, 0, []))

    def test_cancelled_get(self) -> None:
        """A cancelled `get` takes nothing; the next in line gets the command."""
        first, second = self.queue.get(), self.queue.get()
        first.cancel()
        self.failureResultOf(first)
        made = self.put("a")
        self.assertIs(self.successResultOf(second), made)

    def test_ten_thousand_gets_cancelled(self) -> None:
        """Cancelling many waits, oldest last, leaves nothing behind."""
        gets = [self.queue.get() for _ in range(10_000)]
        for got in reversed(gets):
            got.addErrback(lambda _: None)
            got.cancel()
        self.assertFalse(self.queue.free_now)
        self.put("a")
        self.assertEqual(len(self.queue), 1)

    def test_idle_workers_come_first(self) -> None:
        """A worker with nothing in hand is served before one that is only not full."""
        taken: list[str] = []
        busy, idle = FakeWorker(self.clock, "busy", 2), FakeWorker(self.clock, "idle", 2)
        busy.held.append(command())
        self.queue.wait(lambda _: taken.append("busy"), busy)
        self.queue.wait(lambda _: taken.append("idle"), idle)
        self.put("a")
        self.put("b")
        self.assertEqual(taken, ["idle", "busy"])

    def test_prefer(self) -> None:
        """A worker that has become idle while it waits is served first from then on."""
        taken: list[str] = []

        def one(_: Command) -> None:
            taken.append("one")

        def two(_: Command) -> None:
            taken.append("two")

        busy = FakeWorker(self.clock, "busy", 2)
        busy.held.append(command())
        self.queue.wait(one, busy)
        self.queue.wait(two, busy)
        self.queue.prefer(two)
        self.queue.prefer(lambda _: None)
        self.put("a")
        self.assertEqual(taken, ["two"])

    def test_paused(self) -> None:
        """Nothing leaves a paused queue; `resume` serves those who wait, in order."""
        got = self.queue.get()
        self.queue.pause()
        self.assertFalse(self.queue.free_now)
        made = self.put("a")
        self.put("b")
        self.assertNoResult(got)
        self.assertIsNone(self.queue.take(self.worker))
        self.assertNoResult(self.queue.get())
        self.queue.resume()
        self.assertIs(self.successResultOf(got), made)
        self.assertEqual(len(self.queue), 0)

    def test_put_back_while_paused(self) -> None:
        """What comes back to a paused queue waits there, even if a worker is free."""
        first = self.put("a")
        self.queue.take(self.worker)
        got = self.queue.get()
        self.queue.pause()
        self.queue.put_back(first)
        self.assertNoResult(got)
        self.queue.resume()
        self.assertIs(self.successResultOf(got), first)

    def test_declined_goes_to_another(self) -> None:
        """A declined command passes its decliner and reaches the next worker that waits."""
        taken: list[str] = []
        other = FakeWorker(self.clock, "other")
        made = command(id="a")
        made.declined = [self.worker]
        self.queue.wait(lambda _: taken.append("decliner"), self.worker)
        self.queue.wait(lambda _: taken.append("other"), other)
        self.queue.put_back(made)
        self.assertEqual(taken, ["other"])
        self.assertTrue(self.queue.free_now)

    def test_decliner_takes_what_is_behind(self) -> None:
        """A worker passes over what it declined, and finds what waits behind it."""
        made = self.put("a")
        made.declined = [self.worker]
        self.put("b")
        self.assertEqual(self.names(), ["b"])
        self.assertEqual(len(self.queue), 1)

    def test_resume_passes_over_a_decliner(self) -> None:
        """On resume a worker that declined everything does not keep others from it."""
        for decliner_last in (False, True):
            queue = CommandQueue(3, self.clock)
            taken: list[str] = []
            other = FakeWorker(self.clock, "other")
            order = [self.worker, other] if decliner_last else [other, self.worker]
            for worker in order:
                queue.wait(lambda _, name=worker.name, taken=taken: taken.append(name), worker)
            queue.pause()
            made = command(id="a")
            made.declined = [self.worker]
            queue.put_back(made)
            queue.resume()
            self.assertEqual(taken, ["other"])

    def test_ahead_of(self) -> None:
        """How many would be taken before a new one of a priority."""
        for name, priority in [("a", 0), ("b", 3), ("c", 7)]:
            self.put(name, priority)
        self.assertEqual([self.queue.ahead_of(p) for p in (0, 2, 3, 7)], [1, 1, 2, 3])


class QueueMachine(RuleBasedStateMachine):
    """
    A CommandQueue against a list.

    Every command is, at every step, in exactly one place: waiting, with a taker, or gone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.size = 5
        self.queue = CommandQueue(self.size, self.clock)
        self.workers = [FakeWorker(self.clock, f"w{n}", 2) for n in range(3)]
        self.waits: dict[int, object] = {}
        self.gets: list[object] = []
        self.lines: dict[int, list[Command]] = {level: [] for level in range(8)}
        self.handed: list[Command] = []
        self.paused = False
        self.ever_put_back = False
        self.numbers = count()
        self.got: list[tuple[object, Command]] = []

    # --- the model

    def pending(self) -> list[Command]:
        return [c for line in self.lines.values() for c in line]

    def level(self, c: Command) -> int:
        return max(0, c.priority - int((self.clock.seconds() - c.accepted) / AGEING))

    def check_order(self, taken: Command, worker: object) -> None:
        eligible = [c for c in self.pending() if worker not in (c.declined or ())]
        assert taken in eligible, "what was declined, or does not wait, was handed out"
        least = min(map(self.level, eligible))
        assert self.level(taken) == least, "a less urgent command was handed out"
        if not self.ever_put_back:
            oldest = min(c.accepted for c in eligible if self.level(c) == least)
            assert taken.accepted == oldest, "a younger command was handed out"

    def out(self, c: Command) -> None:
        for line in self.lines.values():
            if c in line:
                line.remove(c)

    def receives(self, c: Command, worker: object) -> None:
        assert c not in self.handed, "handed out twice"
        assert worker not in (c.declined or ()), "offered again to who declined it"
        assert not self.paused, "left a paused queue"
        self.handed.append(c)
        self.got.append((worker, c))

    # --- what is done to it

    @rule(priority=st.integers(0, 7))
    def put(self, priority: int) -> None:
        self.clock.advance(0.001)
        c = command(b"xx", id=str(next(self.numbers)), now=self.clock.seconds(), priority=priority)
        before = len(self.pending())
        free = bool(self.waits or self.live_gets()) and not self.paused
        self.got.clear()
        try:
            self.queue.put(c)
        except QueueOverflow:
            assert not free and before >= self.size  # noqa: PT018
            return
        if free:
            assert [found for _, found in self.got] == [c]
        else:
            assert before < self.size and not self.got  # noqa: PT018
            self.lines[priority].append(c)

    @rule(number=st.integers(0, 2))
    def take(self, number: int) -> None:
        worker = self.workers[number]
        taken = self.queue.take(worker)
        eligible = [c for c in self.pending() if worker not in (c.declined or ())]
        if self.paused or not eligible:
            assert taken is None
            return
        assert taken is not None
        self.check_order(taken, worker)
        self.out(taken)
        self.receives(taken, worker)

    @rule(number=st.integers(0, 2), busy=st.booleans())
    def wait(self, number: int, busy: bool) -> None:
        worker = self.workers[number]
        if number in self.waits:
            return
        if not self.paused and any(worker not in (c.declined or ()) for c in self.pending()):
            return
        assert self.queue.take(worker) is None

        def getter(c: Command, number: int = number) -> None:
            del self.waits[number]
            self.receives(c, self.workers[number])

        worker.held = [command()] if busy else []
        self.waits[number] = getter
        self.queue.wait(getter, worker)

    @rule(number=st.integers(0, 2))
    def leave(self, number: int) -> None:
        getter = self.waits.pop(number, None)
        if getter is not None:
            self.queue.leave(getter)  # type: ignore[arg-type]

    def live_gets(self) -> list[object]:
        return [got for got in self.gets if not got.called]  # type: ignore[attr-defined]

    @rule()
    def get(self) -> None:
        before = self.pending()
        got = self.queue.get()
        if got.called and not self.paused:
            taken = got.result
            assert taken in before
            self.check_order(taken, None)
            self.out(taken)
            self.receives(taken, None)
            return
        assert self.paused or not before
        got.addCallbacks(lambda c: self.receives(c, None), lambda _: None)
        self.gets.append(got)

    @precondition(lambda self: self.live_gets())
    @rule(which=st.integers(0, 9))
    def cancel(self, which: int) -> None:
        live = self.live_gets()
        live[which % len(live)].cancel()  # type: ignore[attr-defined]

    @precondition(lambda self: self.pending())
    @rule(which=st.integers(0, 99))
    def discard(self, which: int) -> None:
        c = self.pending()[which % len(self.pending())]
        assert self.queue.discard(c)
        assert not self.queue.discard(c)
        self.out(c)

    @precondition(lambda self: self.handed)
    @rule(which=st.integers(0, 99), decliner=st.none() | st.integers(0, 2))
    def put_back(self, which: int, decliner: int | None) -> None:
        c = self.handed.pop(which % len(self.handed))
        if decliner is not None:
            c.declined = [*(c.declined or ()), self.workers[decliner]]
        takers = [
            w for n, w in enumerate(self.workers) if n in self.waits and w not in (c.declined or ())
        ]
        free = (takers or self.live_gets()) and not self.paused
        self.ever_put_back = True
        self.got.clear()
        self.queue.put_back(c)
        if free:
            assert [found for _, found in self.got] == [c]
        else:
            assert not self.got
            self.lines[c.priority].insert(0, c)

    @rule()
    def pause(self) -> None:
        self.queue.pause()
        self.paused = True

    @rule()
    def resume(self) -> None:
        self.paused = False
        self.got.clear()
        self.queue.resume()
        for _, c in self.got:
            self.out(c)

    @rule(seconds=st.sampled_from([0.5, 5.0, 10.0, 31.0, 100.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    # --- what always holds

    @invariant()
    def same_as_the_model(self) -> None:
        assert len(self.queue) == len(self.pending())
        assert set(self.queue.pending) == set(self.pending())
        assert self.queue.bytes_waiting == 2 * len(self.pending())
        assert self.queue.free_now == (bool(self.waits or self.live_gets()) and not self.paused)

    @invariant()
    def nobody_waits_beside_work(self) -> None:
        if self.paused:
            return
        for number in self.waits:
            worker = self.workers[number]
            assert all(worker in (c.declined or ()) for c in self.pending()), (
                "a worker waits beside a command it would take"
            )
        if self.live_gets():
            assert not self.pending(), "a get waits beside a command"


QueueMachineTests = QueueMachine.TestCase
QueueMachineTests.settings = settings(max_examples=80, stateful_step_count=30)
