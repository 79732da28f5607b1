"""
Graphs in a gate of fakes: what workers are handed, what they bring, who may, who waits.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from jobgate import errors
from jobgate.config import Backoff, GateConfig, GateSettings, Seconds, TokenConfig
from jobgate.gate import Gate
from jobgate.jobs.graphs import Submission
from jobgate.jobs.job import TERMINAL, State
from jobgate.testing import SpawningReactor, inline_journal
from jobgate.wire.frames import MAX_FRAME
from tests.unit.fakes import queue_config

if TYPE_CHECKING:
    from jobgate.jobs.graphs import Submitted
    from jobgate.jobs.journal import Graph
    from jobgate.testing import FakeChild

MIB = 1024 * 1024
BACKOFF = Backoff(first=Seconds(1), jitter=0)


def anybody(_: str) -> None:
    """May push anywhere, or read anything."""


class Reactor(SpawningReactor):
    """With a thread that is this one."""

    threaded = 0

    def getThreadPool(self) -> Reactor:
        return self

    def callInThreadWithCallback(self, told: Any, call: Any, *args: Any) -> None:
        self.threaded += 1
        try:
            result, good = call(*args), True
        except errors.JobgateError:
            result, good = Failure(), False
        told(good, result)

    def callFromThread(self, call: Any, *args: Any) -> None:
        call(*args)


class Case(SynchronousTestCase):
    """A gate with two queues of one fake worker each."""

    tokens: tuple[TokenConfig, ...] = ()

    def setUp(self) -> None:
        self.build()

    def build(self, **queue: Any) -> None:
        self.reactor = Reactor()
        self.reactor.install()
        self.addCleanup(self.reactor.discard)
        queues = {
            name: queue_config(
                name=name, **{"command": ("w",), "workers": 1, "in_flight": 9, **queue}
            )
            for name in ("q", "r")
        }
        queues["line"] = queue_config(name="line", protocol="lines")
        config = GateConfig(gate=GateSettings(), queues=queues, tokens=self.tokens)
        self.gate = Gate(config, self.reactor, inline_journal(self.reactor))
        self.gate.start()
        self.reactor.advance(0)
        self.q, self.r = self.reactor.workers[:2]
        for child in (self.q, self.r):
            child.hello()

    def submitted(self, jobs: Any, **by: Any) -> Deferred[Submitted]:
        document = json.dumps({"jobs": jobs}).encode()
        return Deferred.fromCoroutine(
            self.gate.graphs.submit(document, Submission(**{"need_push": anybody, **by}))
        )

    def submit(self, jobs: Any, **by: Any) -> dict[str, str]:
        """The ids by name; the graph's own under the empty name."""
        done = self.successResultOf(self.submitted(jobs, **by))
        answer = json.loads(done.answer)
        self.assertEqual(answer["id"], done.id)
        self.name = done.id
        ids: dict[str, str] = answer["jobs"]
        return ids

    def graph(self) -> Graph:
        return self.successResultOf(Deferred.fromCoroutine(self.gate.graphs.get(self.name)))

    def states(self) -> dict[str, str]:
        return {name: job.state.word for name, job in self.graph().jobs.items()}

    def answer(self, child: FakeChild, body: bytes = b"ok", **meta: object) -> None:
        child.reply(body, **{"content_type": "text/plain", **meta})
        self.reactor.advance(0)


