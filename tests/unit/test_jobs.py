"""
Jobs on their Roads: `jobgate.jobs.jobs`, `backlog`, `demand`, `departures`, `outcomes`,
`endings`, `keyed`.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from jobgate import errors
from jobgate.config import Backoff, BatchConfig
from jobgate.jobs import backlog, demand, keyed
from jobgate.jobs.endings import after_failure, as_error, delay
from jobgate.jobs.job import NewJob, Reply, State, document
from jobgate.jobs.journal import Key, Stored
from jobgate.wire import frames
from tests.unit import fakes
from tests.unit.jobs_case import STEADY, JobsCase

ONE = {"command": ("w",), "workers": 1}
ONCE = {**ONE, "retry": "never"}
KEY = Key("scope", "print", keep=60.0)


class JobTests(JobsCase):
    """From a push to its end."""

    def tearDown(self) -> None:
        self.conserved()

    def test_succeeds(self) -> None:
        """A job reaches the worker with its id; what it answers is kept."""
        self.build(q=ONE)
        name = self.push(body=b"work")
        [given] = self.child.commands
        self.assertEqual((given.meta["id"], given.body), (name, b"work"))
        self.assertIs(self.state(name), State.RUNNING)
        self.child.reply(b"done", content_type="t/p", status=201)
        job, reply = self.job(name), self.reply_of(name)
        self.assertEqual((job.state, job.attempt, job.worker), (State.SUCCEEDED, 1, "q-1"))
        assert reply is not None
        self.assertEqual((reply.status, reply.content_type, reply.body), (201, "t/p", b"done"))

    def test_backoff_and_death(self) -> None:
        """FAIL is tried again after 1 and 2 s; after three starts the job is dead."""
        self.build(q=ONE)
        name = self.push()
        for attempt, wait in ((1, 1.0), (2, 2.0)):
            self.assertEqual(self.child.commands[0].meta["attempt"], attempt)
            self.child.fail("no")
            self.assertIs(self.state(name), State.SCHEDULED)
            self.turn(wait - 0.05)
            self.assertIs(self.state(name), State.SCHEDULED)
            self.turn(0.1)
            self.assertIs(self.state(name), State.RUNNING)
        self.child.fail("no")
        job = self.job(name)
        self.assertEqual((job.state, job.attempt, job.spent), (State.DEAD, 3, 3))
        self.assertEqual(len(self.successResultOf(self.journal.tries(name))), 3)
        self.assertTrue(self.successResultOf(self.journal.retry(name)))
        self.turn()
        self.child.reply(b"at last")
        self.assertIs(self.state(name), State.SUCCEEDED)

    def test_final_failure(self) -> None:
        """FAIL with retry: false is final."""
        self.build(q=ONE)
        name = self.push()
        self.child.fail("never", retry=False, status=422)
        self.assertIs(self.state(name), State.FAILED)

    def test_last_words(self) -> None:
        """An attempt is kept with the last that its worker printed."""
        self.build(q={**ONE, "attempts": 2})
        name = self.push()
        child = self.child
        child.complain(b"aaargh\n")
        child.kill(signal.SIGSEGV)
        [one] = self.successResultOf(self.journal.tries(name))
        assert one.error is not None
        self.assertEqual((one.output, one.error["signal"]), ("aaargh\n", "SIGSEGV"))

    def test_poison(self) -> None:
        """What has killed three workers alone is poison; its like is not run for an hour."""
        self.build(q=ONE)
        name = self.push(body=b"poison")
        for wait in (1.1, 2.1, 0.1):
            self.child.kill()
            self.turn(wait)
        error = self.job(name).error
        assert error is not None
        self.assertEqual((self.state(name), error["slug"]), (State.DEAD, "poison-command"))
        self.assertTrue(self.child.alive)
        other = self.push(body=b"poison")
        self.turn(0.1)
        self.assertIs(self.state(other), State.DEAD)
        self.assertEqual(self.gate.jobs.outcomes.deaths, {})

    def test_declined_by_all(self) -> None:
        """A job that every worker declines is offered again in a second, and is not lost."""
        self.build(q=ONE)
        name = self.push()
        for _ in range(3):
            self.child.decline()
            job = self.job(name)
            self.assertEqual((job.state, job.spent), (State.SCHEDULED, 0))
            self.turn(1.1)
        self.child.reply(b"after all")
        self.assertIs(self.state(name), State.SUCCEEDED)

    def test_declined_by_one(self) -> None:
        """What one worker declines another has, under its own name."""
        self.build(q={**ONE, "workers": 2})
        name = self.push()
        first, second = self.reactor.alive
        if not first.commands:
            first, second = second, first
        first.decline()
        second.reply(b"ok")
        job = self.job(name)
        self.assertEqual((job.state, job.attempt), (State.SUCCEEDED, 1))
        self.assertEqual(job.worker, second.env["JOBGATE_WORKER"])

    def test_cancel_waiting(self) -> None:
        """A waiting job that is cancelled is never run."""
        self.build(q=ONE)
        running, waiting = self.push(), self.push()
        self.successResultOf(self.journal.cancel(waiting, "by request"))
        self.child.reply()
        self.assertEqual(self.child.commands, [])
        self.assertIs(self.state(running), State.SUCCEEDED)
        self.assertIs(self.state(waiting), State.CANCELLED)

    def test_cancel_running(self) -> None:
        """A running job that is cancelled: its worker is told, and its reply dropped."""
        self.build(q=ONE)
        name = self.push()
        self.successResultOf(self.journal.cancel(name, "by request"))
        self.assertIn(frames.CANCEL, self.child.kinds)
        self.child.reply(b"too late")
        self.assertIs(self.state(name), State.CANCELLED)

    def test_cancel_streaming(self) -> None:
        """Likewise one whose reply has begun to come."""
        self.build(q=ONE)
        name = self.push()
        self.child.frame(frames.CHUNK, self.child.commands[0].id, None, b"part")
        self.successResultOf(self.journal.cancel(name, "by request"))
        self.assertIn(frames.CANCEL, self.child.kinds)
        self.child.reply(b"rest")
        self.assertIs(self.state(name), State.CANCELLED)
        other = self.push()
        self.child.reply(b"ok")
        self.assertIs(self.state(other), State.SUCCEEDED)

    def test_expires(self) -> None:
        """A job that waits too long is dead, wherever it waits."""
        self.build(q={**ONE, "expires": 5.0})
        running, waiting = self.push(), self.push()
        self.turn(5.1)
        self.assertIs(self.state(waiting), State.DEAD)
        self.child.reply()
        self.assertIs(self.state(running), State.SUCCEEDED)
        self.assertEqual(self.child.commands, [])

    def test_delay_and_expiry(self) -> None:
        """Of a delay and an expiry the sooner one is looked at in time."""
        self.build(q={**ONE, "expires": 2.0})
        name = self.push(delay=30.0)
        self.turn(2.1)
        self.assertIs(self.state(name), State.DEAD)

    def test_window(self) -> None:
        """RAM holds a window of the backlog, and all of it is run."""
        self.patch(demand, "_WINDOW", 100)
        self.patch(backlog, "_AT_ONCE", 70)
        self.build(q=ONE)
        names = [self.push(body=b"%d" % number) for number in range(300)]
        self.assertEqual(len(self.gate.jobs.backlogs["q"].window), 101)
        for number in range(300):
            [given] = self.child.commands
            self.assertEqual(given.body, b"%d" % number)
            self.child.reply(given.body)
        self.assertEqual({self.state(name) for name in names}, {State.SUCCEEDED})

    def test_no_worker_no_window(self) -> None:
        """A queue that nobody drains holds nothing in RAM."""
        self.build(q={})
        for _ in range(10):
            self.push()
        backlog = self.gate.jobs.backlogs["q"]
        self.assertEqual((len(backlog.window), backlog.stored), (0, 10))

    def test_calls_of_many_bytes(self) -> None:
        """A job is run once the calls, whose bodies are as much as RAM is to hold, have ended."""
        self.build(q=ONE)
        calls = [self.gate.call("q", bytes(9 << 20)) for _ in range(3)]
        name = self.push()
        for _ in range(3):
            self.child.reply()
        for called in calls:
            self.successResultOf(called)
        self.child.reply(b"job")
        self.assertIs(self.state(name), State.SUCCEEDED)

    def test_drain(self) -> None:
        """A drain finishes what runs, leaves what waits, and takes nothing more."""
        gate = self.build(q=ONE)
        running, waiting = self.push(), self.push()
        drained = gate.drain()
        self.failureResultOf(gate.push("q", b""), errors.ShuttingDown)
        self.failureResultOf(gate.push("other", b""), errors.ShuttingDown)
        self.child.reply()
        self.successResultOf(drained)
        self.assertIs(self.state(running), State.SUCCEEDED)
        self.assertIs(self.state(waiting), State.QUEUED)

    def test_drained_out(self) -> None:
        """What runs still when the drain's time is up is queued again, its start not spent."""
        gate = self.build(gate={"drain_timeout": 5}, q=ONE)
        name = self.push()
        drained = gate.drain()
        self.turn(5.1)
        self.successResultOf(drained)
        gate.abandon()
        job = self.job(name)
        self.assertEqual((job.state, job.attempt, job.spent), (State.QUEUED, 1, 0))

    def test_purge(self) -> None:
        """A purge cancels all that waits, in the window or not, and what is late."""
        gate = self.build(q=ONE)
        names = [self.push() for _ in range(300)] + [self.push(delay=60)]
        self.assertEqual(self.successResultOf(gate.jobs.purge("q")), 300)
        self.child.reply()
        self.assertEqual(self.child.commands, [])
        states = [self.state(name) for name in names]
        self.assertEqual(states, [State.SUCCEEDED, *[State.CANCELLED] * 300])

    def test_max_backlog(self) -> None:
        """Over `max_backlog` a push is refused, and counted as shed."""
        gate = self.build(q={"max_backlog": 2})
        self.push()
        self.push()
        self.failureResultOf(gate.push("q", b""), errors.QueueFull)
        self.assertEqual(gate.dispatcher["q"].stats.shed, 1)

    def test_when_there_may_be_room(self) -> None:
        """Who is refused is told when so many will have gone, as far as that has been measured."""
        gate = self.build(q={**ONE, "max_backlog": 2})
        for _ in range(3):
            self.push()
        self.turn(5.0)
        self.child.reply(b"")
        self.push()
        refused = self.failureResultOf(gate.push("q", b""), errors.QueueFull).value
        self.assertEqual(refused.retry_after, 10)

    def test_streamed(self) -> None:
        """The parts of a streamed reply are kept as one."""
        self.build(q=ONE)
        name = self.push()
        number = self.child.commands[0].id
        self.child.frame(frames.CHUNK, number, {"content_type": "t/p", "status": 201}, b"one,")
        self.child.frame(frames.CHUNK, number, None, b"two,")
        self.child.reply(b"three")
        reply = self.reply_of(name)
        assert reply is not None
        self.assertEqual((reply.status, reply.content_type), (201, "t/p"))
        self.assertEqual(reply.body, b"one,two,three")

    def test_stream_cut_off(self) -> None:
        """A stream whose worker dies is tried again, from its beginning."""
        self.build(q=ONE)
        name = self.push()
        self.child.frame(frames.CHUNK, self.child.commands[0].id, None, b"one,")
        self.child.kill()
        self.turn(1.1)
        self.child.reply(b"all")
        reply = self.reply_of(name)
        assert reply is not None
        self.assertEqual(reply.body, b"all")

    def test_trouble_while_taking(self) -> None:
        """What could not be taken for a while is taken once the store is well."""
        gate = self.build(q={})
        name = self.push()
        take, self.journal.take = self.journal.take, self._unavailable  # type: ignore[method-assign]
        _, got = self.pulling(wait=60)
        self.assertEqual(got, [])
        self.journal.take = take  # type: ignore[method-assign]
        self.turn(1.1)
        [[command]] = got
        self.assertEqual(command.id, name)
        gate.leases.hand_over(gate.dispatcher["q"], [command])

    @staticmethod
    def _unavailable(*_: Any, **__: Any) -> Any:
        refused: Deferred[Any] = Deferred()
        refused.errback(errors.StoreUnavailable("the disk is full"))
        return refused

    def test_batch(self) -> None:
        """Jobs that die together are parted until the culprit stands alone; the others succeed."""
        self.build(q={**ONE, "batch": BatchConfig(size=4), "attempts": 2})
        names = [self.push(body=body) for body in (b"0", b"a", b"b", b"bad", b"c")]
        for _ in range(40):
            child = self.child
            given = child.commands
            if not given:
                self.turn(1.5)
                if all(self.state(name) >= State.SUCCEEDED for name in names):
                    break
                continue
            if any(command.body == b"bad" for command in given):
                child.kill()
                self.turn(0.1)
                continue
            for command in given:
                child.reply(command.body, to=command.id)
        states = [self.state(name) for name in names]
        good = State.SUCCEEDED
        self.assertEqual(states, [good, good, good, State.DEAD, good])

    def test_audit(self) -> None:
        """Acceptance and outcome of jobs are written down as those of calls are."""
        path = Path("audit.jsonl").absolute()
        self.build(gate={"audit": str(path)}, q={**ONE, "max_backlog": 3, "attempts": 1})
        good, bad, gone = self.push(), self.push(), self.push()
        self.push(delay=60)
        self.failureResultOf(self.gate.push("q", b""), errors.QueueFull)
        self.child.reply(status=201)
        self.successResultOf(self.journal.cancel(gone, "by request"))
        self.child.fail("no")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        told = [(line["event"], line["id"], line.get("status")) for line in lines]
        self.assertEqual([event for event, _, _ in told[:5]], ["accepted"] * 4 + ["refused"])
        self.assertEqual(told[4][2], "queue-full")
        self.assertEqual(
            told[5:],
            [("ended", good, 201), ("ended", gone, "cancelled"), ("ended", bad, "command-failed")],
        )
        self.assertEqual(
            {key for line in lines for key in line},
            {"at", "event", "id", "queue", "token", "attempt", "status", "waited", "ran"},
        )


