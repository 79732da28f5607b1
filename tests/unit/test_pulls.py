"""
Pulls and leases: `jobgate.jobs.pull`, `leases`, and the window's part in them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred

from jobgate import errors
from jobgate.command import Command
from jobgate.config import Backoff, BatchConfig
from jobgate.jobs import demand, lots
from jobgate.jobs.job import Reply, State
from jobgate.jobs.journal import LeaseTerms
from jobgate.jobs.lots import ids_of
from tests.unit.fakes import queue_config
from tests.unit.jobs_case import JobsCase

if TYPE_CHECKING:
    from jobgate.jobs.job import Taken
    from jobgate.jobs.pull import Pull

OK = Reply(200, "t/p", b"done")


class PullTests(JobsCase):
    """Commands leave to somebody outside."""

    def setUp(self) -> None:
        super().setUp()
        self.build(q={})

    def tearDown(self) -> None:
        self.conserved()
        self.gate.leases.close()
        self.assertEqual(self.gate.dispatcher["q"].running, 0)

    def bodies(self, got: list[Any]) -> list[bytes]:
        [commands] = got
        return [command.body for command in commands]

    def take(self, got: list[Any]) -> None:
        """The answer has been written."""
        [commands] = got
        self.gate.leases.hand_over(self.gate.dispatcher["q"], commands)

    def test_what_is_on_its_way_passes_nothing_by(self) -> None:
        """A pull has enough while more comes: that does not get before what it gave back."""
        sizes = (1, 9 << 20, 9 << 20, 1, 9 << 20)
        names = [self.push(body=bytes(size)) for size in sizes]
        take = self.journal.take
        delays = iter((1, 0, 1, 1, 1))

        def slowly(queue: str, count: int, max_bytes: int) -> Deferred[list[Taken]]:
            late: Deferred[list[Taken]] = Deferred()
            jobs = self.successResultOf(take(queue, count, max_bytes))
            self.reactor.callLater(next(delays), late.callback, jobs)
            return late

        self.patch(self.journal, "take", slowly)
        _, got = self.pulling("q", 60, most=10, least=1)
        self.turn(1)
        self.assertEqual([command.id for command in got[0]], names[:3])
        self.take(got)
        _, rest = self.pulling("q", 60, most=10, least=2)
        for _ in range(3):
            self.turn(1)
        self.assertEqual([command.id for command in rest[0]], names[3:])
        self.take(rest)

    def test_one_take_behind_the_other(self) -> None:
        """What does not fit into one take comes with the next, and behind it."""
        names = [self.push(body=bytes(size)) for size in (9 << 20, 1, 9 << 20, 1, 9 << 20, 1)]
        found: list[str] = []
        while len(found) < len(names):
            _, got = self.pulling(wait=60, most=10)
            self.turn()
            self.take(got)
            found += [command.id for command in got[0]]
        self.assertEqual(found, names)

    def test_taken_is_gone(self) -> None:
        """Once handed over it has succeeded; no reply is wanted."""
        name = self.push(body=b"x")
        command = self.successResultOf(self.gate.pull("q"))
        assert command is not None
        self.assertEqual((command.id, command.body), (name, b"x"))
        self.assertIs(self.state(name), State.SUCCEEDED)
        self.refused(self.gate.leases.reply(name, "", OK), errors.StaleAttempt)
        self.assertEqual(self.gate.leases.stale, 1)

    def test_nothing_there(self) -> None:
        """Who does not wait gets nothing; who waits gets the next."""
        self.assertIsNone(self.successResultOf(self.gate.pull("q")))
        pulled = self.gate.pull("q", wait=5)
        self.assertNoResult(pulled)
        name = self.push()
        command = self.successResultOf(pulled)
        assert command is not None
        self.assertEqual(command.id, name)

    def test_time_is_up(self) -> None:
        """Who has waited long enough gets nothing, and is not remembered."""
        pulled = self.gate.pull("q", wait=5)
        self.turn(5)
        self.assertIsNone(self.successResultOf(pulled))
        self.assertFalse(self.gate.jobs.backlogs["q"].busy)

    def test_left(self) -> None:
        """Who has left takes nothing; what it had been given waits for the next."""
        left = self.gate.pull("q", wait=5)
        left.cancel()
        self.failureResultOf(left, CancelledError)
        name = self.push()
        pull, got = self.pulling()
        self.assertEqual(len(got[0]), 1)
        pull.leave()
        self.assertIs(self.state(name), State.QUEUED)
        command = self.successResultOf(self.gate.pull("q"))
        assert command is not None
        self.assertEqual((command.id, command.attempt), (name, 1))

    def test_at_hand(self) -> None:
        """What comes soon after a pull is kept for the next one, and not for long."""
        self.push(body=b"a")
        backlog = self.gate.jobs.backlogs["q"]
        self.assertEqual(len(backlog.window), 0)
        self.take(self.pulling()[1])
        self.push(body=b"b")
        self.assertEqual(len(backlog.window), 1)
        self.turn(4)
        self.assertIsNone(self.successResultOf(self.gate.pull("other")))
        self.assertEqual(len(backlog.window), 1)
        self.turn(2)
        self.assertEqual((len(backlog.window), backlog.stored), (0, 1))
        _, got = self.pulling()
        self.assertEqual(self.bodies(got), [b"b"])
        self.take(got)

    def test_little_at_hand(self) -> None:
        """So many, so many bytes, and never what would pass something in the store by."""
        self.patch(demand, "_AT_HAND", 32)
        backlog = self.gate.jobs.backlogs["q"]
        for size, most in ((1, 32), (10_000, 6)):
            self.assertIsNone(self.successResultOf(self.gate.pull("q")))
            here = []
            for index in range(40):
                self.push(body=b"%03d" % index + bytes(size), priority=index % 2)
                here.append(len(backlog.window))
            self.assertEqual(max(here), most)
            self.assertEqual((here[-1], backlog.stored), (0, 40))
            _, got = self.pulling(most=100)
            found = [int(body[:3]) for body in self.bodies(got)]
            self.assertEqual(found, [*range(0, 40, 2), *range(1, 40, 2)])
            self.take(got)
        self.push(body=b"later", priority=7)
        self.push(body=b"soon", delay=1.0)
        self.assertEqual((len(backlog.window), backlog.stored), (1, 0))
        self.turn(1)
        self.assertEqual((len(backlog.window), backlog.stored), (0, 2))
        _, got = self.pulling(most=100)
        self.assertEqual(self.bodies(got), [b"soon", b"later"])
        self.take(got)

    def test_one_push_one_puller(self) -> None:
        """A push answers the one who has waited longest, and nobody else."""
        pulls = [self.gate.pull("q", wait=60) for _ in range(5)]
        for index in range(5):
            self.push(body=b"%d" % index)
            told = [each for each in pulls if each.called]
            self.assertEqual(told, pulls[: index + 1])

    def test_order(self) -> None:
        """By priority, then by arrival."""
        for body, priority in ((b"c", 5), (b"a", 0), (b"d", 5), (b"b", 3)):
            self.push(body=body, priority=priority)
        _, got = self.pulling(most=10, lines=True)
        self.assertEqual(self.bodies(got), [b"a", b"b", b"c", b"d"])
        self.take(got)

    def test_most(self) -> None:
        """At most so many at once."""
        for index in range(5):
            self.push(body=b"%d" % index)
        for wanted in ([b"0", b"1"], [b"2", b"3"], [b"4"]):
            _, got = self.pulling(most=2, lines=True)
            self.assertEqual(self.bodies(got), wanted)
            self.take(got)

    def test_least(self) -> None:
        """With a minimum it waits for that, or for its time."""
        _, got = self.pulling(wait=10, most=5, least=3, lines=True)
        self.push(body=b"0")
        self.push(body=b"1")
        self.assertEqual(got, [])
        self.push(body=b"2")
        self.turn(0.01)
        self.assertEqual(self.bodies(got), [b"0", b"1", b"2"])
        self.take(got)
        _, got = self.pulling(wait=10, most=5, least=3, lines=True)
        self.push(body=b"3")
        self.turn(10)
        self.assertEqual(self.bodies(got), [b"3"])
        self.take(got)

    def test_newline_comes_alone(self) -> None:
        """A body with a newline stands beside no other."""
        for body in (b"0", b"1\n1", b"2", b"3"):
            self.push(body=body)
        for wanted in ([b"0"], [b"1\n1"], [b"2", b"3"]):
            _, got = self.pulling(most=9, lines=True)
            self.assertEqual(self.bodies(got), wanted)
            self.take(got)

    def test_one_kind(self) -> None:
        """Lines of different types do not go together."""
        self.push(body=b"0", content_type="a/a")
        self.push(body=b"1", content_type="b/b")
        for wanted in ([b"0"], [b"1"]):
            _, got = self.pulling(most=9, lines=True)
            self.assertEqual(self.bodies(got), wanted)
            self.take(got)

    def test_cancelled_while_gathered(self) -> None:
        """What is cancelled while its puller waits for more is not handed over."""
        _, got = self.pulling(wait=10, most=5, least=2, lines=True)
        name = self.push(body=b"0")
        self.successResultOf(self.journal.cancel(name, "by request"))
        self.push(body=b"1")
        self.assertEqual(got, [])
        self.push(body=b"2")
        self.turn(0.01)
        self.assertEqual(self.bodies(got), [b"1", b"2"])
        self.take(got)

    def test_pause(self) -> None:
        """A paused queue gives nothing to pullers either."""
        road = self.gate.dispatcher["q"]
        road.pause()
        pulled = self.gate.pull("q", wait=10)
        name = self.push()
        self.assertNoResult(pulled)
        road.resume()
        command = self.successResultOf(pulled)
        assert command is not None
        self.assertEqual(command.id, name)

    def test_beside_workers(self) -> None:
        """Workers and pullers share a queue; a busy worker's turn is not waited for."""
        self.build(q={"command": ("w",), "workers": 1})
        at_worker = self.push(body=b"0")
        pulled = self.push(body=b"1")
        command = self.successResultOf(self.gate.pull("q"))
        assert command is not None
        self.assertEqual(command.id, pulled)
        self.child.reply()
        self.assertIs(self.state(at_worker), State.SUCCEEDED)

    def test_drain(self) -> None:
        """A drain answers waiting pulls; later ones get nothing."""
        pulled = self.gate.pull("q", wait=60)
        name = self.push("q", delay=1)
        drained = self.gate.drain()
        self.assertIsNone(self.successResultOf(pulled))
        self.successResultOf(drained)
        self.turn(2)
        self.assertIsNone(self.successResultOf(self.gate.pull("q", wait=60)))
        self.assertIs(self.state(name), State.QUEUED)

    def test_drain_finishes_calls(self) -> None:
        """A call that waits for a puller when the drain begins is served yet."""
        called = self.gate.call("q", b"")
        drained = self.gate.drain()
        command = self.successResultOf(self.gate.pull("q", wait=60))
        assert command is not None
        self.done(self.gate.leases.reply(command.id, "", OK))
        self.assertEqual(self.successResultOf(called).body, b"done")
        self.successResultOf(drained)

    # --- lots

    def names(self, got: list[Any]) -> list[str]:
        [commands] = got
        return [id_ for command in commands for id_ in ids_of(command)]

    def test_a_lot_for_many(self) -> None:
        """Who waits for one command gets one, who waits for lines the next ones, together."""
        singles = [self.pulling(wait=60)[1] for _ in range(2)]
        _, lines = self.pulling(wait=60, most=3, lines=True)
        _, rest = self.pulling(wait=60, most=9, lines=True)
        names = self.push_lines([b"%d" % index for index in range(7)])
        for got in (*singles, lines, rest):
            self.assertEqual(self.names(got), names[: len(self.names(got))])
            del names[: len(self.names(got))]
        self.assertEqual(names, [])
        self.assertEqual([command.size for command in lines[0]], [3])
        self.assertEqual([command.body for command in rest[0]], [b"5\n6\n"])
        for got in (*singles, lines, rest):
            self.take(got)

    def test_watched_in_a_lot(self) -> None:
        """Whoever waits for one job of a lot hears of its end, with all others or alone."""
        first, second, third = self.push_lines([b"0", b"1", b"2"])
        ended = [Deferred.fromCoroutine(self.gate.jobs.wait(x, 60)) for x in (second, third)]
        self.successResultOf(self.journal.cancel(second, "by request"))
        self.assertIs(self.successResultOf(ended[0]).state, State.CANCELLED)
        _, got = self.pulling(most=9, lines=True)
        self.assertEqual(self.names(got), [first, third])
        self.assertNoResult(ended[1])
        self.take(got)
        self.assertIs(self.successResultOf(ended[1]).state, State.SUCCEEDED)

    def test_cancelled_under_way(self) -> None:
        """What is cancelled while the lease of its lot is stored is not under it."""
        names = self.push_lines([b"0", b"1", b"2"])
        _, [commands] = self.pulling(most=9, lines=True)
        self.journal._writer.hold()  # type: ignore[attr-defined]
        cancelled = self.journal.cancel(names[1], "by request")
        road = self.gate.dispatcher["q"]
        lent = self.gate.leases.lend(road, commands, LeaseTerms("L", 10.0))
        self.journal._writer.release()  # type: ignore[attr-defined]
        self.successResultOf(cancelled)
        self.successResultOf(lent)
        leased = self.successResultOf(self.journal.leased("L"))
        assert leased is not None
        self.assertEqual(leased.jobs, ((names[0], 1), (names[2], 1)))
        self.assertEqual((road.running, len(self.gate.jobs.backlogs["q"].window)), (0, 0))

    def test_poison_in_a_lot(self) -> None:
        """One line that is known to kill is kept out, and no other."""
        self.gate.dispatcher["q"].poison.add(Command("q", "x", b"1", "t/p", 3, 0, 0), 1000.0)
        _, got = self.pulling(wait=60, most=9, least=2, lines=True)
        names = self.push_lines([b"0", b"1", b"2"])
        self.turn(0.01)
        self.assertEqual(self.names(got), [names[0], names[2]])
        self.take(got)
        self.assertEqual(self.job(names[1]).error["slug"], "poison-command")  # type: ignore[index]

    def test_lots_that_start_once(self) -> None:
        """Under `retry = never` each start is stored before."""
        self.build(q={"retry": "never"})
        names = self.push_lines([b"0", b"1"])
        _, got = self.pulling(most=9, lines=True)
        self.assertEqual(self.names(got), names)
        self.assertEqual([self.job(name).attempt for name in names], [1, 1])
        self.take(got)
        self.assertEqual({self.state(name) for name in names}, {State.SUCCEEDED})

    def test_lots_and_batches(self) -> None:
        """A queue that makes batches hands lots over like any, and to its workers one by one."""
        keys = {"batch": BatchConfig(size=2, linger=0.0)}
        self.build(q=keys)
        _, got = self.pulling(wait=60, most=3, lines=True)
        names = self.push_lines([b"0", b"1", b"2", b"3", b"4"])
        self.turn(1)
        self.assertEqual(self.names(got), names[:3])
        self.take(got)
        self.build(q={**keys, "command": ("w",), "workers": 1})
        names = self.push_lines([b"0", b"1", b"2"])
        self.turn(1)
        child = self.child
        self.assertEqual([given.body for given in child.commands], [b"0", b"1"])
        for _ in range(3):
            child.reply()
            self.turn(1)
        self.assertEqual({self.state(name) for name in names}, {State.SUCCEEDED})

    def test_no_company(self) -> None:
        """A puller takes what there is: it waits for no batch to be full, nor to have lingered."""
        for linger in (0.0, 5.0, float("inf")):
            self.build(q={"batch": BatchConfig(size=4, linger=linger), "shards": 2})
            names = [self.push(), self.push()]
            for name in names:
                _, got = self.pulling()
                self.turn()
                self.assertEqual(self.names(got), [name])
                self.take(got)
            _, got = self.pulling(wait=60)
            called = self.gate.call("q", b"hello")
            self.turn()
            [(command,)] = got
            self.take(got)
            self.done(self.gate.leases.reply(command.id, "", OK))
            self.successResultOf(called)

    def test_a_suspect_is_alone(self) -> None:
        """What may have killed a worker, with others, comes to a puller without them."""
        keys = {"command": ("w",), "workers": 1, "batch": BatchConfig(size=2), "retry": "safe"}
        self.build(q=keys)
        calls = [self.gate.call("q", body) for body in (b"a", b"b")]
        self.turn(1)
        self.reactor.alive[0].kill()
        for body in (b"a", b"b"):
            _, got = self.pulling()
            [(command,)] = got
            self.assertEqual((command.body, command.batch), (body, None))
            self.take(got)
            self.done(self.gate.leases.reply(command.id, "", OK))
        for call in calls:
            self.assertEqual(self.successResultOf(call).body, b"done")

    def test_lots_move(self) -> None:
        """What waits at hand is in its place when the queue gets shards, and leaves a pause."""
        self.push()
        self.take(self.pulling()[1])
        names = self.push_lines([b"0", b"1", b"2"])
        road = self.gate.dispatcher["q"]
        self.assertEqual((road.jobs_waiting, road.waiting), (3, 3))
        self.assertEqual(road.shards[0].ahead_of(7), 3)
        road.pause()
        road.reconfigure(queue_config(name="q", shards=2, workers=2))
        _, got = self.pulling(wait=60, most=9, lines=True)
        self.turn(1)
        self.assertEqual(got, [])
        road.resume()
        self.turn(1)
        self.assertEqual(self.names(got), names)
        self.take(got)

    # --- calls

    def test_call(self) -> None:
        """A call is answered by its puller, once."""
        called = self.gate.call("q", b"hello")
        command = self.successResultOf(self.gate.pull("q"))
        assert command is not None
        self.assertNoResult(called)
        self.done(self.gate.leases.reply(command.id, "", OK))
        self.assertEqual(self.successResultOf(called).body, b"done")
        self.refused(self.gate.leases.reply(command.id, "", OK), errors.StaleAttempt)
        self.refused(self.gate.leases.fail(command.id, "", fault()), errors.StaleAttempt)
        self.assertEqual(self.gate.leases.stale, 2)
        self.assertEqual(self.gate.leases._calls, {})

    def test_call_fails(self) -> None:
        """Its puller may fail it."""
        called = self.gate.call("q", b"hello")
        command = self.successResultOf(self.gate.pull("q"))
        assert command is not None
        self.done(self.gate.leases.fail(command.id, "", fault()))
        self.failureResultOf(called, errors.CommandFailed)

    def test_caller_leaves(self) -> None:
        """A reply for which nobody waits is stale, and nothing is remembered of the call."""
        called = self.gate.call("q", b"hello")
        command = self.successResultOf(self.gate.pull("q"))
        assert command is not None
        called.cancel()
        self.failureResultOf(called)
        self.assertEqual(self.gate.leases._calls, {})
        self.refused(self.gate.leases.reply(command.id, "", OK), errors.StaleAttempt)

    def test_call_times_out(self) -> None:
        """The queue's `timeout` bounds a puller, too."""
        called = self.gate.call("q", b"hello")
        self.successResultOf(self.gate.pull("q"))
        self.turn(60.1)
        self.failureResultOf(called, errors.WorkerTimeout)
        self.assertEqual(self.gate.leases._calls, {})

    def test_leased_call(self) -> None:
        """Under a lease only its holder may answer; when it lapses, the caller is told."""
        called = self.gate.call("q", b"hello")
        [command] = self.lease(seconds=5)
        self.refused(self.gate.leases.reply(command.id, "another", OK), errors.StaleAttempt)
        self.turn(4)
        self.done(self.gate.leases.extend("lease", 5))
        self.turn(4)
        self.assertNoResult(called)
        self.turn(1.1)
        self.failureResultOf(called, errors.WorkerDied)
        self.refused(self.gate.leases.reply(command.id, "lease", OK), errors.StaleAttempt)

    def test_memory_of_late_replies(self) -> None:
        """What is remembered for late replies is bounded."""
        for _ in range(10_100):
            called = self.gate.call("q", b"")
            command = self.successResultOf(self.gate.pull("q"))
            assert command is not None
            self.done(self.gate.leases.reply(command.id, "", OK))
            self.successResultOf(called)
        self.assertEqual(len(self.gate.leases._over), 10_000)

    # --- leases

    def test_lease(self) -> None:
        """A leased job runs until its reply."""
        name = self.push()
        [command] = self.lease()
        job = self.job(name)
        self.assertEqual((job.state, job.attempt, command.attempt), (State.RUNNING, 1, 1))
        self.done(self.gate.leases.reply(name, "lease", OK))
        self.assertIs(self.state(name), State.SUCCEEDED)
        self.refused(self.gate.leases.reply(name, "lease", OK), errors.StaleAttempt)
        self.refused(self.gate.leases.reply("nobody", "lease", OK), errors.UnknownJob)

    def test_lapses(self) -> None:
        """A lease that runs out puts the job back; its late reply is refused."""
        name = self.push()
        self.lease(seconds=5)
        self.turn(5.1)
        self.assertIs(self.state(name), State.SCHEDULED)
        self.turn(1.1)
        [command] = self.lease(lease="other", wait=0)
        self.assertEqual((command.id, command.attempt), (name, 2))
        self.refused(self.gate.leases.reply(name, "lease", OK), errors.StaleAttempt)
        self.done(self.gate.leases.reply(name, "other", OK))
        self.assertIs(self.state(name), State.SUCCEEDED)

    def test_extend(self) -> None:
        """An extended lease lasts; a shortened one lapses sooner."""
        name = self.push()
        self.lease(seconds=5)
        self.turn(4)
        self.done(self.gate.leases.extend_one(name, "lease", 30))
        self.turn(20)
        self.assertIs(self.state(name), State.RUNNING)
        self.done(self.gate.leases.extend("lease", 1))
        self.turn(1.1)
        self.assertIs(self.state(name), State.SCHEDULED)
        self.refused(self.gate.leases.extend("lease", 1), errors.StaleAttempt)
        self.refused(self.gate.leases.extend_one(name, "lease", 1), errors.StaleAttempt)
        self.refused(self.gate.leases.extend_one("nobody", "lease", 1), errors.UnknownJob)

    def test_extend_for_another(self) -> None:
        """A lease can be extended only by the name of what is under it."""
        self.push()
        other = self.push()
        self.lease(seconds=5)
        self.refused(self.gate.leases.extend_one(other, "lease", 30), errors.StaleAttempt)

    def test_fails_all(self) -> None:
        """A failed lot is tried again after the back-off, without anybody's further doing."""
        names = [self.push(body=b"%d" % index) for index in range(3)]
        self.lease(most=3, lines=True)
        self.done(self.gate.leases.finish("lease", fault()))
        self.assertEqual({self.state(name) for name in names}, {State.SCHEDULED})
        self.turn(1.1)
        self.assertEqual({self.state(name) for name in names}, {State.QUEUED})

    def test_order_after_a_back_off(self) -> None:
        """What was pulled together comes back in its order, whatever the jitter."""
        self.build(q={"backoff": Backoff(jitter=0.2)})
        names = [self.push(body=b"%d" % index) for index in range(12)]
        self.lease(most=12, lines=True)
        self.done(self.gate.leases.finish("lease", fault()))
        self.turn(2.0)
        again = self.lease(seconds=5, lease="again", most=12, lines=True)
        self.assertEqual([command.id for command in again], names)
        self.turn(5.1)
        self.turn(4.9)
        last = self.lease(lease="last", most=12, lines=True)
        self.assertEqual([command.id for command in last], names)

    def test_ack(self) -> None:
        """An ack ends the lot, jobs and calls; a repeated one is harmless, a late one is not."""
        called = self.gate.call("q", b"call")
        names = [self.push(body=b"%d" % index) for index in range(2)]
        self.lease(most=3, lines=True)
        self.done(self.gate.leases.finish("lease", None))
        self.done(self.gate.leases.finish("lease", None))
        self.successResultOf(called)
        self.assertEqual({self.state(name) for name in names}, {State.SUCCEEDED})
        self.refused(self.gate.leases.finish("unknown", None), errors.StaleAttempt)

    def test_ack_of_calls_again(self) -> None:
        """A repeated ack is harmless, also where the store never knew of the lease."""
        called = self.gate.call("q", b"call")
        self.lease()
        for _ in range(2):
            self.done(self.gate.leases.finish("lease", None))
        self.successResultOf(called)
        self.refused(self.gate.leases.finish("lease", fault()), errors.StaleAttempt)

    def test_ack_when_a_caller_has_left(self) -> None:
        """It ends the others all the same."""
        called = self.gate.call("q", b"call")
        name = self.push()
        self.lease(most=3, lines=True)
        called.cancel()
        self.failureResultOf(called)
        self.done(self.gate.leases.finish("lease", None))
        self.assertIs(self.state(name), State.SUCCEEDED)

    def test_once(self) -> None:
        """Under `retry = never` a lapse is the end."""
        self.build(q={"retry": "never"})
        name = self.push()
        self.lease(seconds=5)
        self.turn(5.1)
        self.assertIs(self.state(name), State.DEAD)

    def test_many_pullers(self) -> None:
        """A thousand pullers that come and go leave nothing behind."""
        pulls = [self.gate.pull("q", wait=60) for _ in range(1000)]
        for pulled in pulls[::2]:
            pulled.cancel()
            self.failureResultOf(pulled)
        for _ in range(500):
            self.push()
        for pulled in pulls[1::2]:
            self.assertIsNotNone(self.successResultOf(pulled))
        self.assertFalse(self.gate.jobs.backlogs["q"].busy)
        self.assertEqual(len(self.gate.dispatcher["q"].shards[0].waiting), 0)


