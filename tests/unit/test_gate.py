"""
`jobgate.gate.gate`: queues, workers and the ways in, on a reactor of fakes.
"""

from __future__ import annotations

from types import NoneType
from typing import Any
from unittest.mock import patch

import msgspec
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.trial.unittest import SynchronousTestCase

from jobgate import errors
from jobgate.config import GateConfig, GateSettings
from jobgate.gate import Gate
from jobgate.jobs.job import CALLBACKS, NewJob, State
from jobgate.pool.metas import Hello
from jobgate.testing import SpawningReactor, inline_journal
from jobgate.web import views
from jobgate.web.metrics import Metrics
from tests.unit.fake_internet import FakeInternet
from tests.unit.fakes import queue_config


def config(*, gate: dict[str, Any] | None = None, **queues: dict[str, Any]) -> GateConfig:
    """A configuration with these queues."""
    return GateConfig(
        gate=GateSettings(**(gate or {})),
        queues={
            name: queue_config(name=name, **{"command": ("w",), "workers": 1, **keys})
            for name, keys in queues.items()
        },
    )


class Reactor(FakeInternet, SpawningReactor):
    """Fake children, and a fake network."""


class GateTests(SynchronousTestCase):
    """From a call to its reply."""

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.reactor.install()
        self.addCleanup(self.reactor.discard)

    def build(self, built: GateConfig | None = None, *, ready: bool = True) -> Gate:
        self.gate = Gate(
            config(q={}) if built is None else built, self.reactor, inline_journal(self.reactor)
        )
        self.started = self.gate.start()
        self.reactor.advance(0)
        if ready:
            for child in self.reactor.workers:
                child.hello()
        return self.gate

    def test_call(self) -> None:
        """A call reaches the worker with its id, and the reply its caller."""
        gate = self.build()
        self.successResultOf(self.started)
        called = gate.call("q", b"body", "text/plain", timeout=5)
        [child] = self.reactor.workers
        [given] = child.commands
        self.assertEqual(
            (given.body, given.meta["content_type"], given.meta["remaining_ms"]),
            (b"body", "text/plain", 5000),
        )
        self.assertTrue(given.meta["id"].startswith("gate-"))
        child.reply(b"done", content_type="text/plain")
        self.assertEqual(self.successResultOf(called).body, b"done")

    def test_callbacks(self) -> None:
        """The end of a job is told by way of a queue that is the gate's own."""
        gate = self.build()
        gate.callbacks.tell(lambda name: succeed(f"state of {name}".encode()))
        job = NewJob("j", "q", b"", "text/plain", callback="http://a.example/")
        self.successResultOf(gate.jobs.put([job]))
        self.assertEqual([road.config.name for road in gate.dispatcher], ["q"])
        self.reactor.workers[0].reply(b"done")
        self.assertEqual([road.config.name for road in gate.dispatcher], ["q", CALLBACKS])
        self.reactor.advance(0)
        self.reactor.names.answer("1.1.1.1")
        wire = self.reactor.connect()
        self.assertTrue(wire.value().endswith(b"\r\n\r\nstate of j"))
        wire.protocol.dataReceived(b"HTTP/1.1 204 X\r\n\r\n")
        wire.end(ConnectionDone)
        told: Any = self.successResultOf(gate.jobs.get("j-succeeded"))
        self.assertEqual((told.state, told.queue), (State.SUCCEEDED, CALLBACKS))
        self.assertEqual(gate.dispatcher.any(CALLBACKS).stats.succeeded, 1)

        # Nobody else puts anything there, nor takes anything from it.
        for asked in (gate.call(CALLBACKS, b""), gate.push(CALLBACKS, b""), gate.pull(CALLBACKS)):
            self.failureResultOf(asked, errors.UnknownQueue)
        hello: Any = Hello(protocol=1, name="w", queue=CALLBACKS)
        self.assertRaises(errors.UnknownQueue, gate.reception.registrar.register, hello, None, "")

    def test_unknown_queue(self) -> None:
        """A call to no queue fails; it does not raise."""
        self.failureResultOf(self.build().call("nope", b""), errors.UnknownQueue)

    def test_text_as_a_body(self) -> None:
        """It fails at once, and no worker suffers from it."""
        gate = self.build()
        for asked in (gate.call("q", "text"), gate.push("q", "text")):  # type: ignore[arg-type]
            failure = self.failureResultOf(asked, TypeError)
            self.assertEqual(str(failure.value), "body: found str, wanted bytes")
        self.assertEqual(gate.dispatcher["q"].stats.accepted, 0)
        gate.call("q", bytearray(b"these will do")).addErrback(lambda _: None)
        self.assertEqual(self.reactor.workers[0].commands[0].body, b"these will do")

    def test_odd_arguments(self) -> None:
        """Each fails at once in words, is not counted, and no worker suffers from it."""
        gate = self.build()
        nan, endless = float("nan"), float("inf")
        odd: list[tuple[str, dict[str, Any], str]] = [
            ("call", {"key": None}, "key: found NoneType, wanted str"),
            ("call", {"key": b"k"}, "key: found bytes, wanted str"),
            ("call", {"key": "\ud800"}, r"key: found '\ud800', wanted printable characters"),
            ("call", {"timeout": nan}, "timeout: found nan, wanted 0 seconds or more"),
            ("call", {"timeout": -1}, "timeout: found -1, wanted 0 seconds or more"),
            ("call", {"timeout": "1"}, "timeout: found str, wanted a number of seconds"),
            ("push", {"delay": nan}, "delay: found nan, wanted 0 seconds or more"),
        ]
        for way in ("call", "push"):
            odd += [
                (way, {"content_type": "a\r\nb"}, "content_type: found"),
                (way, {"content_type": None}, "content_type: found NoneType, wanted str"),
                (way, {"priority": 3.0}, "priority: found float, wanted int"),
                (way, {"priority": 8}, "priority: found 8, wanted 0 to 7"),
            ]
        for way, how, why in odd:
            failure = self.failureResultOf(getattr(gate, way)("q", b"", **how))
            self.assertTrue(failure.check(TypeError, ValueError), failure)
            self.assertTrue(str(failure.value).startswith(why), failure.value)
        self.assertEqual(gate.dispatcher["q"].stats.accepted, 0)
        self.successResultOf(gate.push("q", b"", delay=endless))

    def test_subclasses(self) -> None:
        """What is a text or a number only by descent reaches workers as such."""
        gate = self.build()

        class Text(str):
            """Of which encoders know nothing."""

            __slots__ = ()

        kind = Text("text/plain")
        gate.call("q", memoryview(b"x"), kind, key=Text("k"), timeout=1e300).addErrback(
            lambda _: None
        )
        command = self.reactor.workers[0].commands[0]
        self.assertEqual((command.body, command.meta["content_type"]), (b"x", "text/plain"))
        self.assertEqual(command.meta["headers"], {"jobgate-key": "k"})

    def test_key(self) -> None:
        """The key of a call goes to the worker too."""
        gate = self.build()
        gate.call("q", b"", key="k").addErrback(lambda _: None)
        self.assertEqual(self.reactor.workers[0].commands[0].meta["headers"], {"jobgate-key": "k"})

    def test_cancel(self) -> None:
        """A caller that cancels has left: CANCEL goes to the worker."""
        gate = self.build()
        called = gate.call("q", b"")
        called.cancel()
        self.failureResultOf(called, CancelledError)
        self.assertEqual(gate.dispatcher["q"].stats.cancelled, 1)

    def test_absurd_timeout(self) -> None:
        """A call with a timeout of any size runs, and hurts no worker."""
        gate = self.build(config(q={"timeout": 0, "queue_timeout": 0}))
        called = gate.call("q", b"", timeout=1e306)
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertEqual(self.reactor.workers[0].received, [])
        self.reactor.workers[0].reply(b"")
        self.successResultOf(called)

    def test_started(self) -> None:
        """Started is when each queue's first worker is ready or has failed to be."""
        gate = self.build(config(a={}, b={}), ready=False)
        first, second = self.reactor.workers
        first.hello()
        self.assertNoResult(self.started)
        second.exit(1)
        self.successResultOf(self.started)
        self.assertTrue(gate.started)

    def test_worker_death(self) -> None:
        """A death under a call is told, and the worker replaced at once."""
        gate = self.build()
        called = gate.call("q", b"")
        self.reactor.workers[0].exit(3)
        error = self.failureResultOf(called, errors.WorkerDied).value
        self.assertEqual((error.extra["exit_status"], error.executed), (3, "maybe"))
        self.reactor.advance(0)
        self.assertEqual(len(self.reactor.alive), 1)

    def test_crash_loop(self) -> None:
        """While no worker can live, calls are told so with when to come back."""
        gate = self.build(ready=False)
        waiting = gate.call("q", b"")
        for _ in range(5):
            self.reactor.workers[-1].exit(1)
            self.reactor.advance(0)
        for called in (waiting, gate.call("q", b"")):
            error = self.failureResultOf(called, errors.NoWorker).value
            self.assertGreater(error.retry_after, 0)

    def test_workers_in_a_crash_loop(self) -> None:
        """A place where workers keep dying is shown, with the cause and when the next one comes."""
        gate = self.build(config(q={"workers": 2}), ready=False)
        self.assertEqual([w.state for w in views.workers(gate).workers], ["starting"] * 2)
        while not gate.backing_off():
            self.reactor.workers[-1].exit(3)
            self.reactor.advance(0)
        self.reactor.alive[0].exit(3)
        first, second = views.workers(gate).workers
        self.assertEqual(
            [(w.name, w.queue, w.state, w.pid, w.last_crash) for w in (first, second)],
            [(f"q-{n}", "q", "backing-off", None, "exited with status 3") for n in (1, 2)],
        )
        for place in (first, second):
            _, post = gate.post(place.name)
            assert post.report is not None
            self.assertEqual(place.since, post.report.at)
        # One is tried at a time; the other follows if that one lives.
        self.assertEqual([type(w.next_start) for w in (first, second)], [str, NoneType])
        shown = Metrics(gate).render("").body.decode()
        self.assertIn('jobgate_workers{queue="q",state="backing-off"} 2.0', shown)
        self.reactor.advance(1.3)
        [tried] = self.reactor.alive
        tried.hello()
        self.reactor.advance(2)
        self.assertEqual(gate.backing_off(), [])
        self.assertEqual(
            [w.next_start for w in views.workers(gate).workers], [msgspec.UNSET, msgspec.UNSET]
        )

    def test_started_twice(self) -> None:
        """A gate is started once; to ask again is an error, and harms nothing."""
        gate = self.build()
        self.assertIn("already", str(self.failureResultOf(gate.start(), RuntimeError).value))
        self.successResultOf(self.started)
        called = gate.call("q", b"body")
        self.reactor.workers[0].reply(b"done")
        self.assertEqual(self.successResultOf(called).body, b"done")

    def test_workers_and_posts(self) -> None:
        """Workers are found by name; a stranger is not."""
        gate = self.build(config(a={"workers": 2}, b={}))
        self.assertEqual([worker.name for _, worker in gate.workers()], ["a-1", "a-2", "b-1"])
        self.assertEqual(gate.post("a-2")[1].name, "a-2")
        self.assertRaises(errors.UnknownWorker, gate.post, "c-1")

    def test_drain(self) -> None:
        """Draining takes nothing new, finishes what it has, and then says so."""
        gate = self.build()
        running, waiting = gate.call("q", b"1"), gate.call("q", b"2")
        drained = gate.drain()
        self.failureResultOf(gate.call("q", b"3"), errors.ShuttingDown)
        child = self.reactor.workers[0]
        child.reply()
        self.assertNoResult(drained)
        child.reply()
        self.successResultOf(drained)
        self.successResultOf(running)
        self.successResultOf(waiting)

    def test_drain_timeout(self) -> None:
        """At `drain_timeout` draining is over whatever is left; that ends as `shutting-down`."""
        gate = self.build(config(gate={"drain_timeout": 7}, q={}))
        called = gate.call("q", b"1")
        drained = gate.drain()
        self.reactor.advance(6.9)
        self.assertNoResult(drained)
        self.reactor.advance(0.2)
        self.successResultOf(drained)
        gate.abandon()
        self.failureResultOf(called, errors.ShuttingDown)

    def test_stop(self) -> None:
        """Stopping ends every child, the warden last, and leaves no timer."""
        gate = self.build(config(a={}, b={"workers": 2}))
        called = gate.call("a", b"")
        stopped = gate.stop()
        self.failureResultOf(called, errors.ShuttingDown)
        self.reactor.workers[0].reply()
        for child in self.reactor.workers:
            self.assertNoResult(stopped)
            child.exit(0)
        self.successResultOf(stopped)
        self.assertTrue(self.reactor.spawned[0].stdin_closed)
        self.reactor.advance(1.5)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stop_hurry(self) -> None:
        """In a hurry every child is killed at once."""
        stopped = self.build().stop(hurry=True)
        self.reactor.advance(0)
        self.successResultOf(stopped)

    def test_reconfigure(self) -> None:
        """Queues come, change and go; what a removed one has is finished first."""
        gate = self.build(config(stays={}, goes={}, changes={}))
        self.reactor.advance(1)
        called = gate.call("goes", b"")
        gate.reconfigure(config(stays={}, changes={"command": ("new",)}, comes={}))
        self.reactor.advance(0)
        self.assertEqual(sorted(gate.dispatcher.roads), ["changes", "comes", "stays"])
        self.failureResultOf(gate.call("goes", b""), errors.UnknownQueue)
        self.assertEqual([child.command for child in self.reactor.workers[3:]], [["new"], ["w"]])
        old = next(child for child in self.reactor.workers if child.commands)
        old.reply(b"still done")
        self.assertEqual(self.successResultOf(called).body, b"still done")
        self.assertTrue(old.stdin_closed)

    def test_ids_after_a_reload(self) -> None:
        """They go on rising, whatever has been done to the clock; another name is taken on."""
        gate = self.build()
        names = [gate.ids.make()]
        with patch("time.time", lambda: 1.0):
            for _ in range(3):
                gate.reconfigure(config(q={}))
                names.append(gate.ids.make())
            self.assertEqual(names, sorted(names))
            gate.reconfigure(config(q={}, gate={"name": "a"}))
            self.assertTrue(gate.ids.make().startswith("a-0000000003e8"))

    def test_reconfigure_gives_a_command(self) -> None:
        """
        A queue that gets a command by a reload has workers, and says `no-worker` if they cannot
        live.
        """
        gate = self.build(config(q={"command": ()}))
        gate.reconfigure(config(q={}))
        for _ in range(6):
            self.reactor.advance(0)
            if self.reactor.alive:
                self.reactor.alive[0].exit(1)
        self.failureResultOf(gate.call("q", b""), errors.NoWorker)

    def test_reconfigure_takes_the_command(self) -> None:
        """A queue that loses its command keeps its commands waiting."""
        gate = self.build()
        gate.reconfigure(config(q={"command": ()}))
        called: Deferred[Any] = gate.call("q", b"")
        self.assertNoResult(called)
        called.addErrback(lambda _: None)
        self.assertEqual(gate.dispatcher["q"].refusal(), "")

    def test_reconfigure_shards(self) -> None:
        """Other shards after a reload: calls of every key still reach a worker."""
        gate = self.build(config(q={"workers": 2}))
        gate.reconfigure(config(q={"workers": 2, "shards": 2}))
        called = [gate.call("q", b"", key=f"k{n}") for n in range(10)]
        for _ in called:
            for child in self.reactor.workers:
                if child.commands:
                    child.reply()
        for one in called:
            self.successResultOf(one)