class OnceTests(JobsCase):
    """`retry = "never"`."""

    def tearDown(self) -> None:
        self.conserved()

    def test_jobs_take_no_call_its_place(self) -> None:
        """The bodies of jobs that wait count for their store, not for what calls may bring."""
        gate = self.build(q={**ONE, "max_waiting_bytes": 10})
        road = gate.dispatcher["q"]
        road.pause()
        for _ in range(3):
            self.push(body=b"x" * 50)
        self.push_lines([b"y" * 50, b"z" * 50])
        self.assertEqual(road.bytes_waiting, 250)
        gate.call("q", b"123456").addErrback(lambda _: None)
        self.failureResultOf(gate.call("q", b"78901"), errors.QueueFull)
        self.assertEqual((road.waiting, road.bytes_waiting), (6, 256))

    def test_start_is_stored_first(self) -> None:
        """The worker has it only once its start is stored."""
        self.build(q=ONCE)
        self.journal._writer.hold()
        pushed = self.gate.push("q", b"")
        self.assertEqual(self.child.commands, [])
        self.journal._writer.release()
        name = self.successResultOf(pushed)
        self.child.reply(b"ok")
        job = self.job(name)
        self.assertEqual((job.state, job.attempt, job.worker), (State.SUCCEEDED, 1, "q-1"))

    def test_death(self) -> None:
        """A death makes it dead: it may have run."""
        self.build(q=ONCE)
        name = self.push()
        self.child.kill()
        job = self.job(name)
        assert job.error is not None
        self.assertEqual((job.state, job.error["executed"]), (State.DEAD, "maybe"))

    def test_behind_a_call(self) -> None:
        """It is taken when a call has freed the worker, though nobody pushes any more."""
        self.build(q=ONCE)
        called = self.gate.call("q", b"call")
        name = self.push(body=b"job")
        self.assertIs(self.state(name), State.QUEUED)
        self.child.reply()
        self.successResultOf(called)
        [given] = self.child.commands
        self.assertEqual(given.body, b"job")
        self.child.reply()
        self.assertIs(self.state(name), State.SUCCEEDED)

    def test_drain_while_its_start_is_stored(self) -> None:
        """It is not begun then, and waits for the next start."""
        self.build(q=ONCE)
        name = self.push()
        self.child.reply()
        start, kept = self.journal.start, []

        def starting(*args: Any) -> Any:
            waiting: Deferred[None] = Deferred()
            kept.append((waiting, args))
            return waiting

        self.journal.start = starting  # type: ignore[method-assign]
        second = self.push()
        drained = self.gate.drain()
        for waiting, args in kept:
            start(*args)
            waiting.callback(None)
        self.turn()
        self.assertEqual(self.child.commands, [])
        self.successResultOf(drained)
        self.assertEqual((self.state(name), self.state(second)), (State.SUCCEEDED, State.QUEUED))


