"""
The picture of `overlap.py`: four panels, in each a row for every worker and one for the server.

Colours from the Okabe-Ito palette, and never colour alone: what is handed over lies above or
below what is worked on, and waiting is hatched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.patches import Patch
from picture import BLUE, GREY, STYLE, VERMILION, mpl, plt

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from overlap import Run, Timeline

__all__ = ["draw"]

ORANGE = "#E69F00"
SHOWN = 0.016
"""Seconds that are drawn."""
WORK, HAND = (-0.2, 0.4), 0.16
"""A worker's row: where the work lies (from, height), and how high a hand-over is."""
Span = tuple[float, float]


def draw(timelines: Sequence[Timeline], hand_over: float, target: Path) -> None:
    """
    Draw the scenes, blocking ones on the left.

    Args:
        timelines: What was seen in each.
        hand_over: Milliseconds of a hand-over.
        target: The SVG file.
    """
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(13, 7.2), sharex=True, layout="constrained")
        figure.suptitle(
            "A job server and its three workers, measured: "
            f"{hand_over:g} ms for each hand-over, always something to do",
            fontsize=12,
        )
        for panel, timeline in zip(axes.flat, timelines, strict=True):
            draw_panel(panel, timeline)
        for panel in axes[1]:
            panel.set_xlabel("milliseconds")
        figure.legend(handles=legend(), loc="outside lower center", ncols=5, frameon=False)
        figure.savefig(target, format="svg", metadata={"Date": None})
        plt.close(figure)


def draw_panel(axes: Any, timeline: Timeline) -> None:  # noqa: ANN401
    """
    Draw one scene from the middle of what was measured.
    """
    start = (timeline.since + timeline.until) / 2
    labels = []
    for row, worker in enumerate(timeline.workers):
        runs = [run for run in timeline.runs if run.worker == worker]
        draw_worker(axes, row, runs, start)
        labels.append(
            f"worker {row + 1}: {timeline.work[row]} ms\n{timeline.utilisation(worker):.0%} at work"
        )
    server = len(labels)
    for writes, colour in ((False, VERMILION), (True, ORANGE)):
        spans = [(a, b) for wrote, a, b in timeline.server if wrote is writes]
        bars(axes, spans, start, (server - 0.3, 0.6), color=colour)
    labels.append(f"server\n{timeline.server_share:.0%} at work")
    how = "non-blocking" if timeline.in_flight > 1 else "blocking"
    work = ", ".join(map(str, timeline.work))
    axes.set_title(
        f"{work} ms, in_flight = {timeline.in_flight} ({how})\n"
        f"mean utilisation {timeline.mean:.0%}",
        loc="left",
        fontsize=10,
        fontweight="bold",
    )
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(server + 0.6, -0.6)
    axes.set_xlim(0, SHOWN * 1000)
    axes.tick_params(axis="y", length=0)


def draw_worker(axes: Any, row: int, runs: Sequence[Run], start: float) -> None:  # noqa: ANN401
    """
    Draw one worker: written to above, at work or waiting in the middle, read from below.
    """
    low, height = WORK
    whole = [(start, start + SHOWN)]
    place = (row + low, height)
    bars(axes, whole, start, place, facecolor="white", edgecolor=GREY, hatch="////", linewidth=0)
    bars(axes, ((run.began, run.ended) for run in runs), start, place, color=BLUE)
    above, below = (row + low - HAND, HAND), (row + low + height, HAND)
    bars(axes, ((run.sent, run.there) for run in runs), start, above, color=ORANGE)
    bars(axes, ((run.ended, run.read) for run in runs), start, below, color=VERMILION)


def bars(axes: Any, spans: Iterable[Span], start: float, place: Span, **look: Any) -> None:  # noqa: ANN401
    """
    Draw the spans that can be seen, in milliseconds since the start.
    """
    seen = [
        ((max(a, start) - start) * 1000, (min(b, start + SHOWN) - max(a, start)) * 1000)
        for a, b in spans
        if b > start and a < start + SHOWN
    ]
    axes.broken_barh(seen, place, **{"linewidth": 0, **look})


def legend() -> list[Patch]:
    """
    Explain the colours.
    """
    return [
        Patch(color=ORANGE, label="written to (server: writes)"),
        Patch(color=BLUE, label="works"),
        Patch(color=VERMILION, label="read from (server: reads)"),
        Patch(facecolor="white", edgecolor=GREY, hatch="////", label="waits"),
    ]