class FeedingTests(Case):
    """Who needs others is handed what became of them."""

    def test_inputs(self) -> None:
        """In the order of the needs, with their types, behind the body."""
        ids = self.submit(
            {
                "a": {"queue": "q", "body": 1},
                "b": {"queue": "r"},
                "c": {"queue": "q", "body": [2], "needs": ["b", "a"]},
            }
        )
        self.assertEqual([given.body for given in self.q.commands], [b"1"])
        self.answer(self.q, b"from a", content_type="x/a")
        self.assertEqual(self.states(), {"a": "succeeded", "b": "running", "c": "blocked"})
        self.answer(self.r, b"from b", content_type="x/b")
        [given] = self.q.commands
        self.assertEqual(given.meta["id"], ids["c"])
        self.assertEqual(
            given.meta["inputs"],
            [
                {"name": "b", "content_type": "x/b", "length": 6},
                {"name": "a", "content_type": "x/a", "length": 6},
            ],
        )
        self.assertEqual(given.body, b"[2]from bfrom a")
        self.answer(self.q)
        self.assertEqual(set(self.states().values()), {"succeeded"})

    def test_problems(self) -> None:
        """A job that does not mind is handed the problem in place of a reply."""
        self.submit(
            {
                "a": {"queue": "q"},
                "b": {"queue": "r", "needs": ["a"], "when": "finished"},
                "c": {"queue": "r", "needs": ["a"]},
            }
        )
        self.q.fail("no", retry=False, detail="never", status=422)
        [given] = self.r.commands
        [entry] = given.meta["inputs"]
        self.assertEqual(entry["content_type"], "application/problem+json")
        self.assertEqual(
            json.loads(given.body),
            {
                "type": "/problems/command-failed",
                "title": "no",
                "detail": "never",
                "executed": "yes",
                "status": 422,
            },
        )
        self.assertEqual(self.states(), {"a": "failed", "b": "running", "c": "cancelled"})

    def test_again(self) -> None:
        """Whose worker dies gets the same inputs at the next."""
        self.build(backoff=BACKOFF)
        self.submit({"a": {"queue": "q"}, "b": {"queue": "r", "needs": ["a"]}})
        self.answer(self.q, b"input")
        self.assertEqual(self.r.commands[0].body, b"input")
        self.r.kill()
        self.reactor.advance(2)
        new = self.reactor.workers[-1]
        new.hello()
        self.reactor.advance(2)
        self.assertEqual([given.body for given in new.commands], [b"input"])
        self.assertEqual(new.commands[0].meta["attempt"], 2)

    def test_large_inputs(self) -> None:
        """What is too much to come along is fetched, one job at a time, and handed over whole."""
        self.submit(
            {
                "a": {"queue": "q"},
                "b": {"queue": "q"},
                "both": {"queue": "r", "needs": ["a", "b"]},
                "one": {"queue": "r", "needs": ["b"]},
            }
        )
        for letter in (b"a", b"b"):
            self.answer(self.q, letter * (9 * MIB))
        self.assertEqual(
            [(given.body[:1], len(given.body)) for given in self.r.commands],
            [(b"b", 9 * MIB), (b"a", 18 * MIB)],
        )

    def test_too_large(self) -> None:
        """What a frame does not hold fails, and its dependents with it; nothing is written."""
        size = MAX_FRAME // 2
        self.submit(
            {
                "a": {"queue": "q"},
                "b": {"queue": "q"},
                "c": {"queue": "r", "needs": ["a", "b"]},
                "d": {"queue": "r", "needs": ["c"]},
            }
        )
        self.answer(self.q, bytes(size - 1000))
        self.answer(self.q, bytes(size - 1000))
        # Together they would just fit, were it not for the frame's head.
        self.assertEqual(self.r.commands[0].meta["inputs"][1]["length"], size - 1000)
        self.answer(self.r)
        self.assertEqual(self.states()["d"], "running")
        ids = self.submit(
            {
                "a": {"queue": "q"},
                "b": {"queue": "q"},
                "c": {"queue": "r", "needs": ["a", "b"]},
                "d": {"queue": "r", "needs": ["c"]},
            }
        )
        before = len(self.r.commands)
        self.answer(self.q, bytes(size - 10))
        self.answer(self.q, bytes(size + 10))
        self.assertEqual(self.states()["c"], "failed")
        self.assertEqual(self.states()["d"], "cancelled")
        self.assertEqual(len(self.r.commands), before)
        job = self.successResultOf(self.gate.jobs.get(ids["c"]))
        assert job.error is not None
        self.assertEqual(job.error["slug"], "unprocessable")

    def test_a_single_input(self) -> None:
        """What a puller fetches: only of what its job needs, once that has ended."""
        ids = self.submit(
            {"a/b": {"queue": "q"}, "x": {"queue": "q"}, "c": {"queue": "r", "needs": ["a/b"]}}
        )

        def fetch(name: str) -> Any:
            job = self.successResultOf(self.gate.jobs.get(ids["c"]))
            return Deferred.fromCoroutine(self.gate.graphs.input(job, name))

        self.failureResultOf(fetch("a/b"), errors.NotFound)
        self.answer(self.q, b"yes", content_type="x/y")
        found = self.successResultOf(fetch("a/b"))
        self.assertEqual((found.body, found.content_type), (b"yes", "x/y"))
        self.failureResultOf(fetch("x"), errors.NotFound)
        self.failureResultOf(fetch("c"), errors.NotFound)

    def test_cancelled_before_it_is_fed(self) -> None:
        """It never gets to its worker."""
        self.submit({"a": {"queue": "q"}, "b": {"queue": "r", "needs": ["a"]}})
        self.gate.dispatcher["r"].pause()
        self.answer(self.q)
        self.assertEqual(self.states()["b"], "queued")
        self.successResultOf(self.gate.jobs.journal.cancel(self.name, "enough"))
        self.gate.dispatcher["r"].resume()
        self.assertEqual(self.r.commands, [])
        self.assertEqual(self.states()["b"], "cancelled")