class RestartTests(JobsCase):
    """What the next gate finds."""

    def setUp(self) -> None:
        super().setUp()
        self.path = self.mktemp()

    def crash(self, **queues: Any) -> None:
        """The gate dies by `kill -9`, and another starts."""
        self.journal._writer._groups._home.release()
        self.reactor.discard()
        self.reactor = SpawningReactorAt(self.reactor.seconds())
        self.reactor.install()
        self.addCleanup(self.reactor.discard)
        self.build(path=self.path, **queues)

    def test_kept(self) -> None:
        """What ran runs again, its start counted and not spent; what waits waits."""
        self.build(path=self.path, q=ONE)
        running, waiting, late = self.push(), self.push(), self.push(delay=50)
        self.crash(q=ONE)
        self.conserved()
        self.assertEqual(self.child.commands[0].meta["attempt"], 2)
        self.child.reply()
        self.child.reply()
        states = [self.state(name) for name in (running, waiting, late)]
        self.assertEqual(states, [State.SUCCEEDED, State.SUCCEEDED, State.SCHEDULED])
        self.assertEqual((self.job(running).attempt, self.job(running).spent), (2, 1))
        self.turn(51)
        self.child.reply()
        self.assertIs(self.state(late), State.SUCCEEDED)
        self.conserved()

    def test_queue_is_gone(self) -> None:
        """Jobs of a queue that is not configured any more wait for a puller, or its return."""
        self.build(path=self.path, q=ONE)
        self.push()
        name = self.push()
        self.crash(other=ONE)
        self.conserved()
        self.assertIs(self.state(name), State.QUEUED)
        self.successResultOf(self.gate.pull("q"))
        self.assertIs(self.state(name), State.QUEUED)
        self.conserved()


