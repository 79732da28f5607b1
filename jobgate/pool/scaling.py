"""
How many workers: decides who is to be started and who may go.

Pure: what is seen goes in, a Step comes out; the Supervisor takes it. Must not know
processes, commands or clocks.

Up: when commands wait longer than `up_after`, one more for their shard, if the machine
has CPU to spare and none is being started there already. Down: whoever has had no work
for long enough, one at a time, never below `min`, never the last of a shard, and never
soon after another change. Where `min` is 0 the first is started as soon as anything waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jobgate.config import Scale

__all__ = ["Place", "Scaler", "Step"]

_NEVER = float("-inf")


class Place(NamedTuple):
    """
    A place that is to be filled, as far as scaling is concerned.

    Attributes:
        number: The post's number; it decides the shard.
        idle: Seconds that its worker has had no work; None while it has, or is not ready.
        starting: A worker is being started there.
    """

    number: int
    idle: float | None = None
    starting: bool = False


class Step(NamedTuple):
    """
    What is to be done now.

    Attributes:
        start: Numbers of places to be filled.
        retire: Numbers of places to be given up.
    """

    start: tuple[int, ...] = ()
    retire: tuple[int, ...] = ()


class Scaler:
    """
    Decides for one queue.

    Args:
        scale: The bounds and delays.
        shards: How many CommandQueues share the workers; place N belongs to shard N % shards.
        idle_shutdown: Seconds without work after which a worker may go, in place of `down_after`.
    """

    def __init__(self, scale: Scale, shards: int = 1, idle_shutdown: float = 0.0) -> None:
        self._scale = scale
        self._shards = shards
        self._rest = idle_shutdown or scale.down_after
        self._grown = [_NEVER] * shards
        self._changed = _NEVER

    @property
    def is_fixed(self) -> bool:
        """Whether there is nothing to decide: the number never changes."""
        return self._scale.min == self._scale.max

    @property
    def pace(self) -> float:
        """Seconds: the shortest delay, for whoever asks again and again."""
        return min(self._scale.up_after, self._rest)

    def must(self, held: Sequence[int] = ()) -> list[int]:
        """
        The places that are filled whatever the load.

        Args:
            held: Those that are filled now; they stay as far as they fit.

        Returns:
            Numbers, at least `min` of them, with one for each shard unless `min` is 0.
        """
        kept = {number for number in held if number < self._scale.max}
        if self._scale.min:
            shards = {number % self._shards for number in kept}
            kept |= set(range(self._shards)) if len(shards) < self._shards else set()
        for number in range(self._scale.max):
            if len(kept) >= self._scale.min:
                break
            kept.add(number)
        return sorted(kept)

    def decide(
        self, now: float, places: Sequence[Place], waits: Sequence[float | None], *, spare: bool
    ) -> Step:
        """
        What is to be done.

        Args:
            now: The time in seconds.
            places: Those that are filled or being filled.
            waits: For each shard how long its first command has waited; None if none waits.
            spare: The machine has CPU to spare, and the workers' program can be started.
        """
        start = tuple(self._up(now, places, waits, spare=spare))
        retire = () if start else tuple(self._down(now, places, waits))
        if start or retire:
            self._changed = now
        return Step(start, retire)

    def _up(
        self, now: float, places: Sequence[Place], waits: Sequence[float | None], *, spare: bool
    ) -> Iterator[int]:
        up_after = self._scale.up_after
        for shard, wait in enumerate(waits):
            if wait is None:
                continue
            here = [place for place in places if place.number % self._shards == shard]
            if here and (
                not spare
                or wait < up_after
                or now - self._grown[shard] < up_after
                or any(place.starting for place in here)
            ):
                continue
            taken = {place.number for place in here}
            numbers = range(shard, self._scale.max, self._shards)
            free = next((number for number in numbers if number not in taken), None)
            if free is not None:
                self._grown[shard] = now
                yield free

    def _down(
        self, now: float, places: Sequence[Place], waits: Sequence[float | None]
    ) -> Iterator[int]:
        if len(places) <= self._scale.min or now - self._changed < self._rest:
            return
        longest: tuple[float, int] | None = None
        for number, idle, _ in places:
            shard = number % self._shards
            here = sum(place.number % self._shards == shard for place in places)
            last = here == 1 and self._scale.min > 0
            if idle is None or idle < self._rest or last or waits[shard] is not None:
                continue
            longest = max(longest or (idle, number), (idle, number))
        if longest is not None:
            yield longest[1]
