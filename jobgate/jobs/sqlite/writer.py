"""
Where the store's operations run: in a thread that waits for the disk, or in the loop.

What has arrived while one group was written is the next group; the loop runs each
turn's at its end, and in the next what these have led to. The thread gets what a turn has
brought all at once: woken for the first of it, it would only fight with the loop for the
interpreter. Must not know what the operations do.
"""

from __future__ import annotations

from collections import deque
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Final, Protocol

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.python.failure import Failure

from jobgate.errors import StoreUnavailable
from jobgate.jobs.sqlite.groups import RETRY
from jobgate.loop import together

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from jobgate.jobs.job import Change
    from jobgate.jobs.sqlite.groups import Groups
    from jobgate.jobs.sqlite.operations import Operation

__all__ = ["InlineWriter", "ThreadWriter", "Writer"]

_GROUP: Final = 512
"""Operations of one group at most."""
_GROUP_BYTES: Final = 8 << 20
"""Bytes after which a group is full."""

if TYPE_CHECKING:
    Counts = dict[str, list[int]]
    Tell = Callable[[Sequence[Change], Sequence[Operation]], None]
    """Called on the reactor's thread with what has changed, and operations with outcomes."""


class Writer(Protocol):
    """
    Runs operations in the order in which they are submitted.

    Attributes:
        submitted: What this turn has brought so far, which may still be changed; another list
            once it is on its way.
    """

    submitted: list[Operation]

    def open(self) -> Deferred[Counts]:
        """Open the store."""

    def submit(self, operation: Operation) -> None:
        """Run it, soon."""

    def close(self) -> Deferred[None]:
        """Run what was submitted, then close the store."""


class ThreadWriter:
    """
    A thread of its own.

    Args:
        groups: The store; once it is open only the thread touches it.
        tell: Told of each group, on the reactor's thread.
        reactor: Gets the calls from the thread, and tells of the end of a turn.
    """

    def __init__(
        self,
        groups: Groups,
        tell: Tell,
        reactor: Any,  # noqa: ANN401 (IReactorTime and -FromThreads: no type can say both)
    ) -> None:
        self._groups = groups
        self._tell = tell
        self._reactor = reactor
        self.submitted: list[Operation] = []
        self._arrivals: SimpleQueue[list[Operation] | None] = SimpleQueue()
        self._waiting: deque[Operation] = deque()
        self._ended: Deferred[None] = Deferred()
        # A daemon: a gate that dies without closing must not hang on its store.
        self._store_thread = Thread(target=self._live, name="jobgate-store", daemon=True)

    def open(self) -> Deferred[Counts]:
        """
        Open the store, here and now: a store that cannot be opened must keep a gate from starting.
        """
        return maybeDeferred(self._open)

    def _open(self) -> Counts:
        counts, changes = self._groups.open()
        self._tell(changes, ())
        self._store_thread.start()
        return counts

    def submit(self, operation: Operation) -> None:
        """Run it, soon."""
        if not self.submitted:
            together(self._reactor, self._hand_over)
        self.submitted.append(operation)

    def close(self) -> Deferred[None]:
        """Run what was submitted, then close the store."""
        if not self._store_thread.is_alive():
            self._groups.close()
            return succeed(None)
        self._hand_over()
        self._arrivals.put(None)
        return self._ended

    def _hand_over(self) -> None:
        """The turn is over: the thread gets what it has brought."""
        submitted, self.submitted = self.submitted, []
        if submitted:
            self._arrivals.put(submitted)

    def _live(self) -> None:
        call = self._reactor.callFromThread
        groups = self._groups
        left: list[Operation] = []
        closing = False
        while not closing:
            group, closing = self._gather()
            if group or left:
                group = left + group
                changes, left = groups.run(group)
                call(self._tell, changes, _done(group, left))
            elif groups.trouble:
                groups.probe()
            elif groups.restless:
                groups.rest()
        _give_up(left)
        groups.close()
        call(self._end, left)

    def _gather(self) -> tuple[list[Operation], bool]:
        """What has arrived, once something has or it is time for more; and whether to end."""
        waiting, arrivals = self._waiting, self._arrivals
        closing = False
        try:
            groups = self._groups
            timeout = RETRY if groups.trouble or groups.restless else None
            arrived = arrivals.get_nowait() if waiting else arrivals.get(timeout=timeout)
            while arrived is not None:
                waiting += arrived
                arrived = arrivals.get_nowait()
            closing = True
        except Empty:
            pass
        group: list[Operation] = []
        size = 0
        while waiting and len(group) < _GROUP and size < _GROUP_BYTES:
            operation = waiting.popleft()
            group.append(operation)
            size += operation.size
        if closing and waiting:
            # Nothing comes after the end, so this one is found again.
            arrivals.put(None)
            closing = False
        return group, closing

    def _end(self, left: Sequence[Operation]) -> None:
        # The thread has nothing more to do, so this is no wait.
        self._store_thread.join()
        self._tell((), left)
        self._ended.callback(None)


