"""
Graphs in a store: whatever their shape and whatever becomes of their jobs, they run in order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from jobgate.errors import Unprocessable
from jobgate.jobs import graph as graphs
from jobgate.jobs.job import TERMINAL, Change, Ending, NewJob, Reply, State
from jobgate.testing import inline_journal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobgate.jobs.journal import Graph

OK = Ending(State.SUCCEEDED, Reply(200, "t/p", b"done"))
FAILED = Ending(State.FAILED, error={"title": "no"})
DEAD = Ending(State.DEAD, error={"title": "never"})
AGAIN = Ending(State.QUEUED, spent=False)


def new(name: str, *needs: str, **more: Any) -> NewJob:
    """A job called like its id."""
    needs_ids = tuple(f"id-{need}" for need in needs)
    return NewJob(f"id-{name}", "q", name.encode(), "t/p", name=name, needs=needs_ids, **more)


class Case(SynchronousTestCase):
    """A store without a thread, and what it tells."""

    def setUp(self) -> None:
        self.open()

    def open(self) -> None:
        self.clock = Clock()
        self.changes: list[Change] = []
        self.journal = inline_journal(self.clock)
        self.successResultOf(self.journal.open(self.changes.extend))

    def put(self, *jobs: NewJob) -> None:
        self.successResultOf(self.journal.put(jobs, graph="g"))

    def graph(self) -> Graph:
        found = self.successResultOf(self.journal.graph("g"))
        assert found is not None
        return found

    def states(self) -> dict[str, State]:
        return {name: job.state for name, job in self.graph().jobs.items()}

    def take(self, count: int = 100) -> list[str]:
        """Take and start what is ready; its names."""
        taken = self.successResultOf(self.journal.take("q", count, 1 << 20))
        for job in taken:
            self.successResultOf(self.journal.start(job.id, job.attempt + 1, "w"))
            self.assertEqual(job.graph, "g")
        self.inputs = {job.name: [name for name, _ in job.inputs] for job in taken}
        self.attempts = getattr(self, "attempts", {}) | {j.name: j.attempt + 1 for j in taken}
        return [job.name for job in taken]

    def finish(self, name: str, ending: Ending = OK, *jobs: NewJob) -> None:
        if jobs:
            ending = Ending(ending.state, ending.reply, ending.error, jobs=jobs)
        done = self.journal.finish(f"id-{name}", self.attempts[name], ending)
        self.assertTrue(self.successResultOf(done))


class GrowthTests(Case):
    """A job brings others."""

    def test_dependents_wait_for_them(self) -> None:
        """What needs the job then needs those, too, and is handed what became of them."""
        self.put(new("read"), new("join", "read"), new("other"))
        self.assertEqual(self.take(), ["read", "other"])
        self.finish("read", OK, new("a"), new("b", "a"), new("c", "read"))
        self.finish("other")
        self.assertEqual(self.take(), ["a", "c"])
        self.finish("c")
        self.finish("a", OK, new("a1"))
        self.assertEqual(self.take(), ["a1"])
        self.finish("a1")
        self.assertEqual(self.take(), ["b"])
        self.finish("b")
        self.assertEqual(self.take(), ["join"])
        self.assertEqual(self.inputs["join"], ["read", "a", "b", "c", "a1"])
        self.finish("join")
        self.assertEqual(set(self.states().values()), {State.SUCCEEDED})
        self.assertEqual(list(self.graph().jobs), ["read", "join", "other", "a", "b", "c", "a1"])

    def test_in_one_step(self) -> None:
        """Nobody sees the one without the other."""
        self.put(new("a"), new("join", "a"))
        self.take()
        self.changes.clear()
        told: list[list[str]] = []
        self.changes = told  # type: ignore[assignment]
        self.journal._listener = lambda changes: told.append([c.id for c in changes])
        self.finish("a", OK, new("b"))
        self.assertEqual(told, [["id-b", "id-a"]])

    def test_stale(self) -> None:
        """An attempt that is over brings nothing."""
        self.put(new("a"))
        self.take()
        brings = Ending(State.SUCCEEDED, jobs=(new("b"),))
        self.assertFalse(self.successResultOf(self.journal.finish("id-a", 2, brings)))
        self.assertEqual(list(self.graph().jobs), ["a"])

    def refused(self, name: str, *jobs: NewJob) -> Unprocessable:
        before = self.states()
        ending = Ending(State.SUCCEEDED, jobs=jobs)
        done = self.journal.finish(f"id-{name}", self.attempts[name], ending)
        error = self.failureResultOf(done, Unprocessable).value
        self.assertEqual(self.states(), before)
        return error

    def test_names(self) -> None:
        """A name that the graph has is taken, also if an earlier growth brought it."""
        self.put(new("a"), new("b"))
        self.take()
        other = NewJob("another", "q", b"", "t/p", name="b")
        error = self.refused("a", new("x"), other)
        self.assertEqual(error.extra["path"], "jobs.b")
        self.finish("a", OK, new("c"))
        self.refused("b", NewJob("another", "q", b"", "t/p", name="c"))

    def test_cycles(self) -> None:
        """What is brought may not wait for what is about to wait for it."""
        self.put(new("a"), new("b", "a"), new("c", "b"), new("free"), new("fork", "free", "a"))
        self.take()
        for downstream in ("b", "c", "fork"):
            self.assertIn("cycle", self.refused("a", new("x", "y"), new("y", downstream)).detail)
        self.finish("a", OK, new("x", "free", "a"))
        self.finish("free")
        self.assertEqual(self.take(), ["x"])
        self.finish("x")
        self.assertEqual(self.take(), ["b", "fork"])
        # What has ended is in nobody's way.
        self.finish("b", OK, new("z", "a", "x", "free"))
        self.assertEqual(self.take(), ["z"])

    def test_size(self) -> None:
        """A graph grows up to its limit, and no further."""
        most = graphs.MAX_JOBS
        self.put(new("a"), new("b"))
        self.take()
        self.journal._groups._home.ledger.db.execute(
            "UPDATE graph SET size = ?", (most - 3,)
        )  # as if it had so many
        self.finish("a", OK, new("c"), new("d"))
        self.assertIn(str(most), self.refused("b", new("e"), new("f")).detail)
        self.finish("b", OK, new("e"))

    def test_outside_of_graphs(self) -> None:
        """There is nothing that could grow."""
        self.successResultOf(self.journal.put([new("a")]))
        self.successResultOf(self.journal.take("q", 1, 1))
        self.successResultOf(self.journal.start("id-a", 1, "w"))
        done = self.journal.finish("id-a", 1, Ending(State.SUCCEEDED, jobs=(new("b"),)))
        self.failureResultOf(done, Unprocessable)


class AskingTests(Case):
    """What is asked of several jobs at once."""

    def test_named(self) -> None:
        """Ids by name, of what there is in that graph."""
        self.put(new("a"), new("b/ü"))
        self.successResultOf(self.journal.put([new("c")], graph="other"))
        named = self.journal.named("g", ["b/ü", "c", "x", "", "a"])
        self.assertEqual(self.successResultOf(named), {"b/ü": "id-b/ü", "a": "id-a"})
        self.assertEqual(self.successResultOf(self.journal.named("none", ["a"])), {})

    def test_endings(self) -> None:
        """What has ended, with its reply's own bytes, or its problem; the rest is not there."""
        self.put(*map(new, "abcdef"))
        self.take(5)
        bodies = {"a": bytes(range(256)), "b": b"", "c": b"\0\xff\0"}
        for name, body in bodies.items():
            self.finish(name, Ending(State.SUCCEEDED, Reply(201, f"t/{name}", body)))
        self.finish("d", FAILED)
        ids = [f"id-{name}" for name in "fdcbae"] + ["none"]
        found = self.successResultOf(self.journal.endings(ids, 1000))
        self.assertEqual(
            {name: (e.state, e.reply, e.error) for name, e in found.items()},
            {
                **{
                    f"id-{n}": (State.SUCCEEDED, Reply(201, f"t/{n}", body), None)
                    for n, body in bodies.items()
                },
                "id-d": (State.FAILED, None, {"title": "no"}),
            },
        )
        self.assertEqual(self.successResultOf(self.journal.endings([], 1000)), {})

    def test_endings_by_size(self) -> None:
        """What is too much together is left out, and what comes later and fits is not."""
        self.put(*map(new, "abc"))
        self.take()
        for name, size in (("a", 60), ("b", 50), ("c", 40)):
            self.finish(name, Ending(State.SUCCEEDED, Reply(200, "t/p", bytes(size))))
        found = self.successResultOf(self.journal.endings(["id-a", "id-b", "id-c"], 100))
        self.assertEqual(list(found), ["id-a", "id-c"])
        self.assertEqual(self.successResultOf(self.journal.endings(["id-a"], 59)), {})


