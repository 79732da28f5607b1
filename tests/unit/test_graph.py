"""
`jobgate.jobs.graph`: what is submitted as a graph, and what is refused.
"""

from __future__ import annotations

import json
from base64 import b64encode
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from jobgate.errors import BadRequest, JobgateError, Unprocessable
from jobgate.jobs import graph
from jobgate.jobs.job import NewJob, State

MIB = 1024 * 1024


PROTOCOLS = {"q": "frames", "one": "lines"}
"""The queues that there are, one for each protocol."""


def make(
    queue: str,
    id: str,  # noqa: A002
    body: bytes,
    content_type: str,
    priority: int,
    delay: float,
    name: str,
    needs: tuple[str, ...],
    when: str,
) -> NewJob:
    """A job with a queue's usual bounds."""
    return NewJob(
        id,
        queue,
        body,
        content_type,
        priority,
        delay=delay,
        name=name,
        needs=needs,
        when=when,
    )


def submit(document: Any, **how: Any) -> list[NewJob]:
    """All three steps; ids are names behind a letter."""
    data = document if isinstance(document, bytes) else json.dumps({"jobs": document}).encode()
    nodes = graph.read(data)
    graph.check(nodes, PROTOCOLS, **how)
    ids = {name: f"i-{name}" for name in (*nodes, *how.get("known", ()))}
    return graph.jobs(nodes, PROTOCOLS, ids, make, MIB)


class ReadTests(SynchronousTestCase):
    """What is well formed becomes jobs."""

    def test_the_contracts_example(self) -> None:
        """Section 4.3, with a queue of ours."""
        one, two = submit(
            {
                "fetch": {"queue": "q", "body": {"url": "http://x/"}},
                "thumb": {"queue": "q", "needs": ["fetch"], "when": "succeeded"},
            }
        )
        self.assertEqual(
            (one.id, one.queue, one.name, one.content_type, one.needs, one.when),
            ("i-fetch", "q", "fetch", "application/json", (), "succeeded"),
        )
        self.assertEqual(json.loads(one.body), {"url": "http://x/"})
        self.assertEqual(
            (two.id, two.name, two.body, two.needs), ("i-thumb", "thumb", b"", ("i-fetch",))
        )

    def test_bodies(self) -> None:
        """JSON is handed on as it is written; bytes are what base64 says; none are none."""
        jobs = submit(
            b'{"jobs":{"a":{"queue":"q","body":{"n": 1.50,"n":2}},"b":{"queue":"q","body":null},'
            b'"c":{"queue":"q","body_base64":"AP8=","content_type":"image/png"},'
            b'"d":{"queue":"q"},"e":{"queue":"q","body":"x","content_type":"text/json"},'
            b'"f":{"queue":"q","body_base64":"eA=="}}}'
        )
        self.assertEqual(
            [(job.body, job.content_type) for job in jobs],
            [
                (b'{"n": 1.50,"n":2}', "application/json"),
                (b"null", "application/json"),
                (b"\0\xff", "image/png"),
                (b"", "application/octet-stream"),
                (b'"x"', "text/json"),
                (b"x", "application/octet-stream"),
            ],
        )

    def test_priority_and_delay(self) -> None:
        """They may be said for each."""
        one, two = submit({"a": {"queue": "q", "priority": 0, "delay": 1.5}, "b": {"queue": "q"}})
        self.assertEqual((one.priority, one.delay), (0, 1.5))
        self.assertEqual((two.priority, two.delay), (3, 0.0))

    def test_lines_get_a_line(self) -> None:
        """A queue of lines takes part, as long as nothing is to be handed to it."""
        one, two = submit(
            {
                "a": {"queue": "one", "body_base64": b64encode(b'{\n "a": 1}').decode()},
                "b": {"queue": "q", "needs": ["a"], "when": "finished"},
            }
        )
        self.assertEqual((one.body, two.when), (b'{"a":1}', "finished"))

    def test_names(self) -> None:
        """Most that can be read is a name."""
        names = ["a", "part/1", "zwei Wörter", '"', "a.b", "名", "x" * graph.MAX_NAME, "..", "0"]
        jobs = submit({name: {"queue": "q"} for name in names})
        self.assertEqual([job.name for job in jobs], names)

    def test_growth(self) -> None:
        """A worker says the same without the outermost member; needs may be older jobs."""
        nodes = graph.read_growth(b'{"b":{"queue":"q","needs":["a"]}}')
        graph.check(nodes, PROTOCOLS, known={"a"})
        (job,) = graph.jobs(nodes, PROTOCOLS, {"a": "1", "b": "2"}, make, MIB)
        self.assertEqual((job.id, job.name, job.needs), ("2", "b", ("1",)))