class ReloadTests(JobsCase):
    """Queues come and go while there are jobs."""

    def tearDown(self) -> None:
        self.conserved()

    def reload(self, **queues: Any) -> None:
        self.gate.reconfigure(self.tables(**queues))
        self.turn()
        for child in self.reactor.alive:
            if not any(frame.kind == frames.WELCOME for frame in child.frames):
                child.hello()
        self.turn()

    def test_goes_and_comes_back(self) -> None:
        """What runs ends where it is; what waits goes on when its queue is there again."""
        self.build(q=ONE)
        running, waiting = self.push(), self.push()
        [old] = self.reactor.alive
        self.reload(other=ONE)
        self.assertIs(self.state(waiting), State.QUEUED)
        self.conserved()
        old.reply(b"old")
        self.assertIs(self.state(running), State.SUCCEEDED)
        self.conserved()
        self.reload(q=ONE, other=ONE)
        [new] = [child for child in self.reactor.alive if child.commands]
        new.reply(b"new")
        self.assertIs(self.state(waiting), State.SUCCEEDED)

    def test_goes_without_jobs(self) -> None:
        """A queue without jobs is no more."""
        self.build(q=ONE)
        self.reload(other=ONE)
        self.assertNotIn("q", self.gate.dispatcher.roads)
        self.failureResultOf(self.gate.call("q", b""), errors.UnknownQueue)

    def test_configured_at_last(self) -> None:
        """A queue that its name has made is configured: what waits is run, nobody is sent off."""
        gate = self.build()
        name = self.push("q")
        pulled = gate.pull("p", wait=60)
        self.reload(q=ONE, p=ONE)
        [child] = [child for child in self.reactor.alive if child.commands]
        child.reply(b"ok")
        self.assertIs(self.state(name), State.SUCCEEDED)
        self.assertNoResult(pulled)
        pulled.cancel()
        self.failureResultOf(pulled)

    def test_waiting_pullers_of_a_queue_that_goes(self) -> None:
        """They are answered, with nothing."""
        gate = self.build(q={})
        pulled = gate.pull("q", wait=60)
        self.reload(other={})
        self.assertIsNone(self.successResultOf(pulled))

    def test_another_store(self) -> None:
        """Another store needs a restart: it is said, and the old one goes on."""
        self.build(q=ONE)
        with capturedLogs() as logs:
            self.gate.reconfigure(self.tables(gate={"store": "memory:"}, q=ONE))
        self.assertIn("restart", "".join(formatEvent(event) for event in logs))
        with capturedLogs() as logs:
            self.gate.reconfigure(self.tables(q=ONE))
        self.assertNotIn("restart", "".join(formatEvent(event) for event in logs))
        self.push()
        self.child.reply()


