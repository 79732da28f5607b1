"""
A graph as a picture: one SVG, boxes coloured by state, from left to right.

Some hundreds of jobs are drawn one by one; more are drawn in groups, each with a bar of how
many of its jobs are in which state. Nothing in it is taken from outside, nothing runs, and
it follows the reader's light or dark scheme. Pure; must not know stores or HTTP.
"""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import TYPE_CHECKING, Final, NamedTuple
from unicodedata import east_asian_width

from jobgate.jobs.graph import outcome
from jobgate.jobs.job import TERMINAL, State
from jobgate.jobs.layers import depths, place

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jobgate.jobs.job import Job
    from jobgate.jobs.journal import Graph
    from jobgate.jobs.layers import Spot

__all__ = ["picture"]

_MOST_BOXES: Final = 300
"""Boxes that can still be read."""
_MOST_LINES: Final = 1200
"""Lines, each counted once for every layer it passes: beyond these it is a blot."""

# In pixels.
_CHARACTER = 7.0
_HEIGHT, _GAP, _STEP = 40.0, 60.0, 54.0
_PAD, _MARGIN, _TOP, _BOTTOM = 10.0, 20.0, 56.0, 46.0
_WIDTHS = 96.0, 260.0
_TIP = 5.0
_NAMES_SHOWN = 12
_MOST_COLUMNS = 20
"""Of a drawing of groups."""

_COLOURS: Final[Mapping[State, tuple[str, str, str, str]]] = {
    State.BLOCKED: ("#eaeef2", "#8c959f", "#2a3038", "#6e7681"),
    State.SCHEDULED: ("#fbefff", "#8250df", "#2e2342", "#a371f7"),
    State.QUEUED: ("#ddf4ff", "#0969da", "#14283f", "#58a6ff"),
    State.RUNNING: ("#fff8c5", "#bf8700", "#3a2f10", "#e3b341"),
    State.SUCCEEDED: ("#dafbe1", "#1a7f37", "#12301c", "#3fb950"),
    State.FAILED: ("#ffebe9", "#cf222e", "#421c1c", "#f85149"),
    State.CANCELLED: ("#f6f8fa", "#57606a", "#1c2128", "#8b949e"),
    State.DEAD: ("#ffd7d5", "#82071e", "#5a1016", "#ff7b72"),
}
"""Fill and edge in the light, fill and edge in the dark."""


class _Box(NamedTuple):
    """
    What one box shows.

    Attributes:
        label: Its first line.
        note: Its second line.
        about: What a reader who points at it is told.
        states: How many jobs it stands for, by state.
        link: Where it leads; empty for a group.
    """

    label: str
    note: str
    about: str
    states: Mapping[State, int]
    link: str = ""

    @property
    def state(self) -> State:
        """What it is coloured by."""
        return next(iter(self.states)) if len(self.states) == 1 else outcome(self.states)


