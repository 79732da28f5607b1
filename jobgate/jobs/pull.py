"""
A pull: somebody from outside takes commands, one or several, from one queue.

For its Road it is a worker like any other: it waits in the CommandQueue in its turn and
is handed commands while it has room. What it was given is settled by `Leases`, once the
puller has it. Must not know HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jobgate.command import DONE, RUNNING, Lot

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from jobgate.command import Batch, Command
    from jobgate.jobs.backlog import Backlog

__all__ = ["Pull"]

_MOST_BYTES: Final = 16 * 1024 * 1024
"""Of bodies in one answer, about."""


class Pull:
    """
    One request for commands, until it has enough or its time is up.

    Lines it takes in lots: each is one of its commands, and counts as all its jobs.

    Args:
        backlog: The queue.
        clock: Seconds and timers.
        most: How many commands it takes at the most.
        least: With so many it waits no longer.
        lines: The bodies are to be sent as lines: one that is none comes alone.
        done: Called once, with what it got; perhaps nothing.
        over: Told of a call that needs its reply no more.
    """

    lanes = 0
    takes_batches = False
    name = "a puller"
    output = ""
    _count = 0
    _bytes = 0
    _waits = False
    _ended = False

    def __init__(
        self,
        backlog: Backlog,
        clock: IReactorTime,
        *,
        most: int,
        least: int,
        lines: bool,
        done: Callable[[list[Command]], None],
        over: Callable[[Command], None],
    ) -> None:
        self.commands: list[Command] = []
        self._backlog = backlog
        self._demand = backlog.demand
        self._road = backlog.road
        self._clock = clock
        self._most = most
        self._least = least
        self._lines = lines
        self._done = done
        self._over = over
        self._timer: IDelayedCall | None = None

    def __repr__(self) -> str:
        return f"<Pull {self._road.config.name} {self._count}/{self._most}>"

    # --- what a Road sees: the Worker protocol

    @property
    def room(self) -> int:
        """How many more commands it takes."""
        return 0 if self._ended else self._most - self._count

    @property
    def lots(self) -> int:
        """How many jobs of one lot it takes as one command."""
        return self._most - self._count if self._lines else 1

    @property
    def idle(self) -> bool:
        """It is never preferred to a worker, nor put behind one."""
        return False

    def send(self, command: Command) -> bool:
        """Never called: what it takes it takes by itself."""
        raise NotImplementedError

    def send_batch(self, batch: Batch) -> bool:
        """Likewise."""
        raise NotImplementedError

    def cancel(self, command: Command) -> None:
        """The caller of one of its commands is gone; its puller hears of that when it replies."""
        if not self._ended:
            self.commands.remove(command)
            self._count -= command.size
            self._bytes -= len(command.body)
            if self._waits:
                self._backlog.want(command.size)
        self._over(command)

    def overran(self, cause: str) -> None:  # noqa: ARG002 (nobody can be told)
        """One of its commands took too long: nothing ends a puller, but no reply is wanted."""
        for command in self.commands:
            if command.state is DONE:
                self._over(command)

    # --- its life

    def start(self, seconds: float) -> None:
        """Take what is there, then wait for more for at most so many seconds."""
        backlog = self._backlog
        self._demand.pulled()
        if not backlog.stored:
            # What is here is all there is: who is content with that need not be expected.
            self._collect()
            if self._ended:
                return
        self._waits = True
        self._demand.pulls.add(self)
        backlog.want(self._most - self._count)
        self._collect()
        if self._ended:
            return
        if self._demand.closed:
            self.end()
        elif seconds > 0:
            self._wait_until(seconds)
        else:
            # What is stored takes a moment to come, even for one who will not wait.
            backlog.arrivals.when_here(self.end)
        for shard in () if self._ended else self._road.shards:
            shard.wait(self._got, self)

    def leave(self) -> None:
        """The puller is gone: what it was given goes back, as if it had never left."""
        if not self._ended:
            self._stop()
        for command in reversed(self.commands):
            self.give_back(command)
        self.commands.clear()
        self._backlog.trim()

    def give_back(self, command: Command) -> None:
        """A command that could not be handed over stands first again."""
        if command.worker is self and command.state is RUNNING:
            self._road.not_started(command)

    def end(self) -> None:
        """Wait no longer: what it has, and what has come with that, is what it gets."""
        if not self._ended:
            self._collect()
        if not self._ended:
            self._end()

    # --- inside

    def _collect(self) -> None:
        for shard in self._road.shards:
            while not self._ended:
                command = shard.take(self)
                if command is None:
                    break
                self._add(command)
        if not self._ended and self._count >= self._least:
            self._end()

    def _got(self, command: Command) -> None:
        """A command has come to the head of the waiting."""
        for shard in self._road.shards:
            shard.leave(self._got)
        self._add(command)
        if self._ended:
            return
        if self._count >= self._least:
            # What comes together goes together: the others are on the heels of this one.
            self._wait_until(0)
            return
        self._collect()
        for shard in () if self._ended else self._road.shards:
            shard.wait(self._got, self)

    def _add(self, command: Command) -> None:
        command.state = RUNNING
        command.worker = self
        # Whoever it may have killed a worker with, here it is alone.
        command.batch = None
        command.attempt += 1
        self._road.outcomes.running.add(command)
        lot = command if isinstance(command, Lot) else None
        alone = self._lines and lot is None and b"\n" in command.body
        if self._lines and self.commands and (alone or not self._fits(command)):
            self._road.not_started(command)
            self._end()
            return
        self.commands.append(command)
        self._count += command.size
        if self._waits:
            self._demand.wanted -= command.size
        self._bytes += len(command.body)
        if lot is not None:
            lot.on_parted = self._parted
        if alone or self._count >= self._most or self._bytes >= _MOST_BYTES:
            self._end()

    def _fits(self, command: Command) -> bool:
        """Whether its lines may stand beside those that are there: they are of one kind."""
        return command.content_type == self.commands[0].content_type

    def _parted(self, lot: Lot, parts: list[Command]) -> None:
        """A lot that it has is several commands from now on."""
        at = self.commands.index(lot)
        self.commands[at : at + 1] = parts
        self._bytes += sum([len(part.body) for part in parts]) - len(lot.body)
        for part in parts:
            if isinstance(part, Lot):
                part.on_parted = self._parted
        self._road.parted(lot, parts)

    def _wait_until(self, seconds: float) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = self._clock.callLater(seconds, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        self.end()

    def _end(self) -> None:
        done = self._done
        self._stop()
        done(self.commands)

    def _stop(self) -> None:
        self._ended = True
        # Who is told often knows this: a circle would be left to the collector.
        self._done = _nobody
        if not self._waits:
            return
        self._demand.pulls.discard(self)
        for shard in self._road.shards:
            shard.leave(self._got)
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        self._backlog.want(self._count - self._most)


def _nobody(commands: list[Command]) -> None:
    """It has been told, or has left."""