class KeyedTests(JobsCase):
    """Calls with an idempotency key."""

    def setUp(self) -> None:
        super().setUp()
        self.build(q=ONE)

    def tearDown(self) -> None:
        self.conserved()
        self.assertEqual(self.gate.jobs.calls, {})

    def call(self, key: Key = KEY, body: bytes = b"", **how: Any) -> Deferred[keyed.Outcome]:
        self.name = self.gate.ids.make()
        command = fakes.command(body, id=self.name, now=self.reactor.seconds(), **how)
        road = self.gate.dispatcher["q"]
        return Deferred.fromCoroutine(keyed.call(self.gate.jobs, road, command, key))

    def test_joins_and_repeats(self) -> None:
        """Two with the same key are one run; a third gets the same later."""
        first, second = self.call(), self.call()
        [given] = self.child.commands
        self.assertNoResult(second)
        self.child.reply(b"once")
        one, two = self.successResultOf(first), self.successResultOf(second)
        three = self.successResultOf(self.call())
        self.assertEqual([o.reply.body for o in (one, two, three)], [b"once"] * 3)
        self.assertEqual([o.replayed for o in (one, two, three)], [False, True, True])
        self.assertEqual({o.job.id for o in (one, two, three)}, {given.meta["id"]})
        self.assertEqual(self.child.commands, [])

    def test_other_body(self) -> None:
        """The same key for something else is refused."""
        first = self.call()
        other = Key("scope", "another")
        self.failureResultOf(self.call(other), errors.Unprocessable)
        self.child.reply()
        self.successResultOf(first)
        self.failureResultOf(self.call(other), errors.Unprocessable)

    def test_not_run_not_kept(self) -> None:
        """What was not run is not kept: the next one with that key has it run."""
        self.gate.dispatcher["q"].pause()
        first = self.call(timeout=1.0)
        self.turn(1.1)
        self.failureResultOf(first, errors.QueueTimeout)
        self.failureResultOf(self.gate.jobs.get(self.name), errors.UnknownJob)
        self.gate.dispatcher["q"].resume()
        again = self.call()
        self.child.reply(b"now")
        self.assertFalse(self.successResultOf(again).replayed)

    def test_joined_what_was_not_run(self) -> None:
        """Who has joined one that was not run has it run in its own time."""
        self.gate.dispatcher["q"].pause()
        first, second = self.call(timeout=1.0), self.call(timeout=10.0)
        self.turn(1.1)
        self.failureResultOf(first, errors.QueueTimeout)
        self.assertNoResult(second)
        self.gate.dispatcher["q"].resume()
        self.child.reply(b"second")
        self.assertEqual(self.successResultOf(second).reply.body, b"second")

    def test_failure_is_kept(self) -> None:
        """A failure of what may have run is repeated, too."""
        first = self.call()
        self.child.kill()
        self.assertIs(self.successResultOf(first).job.state, State.FAILED)
        again = self.successResultOf(self.call())
        error = as_error(again.job.error or {})
        self.assertEqual((error.slug, error.executed), ("worker-died", "maybe"))

    def test_joins_for_a_time(self) -> None:
        """Who joins waits no longer than its own deadline, and is told how far it is."""
        first, second = self.call(), self.call(timeout=1.0)
        self.turn(1.1)
        self.failureResultOf(second, errors.WorkerTimeout)
        self.child.reply()
        self.successResultOf(first)

    def test_joins_what_waits(self) -> None:
        """Who joins a job that waits, waits for its start as long as a call may."""
        self.gate.dispatcher["q"].pause()
        [name] = self.gate.ids.some(1)
        self.successResultOf(self.gate.jobs.put([NewJob(name, "q", b"", "t/p")], key=KEY))
        joined = self.call()
        self.turn(29.0)
        self.assertNoResult(joined)
        self.turn(1.1)
        error = self.failureResultOf(joined, errors.QueueTimeout).value
        self.assertIn("30.000 s", str(error))
        self.assertEqual((error.executed, error.extra["id"]), ("no", name))
        late = self.call()
        self.turn(29.0)
        self.gate.dispatcher["q"].resume()
        self.turn(50.0)
        self.assertNoResult(late)
        self.child.reply(b"at last")
        self.assertEqual(self.successResultOf(late).reply.body, b"at last")

    def test_joined_and_the_gate_stops(self) -> None:
        """Who has joined a job is told that it waits for the next start; one that runs ends."""
        running, waiting = self.gate.ids.some(2)
        keys = Key("one", "its print"), Key("two", "its print")
        for name, key in zip((running, waiting), keys, strict=True):
            job = NewJob(name, "q", b"", "t/p", keep=60.0)
            self.successResultOf(self.gate.jobs.put([job], key=key))
        first, second = map(self.call, keys)
        self.turn()
        self.gate.drain()
        error = self.failureResultOf(second, errors.ShuttingDown).value
        self.assertEqual((error.executed, error.extra["id"]), ("no", waiting))
        self.turn(40.0)
        self.assertNoResult(first)
        self.child.reply(b"done")
        self.assertEqual(self.successResultOf(first).reply.body, b"done")

    def test_joins_what_waits_again(self) -> None:
        """A job that waits for its next attempt may have run, whatever its time is called."""
        [name] = self.gate.ids.some(1)
        job = NewJob(name, "q", b"", "t/p", attempts=3)
        self.successResultOf(self.gate.jobs.put([job], key=KEY))
        self.child.fail("not yet")
        self.turn()
        joined = self.call(timeout=0.5)
        self.turn(0.6)
        error = self.failureResultOf(joined, errors.QueueTimeout).value
        self.assertEqual((error.executed, error.extra["id"]), ("maybe", name))
        self.turn(5.0)
        self.child.reply()

    def test_declined(self) -> None:
        """One that all workers decline is as if it had never been."""
        first = self.call()
        self.child.decline()
        self.failureResultOf(first, errors.NoWorker)
        again = self.call()
        self.child.reply(b"ok")
        self.assertEqual(self.successResultOf(again).reply.body, b"ok")

    def test_cancelled_by_id(self) -> None:
        """Cancelled by its id it ends so, for its caller, too."""
        first = self.call()
        self.successResultOf(self.journal.cancel(self.name, "by request"))
        self.assertIs(self.successResultOf(first).job.state, State.CANCELLED)
        self.assertIn(frames.CANCEL, self.child.kinds)
        self.child.reply()

    def test_cancelled_while_it_is_stored(self) -> None:
        """Cancelled in the same breath in which it was stored, it is not begun."""
        self.journal._writer.hold()
        first = self.call()
        self.journal.cancel(self.name, "by request")
        self.journal._writer.release()
        self.assertIs(self.successResultOf(first).job.state, State.CANCELLED)
        self.assertEqual(self.child.commands, [])

    def test_refused(self) -> None:
        """One that is refused at the door ends so, and is not kept."""
        self.gate.dispatcher["q"].draining = True
        self.failureResultOf(self.call(), errors.ShuttingDown)
        self.failureResultOf(self.gate.jobs.get(self.name), errors.UnknownJob)
        self.assertEqual(self.flushLoggedErrors(), [])
        self.gate.dispatcher["q"].draining = False

    def test_cancelled_while_streaming(self) -> None:
        """Likewise while its reply comes in parts."""
        first = self.call()
        self.child.frame(frames.CHUNK, self.child.commands[0].id, None, b"part")
        self.successResultOf(self.journal.cancel(self.name, "by request"))
        self.assertIs(self.successResultOf(first).job.state, State.CANCELLED)
        self.child.reply()

    def test_served_by_a_puller(self) -> None:
        """A puller may serve it; what it says is kept."""
        self.gate.dispatcher["q"].pause()
        first = self.call()
        for child in self.reactor.alive:
            child.exit(0)
        self.gate.dispatcher["q"].resume()
        command = self.successResultOf(self.gate.pull("q"))
        assert command is not None
        self.done(self.gate.leases.reply(command.id, "", Reply(200, "t/p", b"pulled")))
        self.assertEqual(self.successResultOf(first).reply.body, b"pulled")
        self.assertEqual(self.successResultOf(self.call()).reply.body, b"pulled")

    def test_trouble_after_the_run(self) -> None:
        """An outcome that cannot be stored is no answer: 503, executed: yes; later it is there."""
        first = self.call()
        self.journal._writer.hold()
        self.child.reply(b"done")
        self.assertNoResult(first)
        self.turn(5.1)
        error = self.failureResultOf(first, errors.StoreUnavailable).value
        self.assertEqual(error.executed, "yes")
        self.journal._writer.release()
        self.assertEqual(self.successResultOf(self.call()).reply.body, b"done")

    def test_drain(self) -> None:
        """A drain lets it end, for all who have joined."""
        first, second = self.call(), self.call()
        drained = self.gate.drain()
        self.assertNoResult(second)
        self.child.reply(b"done")
        self.successResultOf(drained)
        bodies = [self.successResultOf(each).reply.body for each in (first, second)]
        self.assertEqual(bodies, [b"done", b"done"])


