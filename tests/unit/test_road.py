"""
`jobgate.gate.road` and `runner`: from admission to the one outcome, with fake workers.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from jobgate import errors
from jobgate.command import DONE, RUNNING, WAITING, Command, Reply
from jobgate.gate.road import Road
from jobgate.pool.roles import Loss
from jobgate.stream import ReplyStream
from jobgate.testing import Recorder
from tests.unit.fakes import FakeWorker, SteppingClock, command, queue_config

if TYPE_CHECKING:
    from jobgate.errors import JobgateError

DIED = Loss("died", "killed by SIGSEGV", None, "SIGSEGV")


def leave(command: Command) -> None:
    """Its caller goes away, and nobody asks what became of it."""
    command.reply.addErrback(lambda failure: failure.trap(CancelledError) and None)
    command.reply.cancel()


class FakePool:
    """A Supervisor that is told what to say."""

    crash_loop = False
    retry_in = 2.5
    last_cause = "exited with status 1"
    asked = 0

    def needed(self) -> None:
        self.asked += 1


class RoadCase(SynchronousTestCase):
    """A road, a clock and what it takes to use them."""

    def setUp(self) -> None:
        self.numbers = count(1)
        self.build()

    def build(self, **changes: Any) -> None:
        self.clock = SteppingClock()
        self.clock.rightNow = 1000.0
        self.audit = Recorder()
        config = queue_config(**{"command": ("x",), **changes})
        self.road = Road(config, self.clock, self.audit)  # type: ignore[arg-type]
        self.addCleanup(self.road.close)

    def worker(
        self, name: str = "w", capacity: int = 1, *, ordered: bool = False, post: int = 0
    ) -> FakeWorker:
        return FakeWorker(self.clock, name, capacity, ordered=ordered).work_for(self.road, post)

    def submit(self, body: bytes = b"", **how: Any) -> Command:
        named = {key: how.pop(key) for key in ("key", "no_queue") if key in how}
        made = command(body, id=str(next(self.numbers)), now=self.clock.seconds(), **how)
        self.road.submit(made, **named)
        return made

    def refused(self, kind: type[JobgateError], body: bytes = b"", **how: Any) -> Any:
        before = self.road.stats.shed
        error = self.assertRaises(kind, self.submit, body, **how)
        self.assertEqual(self.road.stats.shed, before + 1)
        self.conserved()
        return error

    def failed(self, made: Command, kind: type[JobgateError]) -> Any:
        error = self.failureResultOf(made.reply, kind).value
        self.conserved()
        return error

    def conserved(self) -> None:
        stats, road = self.road.stats, self.road
        self.assertEqual(
            stats.accepted,
            stats.succeeded
            + stats.failed
            + stats.shed
            + stats.cancelled
            + road.waiting
            + road.running,
        )


class AdmissionTests(RoadCase):
    """What may come in."""

    def test_success(self) -> None:
        """A command goes to the free worker at once and its reply comes back."""
        worker = self.worker()
        made = self.submit(b"x")
        self.assertEqual((made.state, made.attempt, made.began), (RUNNING, 1, 1000.0))
        self.clock.advance(0.5)
        reply = worker.reply(body=b"y")
        self.assertIs(self.successResultOf(made.reply), reply)
        self.assertEqual((made.state, made.ended), (DONE, 1000.5))
        self.assertEqual(self.audit.names, ["accepted", "ended"])
        self.conserved()

    def test_full(self) -> None:
        """One over `size` is refused with the time the queue takes to drain, at its own rate."""
        self.build(size=2, queue_timeout=0)
        worker = self.worker()
        self.submit()
        self.clock.advance(4.0)
        worker.reply()
        for _ in range(3):
            self.submit()
        error = self.refused(errors.QueueFull)
        self.assertEqual(error.retry_after, 12)
        self.assertEqual(self.road.waiting, 2)

    def test_size_zero(self) -> None:
        """With size 0 only a free worker's place counts."""
        self.build(size=0)
        self.refused(errors.QueueFull)
        self.worker()
        self.submit()
        self.refused(errors.QueueFull)

    def test_bytes(self) -> None:
        """Waiting bodies are bounded, but one alone may always wait."""
        self.build(max_waiting_bytes=10)
        self.submit(b"x" * 50)
        self.refused(errors.QueueFull, b"y")
        self.assertEqual(self.road.bytes_waiting, 50)

    def test_no_queue(self) -> None:
        """`Jobgate-No-Queue` is refused unless a worker is free now, and it does run if one is."""
        self.refused(errors.QueueFull, no_queue=True)
        worker = self.worker()
        self.assertEqual(self.submit(no_queue=True).state, RUNNING)
        self.refused(errors.QueueFull, no_queue=True)
        worker.reply()
        self.road.pause()
        self.refused(errors.QueueFull, no_queue=True)

    def test_would_miss_deadline(self) -> None:
        """What would wait longer than is left is refused; a more urgent one comes in."""
        self.build(queue_timeout=0, timeout=0)
        worker = self.worker()
        self.submit()
        self.clock.advance(10.0)
        worker.reply()
        for _ in range(3):
            self.submit(priority=5)
        error = self.refused(errors.WouldMissDeadline, timeout=15.0, priority=5)
        self.assertGreaterEqual(error.retry_after, 1)
        self.assertEqual(error.executed, "no")
        self.submit(timeout=15.0, priority=0)

    def test_queue_timeout_counts_as_deadline(self) -> None:
        """A wait beyond `queue_timeout` is refused at the door too."""
        self.build(queue_timeout=15, timeout=0)
        worker = self.worker()
        self.submit()
        self.clock.advance(10.0)
        worker.reply()
        self.submit()
        self.submit()
        self.refused(errors.WouldMissDeadline)

    def test_draining(self) -> None:
        """A draining road takes nothing new and finishes what it has."""
        worker = self.worker()
        made = self.submit()
        self.road.draining = True
        self.refused(errors.ShuttingDown)
        worker.reply()
        self.successResultOf(made.reply)

    def test_crash_loop(self) -> None:
        """In a crash loop new commands are refused and waiting ones told, with Retry-After."""
        self.road.pool = pool = FakePool()  # type: ignore[assignment]
        made = self.submit()
        pool.crash_loop = True
        self.refused(errors.NoWorker)
        self.road.pool_changed()
        error = self.failed(made, errors.NoWorker)
        self.assertEqual((error.retry_after, error.executed), (3.5, "no"))
        self.assertIn("status 1", error.detail)
        self.assertIn("no worker", self.road.refusal())

    def test_lines(self) -> None:
        """With `lines` a body becomes one line, or is a bad request."""
        self.build(protocol="lines")
        self.refused(errors.BadRequest, b"two\nlines")
        self.assertEqual(self.submit(b"[1,\n2]", content_type="application/json").body, b"[1,2]")

    def test_lines_hostile_json(self) -> None:
        """JSON that cannot be read at all is a bad request and counted, not a bug."""
        self.build(protocol="lines")
        self.refused(errors.BadRequest, b"[" * 200_000, content_type="application/json")

    def test_audit_of_a_refusal(self) -> None:
        """A refusal is in the audit, as one line."""
        self.build(size=0)
        self.refused(errors.QueueFull)
        self.assertEqual(self.audit.names, ["refused"])


