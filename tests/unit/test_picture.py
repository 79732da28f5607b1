"""
`jobgate.jobs.picture` and `layers`: what is drawn is there, is in its place, and is harmless.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from jobgate.jobs.job import Job, State
from jobgate.jobs.journal import Graph
from jobgate.jobs.layers import depths, place
from jobgate.jobs.picture import picture

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SVG = "{http://www.w3.org/2000/svg}"

some_needs = st.integers(1, 14).flatmap(
    lambda count: st.tuples(
        *(st.sets(st.integers(0, max(0, at - 1)), max_size=min(at, 4)) for at in range(count))
    )
)
"""Any graph: each node's needs are among those before it."""


def job(name: str, state: State = State.QUEUED, queue: str = "q", **more: object) -> Job:
    """A job of a graph."""
    return Job(f"g-{len(name)}", queue, state, 0, 0, 3, 3, 0.0, name=name, **more)  # type: ignore[arg-type]


def graph(needs: Mapping[str, Sequence[str]], states: Mapping[str, State] | None = None) -> Graph:
    """A graph of such jobs."""
    found = states or {}
    jobs = {
        name: job(
            name,
            found.get(name, State.BLOCKED if its else State.QUEUED),
            needs={need: found.get(need, State.QUEUED) for need in its},
        )
        for name, its in needs.items()
    }
    return Graph("gate-77", 0.0, "", jobs)


def parsed(svg: str) -> ET.Element:
    """The document; whoever cannot read XML cannot read this."""
    return ET.fromstring(svg)


def boxes(root: ET.Element) -> dict[str, ET.Element]:
    """What is drawn as a box, by its first line."""
    groups = [g for g in root.iter(f"{SVG}g") if g.get("class") == "job"]
    return {str(g.findall(f"{SVG}text")[0].text): g for g in groups}


def lines(root: ET.Element) -> list[ET.Element]:
    """The lines between boxes."""
    return [path for path in root.iter(f"{SVG}path") if "line" in (path.get("class") or "")]


class LayersTests(SynchronousTestCase):
    """Where boxes stand."""

    def test_depths(self) -> None:
        """The longest way counts."""
        needs = {"c": ["b", "a"], "b": ["a"], "a": [], "d": []}
        self.assertEqual(depths(needs), {"c": 2, "b": 1, "a": 0, "d": 0})

    @given(some_needs)
    def test_any(self, chosen: tuple[set[int], ...]) -> None:
        """Everything stands behind what it needs, nothing on anything else, lines pass between."""
        needs = {str(at): [str(need) for need in its] for at, its in enumerate(chosen)}
        drawing = place(needs, depths(needs))
        self.assertEqual(set(drawing.spots), set(needs))
        self.assertEqual(
            set(drawing.lines), {(need, name) for name, its in needs.items() for need in its}
        )
        taken = list(drawing.spots.values())
        for (need, name), passed in drawing.lines.items():
            first, last = drawing.spots[need][0], drawing.spots[name][0]
            self.assertEqual([layer for layer, _ in passed], list(range(first + 1, last)))
            taken += passed
        for layer in range(drawing.layers):
            heights = sorted(height for its, height in taken if its == layer)
            self.assertTrue(heights)
            self.assertGreaterEqual(heights[0], 0)
            self.assertLessEqual(heights[-1], drawing.height)
            for one, other in pairwise(heights):
                self.assertGreater(other - one, 1 - 1e-9)

    def test_a_diamond_is_one(self) -> None:
        """Two beside each other, with the others at half their height."""
        needs = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}
        spots = place(needs, depths(needs)).spots
        self.assertEqual(spots, {"a": (0, 0.5), "b": (1, 0.0), "c": (1, 1.0), "d": (2, 0.5)})

    def test_lines_do_not_cross_without_need(self) -> None:
        """Pairs that belong together are put side by side, whatever order they come in."""
        needs = {f"a{n}": [] for n in range(6)} | {f"b{n}": [f"a{n}"] for n in (3, 0, 5, 1, 4, 2)}
        spots = place(needs, depths(needs)).spots
        for n in range(6):
            self.assertEqual(spots[f"a{n}"][1], spots[f"b{n}"][1])