class GrowingTests(Case):
    """What a worker's reply brings."""

    def test_growth(self) -> None:
        """It runs, and who needed the one needs it, too."""
        self.submit({"a": {"queue": "q"}, "b": {"queue": "r", "needs": ["a"]}})
        jobs = {"new": {"queue": "q", "body": 7, "needs": ["a"]}, "two": {"queue": "q"}}
        self.answer(self.q, b"first", jobs=jobs)
        self.assertEqual(self.r.commands, [])
        bodies = {given.body for given in self.q.commands}
        self.assertEqual(bodies, {b"7first", b""})
        self.answer(self.q, b"x")
        self.answer(self.q, b"y")
        [given] = self.r.commands
        self.assertEqual([entry["name"] for entry in given.meta["inputs"]], ["a", "new", "two"])

    def test_growth_of_a_stream(self) -> None:
        """The last word brings it."""
        from jobgate.wire import frames

        self.submit({"a": {"queue": "q"}, "b": {"queue": "r", "needs": ["a"]}})
        self.q.frame(frames.CHUNK, self.q.commands[0].id, {"content_type": "x/y"}, b"one ")
        self.answer(self.q, b"two", jobs={"c": {"queue": "q", "needs": ["a"]}})
        [given] = self.q.commands
        self.assertEqual(given.body, b"one two")

    def test_growth_while_the_store_is_in_trouble(self) -> None:
        """What it needs is asked again, until there is an answer: the reply is not lost."""
        self.submit({"a": {"queue": "q"}, "b": {"queue": "r", "needs": ["a"]}})
        no = fail(errors.StoreUnavailable("no"))
        with patch.object(self.gate.jobs.journal, "named", return_value=no) as named:
            self.answer(self.q, b"first", jobs={"c": {"queue": "q", "needs": ["a"]}})
            self.assertEqual((self.states()["a"], named.call_count), ("running", 1))
        self.reactor.advance(1.1)
        self.assertEqual(self.states(), {"a": "succeeded", "b": "blocked", "c": "running"})
        self.assertEqual([given.body for given in self.q.commands], [b"first"])

    def test_growth_at_the_end(self) -> None:
        """A gate that stops leaves it to the next one, and asks no more."""
        self.submit({"a": {"queue": "q"}})
        no = fail(errors.StoreUnavailable("no"))
        with patch.object(self.gate.jobs.journal, "named", return_value=no) as named:
            self.answer(self.q, jobs={"c": {"queue": "q", "needs": ["a"]}})
            self.successResultOf(self.gate.jobs.close())
            self.reactor.advance(1.1)
        self.assertEqual((named.call_count, self.gate.jobs.outcomes.growing._under_way), (1, set()))

    def test_growth_that_goes_wrong(self) -> None:
        """A bug ends the attempt, and is logged."""
        self.submit({"a": {"queue": "q"}, "b": {"queue": "r", "needs": ["a"]}})
        with patch.object(self.gate.jobs.outcomes.growing, "growth", side_effect=ValueError):
            self.answer(self.q, jobs={"c": {"queue": "q"}})
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(self.states()["a"], "scheduled")

    def test_headers_and_caller_are_handed_on(self) -> None:
        """A trace goes through the whole graph, and so does whose it is."""
        headers = json.dumps({"traceparent": "00-1"})
        self.submit({"a": {"queue": "q"}}, headers=headers, caller="ci")
        self.assertEqual(self.q.commands[0].meta["headers"], {"traceparent": "00-1"})
        self.answer(self.q, jobs={"b": {"queue": "r"}})
        self.assertEqual(self.r.commands[0].meta["headers"], {"traceparent": "00-1"})
        self.assertEqual({job.caller for job in self.graph().jobs.values()}, {"ci"})

    def refused(self, jobs: Any, *words: str) -> None:
        self.submit({"a": {"queue": "q"}, "b": {"queue": "r", "needs": ["a"]}})
        self.answer(self.q, jobs=jobs)
        self.assertEqual(self.states(), {"a": "failed", "b": "cancelled"})
        error = self.graph().jobs["a"].error
        assert error is not None
        self.assertEqual((error["slug"], error["executed"]), ("worker-protocol-error", "yes"))
        for word in words:
            self.assertIn(word, error["detail"])

    def test_refusals(self) -> None:
        """What cannot be is the job's failure; its worker goes on."""
        self.refused({"a": {"queue": "q"}}, "jobs.a", "already")
        self.refused({"x": {"queue": "none"}}, "jobs.x.queue", "none")
        self.refused({"x": {"queue": "q", "needs": ["y"]}}, "jobs.x.needs[0]")
        self.refused({"x": {"queue": "q", "needs": ["b"]}}, "cycle")
        self.refused({"x": {"queue": "line", "needs": ["a"]}}, "jobs.x.needs", "lines")
        self.refused({"x": {"queue": "q", "body": "x" * (17 * MIB)}}, "jobs.x.body")
        self.assertEqual(self.reactor.threaded, 2)
        self.refused({"x": 1}, "jobs.x")
        self.refused([], "jobs")
        self.submit({"a": {"queue": "q"}})
        self.answer(self.q)
        self.assertEqual(self.states(), {"a": "succeeded"})

    def test_a_graph_that_is_cancelled_meanwhile(self) -> None:
        """A late reply brings nothing."""
        self.submit({"a": {"queue": "q"}})
        self.successResultOf(self.gate.jobs.journal.cancel(self.name, "enough"))
        self.answer(self.q, jobs={"b": {"queue": "q"}})
        self.assertEqual(self.states(), {"a": "cancelled"})