class OutcomeTests(RoadCase):
    """One outcome, whatever happens."""

    def test_fail(self) -> None:
        """FAIL is the caller's error, and never tried again."""
        self.build(retry="safe")
        worker = self.worker()
        made = self.submit()
        worker.fail(errors.CommandFailed("no", "why", 422))
        self.assertEqual(self.failed(made, errors.CommandFailed).status, 422)
        self.assertEqual(len(worker.seen), 1)

    def test_queue_timeout(self) -> None:
        """A command that waits too long ends with `queue-timeout`, not started, in time."""
        self.build(queue_timeout=5)
        made = self.submit()
        self.clock.advance(4.99)
        self.assertNoResult(made.reply)
        self.clock.advance(0.03)
        error = self.failed(made, errors.QueueTimeout)
        self.assertEqual((error.executed, self.road.waiting, made.attempt), ("no", 0, 0))

    def test_callers_deadline_in_the_queue(self) -> None:
        """`Jobgate-Timeout` ends a waiting command with `queue-timeout`."""
        made = self.submit(timeout=1.0)
        self.clock.advance(1.02)
        self.failed(made, errors.QueueTimeout)

    def test_callers_deadline_while_running(self) -> None:
        """
        It ends a running one with `worker-timeout`; the worker is told, not killed, and stays
        bound.
        """
        worker = self.worker()
        made = self.submit(timeout=1.0)
        waiting = self.submit()
        self.clock.advance(1.02)
        error = self.failed(made, errors.WorkerTimeout)
        self.assertEqual((error.executed, error.extra["attempt"]), ("maybe", 1))
        self.assertEqual((worker.cancelled, worker.overruns), ([made], []))
        self.assertEqual(waiting.state, WAITING)
        worker.reply(made)
        self.assertEqual(waiting.state, RUNNING)
        self.assertEqual((self.road.stats.failed, self.road.stats.succeeded), (1, 0))

    def test_callers_deadline_behind_another(self) -> None:
        """
        A worker that keeps the order has not begun what it was given beforehand: that waited
        still, but nobody can promise that it is not begun yet.
        """
        worker = self.worker(capacity=3, ordered=True)
        running, behind = self.submit(timeout=1.0), self.submit(timeout=1.0)
        last = self.submit()
        self.clock.advance(1.02)
        self.failed(running, errors.WorkerTimeout)
        error = self.failed(behind, errors.QueueTimeout)
        # Those whose time is up at the same moment are looked at in any order.
        self.assertCountEqual(worker.cancelled, [running, behind])
        self.assertEqual((error.executed, worker.overruns), ("maybe", []))
        for _ in range(3):
            worker.reply()
        self.successResultOf(last.reply)
        self.assertEqual((self.road.stats.failed, self.road.stats.succeeded), (2, 1))

    def test_callers_deadline_beside_another(self) -> None:
        """A worker that answers in any order may have begun all that it has."""
        self.worker(capacity=2)
        first, second = self.submit(timeout=1.0), self.submit(timeout=1.0)
        self.clock.advance(1.02)
        self.failed(first, errors.WorkerTimeout)
        self.failed(second, errors.WorkerTimeout)

    def test_left_alone_worker_still_bounded(self) -> None:
        """After its caller's deadline the queue's own `timeout` still holds for the worker."""
        self.build(timeout=10)
        worker = self.worker()
        made = self.submit(timeout=1.0)
        self.clock.advance(9.9)
        self.failed(made, errors.WorkerTimeout)
        self.assertEqual(worker.overruns, [])
        self.clock.advance(0.2)
        self.assertEqual(len(worker.overruns), 1)

    def test_timeout_counts_from_the_start(self) -> None:
        """`timeout` counts a command's run, not its wait; past it the worker is ended."""
        self.build(timeout=10, queue_timeout=20)
        worker = self.worker()
        first, second = self.submit(), self.submit()
        self.clock.advance(8)
        worker.reply(first)
        self.clock.advance(9.9)
        self.assertNoResult(second.reply)
        self.clock.advance(0.2)
        self.failed(second, errors.WorkerTimeout)
        self.assertEqual(len(worker.overruns), 1)

    def test_never_tried_again_after_a_timeout(self) -> None:
        """A timeout is no death: even `safe` does not run it again."""
        self.build(timeout=10, retry="safe")
        self.worker()
        made = self.submit()
        other = FakeWorker(self.clock, "other")
        self.clock.advance(10.1)
        other.work_for(self.road)
        self.failed(made, errors.WorkerTimeout)
        self.assertEqual(other.seen, [])

    def test_long_run_without_limits(self) -> None:
        """With every limit at 0 a command may wait and run for days."""
        self.build(timeout=0, queue_timeout=0)
        made = self.submit()
        self.clock.advance(100_000)
        worker = self.worker()
        self.clock.advance(100_000)
        worker.reply()
        self.successResultOf(made.reply)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_absurd_timeout(self) -> None:
        """A caller's timeout of any size hurts nobody."""
        self.build(timeout=0, queue_timeout=0)
        worker = self.worker()
        for timeout in (1e9, 1e18, 1e300, 1.7e308):
            made = self.submit(timeout=timeout)
            worker.reply()
            self.successResultOf(made.reply)

    def test_caller_leaves_the_queue(self) -> None:
        """A caller that leaves while it waits is cancelled; no worker ever sees the command."""
        made = self.submit()
        made.reply.cancel()
        self.failureResultOf(made.reply, CancelledError)
        self.assertEqual((self.road.waiting, self.road.stats.cancelled), (0, 1))
        self.assertEqual(self.worker().seen, [])
        self.conserved()

    def test_caller_leaves_a_run(self) -> None:
        """A caller that leaves a running command is counted once; its reply is nobody's."""
        worker = self.worker()
        made = self.submit()
        made.reply.cancel()
        self.failureResultOf(made.reply, CancelledError)
        self.assertEqual((worker.cancelled, self.road.running), ([made], 0))
        following = self.submit()
        self.assertEqual(following.state, WAITING)
        worker.reply(body=b"for nobody")
        self.assertEqual(following.state, RUNNING)
        self.assertNoResult(following.reply)
        self.assertEqual((self.road.stats.cancelled, self.road.stats.succeeded), (1, 0))
        self.conserved()

    def test_caller_leaves_then_worker_dies(self) -> None:
        """A command whose caller has left is not run again when its worker dies."""
        self.build(retry="safe")
        worker, other = self.worker("a"), None
        made = self.submit()
        made.reply.addErrback(lambda _: None)
        made.reply.cancel()
        worker.lose(DIED)
        other = self.worker("b")
        self.assertEqual(other.seen, [])
        self.conserved()

    def test_callback_that_raises(self) -> None:
        """A caller's callback that raises neither stops the worker nor loses its place."""
        worker = self.worker()
        made = self.submit()
        made.reply.addCallback(lambda _: 1 / 0)
        worker.reply()
        self.failureResultOf(made.reply, ZeroDivisionError)
        self.assertEqual(self.submit().state, RUNNING)

    def test_callback_that_submits(self) -> None:
        """A reply's callback may submit the next command, thousands in a row."""
        worker = self.worker()
        done: list[int] = []

        def again(_: object) -> None:
            done.append(1)
            if len(done) < 3000:
                self.submit().reply.addCallback(again)

        self.submit().reply.addCallback(again)
        while worker.held:
            worker.reply()
        self.assertEqual(len(done), 3000)
        self.conserved()

    def test_thousands_waiting(self) -> None:
        """A long queue is worked off by one worker without deep recursion."""
        self.build(size=5000)
        made = [self.submit() for _ in range(5000)]
        worker = self.worker()
        while worker.held:
            worker.reply()
        self.assertTrue(all(one.state is DONE for one in made))
        self.assertEqual(self.road.stats.succeeded, 5000)

    def test_purge(self) -> None:
        """Purging ends what waits, as cancelled, with the problem `purged`; what runs goes on."""
        worker = self.worker()
        running, waiting = self.submit(), self.submit()
        self.assertEqual(self.road.purge(), 1)
        self.assertEqual(self.failed(waiting, errors.Purged).executed, "no")
        self.assertEqual(self.road.stats.cancelled, 1)
        worker.reply()
        self.successResultOf(running.reply)

    def test_abandon(self) -> None:
        """
        With no time left everything ends as `shutting-down`, and says whether it may have run.
        """
        self.worker()
        running, waiting = self.submit(), self.submit()
        self.road.abandon()
        self.assertEqual(self.failed(running, errors.ShuttingDown).executed, "maybe")
        error = self.failed(waiting, errors.ShuttingDown)
        self.assertEqual(error.extra.get("executed", error.executed), "no")

    def test_when_quiet(self) -> None:
        """Tells when nothing waits or runs; at once if that is so already; can be cancelled."""
        self.successResultOf(self.road.when_quiet())
        worker = self.worker()
        self.submit()
        self.submit()
        quiet, given_up = self.road.when_quiet(), self.road.when_quiet()
        given_up.cancel()
        self.failureResultOf(given_up, CancelledError)
        worker.reply()
        self.assertNoResult(quiet)
        worker.reply()
        self.successResultOf(quiet)

    def leave_together(self) -> tuple[Command, Command]:
        """Two waiting commands; the failure of either makes the caller of both leave."""
        one, two = self.submit(), self.submit()
        for this, other in ((one, two), (two, one)):
            this.reply.addErrback(lambda _, other=other: other.reply.cancel())
        return one, two

    def test_purge_with_a_caller_that_gives_up(self) -> None:
        """A caller that cancels its other call when one fails is settled once, also in a purge."""
        self.leave_together()
        self.road.purge()
        self.conserved()
        self.assertEqual(self.road.stats.cancelled, 2)

    def test_abandon_with_a_caller_that_gives_up(self) -> None:
        """The same when the gate has no more time, waiting or running."""
        self.leave_together()
        self.road.abandon()
        self.conserved()
        self.build()
        self.worker(capacity=2)
        self.leave_together()
        self.road.abandon()
        self.conserved()
        self.assertEqual(self.road.stats.accepted, 2)

    def test_crash_loop_with_a_caller_that_gives_up(self) -> None:
        """The same when a crash loop ends all that waits."""
        self.road.pool = pool = FakePool()  # type: ignore[assignment]
        self.leave_together()
        pool.crash_loop = True
        self.road.pool_changed()
        self.conserved()

    def test_worker_death_with_a_caller_that_gives_up(self) -> None:
        """The same when a worker dies with both in hand."""
        worker = self.worker(capacity=2)
        self.leave_together()
        worker.lose(DIED)
        self.conserved()

    def test_deadlines_with_a_caller_that_gives_up(self) -> None:
        """The same when both are due at the same moment."""
        self.build(queue_timeout=1)
        self.leave_together()
        self.clock.advance(1.1)
        self.conserved()