def picture(graph: Graph) -> str:
    """An SVG document that shows the jobs of a graph, their needs and their states."""
    jobs = graph.jobs
    needs = {name: [need for need in job.needs if need in jobs] for name, job in jobs.items()}
    depth = depths(needs)
    lines = sum(depth[name] - depth[need] for name, its in needs.items() for need in its)
    if len(jobs) <= _MOST_BOXES and lines <= _MOST_LINES:
        return _draw(graph, {name: _single(job) for name, job in jobs.items()}, needs, depth)
    layers = max(depth.values()) + 1
    columns = min(layers, _MOST_COLUMNS)
    column = {name: its * columns // layers for name, its in depth.items()}
    # Groups of one queue and one stretch of the way, or, if that is too much, of one stretch.
    kinds = {name: f"{at} {jobs[name].queue}" for name, at in column.items()}
    between = {(kinds[need], kinds[name]) for name, its in needs.items() for need in its}
    if len(set(kinds.values())) > _MOST_BOXES or len(between) > _MOST_LINES / 2:
        kinds = {name: str(at) for name, at in column.items()}
        between = {(kinds[need], kinds[name]) for name, its in needs.items() for need in its}
    groups: dict[str, list[Job]] = {}
    for name, job in jobs.items():
        groups.setdefault(kinds[name], []).append(job)
    needed: dict[str, list[str]] = {kind: [] for kind in groups}
    for need, kind in sorted(between):
        needed[kind].append(need)
    return _draw(
        graph,
        {kind: _group(members) for kind, members in groups.items()},
        needed,
        {kind: column[members[0].name] for kind, members in groups.items()},
    )


def _single(job: Job) -> _Box:
    word = job.state.word
    facts = [job.name, f"{job.queue}, {word}", job.id]
    if job.attempt:
        facts.append(f"attempt {job.attempt} of {job.attempts}")
    if job.error:
        facts.append(" ".join(str(job.error.get(key, "")) for key in ("title", "detail")).strip())
    return _Box(job.name, f"{job.queue} · {word}", "\n".join(facts), {job.state: 1}, job.id)


def _group(jobs: list[Job]) -> _Box:
    states = Counter(job.state for job in jobs)
    queues = sorted({job.queue for job in jobs})
    what = queues[0] if len(queues) == 1 else f"{len(queues)} queues"
    label = f"{what}, {len(jobs):,} jobs"
    names = [job.name for job in jobs[:_NAMES_SHOWN]]
    rest = ["…"] if len(jobs) > len(names) else []
    note = f"{states[State.SUCCEEDED]:,} succeeded"
    if len(jobs) == 1:
        label, note = jobs[0].name, f"{what} · {jobs[0].state.word}"
    about = "\n".join([label, *_counts(states), *names, *rest])
    return _Box(label, note, about, dict(sorted(states.items())))


def _counts(states: Mapping[State, int]) -> list[str]:
    return [f"{count:,} {state.word}" for state, count in sorted(states.items())]


# --- drawing


def _draw(
    graph: Graph,
    boxes: Mapping[str, _Box],
    needs: Mapping[str, list[str]],
    depth: Mapping[str, int],
) -> str:
    drawing = place(needs, depth)
    widths = [_WIDTHS[0]] * drawing.layers
    for name, (layer, _) in drawing.spots.items():
        box = boxes[name]
        wanted = max(_cells(box.label), _cells(box.note) * 0.85) * _CHARACTER + 2 * _PAD
        widths[layer] = min(max(widths[layer], wanted), _WIDTHS[1])
    lefts = [_MARGIN]
    for width in widths:
        lefts.append(lefts[-1] + width + _GAP)

    def middle(spot: Spot) -> float:
        return _TOP + spot[1] * _STEP + _HEIGHT / 2

    parts = []
    for (need, name), passed in drawing.lines.items():
        layer, _ = start = drawing.spots[need]
        way = _Way(lefts[layer] + widths[layer], middle(start))
        for spot in passed:
            way.curve(lefts[spot[0]], middle(spot))
            way.straight(widths[spot[0]])
        end = drawing.spots[name]
        way.curve(lefts[end[0]] - _TIP, middle(end))
        ended = all(state >= TERMINAL for state in boxes[need].states)
        parts.append(f'<path class="line{"" if ended else " open"}" d="{way.path}"/>')
    for name, spot in drawing.spots.items():
        layer = spot[0]
        parts.append(_box(boxes[name], lefts[layer], middle(spot), widths[layer]))
    width = lefts[-1] - _GAP
    return _page(graph, parts, width, _TOP + drawing.height * _STEP + _HEIGHT)


def _page(graph: Graph, parts: list[str], width: float, bottom: float) -> str:
    """The whole document, around a drawing that reaches so far."""
    states = Counter(job.state for job in graph.jobs.values())
    legend, legend_width = _legend(states)
    count = len(graph.jobs)
    title = f"{count:,} job{'' if count == 1 else 's'}, {outcome(states).word}"
    title_width = _cells(f"{title} {graph.id}") * _CHARACTER
    width = max(width, legend_width, _MARGIN + title_width) + _MARGIN
    height = bottom + _BOTTOM
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
        f' viewBox="0 0 {width:.0f} {height:.0f}" role="img">\n'
        f"<title>{_text(title)}: {_text(graph.id)}</title>\n<style>{_STYLE}</style>\n{_ARROW}\n"
        '<rect class="back" width="100%" height="100%"/>\n'
        f'<text x="{_MARGIN:.0f}" y="32" class="title">{_text(title)}'
        f'<tspan class="note" dx="8">{_text(graph.id)}</tspan></text>\n'
        + "\n".join(parts)
        + f'\n<g transform="translate(0 {bottom + 22:.0f})">{legend}</g>\n</svg>\n'
    )