def fault() -> errors.CommandFailed:
    return errors.CommandFailed("no")


class PullMachine(RuleBasedStateMachine):
    """Pushes, calls, pullers that come, go, answer or fall silent, a worker: nothing is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.case = case = JobsCase()
        case.setUp()
        case.build(
            q={"command": ("w",), "workers": 1, "attempts": 100, "queue_timeout": 0, "timeout": 0},
            p={"attempts": 100, "queue_timeout": 0, "timeout": 0},
        )
        self.pulls: list[tuple[str, Pull, list[Any]]] = []
        self.leases: list[tuple[str, list[Any]]] = []
        self.lent: list[Any] = []
        self.calls: list[Any] = []
        self.names: list[str] = []
        self.serial = 0

    def teardown(self) -> None:
        case = self.case
        for _, pull, _ in self.pulls:
            pull.leave()
        for called in self.calls:
            called.cancel()
        case.gate.leases.close()
        case.conserved()
        for name in self.names:
            state = case.state(name)
            if state < State.SUCCEEDED:
                case.successResultOf(case.journal.cancel(name, "over"))
        case.conserved()
        case.reactor.discard()

    queues = st.sampled_from(["p", "q"])

    @rule(queue=queues, body=st.sampled_from([b"a", b"b", b"with\nnewline"]), late=st.booleans())
    def push(self, queue: str, body: bytes, late: bool) -> None:
        self.names.append(self.case.push(queue, body, delay=2.0 if late else 0.0))

    @rule(queue=queues, count=st.integers(2, 5), late=st.booleans())
    def push_lines(self, queue: str, count: int, late: bool) -> None:
        lines = [b"%d" % number for number in range(count)]
        delay = 2.0 if late else 0.0
        self.names += self.case.push_lines(lines, queue, delay=delay, attempts=100)

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        name = data.draw(st.sampled_from(self.names))
        self.case.successResultOf(self.case.journal.cancel(name, "by request"))

    @rule(queue=queues)
    def call(self, queue: str) -> None:
        called = self.case.gate.call(queue, b"call")
        called.addErrback(lambda _: None)
        self.calls.append(called)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1))).cancel()

    @rule(
        queue=queues,
        wait=st.sampled_from([0.0, 3.0]),
        most=st.integers(1, 4),
        least=st.integers(1, 4),
    )
    def pull(self, queue: str, wait: float, most: int, least: int) -> None:
        pull, got = self.case.pulling(
            queue, wait, most=most, least=min(least, most), lines=most > 1
        )
        self.pulls.append((queue, pull, got))

    def _answered(self, data: Any) -> tuple[str, Pull, list[Any]] | None:
        there = [each for each in self.pulls if each[2]]
        if not there:
            return None
        chosen = data.draw(st.sampled_from(range(len(there))))
        self.pulls.remove(there[chosen])
        return there[chosen]

    @rule(data=st.data(), leased=st.booleans())
    def answered(self, data: Any, leased: bool) -> None:
        """A puller gets its answer."""
        found = self._answered(data)
        if found is None:
            return
        queue, _, [commands] = found
        if not commands:
            return
        road = self.case.gate.dispatcher[queue]
        if not leased:
            self.case.gate.leases.hand_over(road, commands)
            self.lent += commands
            return
        self.serial += 1
        terms = LeaseTerms(f"l{self.serial}", 5.0)
        self.case.successResultOf(self.case.gate.leases.lend(road, commands, terms))
        self.leases.append((terms.id, list(commands)))

    @precondition(lambda self: self.pulls)
    @rule(data=st.data())
    def hang_up(self, data: Any) -> None:
        """A puller leaves, answered or not, before its answer is written."""
        _, pull, _ = self.pulls.pop(data.draw(st.integers(0, len(self.pulls) - 1)))
        pull.leave()

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), what=st.sampled_from(["ack", "fail", "reply", "extend", "silence"]))
    def settle(self, data: Any, what: str) -> None:
        at = data.draw(st.integers(0, len(self.leases) - 1))
        lease, commands = self.leases[at]
        leases = self.case.gate.leases
        steps = {
            "ack": lambda: [leases.finish(lease, None)],
            "fail": lambda: [leases.finish(lease, fault())],
            "reply": lambda: [leases.reply(id_, lease, OK) for c in commands for id_ in ids_of(c)],
            "extend": lambda: [leases.extend(lease, 5.0)],
            "silence": list,
        }
        for step in steps[what]():
            # What has lapsed meanwhile is stale; anything else is an error.
            done = ensureDeferred(step)
            done.addErrback(lambda failure: failure.trap(errors.StaleAttempt))
            self.case.successResultOf(done)
        if what != "extend":
            del self.leases[at]

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def late_reply(self, data: Any) -> None:
        """To what was taken for good: right for a call, stale for a job."""
        command = self.lent.pop(data.draw(st.integers(0, len(self.lent) - 1)))
        waits = command.state == "running"
        replying = self.case.gate.leases.reply(command.id, "", OK)
        if waits:
            self.case.done(replying)
        else:
            self.case.refused(replying, errors.StaleAttempt)

    @rule(what=st.sampled_from(["reply", "fail", "decline", "kill"]), times=st.integers(1, 3))
    def work(self, what: str, times: int) -> None:
        for _ in range(times):
            child = self.case.child
            if not child.commands:
                return
            if what == "kill":
                child.kill()
            else:
                getattr(child, what)(*(["no"] if what == "fail" else []))

    @rule(seconds=st.sampled_from([0.01, 1.0, 6.0]))
    def time(self, seconds: float) -> None:
        self.case.turn(seconds)

    @invariant()
    def counted(self) -> None:
        self.case.conserved()

    @invariant()
    def nobody_waits_beside_work(self) -> None:
        """Who waits for one command does so only where there is none."""
        for queue, pull, got in self.pulls:
            backlog = self.case.gate.jobs.backlogs[queue]
            if not got and pull._least == 1 and not pull._lines:
                road = backlog.road
                assert not road.waiting, (queue, road)
                assert backlog.stored <= 0, (queue, backlog)


PullMachineTests = PullMachine.TestCase


class LotMachine(RuleBasedStateMachine):
    """Whoever takes from what came in lots, and whatever is cancelled: the rest comes in order."""

    def __init__(self) -> None:
        super().__init__()
        self.case = case = JobsCase()
        case.setUp()
        case.patch(lots, "_SIZE", 5)
        case.build(q={}, w={"command": ("w",), "workers": 1})
        self.serial = 0
        self.lines: dict[str, bytes] = {}
        self.waiting: list[str] = []
        self.ended: dict[str, State] = {}
        self.pull: tuple[Pull, list[Any], int, int] | None = None
        self.has: list[str] | None = None
        self.at_worker: list[str] = []

    def teardown(self) -> None:
        if self.pull is not None:
            self.pull[0].leave()
        self.settled()
        self.case.reactor.discard()
        self.case.doCleanups()

    def new_lines(self, count: int, queue: str) -> list[str]:
        lines = [b"%d" % (self.serial + number) for number in range(count)]
        self.serial += count
        names = self.case.push_lines(lines, queue)
        self.lines.update(zip(names, lines, strict=True))
        return names

    @rule(count=st.integers(1, 12))
    def push(self, count: int) -> None:
        self.waiting += self.new_lines(count, "q")
        self.look()

    @precondition(lambda self: self.pull is None)
    @rule(most=st.integers(1, 8), least=st.integers(1, 8), single=st.booleans())
    def ask(self, most: int, least: int, single: bool) -> None:
        """Somebody waits for lines, or for one command."""
        most = 1 if single else most
        least = min(most, least)
        pull, got = self.case.pulling(wait=1e6, most=most, least=least, lines=not single)
        self.pull = pull, got, most, least
        self.look()

    def look(self) -> None:
        """Who has enough is answered, with what is first."""
        self.case.turn(0.01)
        if self.pull is None or self.has is not None:
            return
        _, got, most, least = self.pull
        assert bool(got) == (len(self.waiting) >= least)
        if got:
            self.has, self.waiting = self.waiting[:most], self.waiting[most:]
            [commands] = got
            found = [id_ for command in commands for id_ in ids_of(command)]
            assert found == self.has
            bodies = [line for c in commands for line in lots.bodies_of(c.size, c.body)]
            assert bodies == [self.lines[name] for name in found]

    @precondition(lambda self: self.has is not None)
    @rule(how=st.sampled_from(["for good", "leased", "acknowledged in part", "hung up"]))
    def answer(self, how: str) -> None:
        """The answer reaches its puller, or does not."""
        assert self.pull is not None
        assert self.has is not None
        pull, [commands], _, _ = self.pull
        has = [name for name in self.has if name not in self.ended]
        gate = self.case.gate
        road, leases = gate.dispatcher["q"], gate.leases
        if how == "hung up":
            pull.leave()
            self.waiting = has + self.waiting
        else:
            self.ended.update(dict.fromkeys(has, State.SUCCEEDED))
        if how == "for good":
            leases.hand_over(road, commands)
        elif how != "hung up":
            lease = self.case.gate.ids.make()
            self.case.successResultOf(leases.lend(road, commands, LeaseTerms(lease, 50.0)))
            if how == "acknowledged in part" and has:
                self.case.done(leases.reply(has[len(has) // 2], lease, OK))
                has.pop(len(has) // 2)
            if has:
                self.case.done(leases.finish(lease, None))
        self.pull = self.has = None
        self.case.turn()

    @precondition(lambda self: self.waiting or self.has)
    @rule(data=st.data(), count=st.integers(1, 3))
    def cancel(self, data: Any, count: int) -> None:
        """Wherever they are: in the store, in a queue, with a puller who gathers or has enough."""
        at = data.draw(st.integers(0, len(self.waiting) + len(self.has or ()) - 1))
        for name in [*(self.has or ()), *self.waiting][at : at + count]:
            if name not in self.ended:
                self.case.successResultOf(self.case.journal.cancel(name, "by request"))
                self.ended[name] = State.CANCELLED
        self.waiting = [name for name in self.waiting if name not in self.ended]
        self.look()

    @rule(seconds=st.sampled_from([1.0, 10.0]))
    def time(self, seconds: float) -> None:
        """What is kept at hand is not for long."""
        self.case.turn(seconds)

    @rule(count=st.integers(1, 12))
    def push_to_worker(self, count: int) -> None:
        self.at_worker += self.new_lines(count, "w")

    @precondition(lambda self: self.at_worker)
    @rule(count=st.integers(1, 12))
    def work(self, count: int) -> None:
        """A worker is given one after the other."""
        for _ in range(min(count, len(self.at_worker))):
            [given] = self.case.child.commands
            name = self.at_worker.pop(0)
            assert given.body == self.lines[name]
            self.case.child.reply(b"")
            self.ended[name] = State.SUCCEEDED

    @precondition(lambda self: len(self.at_worker) > 1)
    @rule(data=st.data())
    def cancel_before_worker(self, data: Any) -> None:
        name = self.at_worker.pop(data.draw(st.integers(1, len(self.at_worker) - 1)))
        self.case.successResultOf(self.case.journal.cancel(name, "by request"))
        self.ended[name] = State.CANCELLED

    @rule(count=st.integers(1, 8))
    def pull_beside_worker(self, count: int) -> None:
        """Lines are pulled from where a worker takes them, too."""
        _, got = self.case.pulling("w", most=count, lines=True)
        [commands] = got
        names = self.at_worker[1 : 1 + count]
        assert [id_ for command in commands for id_ in ids_of(command)] == names
        self.case.gate.leases.hand_over(self.case.gate.dispatcher["w"], commands)
        del self.at_worker[1 : 1 + count]
        self.ended.update(dict.fromkeys(names, State.SUCCEEDED))

    @invariant()
    def settled(self) -> None:
        self.case.conserved()
        window = self.case.gate.jobs.backlogs["q"].window
        assert all(name not in self.ended for name in window)
        jobs, _ = self.case.successResultOf(self.case.journal.page("", None, 1000, ""))
        found = {job.id: job.state for job in jobs}
        assert found.items() >= self.ended.items()


LotMachineTests = LotMachine.TestCase
LotMachineTests.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
