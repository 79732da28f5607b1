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
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.logger import Logger

__all__ = ["settle", "tune"]

_log = Logger()


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
    modules, classes and configuration.
    """
    gc.collect()
    gc.freeze()


def _turn(reactor: Any, timeout: float | None) -> None:  # noqa: ANN401 (its private parts are needed)
    """What `EPollReactor.doPoll` does, without a log context around every event."""
    selectables = reactor._selectables  # noqa: SLF001 (there is no other way in)
    events = reactor._poller.poll(-1 if timeout is None else timeout, len(selectables))  # noqa: SLF001
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
