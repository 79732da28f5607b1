"""
Where the boxes of a layered drawing stand: left to right, each behind all that it needs.

After Sugiyama: layers by the longest way, places within a layer by the mean place of the
neighbours, so that lines cross little. Pure numbers; must not know what is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Drawing", "depths", "place"]

_SWEEPS = 6
"""Times that the layers are ordered by their neighbours, from the left and from the right."""

Spot = tuple[int, float]
"""A layer, and a height within it; 1 is the distance of two boxes."""


class Drawing:
    """
    A drawing's geometry.

    Attributes:
        spots: Where each box stands, by name.
        lines: `(from, to)` to the spots a line passes between them.
        layers: How many layers there are.
        height: The largest height, counted from 0.
    """

    def __init__(
        self,
        spots: dict[str, Spot],
        lines: dict[tuple[str, str], list[Spot]],
        layers: int,
        height: float,
    ) -> None:
        self.spots = spots
        self.lines = lines
        self.layers = layers
        self.height = height


def depths(needs: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """
    How long the longest way to each is.

    Args:
        needs: Name to names, without cycles.
    """
    left = {name: len(its) for name, its in needs.items()}
    dependents: dict[str, list[str]] = {}
    for name, its in needs.items():
        for need in its:
            dependents.setdefault(need, []).append(name)
    found = dict.fromkeys(needs, 0)
    free = [name for name, count in left.items() if not count]
    for name in free:  # it grows meanwhile
        for dependent in dependents.get(name, ()):
            found[dependent] = max(found[dependent], found[name] + 1)
            left[dependent] -= 1
            if not left[dependent]:
                free.append(dependent)
    return found


def place(needs: Mapping[str, Sequence[str]], depth: Mapping[str, int]) -> Drawing:
    """
    Place boxes that need each other; a line that passes a layer gets a spot of its own there.

    Args:
        needs: Name to names.
        depth: The layer of each; lines that do not lead to a later one are left out.
    """
    layers: list[list[int]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    numbers = {name: number for number, name in enumerate(depth)}
    for name, number in numbers.items():
        layers[depth[name]].append(number)
    left: list[list[int]] = [[] for _ in depth]
    right: list[list[int]] = [[] for _ in depth]
    passes: dict[tuple[str, str], list[int]] = {}
    for name, number in numbers.items():
        for need in needs[name]:
            if depth[need] >= depth[name]:
                continue
            last = numbers[need]
            on_the_way = passes[need, name] = []
            for layer in range(depth[need] + 1, depth[name]):
                passing = len(left)
                layers[layer].append(passing)
                left.append([last])
                right.append([])
                right[last].append(passing)
                on_the_way.append(passing)
                last = passing
            left[number].append(last)
            right[last].append(number)
    _order(layers, left, right)
    heights = _settle(layers, left, right)
    where = {number: layer for layer, members in enumerate(layers) for number in members}
    return Drawing(
        {name: (depth[name], heights[number]) for name, number in numbers.items()},
        {ends: [(where[n], heights[n]) for n in way] for ends, way in passes.items()},
        len(layers),
        max(heights, default=0.0),
    )


def _order(layers: list[list[int]], left: list[list[int]], right: list[list[int]]) -> None:
    """Sort each layer by the mean place of the neighbours, from either side in turn."""
    places = [0.0] * len(left)

    def number(members: list[int]) -> None:
        # In parts of the whole, so that a short layer is spread out beside a long one.
        for at, member in enumerate(members):
            places[member] = (at + 0.5) / len(members)

    def mean(member: int) -> float:
        near = neighbours[member]
        return sum(places[n] for n in near) / len(near) if near else places[member]

    for members in layers:
        number(members)
    for sweep in range(_SWEEPS):
        neighbours = right if sweep % 2 else left
        for members in reversed(layers) if sweep % 2 else layers:
            members.sort(key=mean)
            number(members)


def _settle(layers: list[list[int]], left: list[list[int]], right: list[list[int]]) -> list[float]:
    """Heights: near the neighbours, in the layer's order, at least 1 apart."""
    heights = [0.0] * len(left)
    tallest = max(map(len, layers), default=0)
    for members in layers:
        for at, member in enumerate(members):
            heights[member] = at + (tallest - len(members)) / 2
    for sweep in range(_SWEEPS):
        for members in reversed(layers) if sweep % 2 else layers:
            wanted = []
            for member in members:
                near = (right if sweep % 2 else left)[member] or (left[member] + right[member])
                wanted.append(
                    sum(heights[n] for n in near) / len(near) if near else heights[member]
                )
            for member, height in zip(members, _apart(wanted), strict=True):
                heights[member] = height
    lowest = min(heights, default=0.0)
    return [height - lowest for height in heights]


def _apart(wanted: list[float]) -> list[float]:
    """
    The heights nearest to those wanted that are at least 1 apart, in the same order.

    Neighbours that would overlap become one block around the mean of what its members want.
    """
    blocks: list[tuple[float, int]] = []  # the sum of what the members want of the first, count
    for height in wanted:
        total, count = height, 1
        while blocks and blocks[-1][0] / blocks[-1][1] + blocks[-1][1] > total / count:
            before, members = blocks.pop()
            total, count = before + total - count * members, members + count
        blocks.append((total, count))
    return [total / count + at for total, count in blocks for at in range(count)]