class TryingAgainTests(RoadCase):
    """Contract section 6, for calls."""

    def test_never(self) -> None:
        """`never`: one hand-over is all there is, begun or not, and `executed` says which."""
        for begun, executed in ((True, "maybe"), (False, "no")):
            self.build(retry="never")
            worker = self.worker("a")
            made = self.submit()
            worker.lose(DIED, [made] if begun else [])
            self.assertEqual(self.worker("b").seen, [])
            error = self.failed(made, errors.WorkerDied)
            self.assertEqual(error.extra.get("executed", error.executed), executed)

    def test_if_not_started(self) -> None:
        """The default: what cannot have begun goes to another worker, first of all, uncounted."""
        worker = self.worker("a", 3, ordered=True)
        made = [self.submit() for _ in range(4)]
        worker.lose(DIED)
        error = self.failed(made[0], errors.WorkerDied)
        self.assertEqual(error.extra["signal"], "SIGSEGV")
        self.assertEqual(error.extra["attempt"], 1)
        other = self.worker("b", 4)
        self.assertEqual(other.seen, made[1:])
        self.assertEqual([one.attempt for one in made[1:]], [1, 1, 1])
        self.assertEqual(self.road.stats.retried, 0)

    def test_if_not_started_never_twice(self) -> None:
        """What may have begun is not run again by default."""
        worker = self.worker("a")
        made = self.submit()
        worker.lose(DIED)
        self.assertEqual(self.worker("b").seen, [])
        self.assertEqual(self.failed(made, errors.WorkerDied).executed, "maybe")

    def test_no_end_of_deaths_before_the_start(self) -> None:
        """What no worker ever reads whole ends some day, as does the dying of workers."""
        broke = Loss("protocol", "no frame", None, None)
        for loss, kind in ((DIED, errors.WorkerDied), (broke, errors.WorkerProtocolError)):
            made = self.submit()
            for number in range(20):
                self.assertIs(made.state, WAITING)
                self.worker(str(number)).lose(loss, [])
            self.assertEqual(self.failed(made, kind).executed, "no")
            spared = self.worker("next")
            self.assertEqual(spared.seen, [])
            spared.lose()

    def test_no_end_of_deaths_with_several_in_hand(self) -> None:
        """Nor does it go on for ever with what no worker reads, if each is given several."""
        made = [self.submit() for _ in range(3)]
        for number in range(20):
            self.assertEqual({one.state for one in made}, {WAITING})
            self.worker(str(number), 3).lose(DIED, [])
        for one in made:
            self.assertEqual(self.failed(one, errors.WorkerDied).executed, "no")

    def test_waiting_goes_on_after_a_death_before_the_start(self) -> None:
        """Who has been given to workers that read nothing has waited all the time."""
        self.build(queue_timeout=30)
        made = self.submit()
        for number in range(3):
            self.clock.advance(9)
            self.worker(str(number)).lose(DIED, [])
        self.assertIs(made.state, WAITING)
        self.clock.advance(4)
        self.failed(made, errors.QueueTimeout)

    def test_waiting_begins_anew_after_a_run(self) -> None:
        """Once it has begun, what came before is forgotten."""
        self.build(queue_timeout=10, retry="safe")
        made = self.submit()
        self.worker("1").lose(DIED, [])
        second = self.worker("2")
        self.clock.advance(15)
        second.lose(DIED)
        self.assertIs(made.state, WAITING)
        self.clock.advance(9)
        self.assertIs(made.state, WAITING)
        self.worker("3").reply()
        self.successResultOf(made.reply)

    def test_many_deaths_before_the_start(self) -> None:
        """Deaths before its start use up no attempt, however many there are."""
        made = self.submit()
        for number in range(10):
            self.worker(str(number)).lose(DIED, [])
            self.assertEqual((made.state, made.attempt), (WAITING, 0))
        last = self.worker("last")
        self.assertEqual(made.attempt, 1)
        last.reply()
        self.successResultOf(made.reply)

    def test_safe(self) -> None:
        """`safe`: run again after a death, at once, and the attempts are numbered."""
        self.build(retry="safe", attempts=3)
        made = self.submit()
        self.worker("a").lose(DIED)
        self.worker("b").lose(DIED)
        self.assertEqual((made.attempt, made.state, self.road.stats.retried), (2, WAITING, 2))
        last = self.worker("c")
        self.assertEqual(made.attempt, 3)
        last.reply()
        self.successResultOf(made.reply)

    def test_executed_after_an_earlier_start(self) -> None:
        """What has run before a death and waits again is never said not to have run."""
        self.build(retry="safe", queue_timeout=5)
        ends = (
            lambda: self.clock.advance(6),
            lambda: self.road.purge(),  # noqa: PLW0108
            lambda: self.road.abandon(),  # noqa: PLW0108
            lambda: self.worker("decliner").decline(),
        )
        for end in ends:
            self.build(retry="safe", queue_timeout=5)
            worker = self.worker()
            made = self.submit()
            self.clock.advance(1)
            worker.lose(DIED)
            end()
            error = self.failed(made, errors.JobgateError)
            self.assertEqual(error.extra.get("executed", error.executed), "maybe", error.slug)

    def test_safe_stands_first(self) -> None:
        """What runs again stands before what came later."""
        self.build(retry="safe")
        worker = self.worker("a")
        first, _ = self.submit(), self.submit()
        worker.lose(DIED)
        self.assertEqual(self.worker("b").seen, [first])

    def test_safe_within_the_deadline(self) -> None:
        """Past its caller's deadline nothing is run again."""
        self.build(retry="safe", timeout=0)
        worker = self.worker("a")
        made = self.submit(timeout=2.0)
        self.clock.advance(1.9)
        worker.lose(DIED)
        self.clock.advance(0.2)
        self.failed(made, errors.QueueTimeout)
        self.assertEqual(self.worker("b").seen, [])

    def test_safe_not_after_protocol_errors(self) -> None:
        """A worker that broke the protocol is reported as such."""
        worker = self.worker("a")
        made = self.submit()
        worker.lose(Loss("protocol", "not a frame: b'hi'"))
        self.assertIn("hi", self.failed(made, errors.WorkerProtocolError).detail)

    def test_safe_not_after_a_first_chunk(self) -> None:
        """A caller that has part of a reply gets no second run."""
        self.build(retry="safe")
        worker = self.worker("a")
        made = self.submit()
        made.stream = ReplyStream()
        worker.runner.streaming(made, Reply(b"", "text/plain", 200, made.stream))
        ends: list[Any] = []
        self.successResultOf(made.reply).stream.read(lambda _: None, ends.append)
        worker.lose(DIED)
        self.assertEqual(self.worker("b").seen, [])
        ends[0].trap(errors.WorkerDied)
        self.assertEqual(self.road.stats.failed, 1)
        self.conserved()

    def test_poison(self) -> None:
        """
        `attempts` deaths alone make it poison: the next of the same body is refused for an hour.
        """
        self.build(retry="safe", attempts=2)
        made = self.submit(b"bad")
        self.worker("a").lose(DIED)
        self.worker("b").lose(DIED)
        error = self.failed(made, errors.PoisonCommand)
        self.assertEqual(error.extra["attempt"], 2)
        error = self.refused(errors.PoisonCommand, b"bad")
        self.assertEqual(error.executed, "no")
        leave(self.submit(b"good"))
        self.clock.advance(3601)
        leave(self.submit(b"bad"))

    def test_poison_needs_to_be_alone(self) -> None:
        """Who died in company is not blamed: its deaths make `worker-died`, not poison."""
        self.build(retry="safe", attempts=2)
        first, second = self.submit(b"1"), self.submit(b"2")
        self.worker("a", 2).lose(DIED)
        self.worker("b", 2).lose(DIED)
        self.failed(first, errors.WorkerDied)
        self.failed(second, errors.WorkerDied)
        leave(self.submit(b"1"))

    def test_other_losses_do_not_poison(self) -> None:
        """A worker that the gate itself ended blames nobody."""
        self.build(retry="safe", attempts=1)
        for kind in ("stopped", "timeout"):
            made = self.submit(b"x")
            self.worker(kind).lose(Loss(kind, "its neighbour ran too long"))
            self.failed(made, errors.WorkerDied)
        self.assertFalse(self.road.poison)

    def test_reconfigure_clears_poison(self) -> None:
        """A reload forgets poison."""
        self.build(retry="safe", attempts=1)
        made = self.submit(b"bad")
        self.worker("a").lose(DIED)
        self.failed(made, errors.PoisonCommand)
        self.road.reconfigure(queue_config(retry="safe", attempts=1, size=5))
        leave(self.submit(b"bad"))

    def test_decline(self) -> None:
        """DECLINE gives it to another at once, counts no attempt, and never comes back."""
        first, second = self.worker("a"), self.worker("b")
        made = self.submit()
        holder, other = (first, second) if first.held else (second, first)
        holder.decline()
        self.assertEqual((other.held, made.attempt), ([made], 1))
        self.assertEqual(holder.seen, [made])
        other.reply()
        self.successResultOf(made.reply)
        self.assertEqual(self.road.stats.declined, 1)

    def test_all_decline(self) -> None:
        """When all workers have declined it ends as `no-worker`, not executed."""
        made = self.submit()
        for name in "ab":
            self.worker(name)
        workers = [runner.worker for runner in self.road._runners]
        for _ in range(2):
            next(w for w in workers if made in w.held).decline()
        error = self.failed(made, errors.NoWorker)
        self.assertEqual((error.executed, made.attempt), ("no", 0))
        self.assertIsNotNone(error.retry_after)

    def test_without_a_command_decliners_are_no_end(self) -> None:
        """Where workers come as they like, the next one gets what all that are there declined."""
        self.build(command=())
        made = self.submit()
        self.worker("a").decline()
        self.assertEqual((made.state, made.attempt), (WAITING, 0))
        self.worker("b").reply()
        self.assertEqual(self.successResultOf(made.reply).body, b"ok")

    def test_the_last_worker_declines_and_leaves(self) -> None:
        """With nobody there, nobody has declined it."""
        worker, made = self.worker(), self.submit()
        self.road.dismiss(worker)
        worker.decline()
        self.assertIs(made.state, WAITING)
        self.worker("next").reply()
        self.successResultOf(made.reply)

    def test_last_willing_worker_dies(self) -> None:
        """If all that live have declined it, a new worker still gets it."""
        decliner, other = self.worker("a"), self.worker("b")
        made = self.submit()
        holder, other = (decliner, other) if decliner.held else (other, decliner)
        holder.decline()
        other.lose(DIED, [])
        self.assertEqual((made.state, holder.seen), (WAITING, [made]))
        self.assertEqual(self.worker("c").held, [made])

    def test_decliner_takes_the_next(self) -> None:
        """A worker that declined goes on with what waits behind."""
        first = self.worker("a")
        second = self.worker("b")
        one, two, three = self.submit(), self.submit(), self.submit()
        holder = first if one in first.held else second
        holder.decline()
        self.assertEqual(holder.held, [three])
        self.assertEqual((one.state, two.state), (WAITING, RUNNING))

    def test_unfit_worker(self) -> None:
        """A command that cannot be handed over waits again, first of all, uncounted."""
        worker = self.worker("a")
        worker.sends = False
        made = self.submit()
        self.assertEqual((made.state, made.attempt, made.worker), (WAITING, 0, None))
        later = self.submit()
        other = self.worker("b", 2)
        self.assertEqual(other.seen, [made, later])

    def test_worker_whose_send_raises(self) -> None:
        """Even a bug in handing over loses no command, and its worker is ended."""
        worker = self.worker("a")

        def send(_: Command) -> bool:
            raise ZeroDivisionError

        worker.send = send  # type: ignore[method-assign]
        made = self.submit()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(made.state, WAITING)
        other = self.worker("b")
        other.reply()
        self.successResultOf(made.reply)
        self.conserved()

    def test_worker_that_took_it_before_its_send_raised(self) -> None:
        """What has ended with its worker is not handed to the next one."""
        worker = self.worker("a")

        def send(command: Command) -> bool:
            worker.held.append(command)
            raise ZeroDivisionError

        worker.send = send  # type: ignore[method-assign]
        made = self.submit()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.failed(made, errors.WorkerDied)
        self.assertEqual(self.worker("b").seen, [])
        self.conserved()


