"""
Child processes: start them, see what they use, and leave none behind.

Everything is read from ``/proc`` for a process *and all its descendants*, since a server's cost
is that of its front and its workers together. Linux only. Knows nothing of HTTP.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import FrameType, TracebackType

__all__ = ["BenchmarkError", "Child", "end_on_signals", "raise_descriptor_limit"]

TICKS = os.sysconf("SC_CLK_TCK")
LOOK_EVERY = 0.001
"""Seconds between two looks at a file or a process that is waited for."""
TERM_GRACE = 2.0
"""Seconds a child has to end by itself before it is killed."""


class BenchmarkError(Exception):
    """
    A measurement that cannot be trusted or taken: said loudly, never averaged in.
    """


class Stat(NamedTuple):
    """
    What ``/proc/<pid>/stat`` says.

    Attributes:
        pid: The process.
        parent: Its parent's pid.
        cpu: Seconds of CPU of all its threads, dead ones too, and of the children it has reaped.
        started: Clock ticks after boot; with the pid it names a process for good.
    """

    pid: int
    parent: int
    cpu: float
    started: int


def read_stat(pid: int) -> Stat | None:
    """
    Read one process's line, or None if it is gone.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return Stat(pid, int(fields[1]), sum(map(int, fields[11:15])) / TICKS, int(fields[19]))


def read_tree(root: int) -> list[Stat]:
    """
    List a process and all its descendants.
    """
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    stats = [stat for pid in pids if (stat := read_stat(pid)) is not None]
    children: dict[int, list[Stat]] = {}
    for stat in stats:
        children.setdefault(stat.parent, []).append(stat)
    found = [stat for stat in stats if stat.pid == root]
    for stat in found:  # grows while it is walked
        found.extend(children.get(stat.pid, ()))
    return found


def kill(stat: Stat) -> None:
    """
    Kill exactly this process, unless it is gone and its pid is another's now.
    """
    now = read_stat(stat.pid)
    if now is not None and now.started == stat.started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(stat.pid, signal.SIGKILL)


@dataclass
class Child:
    """
    A server started for the benchmark. A context manager: leaving it ends the whole tree.

    Attributes:
        process: The child itself.
        log: The file that its output goes to.
        began: ``time.monotonic()`` just before it was started.
    """

    process: subprocess.Popen[bytes]
    log: Path
    began: float

    @classmethod
    def start(cls, argv: Sequence[str], folder: Path, env: Mapping[str, str] | None = None) -> Self:
        """
        Start a program in a folder of its own; its output goes to a file there.

        It gets a session of its own, so that Ctrl-C reaches the harness alone, which then ends
        its children in order.
        """
        env = {**os.environ, **(env or {})}
        # Half a second of each start would be Python that compiles what it compiled before.
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "output.log"
        with log.open("wb") as output:
            began = time.monotonic()
            process = subprocess.Popen(
                argv,
                env=env,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(process, log, began)

    def wait_for(self, pattern: str, seconds: float) -> re.Match[str]:
        """
        Wait until a line of the output matches.

        Raises:
            BenchmarkError: It ended before, or the time is up; with the end of its output.
        """
        while True:
            ended = self.process.poll() is not None
            match = re.search(pattern, self.output())
            if match is not None:
                return match
            if ended:
                raise BenchmarkError(f"ended with {self.process.returncode}:\n{self.tail()}")
            if time.monotonic() > self.began + seconds:
                raise BenchmarkError(f"no {pattern!r} within {seconds} s:\n{self.tail()}")
            time.sleep(LOOK_EVERY)

    def output(self) -> str:
        """
        Return all that it has written so far.
        """
        return self.log.read_text(errors="replace")

    def tail(self) -> str:
        """
        Return the last lines it wrote, for an error message.
        """
        return "\n".join(self.output().splitlines()[-20:])

    def cpu(self) -> float:
        """
        Return the seconds of CPU that the whole tree has used so far.
        """
        return sum(stat.cpu for stat in read_tree(self.process.pid))

    def own_cpu(self) -> float:
        """
        Return the seconds of CPU that the first process alone has used so far.
        """
        stat = read_stat(self.process.pid)
        if stat is None:
            raise BenchmarkError("the process is gone")
        return stat.cpu

    def rss(self) -> int:
        """
        Return the bytes of RAM that the first process alone holds (its children not counted).
        """
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s*(\d+) kB", status, re.MULTILINE)
        if found is None:
            raise BenchmarkError("the process is gone")
        return int(found[1]) * 1024

    def stop(self, grace: float = TERM_GRACE) -> None:
        """
        End the whole tree: ask the first process, then kill what is left of all.
        """
        tree = read_tree(self.process.pid)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace)
        for stat in {*tree, *read_tree(self.process.pid)}:
            kill(stat)
        self.process.wait(TERM_GRACE)

    def __enter__(self) -> Self:
        """
        Nothing to do: it runs since it was made.
        """
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """
        End the whole tree.
        """
        self.stop()


def end_on_signals() -> None:
    """
    Turn SIGTERM and SIGHUP into an exception, so that every ``with`` ends its child.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


def raise_descriptor_limit(wanted: int) -> None:
    """
    Allow this process and its children so many open descriptors.

    Raises:
        BenchmarkError: The hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise BenchmarkError(f"{wanted} open descriptors are needed, the hard limit is {hard}")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
