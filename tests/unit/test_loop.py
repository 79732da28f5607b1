"""
The shorter turn of the loop: `jobgate.loop`.
"""

from __future__ import annotations

import gc
from select import EPOLLIN
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from jobgate import loop


class _Reader:
    """What an event is for."""

    def __init__(self, read: Any) -> None:
        self.doRead = read


class _Reactor:
    """What a turn needs of an epoll reactor."""

    def __init__(self, *reads: Any) -> None:
        self._selectables = {fd: _Reader(read) for fd, read in enumerate(reads)}
        self._poller = self
        self.gone: list[Any] = []

    def poll(self, _timeout: float, _most: int) -> list[tuple[int, int]]:
        return [(fd, EPOLLIN) for fd in self._selectables]

    def _disconnectSelectable(self, selectable: Any, why: Any, _reading: bool) -> None:
        self.gone.append((selectable, why))


class TogetherTests(SynchronousTestCase):
    """What one event asks for and others may, too."""

    def test_at_the_end_of_a_turn(self) -> None:
        """After all events of the turn, in order; what follows from it waits for the clock."""
        clock, seen = Clock(), list[str]()

        def read(name: str) -> Any:
            def again() -> None:
                seen.append(f"end of {name}")
                loop.together(clock, lambda: seen.append(f"later than {name}"))

            def doRead() -> None:
                seen.append(name)
                self.assertIsNone(loop.together(clock, again))

            return doRead

        loop._turn(_Reactor(read("a"), read("b")), 0.0)
        self.assertEqual(seen, ["a", "b", "end of a", "end of b"])
        clock.advance(0)
        self.assertEqual(seen[4:], ["later than a", "later than b"])

    def test_what_fails(self) -> None:
        """An event or an end that raises is logged, and all others have their turn."""
        clock, seen = Clock(), list[str]()

        def fails() -> None:
            loop.together(clock, fails)
            raise ZeroDivisionError

        def works() -> None:
            loop.together(clock, lambda: seen.append("end"))

        reactor = _Reactor(fails, works)
        loop._turn(reactor, 0.0)
        self.assertEqual((len(reactor.gone), seen), (1, ["end"]))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        timer = loop.together(clock, works)
        assert timer is not None
        self.assertTrue(timer.active())
        timer.cancel()


class SettleTests(SynchronousTestCase):
    """What the garbage collector leaves alone."""

    def test_once_it_is_ready(self) -> None:
        """What there is, it looks at no more; what is new, in larger portions."""
        self.addCleanup(gc.unfreeze)
        self.addCleanup(gc.set_threshold, *gc.get_threshold())
        before, there = gc.get_threshold(), [object()]
        loop.settle()
        self.assertTrue(gc.get_freeze_count())
        self.assertFalse(any(there is each for each in gc.get_objects()))
        self.assertGreater(gc.get_threshold(), before)