some_graphs = st.lists(
    st.tuples(
        st.sets(st.integers(0, 30), max_size=3),
        st.sampled_from(("succeeded", "succeeded", "finished")),
        st.sampled_from((OK, OK, OK, FAILED, DEAD, AGAIN)),
        st.lists(st.tuples(st.sets(st.integers(0, 40), max_size=2)), max_size=2),
    ),
    min_size=1,
    max_size=12,
)
"""Needs (by number, modulo what comes before), when, what becomes of it, what it brings."""


class AnyGraphTests(Case):
    """Random graphs, random ends, random growth: job-servers' invariant I8."""

    @given(some_graphs, st.lists(st.integers(1, 4), min_size=1), st.randoms(use_true_random=False))
    def test_any(self, drawn: Any, counts: list[int], random: Any) -> None:
        """A job starts when all it needs have ended as it asks; none is left; reasons are true."""
        self.open()
        self.attempts: dict[str, int] = {}
        needs: dict[str, set[str]] = {}
        when: dict[str, str] = {}
        fate: dict[str, Ending] = {}
        brings: dict[str, Any] = {}
        jobs = []
        for number, (wanted, asks, ending, growth) in enumerate(drawn):
            name = f"n{number}"
            needs[name] = {f"n{need % number}" for need in wanted} if number else set()
            when[name], fate[name], brings[name] = asks, ending, growth
            jobs.append(new(name, *sorted(needs[name]), when=asks))
        random.shuffle(jobs)
        self.put(*jobs)
        ended: dict[str, State] = {}
        ran: set[str] = set()
        running: list[str] = []
        turn = 0
        while True:
            started = self.take(counts[turn % len(counts)])
            turn += 1
            self.assertLess(turn, 1000, "it does not end")
            for name in started:
                self.assertLessEqual(needs[name], set(ended))
                if when[name] == "succeeded":
                    self.assertEqual({ended[n] for n in needs[name]} - {State.SUCCEEDED}, set())
                self.assertEqual(set(self.inputs[name]), needs[name])
            running += started
            ran.update(started)
            if not running:
                break
            name = running.pop(random.randrange(len(running)))
            ending = fate[name]
            brought: Sequence[NewJob] = ()
            if ending is OK and brings[name]:
                brought = self.growth(name, brings[name], needs, when, fate, brings)
            if ending is AGAIN:
                fate[name] = OK
            self.finish(name, ending, *brought)
            for job in brought:
                for other, its in needs.items():
                    if name in its and other not in ended and not other.startswith(f"{name}."):
                        its.add(job.name)
            ended |= {n: state for n, state in self.states().items() if state >= TERMINAL}
        found = self.graph().jobs
        self.assertEqual(set(found), set(needs))
        for name, job in found.items():
            self.assertGreaterEqual(job.state, TERMINAL, f"{name} is left")
            if name in ran:
                continue
            self.assertIs(job.state, State.CANCELLED)
            self.assertEqual(when[name], "succeeded")
            assert job.error is not None
            blamed = job.error["detail"].removeprefix("it needed ").split(",")[0]
            self.assertIn(blamed, needs[name])
            self.assertIsNot(ended[blamed], State.SUCCEEDED)
            self.assertIn(ended[blamed].word, job.error["detail"])

    def growth(
        self, name: str, growth: Any, needs: Any, when: Any, fate: Any, brings: Any
    ) -> list[NewJob]:
        """Jobs that this one brings: they need each other, it, or what has ended."""
        states = self.states()
        known = [name, *(n for n, s in states.items() if s >= TERMINAL)]
        jobs = []
        for number, (wanted,) in enumerate(growth):
            brought = f"{name}.{number}"
            needs[brought] = {known[need % len(known)] for need in wanted}
            when[brought], fate[brought], brings[brought] = "finished", OK, []
            jobs.append(new(brought, *sorted(needs[brought]), when="finished"))
            known.append(brought)
        return jobs