class PlacesTests(RoadCase):
    """Who gets what."""

    def test_late_binding(self) -> None:
        """
        With one command at a time nobody waits behind a slow neighbour while a worker is idle.
        """
        slow, quick = self.worker("slow"), self.worker("quick")
        made = [self.submit() for _ in range(4)]
        holder = quick
        for _ in range(3):
            holder.reply()
        self.assertEqual(sum(one.state is DONE for one in made), 3)
        self.assertEqual(len(slow.seen), 1)

    def test_priority(self) -> None:
        """The most urgent that waits is next."""
        worker = self.worker()
        self.submit()
        late, early = self.submit(priority=7), self.submit(priority=0)
        worker.reply()
        self.assertEqual(worker.held, [early])
        worker.reply()
        self.assertEqual(worker.held, [late])

    def test_prefetch_prefers_the_idle(self) -> None:
        """A second command goes to an idle worker, not behind the first."""
        first, second = self.worker("a", 4), self.worker("b", 4)
        for _ in range(2):
            self.submit()
        self.assertEqual((len(first.held), len(second.held)), (1, 1))

    def test_shards_by_key(self) -> None:
        """The same key always gets the same shard, whichever workers are free."""
        self.build(shards=3, workers=3)
        for post in range(3):
            self.worker(str(post), 100, post=post)
        shards = {key: {self.submit(key=key).shard for _ in range(5)} for key in "abcdefgh"}
        self.assertTrue(all(len(found) == 1 for found in shards.values()))
        self.assertGreater(len(set.union(*shards.values())), 1)

    def test_shards_without_key(self) -> None:
        """Without a key the command goes where a worker is free, else to the shortest."""
        self.build(shards=2, workers=2)
        self.worker("b", post=1)
        self.assertIs(self.submit().shard, self.road.shards[1])
        found = [self.submit().shard for _ in range(4)]
        self.assertEqual(found.count(self.road.shards[0]), 2)

    def test_workers_of_a_shard_do_not_help_out(self) -> None:
        """A worker never takes from another shard."""
        self.build(shards=2, workers=2)
        worker = self.worker("a", 100, post=0)
        for number in range(20):
            self.submit(key=f"key {number}")
        self.assertTrue(worker.seen)
        self.assertTrue(all(one.shard is self.road.shards[0] for one in worker.seen))
        self.assertGreater(len(self.road.shards[1]), 0)

    def test_all_of_a_shard_decline(self) -> None:
        """Declining is counted within the shard: others could not take it anyway."""
        self.build(shards=2, workers=2)
        workers = [self.worker(str(post), post=post) for post in range(2)]
        made = self.submit()
        next(w for w in workers if w.held).decline()
        self.failed(made, errors.NoWorker)

    def test_other_shards_after_reconfigure(self) -> None:
        """A change of `shards` keeps what waits, and the workers go on."""
        self.build(shards=1, workers=4)
        workers = [self.worker(str(post), post=post) for post in range(4)]
        made = [self.submit(key=f"k{n}", priority=n % 8) for n in range(20)]
        self.road.reconfigure(queue_config(shards=4, workers=4))
        self.assertEqual(len(self.road.shards), 4)
        self.conserved()
        while any(w.held for w in workers):
            for w in workers:
                if w.held:
                    w.reply()
        for one in made:
            self.successResultOf(one.reply)

    def test_other_size_after_reconfigure(self) -> None:
        """A smaller `size` throws nothing out and takes nothing more."""
        for _ in range(5):
            self.submit()
        self.road.reconfigure(queue_config(size=2))
        self.assertEqual(self.road.waiting, 5)
        self.refused(errors.QueueFull)

    def test_other_protocol_after_reconfigure(self) -> None:
        """A queue that becomes `lines` takes one-line bodies only from then on."""
        self.road.reconfigure(queue_config(protocol="lines"))
        self.refused(errors.BadRequest, b"two\nlines")

    def test_pause(self) -> None:
        """A paused queue takes commands in and hands none out; their deadlines run on."""
        self.build(queue_timeout=5)
        worker = self.worker()
        self.road.pause()
        first = self.submit()
        self.clock.advance(5.02)
        self.failed(first, errors.QueueTimeout)
        second = self.submit()
        self.assertEqual(worker.seen, [])
        self.road.resume()
        self.assertEqual(worker.held, [second])

    def test_expected_wait(self) -> None:
        """Nothing while a worker is free; otherwise by measured service time and lanes."""
        worker = self.worker()
        self.assertEqual(self.road.expected_wait, 0.0)
        self.submit()
        self.clock.advance(2.0)
        worker.reply()
        for _ in range(4):
            self.submit()
        self.assertEqual(self.road.expected_wait, 8.0)

    def test_refusals_in_words(self) -> None:
        """Why a queue cannot accept, for /readyz."""
        self.build(size=1)
        self.assertEqual(self.road.refusal(), "")
        self.submit()
        self.assertIn("full", self.road.refusal())
        self.road.draining = True
        self.assertIn("shutting down", self.road.refusal())


