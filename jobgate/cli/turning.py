"""
A coroutine under the reactor, from its start to its end, whoever ends it.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from jobgate.cli.exits import CliError
from jobgate.loop import tune

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["turn"]

_T = TypeVar("_T")


def turn(main: Callable[[Any], Coroutine[Deferred[Any], Any, _T]]) -> _T:
    """
    Run `main(reactor)` until it returns, and return what that was.

    SIGINT and SIGTERM cancel it; its `finally` blocks may still wait for what they end.

    Raises:
        CliError: A signal ended it (status 128 + the signal's number).
    """
    from twisted.internet import reactor as running

    reactor: Any = running
    tune(reactor)
    outcome: list[_T | Failure] = []
    ended_by: list[int] = []
    coroutine: list[Deferred[_T]] = []

    def begin() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda found, _: reactor.callFromThread(end, found))
        coroutine.append(Deferred.fromCoroutine(main(reactor)))
        coroutine[0].addBoth(outcome.append)
        coroutine[0].addBoth(lambda _: reactor.stop())

    def end(number: int) -> None:
        ended_by.append(number)
        coroutine[0].cancel()

    reactor.callWhenRunning(begin)
    reactor.run(installSignalHandlers=True)
    result = outcome[0]
    if isinstance(result, Failure):
        if ended_by and result.check(CancelledError):
            raise CliError(signal.Signals(ended_by[0]).name, 128 + ended_by[0])
        result.raiseException()
    return result