class TokenTests(Case):
    """Growth needs the rights of who submitted the graph."""

    tokens = (TokenConfig(name="some", sha256=sha256(b"s").hexdigest(), allow=("push:q",)),)

    def test_growth(self) -> None:
        """Only into queues that they may push to; without a token they are ourselves."""
        for caller, allowed in (("some", False), ("gone", False), ("", True)):
            self.submit({"a": {"queue": "q"}}, caller=caller)
            self.answer(self.q, jobs={"b": {"queue": "r"}})
            self.assertEqual(self.states()["a"], "succeeded" if allowed else "failed")
        self.submit({"a": {"queue": "q"}}, caller="some")
        self.answer(self.q, jobs={"b": {"queue": "q"}})
        self.assertEqual(self.states()["a"], "succeeded")

    def test_submission(self) -> None:
        """Every queue is asked for, before anything is stored."""
        asked = []

        def need(queue: str) -> None:
            asked.append(queue)
            if queue == "r":
                raise errors.Forbidden("no")

        jobs = {"a": {"queue": "q"}, "b": {"queue": "q"}, "c": {"queue": "r"}}
        self.failureResultOf(self.submitted(jobs, need_push=need), errors.Forbidden)
        self.assertEqual(asked, ["q", "r"])
        self.assertEqual(self.q.commands, [])


