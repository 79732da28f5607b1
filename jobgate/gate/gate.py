"""
The Gate: the one face that web, tests and embedding programs talk to.

The only module that knows both a queue's Road and the Supervisor of its workers, and
brings the two together. Must not know HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from twisted.internet.defer import Deferred, DeferredList, fail
from twisted.internet.defer import TimeoutError as TooLate
from twisted.logger import Logger

from jobgate.command import PRIORITY, Command
from jobgate.config import is_queue_name
from jobgate.errors import ShuttingDown, UnknownQueue
from jobgate.gate.arguments import checked
from jobgate.gate.audit import Audit
from jobgate.gate.dispatcher import Dispatcher
from jobgate.gate.foreman import Foreman
from jobgate.gate.road import Road
from jobgate.gate.staff import Staff
from jobgate.gate.tokens import Tokens
from jobgate.ids import IdMaker
from jobgate.jobs import callbacks
from jobgate.jobs.callbacks import Callbacks
from jobgate.jobs.graphs import Graphs
from jobgate.jobs.job import CALLBACKS, NewJob
from jobgate.jobs.jobs import Jobs
from jobgate.jobs.leases import Leases
from jobgate.jobs.pull import Pull
from jobgate.jobs.stores import open_journal
from jobgate.pool.reception import Reception

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from jobgate.command import Reply
    from jobgate.config import GateConfig, QueueConfig
    from jobgate.jobs.journal import Journal
    from jobgate.pool.member import Member
    from jobgate.pool.post import Post
    from jobgate.pool.supervisor import Supervisor

__all__ = ["Gate"]

_FOREVER = float("inf")


class Gate:
    """
    Queues, their workers, and the ways in.

    `await gate.call("resize", body)` works under any reactor, without HTTP.

    Args:
        config: Everything it is told.
        reactor: Time, timers and processes; the running one if not given.
        journal: Where jobs are kept; what the configuration says if not given.

    Attributes:
        config: The configuration in force.
        dispatcher: The queues by name.
        draining: It finishes what it has and takes nothing new.
        started: The first worker of every queue is ready or has failed to be.
        reception: Where workers from outside come in, once it listens.
        jobs: What outlives its request.
        callbacks: Those who tell of the ends of jobs.
        ids: Makes those of commands, jobs and leases.
        leases: What pullers have.
        graphs: Jobs that need each other.
    """

    _log = Logger()

    def __init__(
        self,
        config: GateConfig,
        reactor: Any = None,  # noqa: ANN401 (IReactorTime and IReactorProcess: no type can say both)
        journal: Journal | None = None,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self.config = config
        self.reactor = reactor
        self.dispatcher = Dispatcher()
        self.draining = False
        self.started = False
        self._has_begun = False
        self.ids = IdMaker(config.gate.name)
        self._leaving: list[Road] = []
        self._audit = Audit(config.gate.audit) if config.gate.audit else None
        self._tokens = Tokens(config)
        self._staff = Staff(config, self._tokens, self.dispatcher, reactor)
        self.reception = Reception(reactor, self._staff)
        journal = journal or open_journal(config.gate.store, reactor)
        self.jobs = Jobs(journal, reactor, self._road_for, self._audit)
        self.leases = Leases(self.jobs, reactor)
        self.callbacks = Callbacks(config.callbacks, reactor)
        self.graphs = Graphs(self.jobs, reactor, lambda: self.config.gate, self._may_push)
        for queue in config.queues.values():
            self._add(queue)

    # --- its life

    def listen(self) -> Deferred[None]:
        """
        Let workers from outside in at `worker_listen`.

        Returns:
            Fires when all its endpoints are open; fails with the first that cannot be.
        """
        return self.reception.listen(self.config.gate.worker_listen)

    def open(self) -> Deferred[None]:
        """
        Open the store and take up what it holds; `start` does it, too, where it was not done.

        Returns:
            Fails with ConfigError if it cannot be opened.
        """
        return self.jobs.open()

    def start(self) -> Deferred[None]:
        """
        Start all workers.

        Returns:
            Fires when each queue's first worker is ready or has failed to be; fails with
            ConfigError if the store cannot be opened, and nothing has been started then; and
            with RuntimeError if it has been started before.
        """
        return self.open().addCallback(self._start_workers)

    def _start_workers(self, _: object) -> Deferred[None]:
        if self._has_begun:
            message = "this gate has been started already; make another"
            raise RuntimeError(message)
        self._has_begun = True
        return DeferredList(self._staff.start()).addCallback(self._has_started)

    def drain(self) -> Deferred[None]:
        """
        Take nothing new from now on and finish what has been accepted.

        Returns:
            Fires when nothing waits or runs any more, at the latest after `drain_timeout`.
        """
        self.draining = True
        self.jobs.hold()
        for road in self._roads():
            road.drain()
        return self._quiet(self._roads())

    def abandon(self) -> None:
        """No more time: what is left ends as `shutting-down`."""
        for road in self._roads():
            road.draining = True
            road.abandon()

    def stop(self, *, hurry: bool = False) -> Deferred[None]:
        """End all workers; fires when every child has been reaped."""
        self.draining = True
        self.abandon()
        self.callbacks.stop()
        gone = [*self._staff.stop(), self.reception.stop()]
        if hurry:
            self.hurry()
        return DeferredList(gone).addCallback(self._has_stopped)

    def hurry(self) -> None:
        """End all workers at once."""
        self._staff.hurry()

    def reconfigure(self, config: GateConfig) -> Deferred[None]:
        """
        Apply the difference to another configuration; new workers start before old ones go.

        The audit is opened anew, so that its file can be rotated.

        Raises:
            OSError: The audit cannot be opened; nothing is changed.

        Returns:
            Fires when each new queue's first worker is ready or has failed to be.
        """
        audit = Audit(config.gate.audit) if config.gate.audit else None
        if self._audit is not None:
            self._audit.close()
        self._audit = audit
        for road in self.dispatcher:
            road.write_to(audit)
        self.jobs.audit = audit
        if config.gate.store != self.config.gate.store:
            self._log.warn(
                "gate.store stays {store!r}: a change of it needs a restart",
                store=self.config.gate.store,
            )
            gate = msgspec.structs.replace(config.gate, store=self.config.gate.store)
            config = msgspec.structs.replace(config, gate=gate)
        before, self.config = self.config, config
        self._tokens = Tokens(config)
        if config.gate.name != before.gate.name:
            self.ids = IdMaker(config.gate.name)
        self.callbacks.reconfigure(config.callbacks)
        outcomes = []
        for name in [name for name in before.queues if name not in config.queues]:
            self._remove(name)
        for name, queue in config.queues.items():
            if name not in self.dispatcher.roads:
                self._add(queue)
                outcomes.append(self.supervisor(name).start())
            else:
                # Also where nothing has changed: an earlier change may not have come to life; and
                # where its name made it: those who wait there are not sent away.
                self.dispatcher[name].reconfigure(queue)
                self.supervisor(name).reconfigure(queue)
        self._staff.reconfigure(config, self._tokens)
        return DeferredList(outcomes).addCallback(lambda _: None)

    def queue(self, name: str) -> Road:
        """
        The Road of a queue; where `auto_queues` says so, one that is not there is made.

        Raises:
            UnknownQueue: There is none, and none is made.
            ShuttingDown: There is none, and it is too late to make one.
        """
        road = self.dispatcher.roads.get(name)
        if road is not None:
            return road
        if self.draining:
            raise ShuttingDown("the gate finishes what it has and takes nothing new")
        settings = self.config.gate
        if not settings.auto_queues or not is_queue_name(name):
            return self.dispatcher[name]
        made = len(self.dispatcher.roads) - len(self.config.queues)
        if made >= settings.max_auto_queues and not self._drop_one():
            message = f"no queue is called {name!r}, and {made} have been made already"
            raise UnknownQueue(message)
        return self._road_for(name)

    # --- the ways in

    def push(
        self,
        queue: str,
        body: bytes,
        content_type: str = "application/octet-stream",
        *,
        priority: int = PRIORITY,
        delay: float = 0.0,
    ) -> Deferred[str]:
        """
        Store a job.

        Args:
            queue: The queue's name.
            body: The work.
            content_type: What the body is.
            priority: 0 (first) to 7.
            delay: Seconds until it may start.

        Returns:
            Fires with its id once the store has it; fails with a JobgateError, or with TypeError
            or ValueError if an argument cannot be.
        """
        try:
            given = checked(body, content_type, priority, delay, span="delay")
            config = self.queue(queue).config
        except (UnknownQueue, ShuttingDown, TypeError, ValueError):
            return fail()
        job = NewJob(
            id=self.ids.make(),
            queue=queue,
            body=given.body,
            content_type=given.content_type,
            priority=given.priority,
            attempts=config.attempts,
            delay=given.seconds,
            expires=config.expires,
            keep=config.result_ttl,
            once=config.retry == "never",
        )
        return self.jobs.put([job]).addCallback(lambda _: job.id)

    def pull(self, queue: str, *, wait: float = 0.0) -> Deferred[Command | None]:
        """
        Take the next command of a queue for good.

        A job has ended so; a call waits for `leases.reply`. Cancelling the Deferred leaves
        the command where it is.

        Args:
            queue: Its name.
            wait: Seconds to wait for one.

        Returns:
            Fires with the command, or with None if none came in time.
        """
        try:
            road = self.queue(queue)
        except (UnknownQueue, ShuttingDown):
            return fail()
        pulled: Deferred[Command | None] = Deferred(lambda _: pull.leave())

        def done(commands: list[Command]) -> None:
            if commands:
                self.leases.hand_over(road, commands)
            pulled.callback(commands[0] if commands else None)

        backlog = self.jobs.backlogs[queue]
        pull = Pull(
            backlog, self.reactor, most=1, least=1, lines=False, done=done, over=self.leases.over
        )
        pull.start(wait)
        return pulled

    def call(
        self,
        queue: str,
        body: bytes,
        content_type: str = "application/octet-stream",
        *,
        priority: int = PRIORITY,
        timeout: float = 0,
        key: str = "",
    ) -> Deferred[Reply]:
        """
        Have a command run and wait for its reply.

        Cancelling the Deferred says that nobody waits any more.

        Args:
            queue: The queue's name.
            body: The work.
            content_type: What the body is.
            priority: 0 (first) to 7.
            timeout: Seconds in all, waiting included; 0: only the queue's own bounds.
            key: Commands with the same one go to the same shard.

        Returns:
            Fires with the Reply; fails with a JobgateError, or with TypeError or ValueError if an
            argument cannot be.
        """
        try:
            body, content_type, priority, timeout, key = checked(
                body, content_type, priority, timeout, key
            )
        except (TypeError, ValueError):
            return fail()
        now = self.reactor.seconds()
        deadline = now + timeout if timeout else _FOREVER
        command = Command(queue, self.ids.make(), body, content_type, priority, now, deadline)
        if key:
            command.headers = {"jobgate-key": key}
        reply: Deferred[Reply] = Deferred(command.leave)
        try:
            self.dispatcher[queue].submit(command, key=key, waiter=reply)
        except Exception:  # noqa: BLE001 (a refusal is an outcome like any other)
            reply.errback()
        return reply

    # --- what operators ask and do

    def supervisor(self, queue: str) -> Supervisor:
        """Who keeps the workers of a queue that `dispatcher` knows."""
        return self._staff.keepers[queue]

    def workers(self) -> list[tuple[Post, Member]]:
        """Every worker, with its post."""
        return self._staff.workers()

    def backing_off(self) -> list[tuple[Supervisor, Post]]:
        """Every post that stands empty in a crash loop, with who keeps it."""
        return self._staff.backing_off()

    def post(self, name: str) -> tuple[Supervisor, Post]:
        """
        A worker's post by its name, with who keeps it.

        Raises:
            UnknownWorker: There is none.
        """
        return self._staff.post(name)

    # --- inside

    def _may_push(self, caller: str, queue: str) -> bool:
        """Whether whoever has the token of this name may push; those without any are ourselves."""
        if not caller or not self._tokens:
            return True
        token = self._tokens.named(caller)
        return token is not None and token.may(f"push:{queue}")

    def _roads(self) -> list[Road]:
        """All of them, those of queues that are no more included."""
        return [*self.dispatcher, *self._leaving]

    def _road_for(self, name: str) -> Road:
        """The Road of a queue, made if there is none: jobs of it are there."""
        if self.dispatcher.get(name) is None:
            self._add(callbacks.QUEUE if name == CALLBACKS else self.config.queue(name))
        return self.dispatcher.any(name)

    def _drop_one(self) -> bool:
        """Forget a queue that was made and has nothing; False if there is none."""
        for name, road in self.dispatcher.roads.items():
            idle = not (road.waiting or road.running or self.jobs.backlogs[name].busy)
            if idle and name not in self.config.queues and is_queue_name(name):
                self._remove(name)
                return True
        return False

    def _add(self, queue: QueueConfig) -> None:
        road = Road(queue, self.reactor, self._audit)
        backlog = self.jobs.adopt(road)
        foreman = Foreman(road, backlog)
        road.pool = self._staff.keep(queue, foreman)
        if queue.name == CALLBACKS:
            self.dispatcher.reserved[queue.name] = road
            self.callbacks.work_for(foreman)
        else:
            self.dispatcher.roads[queue.name] = road
        backlog.fill()

    def _remove(self, name: str) -> None:
        """
        A queue that is no more: what it has is finished, then its workers go.

        Jobs keep their queue, as one that anybody may pull from, until it is configured again.
        """
        road = self.dispatcher.roads.pop(name)
        supervisor = self._staff.release(name)
        if self.jobs.backlogs[name].busy:
            self._add(self.config.queue(name))
        else:
            self.jobs.abandon(name)
        self._leaving.append(road)
        road.drain()

        def quiet(_: object) -> Deferred[None]:
            road.abandon()
            road.close()
            return supervisor.stop()

        def gone(_: object) -> None:
            self._leaving.remove(road)
            self._staff.forget(supervisor)

        self._quiet([road]).addCallback(quiet).addCallback(gone)

    def _quiet(self, roads: list[Road]) -> Deferred[None]:
        """Fires when these have nothing left, or `drain_timeout` is over."""
        quiet = DeferredList([road.when_quiet() for road in roads], consumeErrors=True)
        if self.config.gate.drain_timeout:
            quiet.addTimeout(self.config.gate.drain_timeout, self.reactor)

        def give_up(failure: Failure) -> None:
            failure.trap(TooLate)

        return quiet.addErrback(give_up).addCallback(lambda _: None)

    def _has_started(self, _: object) -> None:
        self.started = True

    def _has_stopped(self, _: object) -> Deferred[None]:
        self.leases.close()
        for road in self._roads():
            road.close()
        self._staff.close()
        if self._audit is not None:
            self._audit.close()
            self._audit = None
        return self.jobs.close()
