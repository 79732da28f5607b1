"""
What a gate needs otherwise than Twisted's event loop and Python have it.

Deadlines must follow the monotonic clock, and an event must not cost a log context: of a
call's time in the gate, that was a tenth. Both are properties of the one running reactor,
set once, before anything else is. And nobody must wait while the garbage collector looks
again and again at what a gate has from its start to its end.
"""

from __future__ import annotations

import gc
import sys
import time
from select import EPOLLIN
from types import MethodType
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.epollreactor import EPollReactor
from twisted.logger import Logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["settle", "together", "tune"]

_PORTIONS: Final = 10_000, 20
"""
New objects after which the collector looks at them, a third of a millisecond, and how many such
looks go before one at all that survived them, 7 ms if all did. What waits so long in cycles of
garbage is a few megabytes at most.
"""
_log = Logger()
_ends: list[Callable[[], object]] = []
"""What is to be called at the end of the turn that looks at events just now."""
_looking = False


def tune(reactor: Any) -> None:  # noqa: ANN401 (whatever reactor is installed)
    """
    Make the reactor fit for a gate.

    Its clock becomes the monotonic one: Twisted's timers follow the wall clock, and a
    clock that is set would move every deadline. If it is the epoll reactor, its turn
    becomes the shorter one below; any other keeps its own.
    """
    reactor.seconds = time.monotonic
    if type(reactor) is EPollReactor:
        reactor.doIteration = MethodType(_turn, reactor)  # type: ignore[method-assign]


def settle() -> None:
    """
    Let the garbage collector leave alone what there is: the gate is ready.

    A full collection held up everybody for tens of milliseconds, nearly all of it spent on
    modules, classes and configuration. From then on what is new is looked at in larger
    portions: with a hundred thousand commands waiting, looking at them again and again was
    two fifths of what each of them cost.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_PORTIONS)


def together(clock: IReactorTime, call: Callable[[], object]) -> IDelayedCall | None:
    """
    Call once all that has come at the same time has been looked at: soon, and not nested.

    Args:
        clock: The reactor, or what stands for it.
        call: What one event asks for, and others may, too.

    Returns:
        The timer, where there is one.
    """
    if _looking:
        _ends.append(call)
        return None
    return clock.callLater(0, call)


def _turn(reactor: Any, timeout: float | None) -> None:  # noqa: ANN401 (its private parts are needed)
    """What `EPollReactor.doPoll` does, without a log context around every event."""
    selectables = reactor._selectables  # noqa: SLF001 (there is no other way in)
    global _looking  # noqa: PLW0603 (there is one running reactor)
    events = reactor._poller.poll(-1 if timeout is None else timeout, len(selectables))  # noqa: SLF001
    _looking = True
    try:
        for fd, event in events:
            selectable = selectables.get(fd)
            if selectable is None:
                continue
            if event != EPOLLIN:
                reactor._doReadOrWrite(selectable, fd, event)  # noqa: SLF001
                continue
            try:
                why = selectable.doRead()
            except BaseException:  # noqa: BLE001 (as Twisted does: log it, and end that one connection)
                _log.failure("reading from {selectable!r} failed", selectable=selectable)
                why = sys.exc_info()[1]
            if why:
                reactor._disconnectSelectable(selectable, why, True)  # noqa: FBT003, SLF001
    finally:
        _looking = False
    while _ends:
        try:
            _ends.pop(0)()
        except BaseException:  # noqa: BLE001 (likewise)
            _log.failure("the end of a turn failed")
