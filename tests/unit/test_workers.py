"""
`jobgate.pool`: pipes, WorkerProcess, Supervisor and Guard, with children that do as they are told.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

from twisted.trial.unittest import SynchronousTestCase

from jobgate.command import DONE, RUNNING, Batch
from jobgate.config import BatchConfig
from jobgate.gate.road import Road
from jobgate.pool.guard import Guard
from jobgate.pool.lifecycle import State
from jobgate.pool.member import RETIRED
from jobgate.pool.pipes import WorkerInput, WorkerOutput
from jobgate.pool.post import Post
from jobgate.pool.process import WorkerProcess
from jobgate.pool.supervisor import Supervisor
from jobgate.testing import FakeChild, Recorder, SpawningReactor
from jobgate.wire import frames
from tests.unit.fakes import command, queue_config

if TYPE_CHECKING:
    from jobgate.config import QueueConfig

TERM, KILL = signal.SIGTERM, signal.SIGKILL


class PipesTests(SynchronousTestCase):
    """Direct writes and wide reads, on real pipes without a child."""

    def setUp(self) -> None:
        self.reactor = SpawningReactor()
        self.addCleanup(self.reactor.discard)
        self.protocol = Recorder()
        self.child: FakeChild = self.reactor.spawnProcess(self.protocol, "x")
        self.stdin = WorkerInput(self.child.pipes[0], self.reactor)

    def test_idle_is_written_at_once(self) -> None:
        """An idle child has its bytes before `write` returns."""
        self.stdin.write(b"head", b"body", idle=True)
        self.assertEqual(self.child.written, b"headbody")
        self.assertEqual((self.stdin.offered, self.stdin.written), (8, 8))

    def test_busy_is_written_once_a_turn(self) -> None:
        """A busy child gets what one turn gathers, in order, in one write."""
        for number in range(3):
            self.stdin.write(b"%d" % number, b"x", idle=False)
        self.assertEqual((self.child.written, self.stdin.written), (b"", 0))
        self.stdin.write(b"!", b"", idle=True)
        self.reactor.advance(0)
        self.assertEqual(self.child.written, b"0x1x2x!")
        self.assertEqual((self.stdin.offered, self.stdin.written), (7, 7))

    def test_more_than_the_pipe_takes(self) -> None:
        """What the pipe does not take waits in order, and is not counted as written."""
        bodies = [bytes([65 + n]) * 700_000 for n in range(4)]
        for number, body in enumerate(bodies):
            self.stdin.write(b"<%d>" % number, body, idle=number != 2)
            self.reactor.advance(0)
        whole = b"".join(b"<%d>" % n + body for n, body in enumerate(bodies))
        self.assertEqual(self.stdin.offered, len(whole))
        self.assertLess(self.stdin.written, len(whole))
        self.assertEqual(self.child.written, whole)
        self.assertEqual(self.stdin.written, len(whole))

    def test_many_pieces_in_a_turn(self) -> None:
        """More pieces than one vector may have are written all the same."""
        body = b"x" * 70_000
        for _ in range(700):
            self.stdin.write(b"h", b"b", idle=False)
        self.stdin.write(b"h", body, idle=False)
        self.reactor.advance(0)
        self.assertEqual(len(self.child.written), 1400 + 70_001)

    def test_a_child_that_reads_no_more(self) -> None:
        """
        What could not be written because the child closed its stdin is never counted as written.
        """
        self.stdin.write(b"one", b"", idle=True)
        self.child.read_all()
        self.child.close_stdin()
        self.stdin.write(b"two", b"", idle=True)
        self.assertEqual((self.stdin.offered, self.stdin.written), (6, 3))

    def test_what_nobody_has_read(self) -> None:
        """
        What stands in the pipe has not been seen; when the pipe goes, it never will be.
        """
        self.stdin.write(b"one", b"", idle=True)
        self.child.read_all()
        self.stdin.write(b"two", b"", idle=True)
        self.assertEqual(self.stdin.written, 3)
        self.child.pipes[0].lose()
        self.assertEqual(self.stdin.written, 3)

    def test_written_after_the_child_reads_no_more(self) -> None:
        """Nor is anything that is offered later."""
        self.child.close_stdin()
        self.stdin.write(b"one", b"", idle=True)
        self.stdin.write(b"two", b"", idle=True)
        self.stdin.write(b"six", b"", idle=False)
        self.reactor.advance(0)
        self.assertEqual(self.stdin.written, 0)

    def test_written_after_the_pipe_is_lost(self) -> None:
        """Nor what is offered after Twisted has said that the pipe is closed."""
        self.child.pipes[0].lose()
        self.stdin.write(b"one", b"", idle=True)
        self.assertEqual(self.stdin.written, 0)

    def test_close(self) -> None:
        """Closing writes what is gathered first, and nothing after."""
        self.stdin.write(b"last", b"", idle=False)
        self.stdin.close()
        self.assertTrue(self.child.stdin_closed)
        self.assertEqual(self.child.written, b"last")

    def test_reads(self) -> None:
        """Everything said is received in order, also what is still in the pipe at the end."""
        got: list[bytes] = []
        receiver = Recorder()
        receiver.receive = got.append  # type: ignore[method-assign]
        stdout = WorkerOutput(self.child.pipes[1], receiver)
        data = os.urandom(900_000)
        self.child.say(data)
        self.assertEqual(b"".join(got), data)
        os.write(self.child._stdout_fd, b"last words")
        stdout.read_rest()
        self.assertEqual(got[-1], b"last words")
        stdout.close()
        os.write(self.child._stdout_fd, b"too late")
        stdout.read_rest()
        self.assertEqual(got[-1], b"last words")

    def test_nothing_to_read(self) -> None:
        """A pipe with nothing in it is no error."""
        stdout = WorkerOutput(self.child.pipes[1], Recorder())
        self.assertIsNone(stdout.read())


class WorkerCase(SynchronousTestCase):
    """A reactor with fake children, and the helpers for it."""

    def setUp(self) -> None:
        self.reactor = SpawningReactor()
        self.reactor.install()
        self.addCleanup(self.reactor.discard)
        self.events: list[tuple[Any, ...]] = []

    def names(self) -> list[str]:
        return [event[0] for event in self.events]


class Owner(Recorder):
    """A Supervisor that only listens."""


class WorkerProcessTests(WorkerCase):
    """One child, from start to end."""

    def build(self, **changes: Any) -> tuple[WorkerProcess, FakeChild]:
        config = queue_config(command=("python", "w.py"), cwd="/", **changes)
        self.events.clear()
        self.worker = WorkerProcess("q-1", "q", config.worker(), self.reactor, Owner(self.events))  # type: ignore[arg-type]
        self.worker.start()
        return self.worker, self.reactor.workers[-1]

    def ready(self, **changes: Any) -> tuple[WorkerProcess, FakeChild]:
        worker, child = self.build(**changes)
        child.hello()
        self.crew = Recorder(self.events)
        worker.hire(self.crew)  # type: ignore[arg-type]
        return worker, child

    def test_spawned(self) -> None:
        """
        It is started through the launcher, with a minimal environment and its own names in it.
        """
        os.environ["JOBGATE_TEST_SECRET"] = "s3cret"
        self.addCleanup(os.environ.pop, "JOBGATE_TEST_SECRET")
        worker, child = self.build(env={"MINE": "1"})
        self.assertEqual(child.command, ["python", "w.py"])
        self.assertEqual(child.args[4:6], ["/", str(os.getpid())])
        self.assertEqual(
            (child.env["JOBGATE_QUEUE"], child.env["JOBGATE_WORKER"], child.env["MINE"]),
            ("q", "q-1", "1"),
        )
        self.assertNotIn("s3cret", child.env.values())
        self.assertEqual(worker.pid, child.pid)
        self.assertEqual(self.events, [("group_started", child.pid)])
        self.assertEqual((worker.state, worker.room), (State.STARTING, 0))

    def test_its_last_answers_and_its_end(self) -> None:
        """Once it is gone nobody is signalled, also if it was let go in its last moment."""
        worker, child = self.build(protocol="lines", batch=BatchConfig(size=2))
        child.executed()
        worker.hire(Recorder(self.events))  # type: ignore[arg-type]
        worker.send_batch(Batch([command(b"a"), command(b"b")]))
        worker.retire()
        child.read_all()
        child.say(b"1\n2\n")
        child.exit()
        self.assertEqual(self.names().count("replied"), 2)
        self.reactor.advance(1)
        self.assertEqual((worker.state, self.reactor.getDelayedCalls()), (State.GONE, []))

    def test_ready(self) -> None:
        """HELLO makes it ready, and tells its owner."""
        worker, child = self.build(in_flight=3)
        child.hello()
        self.assertEqual((worker.state, worker.room, worker.lanes), (State.READY, 3, 3))
        self.assertEqual(self.events[-1], ("worker_ready", worker))
        self.assertIn("READY", repr(worker))

    def test_lines_ready(self) -> None:
        """A `lines` worker is ready once the launcher has become its command."""
        worker, child = self.build(protocol="lines")
        self.assertIs(worker.state, State.STARTING)
        child.executed()
        self.assertIs(worker.state, State.READY)

    def test_cannot_start(self) -> None:
        """A command that cannot be started says why, and is never ready."""
        worker, child = self.build(protocol="lines")
        child.cannot_start("cannot start 'nope': No such file or directory")
        self.assertNotIn("worker_ready", self.names())
        self.assertEqual(worker.report.cause, "cannot start 'nope': No such file or directory")  # type: ignore[union-attr]
        self.assertEqual(worker.report.exit_status, 127)  # type: ignore[union-attr]

    def test_boot_timeout(self) -> None:
        """Not ready within `boot_timeout`: SIGTERM, then SIGKILL after `kill_timeout`."""
        worker, child = self.build(boot_timeout=7, kill_timeout=2)
        self.reactor.advance(6.9)
        self.assertEqual(child.received, [])
        self.reactor.advance(0.2)
        self.assertEqual((child.received, worker.state), ([TERM], State.ENDING))
        self.reactor.advance(1.9)
        self.assertEqual(child.received, [TERM])
        self.reactor.advance(0.2)
        self.reactor.advance(0)
        self.assertEqual((child.received, child.alive), ([TERM, KILL], False))
        self.assertIn("boot_timeout", worker.report.cause)  # type: ignore[union-attr]

    def test_hello_in_time_has_no_timeout(self) -> None:
        """Once ready, `boot_timeout` is over."""
        _, child = self.build(boot_timeout=7)
        child.hello()
        self.reactor.advance(8)
        self.assertEqual(child.received, [])

    def test_retire_idle(self) -> None:
        """
        Retiring an idle worker: DRAIN, the end of its stdin, and if it does not go, SIGTERM,
        SIGKILL.
        """
        worker, child = self.ready(kill_timeout=5)
        worker.retire()
        self.assertEqual(
            (child.kinds[-1], child.stdin_closed, child.received), (frames.DRAIN, True, [])
        )
        self.assertEqual(self.names()[-2:], ["worker_leaving", "stop"])
        self.reactor.advance(0.9)
        self.assertEqual(child.received, [])
        self.reactor.advance(0.2)
        self.assertEqual(child.received, [TERM])
        self.reactor.advance(4.8)
        self.assertEqual(child.received, [TERM])
        self.reactor.advance(0.3)
        self.assertEqual(child.received, [TERM, KILL])

    def test_retire_polite(self) -> None:
        """One that goes by itself gets no signal but the one to its group's leftovers."""
        worker, child = self.ready()
        worker.retire()
        child.exit(0)
        self.assertEqual((child.received, worker.state), ([], State.GONE))
        self.assertEqual(worker.report.cause, RETIRED)  # type: ignore[union-attr]
        self.assertEqual(self.names()[-2:], ["group_ended", "worker_gone"])
        self.reactor.advance(60)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_retire_busy(self) -> None:
        """A busy one finishes what it has first, however long it takes, and takes nothing new."""
        worker, child = self.ready(in_flight=2)
        made = command()
        worker.send(made)
        worker.retire()
        self.assertEqual((worker.room, worker.state), (0, State.DRAINING))
        self.reactor.advance(55)
        self.assertEqual((child.kinds[-1], child.received), (frames.COMMAND, []))
        child.reply(b"done")
        self.assertEqual(self.names().count("replied"), 1)
        self.assertEqual(child.kinds[-1], frames.DRAIN)
        self.assertNotIn("lost", self.names())

    def test_retire_starting(self) -> None:
        """One that is still starting is ended too."""
        worker, child = self.build()
        worker.retire()
        self.assertTrue(child.stdin_closed)
        self.reactor.advance(1.1)
        self.assertEqual(child.received, [TERM])
        child.kill(TERM)
        self.assertIs(worker.state, State.GONE)

    def test_death_with_commands(self) -> None:
        """A death gives back what it had, youngest first, with its status, and leaves a report."""
        worker, child = self.ready(in_flight=3)
        made = [command(id=f"g-{n}") for n in range(2)]
        for one in made:
            worker.send(one)
            self.reactor.advance(0)
        child.complain(b"Segmentation fault\n")
        child.kill(signal.SIGSEGV)
        lost = self.crew.of("lost")
        self.assertEqual([one[0] for one in lost], made[::-1])
        self.assertEqual(
            (lost[0][1].kind, lost[0][1].signal, lost[0][1].exit_status), ("died", "SIGSEGV", None)
        )
        self.assertEqual(lost[0][2], {"begun": True, "alone": False})
        report = worker.report
        assert report is not None
        self.assertEqual(
            (report.signal, report.running, report.commands_done), ("SIGSEGV", ["g-0", "g-1"], 0)
        )
        self.assertIn("Segmentation fault", report.output)
        self.assertEqual(report.pid, child.group)
        order = self.names()
        self.assertLess(order.index("worker_leaving"), order.index("lost"))
        self.assertEqual(order[-1], "worker_gone")

    def test_death_alone(self) -> None:
        """A command that was alone is said to have been alone."""
        worker, child = self.ready(in_flight=3)
        worker.send(command())
        child.exit(3)
        [(_, loss, how)] = self.crew.of("lost")
        self.assertEqual(
            (loss.exit_status, loss.signal, how), (3, None, {"begun": True, "alone": True})
        )

    def test_last_words(self) -> None:
        """A reply that was in the pipe when the child died is a reply, not a death."""
        worker, child = self.ready()
        made = command()
        worker.send(made)
        os.write(child._stdout_fd, frames.encode(frames.REPLY, child.commands[0].id, b"", b"last"))
        child.exit(0)
        self.assertEqual([c for c, *_ in self.crew.of("replied")], [made])
        self.assertEqual(self.crew.of("lost"), [])

    def test_cut_off(self) -> None:
        """A child that died in the middle of a frame is reported so."""
        worker, child = self.ready()
        child.say(frames.encode(frames.REPLY, 0, b"", b"x" * 50)[:-1])
        child.exit(1)
        self.assertIn("inside a frame", worker.report.cause)  # type: ignore[union-attr]

    def test_unseen_command(self) -> None:
        """A command that did not fit the pipe whole cannot have begun."""
        worker, child = self.ready(in_flight=2)
        worker.send(command(b"x" * 3_000_000))
        child.kill(read=False)
        self.assertEqual(self.crew.of("lost")[0][2]["begun"], False)

    def test_command_after_stdin_was_closed(self) -> None:
        """A command for a worker that had closed its stdin before cannot have begun."""
        worker, child = self.ready(in_flight=2)
        child.close_stdin()
        child.pipes[0].lose()
        worker.send(command())
        child.kill()
        self.assertEqual(self.crew.of("lost")[0][2]["begun"], False)

    def test_protocol_error(self) -> None:
        """
        Text on stdout ends the worker; its command is lost to the protocol, the report shows the
        text.
        """
        worker, child = self.ready(kill_timeout=1)
        worker.send(command())
        child.say(b"print() to stdout\n")
        [(_, loss, _)] = self.crew.of("lost")
        self.assertEqual((loss.kind, child.received), ("protocol", [TERM]))
        child.reply(b"too late")
        self.assertEqual(self.crew.of("replied"), [])
        self.reactor.advance(1.1)
        self.reactor.advance(0)
        report = worker.report
        assert report is not None
        self.assertIn("not a frame", report.cause)
        self.assertIn("print() to stdout", report.output)

    def test_overran(self) -> None:
        """A command that ran too long costs its worker its life."""
        worker, child = self.ready()
        worker.send(command())
        worker.overran("it ran for over 60 s")
        self.assertEqual(child.received, [TERM])
        self.assertEqual(self.crew.of("lost")[0][1].kind, "timeout")
        worker.overran("again")
        self.assertEqual(child.received, [TERM])

    def test_cancel_policies(self) -> None:
        """`drop` does nothing, `cooperative` sends CANCEL, `kill` kills."""
        for policy, kinds, received in (
            ("drop", [frames.COMMAND], []),
            ("cooperative", [frames.COMMAND, frames.CANCEL], []),
            ("kill", [frames.COMMAND], [TERM]),
        ):
            worker, child = self.ready(cancel=policy)
            made = command()
            worker.send(made)
            made.began = 1.0
            worker.cancel(made)
            self.assertEqual((child.kinds[1:], child.received), (kinds, received))

    def test_cancel_kill_harms_nobody_else(self) -> None:
        """What has not begun, or runs beside what is still wanted, is no reason to kill."""
        worker, child = self.ready(cancel="kill", in_flight=3)
        running, behind, beside = command(b"a"), command(b"b"), command(b"c")
        for each in (running, behind, beside):
            worker.send(each)
            each.state = RUNNING
        self.reactor.advance(0)
        running.began = beside.began = 1.0
        for unwanted in (behind, beside):
            unwanted.state = DONE
            worker.cancel(unwanted)
            self.assertEqual((child.kinds[-1], child.received), (frames.CANCEL, []))
        running.state = DONE
        worker.cancel(running)
        self.assertEqual(child.received, [TERM])

    def test_stdout_closed(self) -> None:
        """A child that closes its stdout and lives on is ended, after a moment to die by itself."""
        worker, child = self.ready()
        child.close_stdout()
        self.assertEqual(child.received, [])
        self.reactor.advance(0.6)
        self.assertEqual(child.received, [TERM])
        worker, child = self.ready()
        child.close_stdout()
        child.exit(0)
        self.reactor.advance(0.6)
        self.assertIn("status 0", worker.report.cause)  # type: ignore[union-attr]

    def test_ping(self) -> None:
        """An idle worker is pinged after half a minute; one that does not answer is ended."""
        worker, child = self.ready()
        self.reactor.advance(30.1)
        self.assertEqual(child.kinds[-1], frames.PING)
        child.frame(frames.PONG)
        self.reactor.advance(30.1)
        self.assertEqual((child.kinds.count(frames.PING), child.received), (2, []))
        self.reactor.advance(30.1)
        self.assertEqual(child.received, [TERM])
        self.assertIs(worker.state, State.ENDING)

    def test_busy_is_not_pinged(self) -> None:
        """A worker that runs something is left alone."""
        worker, child = self.ready(timeout=0)
        worker.send(command())
        self.reactor.advance(200)
        self.assertNotIn(frames.PING, child.kinds)
        self.assertEqual(child.received, [])

    def test_hurry(self) -> None:
        """With no more patience it is SIGKILL at once; its commands are given back."""
        worker, child = self.ready()
        worker.send(command())
        worker.hurry()
        self.assertEqual(child.received, [KILL])
        self.assertEqual(self.crew.of("lost")[0][1].kind, "stopped")
        self.reactor.advance(0)
        worker.hurry()
        self.assertIs(worker.state, State.GONE)

    def test_ignores_what_comes_after_its_end(self) -> None:
        """HELLO after the order to go makes nobody ready."""
        worker, child = self.build()
        worker.retire()
        child.hello()
        self.assertNotIn("worker_ready", self.names())

    def test_pipes_of_the_dead_are_closed(self) -> None:
        """A grandchild that holds the pipes does not keep them open."""
        _, child = self.ready()
        child.exit(1)
        self.assertFalse(child.pipes[2].closed)
        self.reactor.advance(0.3)
        self.assertTrue(all(pipe.closed for pipe in child.pipes.values()))