class RefusalTests(SynchronousTestCase):
    """What is not, is refused, and the path is named."""

    def refused(self, document: Any, path: str, *words: str, **how: Any) -> JobgateError:
        error = self.assertRaises(Unprocessable, submit, document, **how)
        self.assertEqual(error.extra["path"], path)
        self.assertTrue(error.detail.startswith(f"{path}: "), error.detail)
        for word in words:
            self.assertIn(word, error.detail)
        return error

    def test_no_json(self) -> None:
        """What cannot be read at all is a bad request."""
        deep = b'{"jobs":{"a":{"queue":"q","body":' + b"[" * 200_000 + b"]" * 200_000 + b"}}}"
        for data in (
            b"",
            b"{",
            b'{"jobs":{"a":{"queue":"q","body":[1,,2]}}}',
            b'{"jobs":{"a":{"queue":"q","body":"\xff"}}}',
            b'{"jobs":{"\xff":{"queue":"q"}}}',
            deep,
        ):
            self.assertIn("JSON", self.assertRaises(BadRequest, graph.read, data).detail)
        for data in (b"", b"{", b'{"a":{"queue":"q","body":"\xff"}}'):
            self.assertRaises(BadRequest, graph.read_growth, data)

    def test_another_form(self) -> None:
        """JSON that is no such document."""
        self.refused(b"[]", "body", "object")
        self.refused(b"{}", "body", "jobs")
        self.refused(b'{"jobs":{},"job":1}', "job", "jobs")
        self.refused(b'{"jobs":[]}', "jobs")
        self.refused({}, "jobs", "at least one")
        self.refused({"a": 1}, "jobs.a")
        self.refused({"a": {}}, "jobs.a", "queue")
        self.refused({"a": {"queue": 1}}, "jobs.a.queue")
        self.refused({"a": {"queue": "q", "need": []}}, "jobs.a.need", '"needs" perhaps')
        self.refused({"a": {"queue": "q", "needs": "b"}}, "jobs.a.needs")
        self.refused({"a": {"queue": "q", "needs": ["b", 1]}}, "jobs.a.needs[1]")
        self.refused({"a": {"queue": "q", "when": "always"}}, "jobs.a.when", "finished")
        self.refused({"a": {"queue": "q", "priority": 8}}, "jobs.a.priority", "7")
        self.refused({"a": {"queue": "q", "priority": -1}}, "jobs.a.priority", "0")
        self.refused({"a": {"queue": "q", "delay": -1}}, "jobs.a.delay", "0")
        self.refused({"a": {"queue": "q", "delay": "1s"}}, "jobs.a.delay")
        error = self.assertRaises(Unprocessable, graph.read_growth, b"[]")
        self.assertEqual(error.extra["path"], "jobs")

    def test_names(self) -> None:
        """Names can be read, are not too long, and nobody else has them."""
        for name in ("", "a\n", "a\0", "\u202e", "x" * (graph.MAX_NAME + 1)):
            error = self.assertRaises(Unprocessable, submit, {name: {"queue": "q"}})
            self.assertIn("printable", error.detail)
            self.assertLess(len(error.detail), 700)
        twice = b'{"jobs":{"a b":{"queue":"q"},"a b":{"queue":"q"}}}'
        self.refused(twice, 'jobs["a b"]', "no other job")

    def test_queues(self) -> None:
        """Only queues that there are."""
        self.refused({"a": {"queue": "q"}, "b/c": {"queue": "z"}}, 'jobs["b/c"].queue', '"z"')
        self.refused({"a": {"queue": "\n"}}, "jobs.a.queue", '"\\n"')

    def test_needs(self) -> None:
        """Only jobs that there are, each once."""
        fetch, thumb = {"queue": "q"}, {"queue": "q", "needs": ["fetch", "fetsh"]}
        document = {"thumb": thumb, "fetch": fetch}
        self.refused(document, "jobs.thumb.needs[1]", '"fetsh"', '"fetch" perhaps')
        thumb["needs"] = ["fetch", "fetch"]
        self.refused({"fetch": fetch, "thumb": thumb}, "jobs.thumb.needs[1]", "once")

    def test_lines(self) -> None:
        """A queue of lines takes no inputs, and no body of many lines."""
        document = {"a": {"queue": "q"}, "b": {"queue": "one", "needs": ["a"]}}
        self.refused(document, "jobs.b.needs", "'one'", "lines")
        many = b64encode(b"a\nb").decode()
        self.refused({"a": {"queue": "one", "body_base64": many}}, "jobs.a.body", "newline")

    def test_bodies(self) -> None:
        """One body, of a type that can be handed on, and not too large."""
        self.refused({"a": {"queue": "q", "body": 1, "body_base64": ""}}, "jobs.a", "one of them")
        for bad in ("A", "A===", "!!!!", "QQ=\n="):
            self.refused({"a": {"queue": "q", "body_base64": bad}}, "jobs.a.body_base64", "base64")
        for bad in ("", "a/b\r\nX: y", "ü/b"):
            document = {"a": {"queue": "q", "content_type": bad}}
            self.refused(document, "jobs.a.content_type", "media type")
        self.refused({"a": {"queue": "q", "body": "x" * MIB}}, "jobs.a.body", str(MIB))

    def test_cycles(self) -> None:
        """The cycle is shown, and nothing that only leads to it."""
        document = {
            "z": {"queue": "q"},
            "in": {"queue": "q", "needs": ["a", "z"]},
            "a": {"queue": "q", "needs": ["z", "b"]},
            "b": {"queue": "q", "needs": ["c"]},
            "c": {"queue": "q", "needs": ["a"]},
        }
        error = self.refused(document, "jobs.a.needs", "a -> b -> c -> a")
        self.assertEqual(error.extra["cycle"], ["a", "b", "c", "a"])
        error = self.refused({"a": {"queue": "q", "needs": ["a"]}}, "jobs.a.needs", "a -> a")

    def test_a_long_cycle(self) -> None:
        """It is shown in part: nobody reads more."""
        count = 2000
        document = {f"n{n}": {"queue": "q", "needs": [f"n{(n + 1) % count}"]} for n in range(count)}
        error = self.refused(document, "jobs.n0.needs", "n0 -> n1 -> n2", "… -> n1998 -> n1999")
        self.assertLess(len(error.detail), 200)
        self.assertEqual(len(error.extra["cycle"]), 1000)

    def test_sizes(self) -> None:
        """At most 100,000 jobs, and a million needs."""
        most = graph.MAX_JOBS
        line = ",".join(f'"{n}":{{"queue":"q"}}' for n in range(most))
        self.assertEqual(len(submit(f'{{"jobs":{{{line}}}}}'.encode())), most)
        self.refused(f'{{"jobs":{{{line},"x":{{"queue":"q"}}}}}}'.encode(), "jobs", "100000")
        needs = [str(n) for n in range(1000)]
        wide = {n: {"queue": "q"} for n in needs} | {
            f"x{n}": {"queue": "q", "needs": needs} for n in range(1001)
        }
        self.refused(wide, "jobs", "1000000 needs")

    def test_growth(self) -> None:
        """What a grown job needs must be there."""
        self.refused({"b": {"queue": "q", "needs": ["a", "x"]}}, "jobs.b.needs[1]", known={"a"})