class SubmissionTests(Case):
    """What comes in."""

    def test_full(self) -> None:
        """A queue that is full takes no part of a graph, and every job is counted as shed."""
        self.build(max_backlog=2)
        jobs = {f"a{n}": {"queue": "q"} for n in range(3)} | {"b": {"queue": "r"}}
        self.failureResultOf(self.submitted(jobs), errors.QueueFull)
        self.assertEqual(self.q.commands, [])
        stats = {name: self.gate.dispatcher[name].stats for name in ("q", "r")}
        self.assertEqual([(s.accepted, s.shed) for s in stats.values()], [(3, 3), (1, 1)])

    def test_draining(self) -> None:
        """A gate that is about to go takes none."""
        self.gate.drain()
        self.failureResultOf(self.submitted({"a": {"queue": "q"}}), errors.ShuttingDown)

    def test_bounds_of_the_queue(self) -> None:
        """Every job gets what its queue's configuration says."""
        self.build(attempts=5, result_ttl=7, retry="never")
        self.submit({"a": {"queue": "q"}, "b": {"queue": "r", "priority": 1, "delay": 3}})
        jobs = self.graph().jobs
        self.assertEqual((jobs["a"].attempts, jobs["b"].attempts), (5, 5))
        self.assertEqual((jobs["b"].priority, jobs["b"].state), (1, State.SCHEDULED))

    def test_delay_behind_a_need(self) -> None:
        """What is let go early waits for its time, and not for longer."""
        self.submit(
            {
                "first": {"queue": "q", "delay": 1},
                "slow": {"queue": "q"},
                "late": {"queue": "r", "needs": ["slow"], "delay": 30},
            }
        )
        self.reactor.advance(5)
        self.answer(self.q)
        self.answer(self.q)
        self.assertEqual(self.states()["late"], "scheduled")
        self.reactor.advance(24.9)
        self.assertEqual(self.r.commands, [])
        self.reactor.advance(0.2)
        self.assertEqual(len(self.r.commands), 1)


class WaitingTests(Case):
    """Who waits for a graph is told of its end, and not before."""

    def wait(self, seconds: float, may: Any = anybody) -> Deferred[Graph]:
        return Deferred.fromCoroutine(self.gate.graphs.wait(self.name, seconds, may))

    def test_the_end(self) -> None:
        """The end is that of the last job, those that were grown included."""
        self.submit({"a": {"queue": "q"}, "b": {"queue": "r", "needs": ["a"]}})
        waiting = self.wait(50)
        self.answer(self.q, jobs={"c": {"queue": "q"}})
        self.assertNoResult(waiting)
        self.answer(self.q)
        self.assertNoResult(waiting)
        self.answer(self.r)
        graph = self.successResultOf(waiting)
        self.assertEqual({job.state for job in graph.jobs.values()}, {State.SUCCEEDED})
        self.assertIs(self.successResultOf(self.wait(0)).jobs["a"].state, State.SUCCEEDED)

    def test_a_cascade(self) -> None:
        """A failure that cancels all the rest is the end."""
        self.submit({"a": {"queue": "q"}, "b": {"queue": "r", "needs": ["a"]}})
        waiting = self.wait(50)
        self.q.fail("no", retry=False)
        self.assertEqual(
            [job.state for job in self.successResultOf(waiting).jobs.values()],
            [State.FAILED, State.CANCELLED],
        )

    def test_the_time_is_up(self) -> None:
        """Then it is told how it is."""
        self.submit({"a": {"queue": "q"}})
        waiting = self.wait(5)
        self.reactor.advance(4.9)
        self.assertNoResult(waiting)
        self.reactor.advance(0.2)
        self.assertIs(self.successResultOf(waiting).jobs["a"].state, State.RUNNING)
        self.assertEqual(self.gate.jobs.watches._watchers, {})

    def test_the_gate_goes(self) -> None:
        """Nobody is kept."""
        self.submit({"a": {"queue": "q"}})
        waiting = self.wait(5000)
        self.gate.drain()
        self.assertIs(self.successResultOf(waiting).jobs["a"].state, State.RUNNING)

    def test_who_may(self) -> None:
        """Who may not does not wait."""
        self.submit({"a": {"queue": "q"}}, caller="ci")

        def may(caller: str) -> None:
            raise errors.Forbidden(caller)

        refusal = self.failureResultOf(self.wait(50, may), errors.Forbidden)
        self.assertEqual(str(refusal.value), "ci")
        self.name = "gate-none"
        self.failureResultOf(self.wait(50), errors.UnknownJob)