class SupervisorTests(WorkerCase):
    """Keeping N alive."""

    def build(self, workers: int = 1, **changes: Any) -> Supervisor:
        self.config = queue_config(command=("w",), workers=workers, **changes)
        self.foreman = Recorder(self.events)
        self.groups = Recorder()
        self.supervisor = Supervisor(self.config, self.reactor, self.foreman, self.groups)  # type: ignore[arg-type]
        return self.supervisor

    def start(self, workers: int = 1, *, ready: bool = True, **changes: Any) -> list[FakeChild]:
        self.build(workers, **changes)
        self.started = self.supervisor.start()
        self.reactor.advance(0)
        if ready:
            for child in self.reactor.workers:
                child.hello()
        return self.reactor.workers

    def turn(self) -> None:
        self.reactor.advance(0)
        self.reactor.advance(0)

    def test_start(self) -> None:
        """As many children as configured; told when the first is ready."""
        children = self.start(3, ready=False)
        self.assertEqual(len(children), 3)
        self.assertNoResult(self.started)
        children[1].hello()
        self.successResultOf(self.started)
        self.assertEqual(
            [(e[1].name, e[2]) for e in self.events if e[0] == "worker_ready"], [("q-2", 1)]
        )
        self.assertEqual(len(self.supervisor.alive), 1)
        self.assertEqual([post.name for post in self.supervisor.posts], ["q-1", "q-2", "q-3"])

    def test_start_without_command(self) -> None:
        """A queue without a command is started at once and has nobody."""
        self.supervisor = Supervisor(queue_config(), self.reactor, Recorder(), Recorder())  # type: ignore[arg-type]
        self.successResultOf(self.supervisor.start())
        self.reactor.advance(10)
        self.assertEqual((self.reactor.spawned, self.supervisor.crash_loop), ([], False))

    def test_start_tells_of_failure(self) -> None:
        """`start` also fires when the first worker has failed to be ready."""
        children = self.start(ready=False)
        children[0].exit(1)
        self.successResultOf(self.started)

    def test_replaced_at_once(self) -> None:
        """A worker that dies with a command in hand is replaced at once, for ever."""
        self.start()
        for number in range(1, 20):
            worker = self.supervisor.posts[0].worker
            assert worker is not None
            worker.send(command())
            self.reactor.workers[-1].kill()
            self.turn()
            self.assertEqual(len(self.reactor.workers), number + 1)
            self.reactor.workers[-1].hello()
        self.assertFalse(self.supervisor.crash_loop)
        self.assertEqual(self.supervisor.posts[0].restarts, 19)

    def test_crash_loop(self) -> None:
        """Five deaths in a row before HELLO: then back-off, and it says so until one lives."""
        self.start(ready=False)
        for number in range(5):
            self.assertFalse(self.supervisor.crash_loop)
            self.assertEqual(len(self.reactor.workers), number + 1)
            self.reactor.workers[-1].exit(1)
            self.turn()
        self.assertTrue(self.supervisor.crash_loop)
        self.assertIn("pool_changed", self.names())
        self.assertEqual(self.supervisor.last_cause, "exited with status 1")
        self.assertTrue(0 < self.supervisor.retry_in <= 0.6)
        self.assertEqual(len(self.reactor.workers), 5)
        self.assertEqual(self.supervisor.backing_off, self.supervisor.posts)
        self.reactor.advance(0.7)
        self.assertEqual(len(self.reactor.workers), 6)
        self.assertEqual(self.supervisor.backing_off, [])
        self.reactor.workers[-1].exit(1)
        self.assertTrue(0.7 < self.supervisor.retry_in <= 1.2)
        self.reactor.advance(1.3)
        self.reactor.workers[-1].hello()
        self.assertFalse(self.supervisor.crash_loop)

    def test_crash_loop_soon_after_hello(self) -> None:
        """Deaths within a second of HELLO with nothing in hand count too."""
        self.start(ready=False)
        for _ in range(5):
            self.reactor.workers[-1].hello()
            self.reactor.advance(0.9)
            self.reactor.workers[-1].exit(0)
            self.turn()
        self.assertTrue(self.supervisor.crash_loop)

    def test_no_crash_loop_later(self) -> None:
        """A second after HELLO a death is no longer early, and the row is over."""
        self.start(ready=False)
        for _ in range(12):
            self.reactor.workers[-1].hello()
            self.reactor.advance(1.1)
            self.reactor.workers[-1].exit(0)
            self.turn()
        self.assertFalse(self.supervisor.crash_loop)
        self.assertEqual(len(self.reactor.workers), 13)

    def test_no_crash_loop_while_one_lives(self) -> None:
        """While one worker lives the queue is not in a crash loop."""
        children = self.start(2, ready=False)
        children[0].hello()
        for _ in range(6):
            self.reactor.workers[-1].exit(1)
            self.reactor.advance(3)
        self.assertFalse(self.supervisor.crash_loop)

    def test_spawn_failure(self) -> None:
        """A system without processes to give is like a death: tried again with back-off."""
        self.reactor.refuse = OSError(11, "Resource temporarily unavailable")
        self.start(ready=False)
        self.successResultOf(self.started)
        self.reactor.advance(0.01)
        for _ in range(6):
            self.turn()
        self.assertTrue(self.supervisor.crash_loop)
        self.assertIn("Resource temporarily unavailable", self.supervisor.last_cause)
        self.reactor.refuse = None
        self.reactor.advance(40)
        self.reactor.workers[0].hello()
        self.assertFalse(self.supervisor.crash_loop)

    def test_recycle(self) -> None:
        """
        Make before break: the old one works until the new one is ready, then finishes and goes.
        """
        [old] = self.start()
        post = self.supervisor.posts[0]
        first = post.worker
        assert first is not None
        first.send(command())
        self.events.clear()
        self.supervisor.recycle(post)
        self.supervisor.recycle(post)
        self.assertEqual((len(self.reactor.alive), first.state), (2, State.READY))
        self.reactor.workers[1].hello()
        self.assertEqual([e[0] for e in self.events[:2]], ["worker_ready", "worker_leaving"])
        self.assertEqual((first.state, old.kinds[-1]), (State.DRAINING, frames.COMMAND))
        old.reply()
        self.assertEqual(old.kinds[-1], frames.DRAIN)
        old.exit(0)
        self.turn()
        self.assertEqual(
            ([w.name for w in self.supervisor.workers], len(self.reactor.alive)), (["q-1"], 1)
        )
        self.assertIsNone(post.report)

    def test_recycle_with_a_new_one_that_fails(self) -> None:
        """If the new one cannot start, the old one stays."""
        self.start()
        post = self.supervisor.posts[0]
        old = post.worker
        self.supervisor.recycle(post)
        self.reactor.workers[1].exit(1)
        self.turn()
        self.assertIs(post.worker, old)
        self.assertEqual((post.next, len(self.supervisor.alive)), (None, 1))
        self.reactor.refuse = OSError(11, "no")
        self.supervisor.recycle(post)
        self.assertIs(post.worker, old)
        self.assertIsNone(post.next)

    def test_old_one_dies_while_recycled(self) -> None:
        """If the old one dies meanwhile, exactly one worker holds the post in the end."""
        [old] = self.start()
        post = self.supervisor.posts[0]
        self.supervisor.recycle(post)
        old.kill()
        self.turn()
        for child in self.reactor.alive:
            child.hello()
            self.turn()
        for child in self.reactor.alive:
            if child.stdin_closed:
                child.exit(0)
        self.turn()
        self.assertEqual((len(self.supervisor.alive), len(self.reactor.alive)), (1, 1))
        self.assertIsNone(post.next)

    def test_reconfigure_the_command(self) -> None:
        """Another command: new workers start with it, one by one, before the old ones go."""
        self.start(2)
        self.supervisor.reconfigure(queue_config(command=("new",), workers=2))
        for number in (2, 3):
            self.turn()
            self.assertEqual(len(self.reactor.workers), number + 1)
            self.assertEqual(self.reactor.workers[number].command, ["new"])
            self.assertFalse(self.reactor.workers[number - 2].stdin_closed)
            self.reactor.workers[number].hello()
            self.reactor.advance(1.1)
        for child in self.reactor.workers[:2]:
            self.assertTrue(child.stdin_closed)
            child.exit(0)
        self.assertEqual(len(self.supervisor.workers), 2)

    def test_reconfigure_twice(self) -> None:
        """
        A second change while the first one's workers are still starting is the one that counts.
        """
        self.start()
        self.supervisor.reconfigure(queue_config(command=("two",), workers=1))
        self.turn()
        self.supervisor.reconfigure(queue_config(command=("three",), workers=1))
        for _ in range(6):
            self.reactor.advance(1.1)
            for child in self.reactor.alive:
                if child.stdin_closed:
                    child.exit(0)
                elif frames.WELCOME not in child.kinds:
                    child.hello()
        self.assertEqual([child.command for child in self.reactor.alive], [["three"]])

    def test_reconfigure_only_bounds(self) -> None:
        """A change of bounds leaves the workers alone."""
        self.start(2)
        self.supervisor.reconfigure(
            queue_config(command=("w",), workers=2, size=9, queue_timeout=1)
        )
        self.turn()
        self.assertEqual(len(self.reactor.workers), 2)

    def test_reconfigure_the_number(self) -> None:
        """More workers are started; fewer: the last posts finish and go for good."""
        self.start(2)
        self.supervisor.reconfigure(queue_config(command=("w",), workers=4))
        self.turn()
        self.assertEqual(len(self.reactor.workers), 4)
        for child in self.reactor.workers[2:]:
            child.hello()
        self.supervisor.reconfigure(queue_config(command=("w",), workers=1))
        self.turn()
        self.assertEqual(
            [child.stdin_closed for child in self.reactor.workers], [False, True, True, True]
        )
        for child in self.reactor.workers[1:]:
            child.exit(0)
        self.turn()
        self.assertEqual([post.name for post in self.supervisor.posts], ["q-1"])
        self.assertEqual(len(self.reactor.workers), 4)

    def test_reconfigure_ends_back_off(self) -> None:
        """
        A reload in a crash loop tries the new command without waiting out the old one's back-off.
        """
        self.start(ready=False)
        for _ in range(12):
            self.reactor.workers[-1].exit(1)
            self.reactor.advance(40)
        self.reactor.workers[-1].exit(1)
        self.assertGreater(self.supervisor.retry_in, 10)
        self.supervisor.reconfigure(queue_config(command=("mended",), workers=1))
        self.reactor.advance(1)
        self.assertEqual(self.reactor.workers[-1].command, ["mended"])

    def test_stop(self) -> None:
        """
        Stopping: DRAIN and end of stdin, SIGTERM, SIGKILL, in this order; told when all are reaped.
        """
        children = self.start(2, kill_timeout=5)
        gone = self.supervisor.stop()
        self.assertTrue(all(c.kinds[-1] == frames.DRAIN and c.stdin_closed for c in children))
        children[0].exit(0)
        self.assertNoResult(gone)
        self.reactor.advance(1.1)
        self.assertEqual([c.received for c in children], [[], [TERM]])
        self.reactor.advance(5.1)
        self.turn()
        self.assertEqual(children[1].received, [TERM, KILL])
        self.successResultOf(gone)
        self.reactor.advance(100)
        self.assertEqual(len(self.reactor.workers), 2)

    def test_stop_while_starting(self) -> None:
        """Those that are starting, or about to be started, go too."""
        self.build(2)
        self.supervisor.start()
        gone = self.supervisor.stop()
        self.successResultOf(gone)
        self.reactor.advance(1)
        self.assertEqual(self.reactor.workers, [])

    def test_stop_nobody(self) -> None:
        """Without workers stopping is over at once."""
        self.build()
        self.successResultOf(self.supervisor.stop())

    def test_stop_during_back_off(self) -> None:
        """Nobody is started after `stop`, and no timer of a restart is left."""
        self.start(ready=False)
        for _ in range(5):
            self.reactor.workers[-1].exit(1)
            self.turn()
        self.successResultOf(self.supervisor.stop())
        self.reactor.advance(100)
        self.assertEqual((len(self.reactor.workers), self.reactor.getDelayedCalls()), (5, []))

    def test_hurry(self) -> None:
        """SIGKILL for everyone, at once."""
        children = self.start(2)
        gone = self.supervisor.stop()
        self.supervisor.hurry()
        self.turn()
        self.assertEqual([c.received[-1] for c in children], [KILL, KILL])
        self.successResultOf(gone)

    def test_report_stays(self) -> None:
        """The last crash report stays with the post; a planned end leaves none."""
        [child] = self.start()
        child.complain(b"oh no\n")
        self.reactor.advance(2)
        child.exit(9)
        self.turn()
        post = self.supervisor.post("q-1")
        assert isinstance(post, Post)
        assert post.report is not None
        self.assertEqual((post.report.exit_status, post.report.worker), (9, "q-1"))
        self.assertIn("oh no", post.report.output)
        self.assertIsNone(self.supervisor.post("q-2"))

    def test_groups(self) -> None:
        """Every process group is told when it starts and when it has ended."""
        [child] = self.start()
        child.exit(0)
        self.assertEqual(
            self.groups.events, [("group_started", child.group), ("group_ended", child.group)]
        )