class InlineWriter:
    """
    No thread, where there is no disk to wait for: two of them would only fight for the interpreter.

    Args:
        groups: The store.
        tell: Told of each group.
        clock: For running a turn later, and trying again.
        at_once: What an operation leads to runs in the same call, too: for tests.
    """

    def __init__(
        self, groups: Groups, tell: Tell, clock: IReactorTime, *, at_once: bool = False
    ) -> None:
        self._groups = groups
        self._tell = tell
        self._clock = clock
        self._at_once = at_once
        self.submitted: list[Operation] = []
        self._soon = self._closed = False
        self._later: IDelayedCall | None = None
        self._running = False
        self._again: IDelayedCall | None = None

    def open(self) -> Deferred[Counts]:
        """Open the store."""
        return maybeDeferred(self._open)

    def submit(self, operation: Operation) -> None:
        """Run it, together with what else this turn brings."""
        self.submitted.append(operation)
        if self._at_once:
            self._run()
        elif not self._soon:
            self._soon = True
            self._later = together(self._clock, self._turn)

    def hold(self) -> None:
        """Let operations gather, as they do while a thread is busy."""
        self._running = True

    def release(self) -> None:
        """Run what has gathered, as one group."""
        self._running = False
        self._run()

    def close(self) -> Deferred[None]:
        """Close the store."""
        self._at_once = self._closed = True
        if self._later is not None and self._later.active():
            self._later.cancel()
        self._soon = False
        self._run()
        if self._again is not None:
            self._again.cancel()
        left, self.submitted = self.submitted, []
        _give_up(left)
        self._groups.close()
        self._tell((), left)
        return succeed(None)

    def _open(self) -> Counts:
        counts, changes = self._groups.open()
        self._tell(changes, ())
        return counts

    def _turn(self) -> None:
        self._soon = False
        if not self._closed:
            self._run()

    def _run(self) -> None:
        if self._running:
            return
        self._running = True
        try:
            while self.submitted:
                group, self.submitted = self.submitted, []
                changes, left = self._groups.run(group)
                self._tell(changes, _done(group, left))
                self.submitted[:0] = left
                # What they have led to can wait until the loop has looked at everybody else.
                if left or self._soon:
                    break
        finally:
            self._running = False
        if self._groups.trouble and self._again is None:
            self._again = self._clock.callLater(RETRY, self._try_again)

    def _try_again(self) -> None:
        self._again = None
        if not self.submitted:
            self._groups.probe()
        self._run()


def _done(group: Sequence[Operation], left: Sequence[Operation]) -> Sequence[Operation]:
    if not left:
        return group
    still = set(left)
    return [operation for operation in group if operation not in still]


def _give_up(left: Sequence[Operation]) -> None:
    for operation in left:
        operation.outcome = Failure(StoreUnavailable("the store was closed"))
