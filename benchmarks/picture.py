"""
The picture: each ratio as a bar, beside the baseline it was divided by.

Ratios only, since nothing else means anything on another machine. Colours from the Okabe-Ito
palette, and never colour alone: baselines are hatched, floors are lines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from processes import BenchmarkError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from checks import Check

__all__ = ["draw"]

BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#D0D0D0"
TIMES = "\N{MULTIPLICATION SIGN}"
BAR = 0.62
"""Thickness of a bar; the lines are 1 apart."""
AIR = 0.5
"""What is left free above each baseline but the first."""
PANELS = ((True, "More is better"), (False, "Less is better"))
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the reader's own font
    "svg.hashsalt": "jobgate",  # the same numbers give the same file
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "hatch.linewidth": 0.6,
}
Line = tuple[str, "Check | None"]
"""A bar's label and its check; the baseline has none."""


def draw(checks: Sequence[Check], about: dict[str, str], note: str, target: Path) -> None:
    """
    Draw the checks that are ratios to a baseline.

    Args:
        checks: What was claimed and measured.
        about: What each row is, in words.
        note: How it was measured, in a line.
        target: The SVG file.

    Raises:
        BenchmarkError: There is none.
    """
    panels = [(title, lines_of(checks, about, more=more)) for more, title in PANELS]
    panels = [(title, lines) for title, lines in panels if lines]
    if not panels:
        raise BenchmarkError("there is no ratio to draw: a row and its baseline must both be run")
    with mpl.rc_context(STYLE):
        heights = [places_of(lines)[-1] + 2 for _, lines in panels]
        figure, all_axes = plt.subplots(
            len(panels),
            figsize=(9, 1.6 + 0.34 * sum(heights)),
            gridspec_kw={"height_ratios": heights},
            squeeze=False,
            layout=ConstrainedLayoutEngine(rect=(0.02, 0, 0.96, 1)),
        )
        figure.suptitle(
            "A jobgate call through a worker process, as a multiple of each baseline\n"
            "(ratios within one run: independent of the machine)",
            fontsize=12,
        )
        for axes, (title, lines) in zip(all_axes[:, 0], panels, strict=True):
            panel(axes, title, lines)
        figure.legend(
            handles=legend(),
            title=note,
            title_fontsize=8.5,
            loc="outside lower center",
            ncols=5,
            frameon=False,
        )
        figure.savefig(target, format="svg", metadata={"Date": None})
        plt.close(figure)


def lines_of(checks: Sequence[Check], about: dict[str, str], *, more: bool) -> list[Line]:
    """
    List the bars of a panel: each baseline, then what is compared to it.
    """
    lines: list[Line] = []
    drawn = [check for check in checks if check.baseline and check.bar.more is more]
    for subject in dict.fromkeys((check.baseline, check.what) for check in drawn):
        baseline, what = subject
        lines.append((f"{what}: {about[baseline]}", None))
        same = [check for check in drawn if (check.baseline, check.what) == subject]
        lines += [(about[check.row], check) for check in same]
    return lines


def panel(axes: Any, title: str, lines: Sequence[Line]) -> None:  # noqa: ANN401
    """
    Draw one panel, first line on top.
    """
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    places = places_of(lines)
    axes.set_yticks(places, [label for label, _ in lines])
    axes.set_ylim(places[-1] + 0.6, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.axvline(1, color="black", linewidth=0.8, zorder=0)
    widest = max([1.0, *(edge(check) for _, check in lines if check is not None)])
    axes.set_xlim(0, widest * 1.3)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}{TIMES}")
    for place, (_, check) in zip(places, lines, strict=True):
        if check is None:
            axes.barh(place, 1, BAR, color=GREY, edgecolor="black", linewidth=0.6, hatch="///")
        else:
            draw_check(axes, place, check)


def places_of(lines: Sequence[Line]) -> list[float]:
    """
    Put the bars one apart, with some air above each baseline.
    """
    places: list[float] = []
    for _, check in lines:
        step = 1 if check is not None else 1 + AIR
        places.append(places[-1] + step if places else 0)
    return places


def edge(check: Check) -> float:
    """
    Return the rightmost thing to be drawn for a check.
    """
    return max(check.value.high, check.bar.floor, check.bar.stretch or 0)


def draw_check(axes: Any, place: float, check: Check) -> None:  # noqa: ANN401
    """
    Draw one bar with its spread, its floor, its stretch and its number.
    """
    value = check.value
    axes.barh(place, value.median, BAR, color=BLUE)
    spread = [[value.median - value.low], [value.high - value.median]]
    axes.errorbar(value.median, place, xerr=spread, color="black", capsize=3, linewidth=1.2)
    top, bottom = place - 0.45, place + 0.45
    axes.vlines(check.bar.floor, top, bottom, color=VERMILION, linewidth=2.2)
    if check.bar.stretch is not None:
        axes.vlines(check.bar.stretch, top, bottom, color=VERMILION, linewidth=1.4, linestyle=":")
    right = edge(check)
    axes.annotate(
        f"{value.median:.2f}{TIMES}",
        (right, place),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontweight="bold",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    )


def legend() -> list[Patch | Line2D]:
    """
    Explain the signs.
    """
    return [
        Patch(facecolor=GREY, edgecolor="black", hatch="///", label="baseline = 1"),
        Patch(facecolor=BLUE, label="jobgate, median"),
        Line2D([], [], color="black", marker="|", label="lowest to highest round"),
        Line2D([], [], color=VERMILION, linewidth=2.2, label="bar to reach"),
        Line2D([], [], color=VERMILION, linewidth=1.4, linestyle=":", label="stretch"),
    ]