class EndingTests(SynchronousTestCase):
    """Pure: an error in, an ending out."""

    @given(st.integers(1, 200), st.floats(0, 1))
    def test_delay(self, spent: int, chance: float) -> None:
        """Exponential, never over the bound, within its jitter."""
        backoff = Backoff(first=1.0, factor=2.0, max=60.0, jitter=0.2)
        seconds = delay(backoff, spent, lambda: chance)
        middle = min(2.0 ** (spent - 1), 60.0)
        self.assertTrue(middle * 0.799 <= seconds <= middle * 1.201, (spent, seconds))

    @given(
        st.sampled_from(
            [
                errors.WorkerDied("d"),
                errors.WorkerTimeout("t"),
                errors.LeaseLapsed("l"),
                errors.CommandFailed("f"),
                errors.CommandFailed("f", again=False),
                errors.InternalError("i"),
                errors.Unprocessable("u"),
                errors.BadRequest("b"),
                errors.PoisonCommand("p"),
                errors.ShuttingDown("s", executed="maybe"),
                errors.ShuttingDown("s"),
                errors.NoWorker("n"),
            ]
        ),
        st.integers(0, 5),
        st.integers(1, 5),
        st.booleans(),
    )
    def test_after_failure(self, error: Any, spent: int, attempts: int, once: bool) -> None:
        """Never a start too many, never one too few."""
        ending = after_failure(
            error, spent=spent, attempts=attempts, once=once, backoff=STEADY, random=lambda: 0.5
        )
        again = ending.state in (State.QUEUED, State.SCHEDULED)
        if again and ending.spent:
            self.assertLess(spent + 1, attempts)
        if again and error.executed != "no":
            self.assertFalse(once)
        if isinstance(error, errors.CommandFailed) and not error.again:
            self.assertIs(ending.state, State.FAILED)
        self.assertEqual(as_error(ending.error or {}).slug, error.slug)

    def test_round_trip(self) -> None:
        """What is stored of an error makes the same error."""
        for error in (
            errors.WorkerDied("why", exit_status=3, signal=None, attempt=2),
            errors.CommandFailed("title", "detail", 418),
            errors.Cancelled("because"),
        ):
            again = as_error(document(error))
            self.assertEqual(document(again), document(error))
            self.assertIs(type(again), type(error))