class CycleTests(SynchronousTestCase):
    """Any graph: refused if and only if it has a cycle."""

    @given(
        st.integers(1, 9).flatmap(
            lambda count: st.lists(
                st.sets(st.integers(0, count - 1), max_size=3), min_size=count, max_size=count
            )
        )
    )
    def test_any(self, needs: list[set[int]]) -> None:
        """A cycle that is shown is one; where none is shown, all jobs can be put in an order."""
        document = {
            f"n{at}": {"queue": "q", "needs": [f"n{need}" for need in its]}
            for at, its in enumerate(needs)
        }
        try:
            jobs = submit(document)
        except Unprocessable as error:
            cycle = error.extra["cycle"]
            assert isinstance(cycle, list)
            self.assertEqual(cycle[0], cycle[-1])
            self.assertEqual(len(set(cycle)), len(cycle) - 1)
            for name, need in pairwise(cycle):
                self.assertIn(need, document[name]["needs"])
            return
        self.assertEqual([job.name for job in jobs], list(document))
        done: set[str] = set()
        left = {job.id: set(job.needs) for job in jobs}
        while left:
            free = [job for job, its in left.items() if its <= done]
            self.assertTrue(free, "a cycle has been let in")
            done.update(free)
            for job in free:
                del left[job]


class OutcomeTests(SynchronousTestCase):
    """The state of a whole graph."""

    def test_table(self) -> None:
        """From the states of its jobs."""
        b, d, q, r, s, f, c, x = State
        for states, outcome in (
            ([q, b], q),
            ([d, b], d),
            ([d, q], q),
            ([q, r], r),
            ([s, b, q], r),
            ([s, b, d], r),
            ([f, b], r),
            ([s, s], s),
            ([s, f, c], f),
            ([s, x], f),
            ([s, c], c),
        ):
            self.assertIs(graph.outcome(states), outcome, states)
