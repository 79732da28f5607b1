"""
Draw a part of the Mandelbrot set as a PNG, with nothing but arithmetic.

    curl -X POST http://127.0.0.1:8080/call/mandelbrot -o mandelbrot.png
    curl http://127.0.0.1:8080/call/mandelbrot -o seahorses.png \
        -d '{"width": 400, "height": 300, "x": -0.745, "y": 0.113, "span": 0.02, "steps": 300}'
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import TYPE_CHECKING

from jobgate.worker import Command, Fail, Reply, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_WORK = 100_000_000  # pixels times steps: ten seconds or so
# Name: default, least, most. Numbers with a default that is whole must be whole.
LIMITS: dict[str, tuple[float, float, float]] = {
    "width": (480, 1, 2000),
    "height": (360, 1, 2000),
    "x": (-0.6, -4.0, 4.0),  # the middle of the picture
    "y": (0.0, -4.0, 4.0),
    "span": (3.2, 1e-12, 8.0),  # what the width of the picture is in the plane
    "steps": (100, 1, 10_000),  # after which a point counts as inside
}


def draw(command: Command) -> Reply:
    """
    Read what is wanted, paint it row by row, and tell how far it is.
    """
    wanted = options(command.json() if command.body else {})
    width, height, steps = (int(wanted[name]) for name in ("width", "height", "steps"))
    if width * height * steps > MOST_WORK:
        raise Fail("too much work", f"width * height * steps is over {MOST_WORK}", 422, retry=False)
    scale = wanted["span"] / width
    left = wanted["x"] - scale * (width - 1) / 2
    top = wanted["y"] + scale * (height - 1) / 2
    colours = list(palette(steps))
    columns = [left + scale * column for column in range(width)]
    rows = []
    for row in range(height):
        y = top - scale * row
        rows.append(b"".join(colours[escape(x, y, steps)] for x in columns))
        if command.cancelled:
            raise Fail("nobody waits for this picture any more")
        if row % 32 == 0:
            command.progress(row, height, "rows")
    return Reply(png(width, height, rows), "image/png")


def options(given: object) -> dict[str, float]:
    """
    Complete what the caller gave with the defaults, and refuse what cannot be.
    """
    if not isinstance(given, dict):
        raise Fail("not a JSON object", f"wanted: an object with some of {[*LIMITS]}", 422)
    for name, value in given.items():
        if name not in LIMITS:
            raise Fail("unknown option", f"{name!r}; known: {[*LIMITS]}", 422, retry=False)
        default, least, most = LIMITS[name]
        kinds = int if isinstance(default, int) else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
            kind = "a whole number" if kinds is int else "a number"
            detail = f"{name}: found {value!r:.50}, wanted {kind} from {least} to {most}"
            raise Fail("impossible option", detail, 422, retry=False)
    return {name: given.get(name, limit[0]) for name, limit in LIMITS.items()}


def escape(x: float, y: float, steps: int) -> int:
    """
    Count the steps until the point runs away; `steps` if it does not.
    """
    # Most of the points that never run away lie in these two shapes, and would take longest.
    q = (x - 0.25) ** 2 + y * y
    if q * (q + x - 0.25) <= y * y / 4 or (x + 1) ** 2 + y * y <= 1 / 16:
        return steps
    a = b = 0.0
    for step in range(steps):
        aa, bb = a * a, b * b
        if aa + bb > 4:
            return step
        a, b = aa - bb + x, 2 * a * b + y
    return steps


def palette(steps: int) -> Iterator[bytes]:
    """
    Give the colour of each count of steps, the last one for the inside: black.
    """
    for step in range(steps):
        turn = math.log1p(step) * 1.7
        yield bytes(int(127.5 - 127.5 * math.cos(turn + shift)) for shift in (0.2, 0.9, 1.6))
    yield b"\0\0\0"


def png(width: int, height: int, rows: list[bytes]) -> bytes:
    """
    Pack rows of RGB pixels as a PNG file (RFC 2083).
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


if __name__ == "__main__":
    serve(draw)