class AnyGraphTests(Case):
    """Random graphs through a whole gate, with workers that come to good and bad ends."""

    @given(
        st.lists(
            st.tuples(
                st.sets(st.integers(0, 20), max_size=3),
                st.sampled_from(("succeeded", "finished")),
                st.sampled_from(("ok", "ok", "ok", "fail", "die", "decline", "grow")),
                st.sampled_from("qr"),
            ),
            min_size=1,
            max_size=9,
        ),
        st.randoms(use_true_random=False),
    )
    def test_any(self, drawn: Any, random: Any) -> None:
        """Every graph ends; what ran had what it needed; the counters are true."""
        self.build(retry="if-not-started", backoff=BACKOFF, boot_timeout=0)
        fates = {}
        jobs: dict[str, dict[str, Any]] = {}
        for number, (needs, when, fate, queue) in enumerate(drawn):
            name = f"n{number}"
            needed = sorted({f"n{need % number}" for need in needs}) if number else []
            jobs[name] = {"queue": queue, "needs": needed, "when": when, "body": name}
            fates[name] = fate
        self.submit(jobs)
        for _ in range(400):
            if all(job.state >= TERMINAL for job in self.graph().jobs.values()):
                break
            for child in self.reactor.workers:
                if child.commands and child.pid is not None:
                    self.act(child, fates, random)
                    break
            else:
                self.reactor.advance(1.0)
                for child in self.reactor.workers:
                    if not child.frames and child.pid is not None:
                        child.hello()
        else:
            self.fail(f"it does not end: {self.states()}")
        for name, job in self.graph().jobs.items():
            blocked = [n for n, state in job.needs.items() if state is not State.SUCCEEDED]
            if job.state is State.CANCELLED:
                assert job.error is not None
                self.assertTrue(any(need in job.error["detail"] for need in blocked))
            elif name in jobs and jobs[name]["when"] == "succeeded":
                self.assertEqual(blocked, [])
        for road in self.gate.dispatcher:
            s = road.stats
            self.assertEqual(s.accepted, s.succeeded + s.failed + s.cancelled)
            self.assertEqual(self.gate.jobs.backlogs[road.config.name].tally.open, [0, 0, 0, 0])
            self.assertEqual(road.bytes_waiting, 0)

    def act(self, child: FakeChild, fates: dict[str, str], random: Any) -> None:
        """Let a worker's oldest command come to its end."""
        [*_, given] = child.commands[:1]
        length = sum(entry["length"] for entry in given.meta.get("inputs", ()))
        name = json.loads(given.body[: len(given.body) - length] or b'""')
        done = self.graph().jobs
        for entry in given.meta.get("inputs", ()):
            self.assertGreaterEqual(done[entry["name"]].state, TERMINAL)
        fate = fates.get(name, "ok")
        if fate == "fail":
            child.fail("no", retry=False)
        elif fate == "die":
            fates[name] = random.choice(("ok", "die"))
            child.kill()
        elif fate == "decline":
            fates[name] = "ok"
            child.decline()
        elif fate == "grow":
            self.answer(child, jobs={f"{name}.1": {"queue": random.choice("qr"), "body": "x"}})
        else:
            self.answer(child)