class PutTests(JobsCase):
    """What a put that fails leaves behind."""

    def test_refused_claims(self) -> None:
        """Room that was kept for jobs that do not come is free again."""
        gate = self.build(q=ONE)
        put, self.journal.put = self.journal.put, JobTests._unavailable  # type: ignore[method-assign]
        for _ in range(300):
            self.failureResultOf(gate.push("q", b""), errors.StoreUnavailable)
        self.journal.put = put  # type: ignore[method-assign]
        name = self.push()
        self.child.reply()
        self.assertIs(self.state(name), State.SUCCEEDED)
        self.conserved()

    def test_known_key(self) -> None:
        """A repeated push claims nothing."""
        from tests.unit.journal_suite import new

        gate = self.build(q=ONE)
        first = self.successResultOf(gate.jobs.put([new("a")], key=KEY))
        again: Stored = self.successResultOf(gate.jobs.put([new("b")], key=KEY))
        assert again.kept is not None
        self.assertEqual((first.kept, again.kept.id), (None, "a"))
        self.child.reply()
        self.assertEqual(self.child.commands, [])
        self.conserved()


def SpawningReactorAt(seconds: float) -> Any:
    """A reactor whose clock goes on where another's stood."""
    from jobgate.testing import SpawningReactor

    reactor = SpawningReactor()
    reactor.rightNow = seconds
    return reactor