class _Way:
    """
    A line under way.

    Attributes:
        path: As SVG writes it.
    """

    def __init__(self, x: float, y: float) -> None:
        self._x, self._y = x, y
        self.path = f"M{x:.0f} {y:.0f}"

    def curve(self, x: float, y: float) -> None:
        """On to another layer."""
        half = (self._x + x) / 2
        self.path += f"C{half:.0f} {self._y:.0f} {half:.0f} {y:.0f} {x:.0f} {y:.0f}"
        self._x, self._y = x, y

    def straight(self, width: float) -> None:
        """Through a layer."""
        self._x += width
        self.path += f"H{self._x:.0f}"


def _box(box: _Box, x: float, middle: float, width: float) -> str:
    y = middle - _HEIGHT / 2
    inner = width - 2 * _PAD
    total = sum(box.states.values())
    bar = []
    if total > 1:
        at = x + _PAD
        for state, count in box.states.items():
            part = inner * count / total
            bar.append(
                f'<rect class="part {state.word}" x="{at:.1f}" y="{y + _HEIGHT - 6:.0f}"'
                f' width="{part:.1f}" height="4"/>'
            )
            at += part
    shift = 2 if bar else 0
    label = _cut(box.label, inner / _CHARACTER)
    note = _cut(box.note, inner / _CHARACTER / 0.85)
    drawn = (
        f'<g class="job"><title>{_text(box.about)}</title>'
        f'<rect class="{box.state.word}" x="{x:.0f}" y="{y:.0f}" width="{width:.0f}"'
        f' height="{_HEIGHT:.0f}" rx="6"/>'
        f'<text x="{x + _PAD:.0f}" y="{y + 17 - shift:.0f}">{_text(label)}</text>'
        f'<text x="{x + _PAD:.0f}" y="{y + 32 - shift * 2:.0f}" class="note">{_text(note)}</text>'
        f"{''.join(bar)}</g>"
    )
    return f'<a href="/jobs/{_text(box.link)}">{drawn}</a>' if box.link else drawn


def _legend(states: Mapping[State, int]) -> tuple[str, float]:
    parts = []
    x = _MARGIN
    for state, words in zip(sorted(states), _counts(states), strict=True):
        parts.append(
            f'<rect class="{state.word}" x="{x:.0f}" y="-10" width="14" height="12" rx="3"/>'
            f'<text x="{x + 20:.0f}" y="0" class="note">{_text(words)}</text>'
        )
        x += 20 + len(words) * _CHARACTER + 16
    return "".join(parts), x


def _style() -> str:
    light = ["text{font:12px system-ui,sans-serif;fill:#1f2328}.title{font-size:15px}"]
    light.append(".note{font-size:10.5px;fill:#59636e}.back{fill:#fff}rect{stroke-width:1.3}")
    light.append(".line{fill:none;stroke:#6e7781;stroke-width:1.3;marker-end:url(#arrow)}")
    light.append(".open{stroke-dasharray:4 3}.tip{fill:#6e7781}.part{stroke:none}")
    light.append(".cancelled{stroke-dasharray:3 2}.job:hover rect{stroke-width:2.5}")
    dark = ["text{fill:#e6edf3}.note{fill:#9198a1}.back{fill:#0d1117}"]
    dark.append(".line{stroke:#848d97}.tip{fill:#848d97}")
    for state, (fill, edge, dark_fill, dark_edge) in _COLOURS.items():
        word = state.word
        light.append(f".{word}{{fill:{fill};stroke:{edge}}}.part.{word}{{fill:{edge}}}")
        dark.append(
            f".{word}{{fill:{dark_fill};stroke:{dark_edge}}}.part.{word}{{fill:{dark_edge}}}"
        )
    return f"{''.join(light)}@media(prefers-color-scheme:dark){{{''.join(dark)}}}"


_STYLE: Final = _style()


_ARROW: Final = (
    '<defs><marker id="arrow" viewBox="0 0 6 6" refX="1" refY="3" markerWidth="6"'
    ' markerHeight="6" orient="auto"><path class="tip" d="M0 0L6 3L0 6z"/></marker></defs>'
)

# --- text


def _text(text: str) -> str:
    """Text as XML may hold it."""
    return escape(
        "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    )


def _cells(text: Iterable[str]) -> float:
    """How wide a text is, in characters of usual width."""
    return sum(1.8 if east_asian_width(c) in "WF" else 1.0 for c in text)


def _cut(text: str, cells: float) -> str:
    """As much of a text as fits."""
    if _cells(text) <= cells + 0.01:  # the box may have been made for exactly this text
        return text
    used, kept = 1.0, []
    for character in text:
        used += _cells(character)
        if used > cells:
            break
        kept.append(character)
    return "".join(kept) + "…"
