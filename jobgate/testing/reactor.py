"""
A reactor whose time the test turns and whose processes are FakeChildren.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self

from twisted.internet.testing import MemoryReactorClock

from jobgate.pool import process, warden
from jobgate.testing.child import FakeChild

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

__all__ = ["SpawningReactor"]

_FIRST_PID = 2**30
"""Above any process id that a system gives (Linux: at most 2**22), so no signal can ever hit one."""  # noqa: E501


class _System:
    """
    The module `os` as the pool sees it while a SpawningReactor is in use: no signal leaves it.
    """

    def __init__(self, reactor: SpawningReactor) -> None:
        self._reactor = reactor

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(os, name)

    def killpg(self, group: int, number: int) -> None:
        self._reactor.signal(group, number)

    def kill(self, pid: int, number: int) -> None:
        self._reactor.signal(pid, number)


class SpawningReactor(MemoryReactorClock):
    """
    A MemoryReactorClock whose processes are FakeChildren.

    Use it as a context manager (or `install` and `discard` it): as long as it is in
    use, signals that the pool sends go to FakeChildren and nowhere else.

    Attributes:
        spawned: Every child, oldest first, the gate's warden included.
        refuse: Set to an OSError to have the next spawns fail with it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spawned: list[FakeChild] = []
        self.refuse: OSError | None = None
        self._system: Any = None

    @property
    def workers(self) -> list[FakeChild]:
        """Every child that is no warden, oldest first."""
        return [child for child in self.spawned if warden.__file__ not in child.args]

    @property
    def alive(self) -> list[FakeChild]:
        """Those workers that have not exited."""
        return [child for child in self.workers if child.alive]

    def spawnProcess(
        self,
        processProtocol: Any,  # noqa: ANN401
        executable: str,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        path: str | None = None,
        uid: int | None = None,  # noqa: ARG002
        gid: int | None = None,  # noqa: ARG002
        usePTY: bool = False,  # noqa: ARG002, FBT001, FBT002
        childFDs: Mapping[int, Any] | None = None,
    ) -> FakeChild:
        """Make a child that does nothing by itself."""
        if self.refuse is not None:
            raise self.refuse
        fds = {0: "w", 1: "r", 2: "r"} if childFDs is None else childFDs
        pid = _FIRST_PID + len(self.spawned)
        child = FakeChild(self, processProtocol, executable, args, env, path, fds, pid)
        self.spawned.append(child)
        processProtocol.makeConnection(child)
        return child

    def signal(self, pid: int, number: int) -> None:
        """
        Deliver a signal to a child.

        Raises:
            ProcessLookupError: No living child has that id.
        """
        for child in self.spawned:
            if child.group == pid and child.alive:
                child.signalled(number)
                return
        raise ProcessLookupError

    def install(self) -> None:
        """Take the pool's signals."""
        self._system = vars(process)["os"]
        vars(process)["os"] = _System(self)

    def discard(self) -> None:
        """Give the pool's signals back and close all descriptors."""
        if self._system is not None:
            vars(process)["os"], self._system = self._system, None
        for child in self.spawned:
            child.discard()

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.discard()