class RoadMachine(RuleBasedStateMachine):
    """
    A road under everything at once; at every step the sums are right and nobody is mixed up.
    """

    RETRY = "if-not-started"
    CONFIG: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.clock = SteppingClock()
        self.clock.rightNow = 1000.0
        self.road = Road(
            queue_config(
                **{
                    "retry": self.RETRY,
                    "size": 6,
                    "attempts": 2,
                    "timeout": 8,
                    "queue_timeout": 12,
                    **self.CONFIG,
                }
            ),
            self.clock,
            None,
        )
        self.workers: list[FakeWorker] = []
        self.made: dict[Command, list[object]] = {}
        self.left: set[Command] = set()
        self.numbers = count()
        self.problems: list[str] = []

    # --- what can happen

    @rule(
        priority=st.integers(0, 7),
        timeout=st.sampled_from([0.5, 3.0, 20.0, float("inf")]),
        key=st.sampled_from(["", "", "a", "b"]),
        no_queue=st.booleans(),
        body=st.sampled_from([b"x", b"y"]),
    )
    def submit(self, priority: int, timeout: float, key: str, no_queue: bool, body: bytes) -> None:
        self.clock.advance(0.001)
        made = command(
            body,
            id=str(next(self.numbers)),
            now=self.clock.seconds(),
            priority=priority,
            timeout=timeout,
        )
        before = self.road.stats.shed
        try:
            self.road.submit(made, key=key, no_queue=no_queue and priority == 0)
        except errors.JobgateError as error:
            assert self.road.stats.shed == before + 1
            assert made.attempt == 0
            assert error.extra.get("executed", error.executed) == "no"  # noqa: PT017
            if isinstance(error, errors.QueueFull | errors.WouldMissDeadline):
                assert error.retry_after is not None  # noqa: PT017
                assert error.retry_after >= 1  # noqa: PT017
            return
        outcomes: list[object] = []
        self.made[made] = outcomes
        made.reply.addBoth(self.outcome, made)

    def outcome(self, result: Any, made: Command) -> None:
        self.made[made].append(result)
        problem = self.problem_with(result, made)
        if problem:
            self.problems.append(f"{made}: {problem}")

    def problem_with(self, result: Any, made: Command) -> str:
        if len(self.made[made]) > 1:
            return "fired twice"
        if isinstance(result, Reply):
            if result.body != made.id.encode():
                return "the reply of another command"
            return "a reply after its caller left" if made in self.left else ""
        error = result.value
        if isinstance(error, CancelledError):
            return "" if made in self.left else "cancelled by nobody"
        if not isinstance(error, errors.JobgateError):
            return f"ended with {error!r}"
        executed = error.extra.get("executed", error.executed)
        if getattr(made, "has_run", False) and executed == "no":
            return f"{error.slug} says that it has not run, but it may have"
        return ""

    @invariant()
    def no_problems(self) -> None:
        assert not self.problems, self.problems

    @precondition(lambda self: len(self.workers) < 4)
    @rule(capacity=st.integers(1, 3), ordered=st.booleans(), post=st.integers(0, 1))
    def hire(self, capacity: int, ordered: bool, post: int) -> None:
        worker = FakeWorker(self.clock, str(next(self.numbers)), capacity, ordered=ordered)
        self.workers.append(worker)
        worker.work_for(self.road, post)

    def busy(self, which: int) -> FakeWorker | None:
        busy = [w for w in self.workers if w.held and w.fit]
        return busy[which % len(busy)] if busy else None

    @rule(which=st.integers(0, 9), item=st.integers(0, 9))
    def reply(self, which: int, item: int) -> None:
        worker = self.busy(which)
        if worker is not None:
            held = worker.held[0 if worker.ordered else item % len(worker.held)]
            worker.reply(held, held.id.encode())

    @rule(which=st.integers(0, 9))
    def fail(self, which: int) -> None:
        worker = self.busy(which)
        if worker is not None:
            worker.fail(errors.CommandFailed("no"))

    @rule(which=st.integers(0, 9))
    def decline(self, which: int) -> None:
        worker = self.busy(which)
        if worker is not None:
            held = worker.held[0]
            before = held.attempt
            live = held.state is RUNNING
            worker.decline()
            if live and held.state is WAITING:
                assert held.attempt == before - 1

    @rule(
        which=st.integers(0, 9),
        kind=st.sampled_from(["died", "died", "protocol", "timeout", "stopped"]),
        begun=st.sampled_from(["all", "first", "none"]),
    )
    def die(self, which: int, kind: str, begun: str) -> None:
        fit = [w for w in self.workers if w.fit]
        if not fit:
            return
        worker = fit[which % len(fit)]
        held = list(worker.held)
        began = {"all": None, "first": held[:1], "none": []}[begun]
        if began is None:
            began = held[:1] if worker.ordered else held
        live = [c for c in held if c.state is RUNNING]
        attempts = {c: c.attempt for c in live}
        worker.lose(Loss(kind, kind, None, "SIGKILL"), list(began))
        for c in live:
            again = c.state is not DONE
            if c in began:
                if self.RETRY != "safe" or kind == "protocol":
                    assert not again, "run again although it may have begun"
                elif attempts[c] >= self.road.config.attempts:
                    assert not again, "more starts than attempts"
            elif self.RETRY == "never":
                assert not again, "handed over twice under retry = never"
            elif self.clock.seconds() < c.deadline:
                assert again, "not run again although it cannot have begun"

    @rule(which=st.integers(0, 9))
    def caller_leaves(self, which: int) -> None:
        live = [c for c, outcomes in self.made.items() if not outcomes]
        if live:
            made = live[which % len(live)]
            self.left.add(made)
            made.reply.cancel()
            assert self.made[made], "cancelled, but not settled"

    @rule(seconds=st.sampled_from([0.1, 0.6, 3.1, 9.0, 13.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def pause(self) -> None:
        self.road.pause()

    @rule()
    def resume(self) -> None:
        self.road.resume()

    @rule()
    def purge(self) -> None:
        waiting = self.road.waiting
        assert self.road.purge() == waiting
        assert self.road.waiting == 0

    @rule(shards=st.integers(1, 2), size=st.integers(1, 6))
    def reconfigure(self, shards: int, size: int) -> None:
        waiting = self.road.waiting
        import msgspec

        self.road.reconfigure(msgspec.structs.replace(self.road.config, shards=shards, size=size))
        assert self.road.waiting <= waiting

    # --- what always holds

    @invariant()
    def conservation(self) -> None:
        stats, road = self.road.stats, self.road
        done = stats.succeeded + stats.failed + stats.shed + stats.cancelled
        assert stats.accepted == done + road.waiting + road.running

    @invariant()
    def one_place_each(self) -> None:
        places: dict[Command, int] = {}
        for shard in self.road.shards:
            for c in shard.pending:
                places[c] = places.get(c, 0) + 1
                assert c.state is WAITING
                assert c.worker is None
                assert c.shard is shard
        for w in self.workers:
            assert len(w.held) <= w.capacity
            for c in w.held:
                places[c] = places.get(c, 0) + 1
                assert c.state is not WAITING
                assert w.seen.count(c) >= 1
        for c, outcomes in self.made.items():
            if not outcomes:
                assert places.get(c) == 1, f"{c} is in {places.get(c, 0)} places"
            else:
                assert c.state is DONE
                assert places.get(c, 0) <= 1

    @invariant()
    def nobody_offered_twice_what_they_declined(self) -> None:
        for w in self.workers:
            for c in w.seen:
                if w in (c.declined or ()):
                    assert w.seen.count(c) == 1

    @invariant()
    def in_time(self) -> None:
        now = self.clock.seconds()
        for c, outcomes in self.made.items():
            if not outcomes:
                assert now <= c.deadline + 0.011, "past its deadline and not settled"
                if c.state is WAITING:
                    assert now <= c.queue_deadline + 0.011, "past queue_timeout and not settled"
                elif c.began:
                    assert now <= c.began + self.road.config.timeout + 0.011, "past its timeout"

    @invariant()
    def no_idle_worker_beside_work(self) -> None:
        for runner in self.road._runners:
            if not runner.queue.paused and runner.worker.room:
                for c in runner.queue.pending:
                    assert runner.worker in (c.declined or ()), "work waits beside a free worker"

    def teardown(self) -> None:
        """At the end everything can be ended, and every caller has had one outcome."""
        self.road.resume()
        self.road.abandon()
        assert all(len(outcomes) == 1 for outcomes in self.made.values())
        self.no_problems()
        assert self.road.waiting == self.road.running == 0
        self.conservation()
        self.road.close()
        assert not self.clock.getDelayedCalls()


class SafeRoadMachine(RoadMachine):
    """The same with `retry = "safe"`."""

    RETRY = "safe"


class NeverRoadMachine(RoadMachine):
    """The same with `retry = "never"`, two shards and no timeouts."""

    RETRY = "never"
    CONFIG = {"shards": 2, "timeout": 1000, "queue_timeout": 0}  # noqa: RUF012


STEPS = settings(max_examples=120, stateful_step_count=40)

RoadMachineTests = RoadMachine.TestCase
RoadMachineTests.settings = STEPS
SafeRoadMachineTests = SafeRoadMachine.TestCase
SafeRoadMachineTests.settings = STEPS
NeverRoadMachineTests = NeverRoadMachine.TestCase
NeverRoadMachineTests.settings = STEPS