class GuardTests(WorkerCase):
    """The gate's side of the warden."""

    def test_told_what_lives(self) -> None:
        """It is told of every group as it comes and goes."""
        guard = Guard(self.reactor)
        guard.start()
        [child] = self.reactor.spawned
        guard.group_started(11)
        guard.group_started(12)
        guard.group_ended(11)
        self.assertEqual(child.written, b"+11\n+12\n-11\n")
        guard.stop()
        self.assertTrue(child.stdin_closed)

    def test_replaced(self) -> None:
        """A warden that dies is replaced, and the new one told everything."""
        guard = Guard(self.reactor)
        guard.start()
        guard.group_started(11)
        guard.group_started(12)
        self.reactor.spawned[0].kill()
        guard.group_ended(11)
        self.reactor.advance(1.1)
        self.assertEqual(self.reactor.spawned[1].written, b"+12\n")

    def test_cannot_be_started(self) -> None:
        """If it cannot be started that is tried again, and harms nobody."""
        self.reactor.refuse = OSError(11, "no processes")
        guard = Guard(self.reactor)
        guard.start()
        guard.group_started(5)
        self.reactor.refuse = None
        self.reactor.advance(1.1)
        self.assertEqual(self.reactor.spawned[0].written, b"+5\n")

    def test_stopped(self) -> None:
        """After `stop` no other is started."""
        guard = Guard(self.reactor)
        guard.start()
        self.reactor.spawned[0].kill()
        guard.stop()
        self.reactor.advance(10)
        self.assertEqual(len(self.reactor.spawned), 1)


class ThroughTheRoadTests(WorkerCase):
    """A Road and a real WorkerProcess together: the fake worker of other tests is not lying."""

    def test_call(self) -> None:
        """A command goes through both and its reply comes back."""
        config: QueueConfig = queue_config(command=("w",), workers=1)
        road = Road(config, self.reactor, None)
        self.addCleanup(road.close)
        worker = WorkerProcess("q-1", "q", config.worker(), self.reactor, Recorder())  # type: ignore[arg-type]
        worker.start()
        [child] = self.reactor.workers
        child.hello()
        runner = road.hire(worker, 0)
        worker.hire(runner)
        runner.start()
        made = [command(b"%d" % n, now=self.reactor.seconds()) for n in range(3)]
        for one in made:
            road.submit(one)
        for _ in made:
            child.reply(b"re:" + child.commands[0].body)
        self.assertEqual(
            [bytes(self.successResultOf(m.reply).body) for m in made], [b"re:0", b"re:1", b"re:2"]
        )
