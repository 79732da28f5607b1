"""
`jobgate.gate.deadlines`: called once, never early, at most ten milliseconds late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from jobgate.gate.deadlines import Deadlines
from tests.unit.fakes import SteppingClock, command

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobgate.command import Command

LATE = 0.010 + 1e-6
"""What the module promises, and room for the rounding of floats."""


class DeadlinesTests(SynchronousTestCase):
    """Against a clock that is moved by hand."""

    def setUp(self) -> None:
        self.begin()

    def begin(self, start: float = 0.0) -> None:
        self.clock = SteppingClock()
        self.clock.rightNow = start
        self.calls: list[tuple[Command, float]] = []
        self.deadlines = Deadlines(self.clock, lambda c, now: self.calls.append((c, now)))

    def add(self, due: float) -> Command:
        made = command()
        made.due = due
        self.deadlines.add(made, self.clock.seconds())
        return made

    def run_for(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def check(self, kept: list[Command]) -> None:
        self.assertEqual(len(self.calls), len(kept))
        self.assertEqual({id(c) for c, _ in self.calls}, {id(c) for c in kept})
        for made, at in self.calls:
            self.assertGreaterEqual(at, made.due, "early")
            self.assertLessEqual(at, made.due + LATE, "late")

    @given(
        st.floats(0, 1e6),
        st.lists(st.tuples(st.floats(0, 3), st.floats(0.001, 20)), max_size=12),
    )
    @example(0.0, [(0.0, 0.28)])
    @example(1000.0, [(0.0, 5.0), (0.0, 5.001), (0.0, 4.999)])
    def test_once_in_time(self, start: float, steps: list[tuple[float, float]]) -> None:
        """Whatever is added when, each is called once, not early and not late."""
        self.begin(start)
        kept = []
        for wait, due in steps:
            self.run_for(wait)
            kept.append(self.add(self.clock.seconds() + due))
        self.run_for(30)
        self.check(kept)

    @given(
        st.lists(
            st.tuples(
                st.floats(0.01, 12),
                st.sampled_from(["keep", "remove", "move"]),
                st.floats(0.01, 12),
            ),
            max_size=12,
        ),
        st.floats(0, 4),
    )
    def test_removed_and_moved(self, steps: list[tuple[float, str, float]], when: float) -> None:
        """A removed one is never called; a moved one at its new moment alone."""
        self.begin(50.0)
        made = [(self.add(50.0 + due), what, other) for due, what, other in steps]
        self.run_for(when)
        kept = []
        for one, what, other in made:
            if any(one is called for called, _ in self.calls):
                kept.append(one)
            elif what == "remove":
                self.deadlines.remove(one)
            else:
                kept.append(one)
                if what == "move":
                    now = self.clock.seconds()
                    self.deadlines.move(one, now + other, now)
        self.run_for(30)
        self.check(kept)

    def test_far_ones(self) -> None:
        """An hour, a day and a year ahead are kept to the hundredth of a second as well."""
        kept = [self.add(due) for due in (3600.123, 86400.5, 31_536_000.25)]
        self.run_for(32_000_000)
        self.check(kept)

    def test_in_the_past(self) -> None:
        """One that is due already is called at the next turn."""
        self.begin(100.0)
        self.add(99.0)
        self.run_for(0.02)
        self.assertEqual(len(self.calls), 1)

    def test_removed_by_another_at_the_same_moment(self) -> None:
        """Who is called may remove another one of the same moment; that one is not called."""
        called: list[Command] = []

        def expired(made: Command, _now: float) -> None:
            called.append(made)
            for other in (first, second):
                if other is not made:
                    deadlines.remove(other)

        deadlines = Deadlines(self.clock, expired)
        first, second = command(), command()
        for one in (first, second):
            one.due = 1.0
            deadlines.add(one, 0.0)
        self.run_for(2)
        self.assertEqual(len(called), 1)

    def test_added_by_who_is_called(self) -> None:
        """Who is called may be added again with a later moment."""
        times: list[float] = []

        def expired(made: Command, now: float) -> None:
            times.append(now)
            if len(times) < 5:
                made.due = now + 0.005
                deadlines.add(made, now)

        deadlines = Deadlines(self.clock, expired)
        one = command()
        one.due = 1.0
        deadlines.add(one, 0.0)
        self.run_for(2)
        self.assertEqual(len(times), 5)
        self.assertEqual(times, sorted(times))

    def test_a_clock_that_stands(self) -> None:
        """
        A timer that fires a rounding error before its moment is not set for that moment for ever.
        """
        for start, due in ((0.28, 0.285), (0.56, 0.565), (1.14, 1.145), (4.34, 4.345)):
            clock = Clock()
            clock.rightNow = start
            called: list[float] = []
            deadlines = Deadlines(clock, lambda _, now, called=called: called.append(now))
            turns: list[int] = []
            fire = deadlines._fire

            def counted(fire: Callable[[], None] = fire, turns: list[int] = turns) -> None:
                turns.append(1)
                assert len(turns) < 100, "the same moment again and again"
                fire()

            deadlines._fire = counted  # type: ignore[method-assign]
            one = command()
            one.due = due
            deadlines.add(one, start)
            for _ in range(3):
                clock.advance(0.01)
            self.assertEqual(len(called), 1)

    def test_one_timer(self) -> None:
        """However many deadlines there are, the reactor holds one timer."""
        for number in range(1000):
            self.add(1 + number * 0.37)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_harmless_removals(self) -> None:
        """Removing what is not kept, or twice, does nothing."""
        self.deadlines.remove(command())
        one = self.add(1.0)
        self.deadlines.remove(one)
        self.deadlines.remove(one)
        self.run_for(2)
        self.assertEqual(self.calls, [])

    def test_buckets_do_not_grow(self) -> None:
        """Ten minutes of commands that come and go leave no buckets behind."""
        for step in range(12_000):
            self.clock.advance(0.05)
            now = self.clock.seconds()
            self.deadlines.remove(self.add(now + 30 + step % 7))
        self.assertLess(len(self.deadlines._buckets), 1000)
        self.assertEqual(len(self.deadlines._buckets), len(self.deadlines._order))

    def test_far_buckets_do_not_grow(self) -> None:
        """Deadlines that callers choose freely, removed again, leave nothing behind for years."""
        for year in range(5000):
            self.deadlines.remove(self.add(31_536_000.0 * (year + 1)))
        self.assertLess(len(self.deadlines._buckets), 1000)

    def test_stop(self) -> None:
        """After `stop` nothing is called and no timer is left."""
        self.add(1.0)
        self.deadlines.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.run_for(2)
        self.assertEqual(self.calls, [])