class PictureTests(SynchronousTestCase):
    """What is drawn."""

    def test_boxes(self) -> None:
        """Every job, with its name, queue and state, by its colour; every need; a legend."""
        states = {"fetch": State.SUCCEEDED, "thumb": State.RUNNING, "tell": State.FAILED}
        needs = {"fetch": [], "thumb": ["fetch"], "tell": ["fetch"], "join": ["thumb", "tell"]}
        root = parsed(picture(graph(needs, states)))
        found = boxes(root)
        self.assertEqual(set(found), set(needs))
        for name, word in (("fetch", "succeeded"), ("join", "blocked"), ("tell", "failed")):
            box = found[name]
            self.assertEqual(box.findall(f"{SVG}text")[1].text, f"q · {word}")
            rect = box.find(f"{SVG}rect")
            assert rect is not None
            self.assertEqual(rect.get("class"), word)
            self.assertIn(f".{word}{{", picture(graph(needs)))
        self.assertEqual(len(lines(root)), 4)
        self.assertEqual([path.get("class") for path in lines(root)].count("line open"), 1)
        texts = [text.text for text in root.iter(f"{SVG}text")]
        for words in ("4 jobs, running", "1 succeeded", "1 running", "1 failed", "1 blocked"):
            self.assertIn(words, texts)
        self.assertIn("gate-77", "".join(root.itertext()))

    def test_hints(self) -> None:
        """Who points at a box learns more."""
        failed = job("a", State.FAILED, error={"title": "No", "detail": "too <big>"})
        failed.attempt = 2
        root = parsed(picture(Graph("g", 0.0, "", {"a": failed})))
        title = boxes(root)["a"].find(f"{SVG}title")
        assert title is not None
        self.assertEqual(title.text, "a\nq, failed\ng-1\nattempt 2 of 3\nNo too <big>")
        self.assertIn("1 job, failed", "".join(root.itertext()))

    def test_all_states_have_a_colour_in_both_schemes(self) -> None:
        """In the light and in the dark."""
        style = picture(graph({"a": []}))
        light, dark = style.split("@media(prefers-color-scheme:dark)")
        for state in State:
            self.assertIn(f".{state.word}{{fill:#", light)
            self.assertIn(f".{state.word}{{fill:#", dark)

    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.text(max_size=30))
    def test_any_text(self, name: str, detail: str) -> None:
        """Whatever names and errors say stays text: no element comes of it, and it is XML."""
        plain = parsed(picture(graph({"x": []})))
        one = job(name or "x", error={"title": detail, "detail": "</title><script>"})
        root = parsed(picture(Graph("g", 0.0, "", {one.name: one})))
        self.assertEqual([e.tag for e in root.iter()], [e.tag for e in plain.iter()])

    def test_nothing_runs_in_it(self) -> None:
        """No script, nothing from elsewhere."""
        svg = picture(graph({"a": [], "b": ["a"]}))
        for word in ("<script", "onload", "javascript:", "http://", "https://"):
            self.assertNotIn(word, svg.replace('xmlns="http://www.w3.org/2000/svg"', ""))

    def test_long_names_are_cut(self) -> None:
        """A box is only so wide; the hint has the whole name."""
        for name in ("x" * 200, "名" * 150):
            svg = picture(graph({name: []}))
            (label,) = boxes(parsed(svg))
            self.assertTrue(label.endswith("…"))
            self.assertLess(len(label), 40)
            self.assertIn(name, svg)

    def test_many_are_drawn_in_groups(self) -> None:
        """Thousands are one box for each queue and stretch of the way, with all their states."""
        needs: dict[str, list[str]] = {}
        for layer in range(100):
            for n in range(100):
                needs[f"{layer}-{n}"] = [f"{layer - 1}-{n}"] if layer else []
        jobs = graph(needs).jobs
        for name, its in jobs.items():
            its.queue = "even" if name.endswith(("0", "2", "4", "6", "8")) else "odd"
            its.state = State.SUCCEEDED if name.startswith("0-") else its.state
        root = parsed(picture(Graph("g", 0.0, "", jobs)))
        groups = [g for g in root.iter(f"{SVG}g") if g.get("class") == "job"]
        self.assertEqual(len(groups), 40)
        labels = [g.findall(f"{SVG}text")[0].text for g in groups]
        self.assertEqual(labels.count("even, 250 jobs"), 20)
        self.assertEqual(len(lines(root)), 2 * 19)
        first = groups[0]
        parts = [r.get("class") for r in first.findall(f"{SVG}rect")]
        self.assertEqual(parts, ["running", "part blocked", "part succeeded"])
        self.assertFalse(list(root.iter(f"{SVG}a")))
        self.assertIn("10,000 jobs, running", "".join(root.itertext()))

    def test_any_size_stays_small(self) -> None:
        """However a graph is knit, its picture is a page, not a book."""
        chain = {f"n{n}": [f"n{n - 1}"] if n else [] for n in range(5000)}
        mesh = {f"{a}-{b}": [f"{a - 1}-{c}" for c in range(40)] if a else [] for a in range(10)
                for b in range(40)}  # fmt: skip
        crowd = {f"n{n}": [] for n in range(5000)}
        full = {f"n{n}": [f"n{m}" for m in range(n)] for n in range(100)}
        for needs in (chain, mesh, crowd, full):
            for queues in (1, 7, 2000):
                its = graph(needs)
                for at, one in enumerate(its.jobs.values()):
                    one.queue = f"q{at % queues}"
                svg = picture(its)
                parsed(svg)
                self.assertLess(len(svg), 400_000)
