"""
All workers of all queues: who keeps them, who they are, and who may come in as one.

Must not know what is asked of them, nor when queues come and go: that is the Gate's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobgate.config import WorkerConfig
from jobgate.errors import Forbidden, ShuttingDown, Unauthorized, UnknownWorker
from jobgate.pool.guard import Guard
from jobgate.pool.machine import Machine
from jobgate.pool.supervisor import Supervisor

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from jobgate.config import GateConfig, QueueConfig
    from jobgate.gate.dispatcher import Dispatcher
    from jobgate.gate.tokens import Tokens
    from jobgate.pool.member import Member
    from jobgate.pool.metas import Hello
    from jobgate.pool.post import Post
    from jobgate.pool.remote import RemoteWorker
    from jobgate.pool.roles import Foreman

__all__ = ["Staff"]


class Staff:
    """
    The Supervisors of all queues; the Registrar of those who come by themselves.

    Args:
        config: What the gate is told.
        tokens: Who may work.
        dispatcher: The queues that there are to work for.
        reactor: Time, timers and processes.

    Attributes:
        keepers: Who keeps the workers of a queue, by its name.
    """

    def __init__(
        self,
        config: GateConfig,
        tokens: Tokens,
        dispatcher: Dispatcher,
        reactor: Any,  # noqa: ANN401 (IReactorTime and IReactorProcess: no type can say both)
    ) -> None:
        self._config = config
        self._tokens = tokens
        self._dispatcher = dispatcher
        self._reactor = reactor
        self._guard = Guard(reactor)
        self._machine = Machine()
        self.keepers: dict[str, Supervisor] = {}
        # Those of queues that are no more, until their last worker has gone.
        self._former: list[Supervisor] = []

    # --- queues come and go

    def keep(self, queue: QueueConfig, foreman: Foreman) -> Supervisor:
        """Keep the workers of one more queue."""
        keeper = Supervisor(queue, self._reactor, foreman, self._guard, self._machine)
        self.keepers[queue.name] = keeper
        return keeper

    def release(self, queue: str) -> Supervisor:
        """A queue is no more; its workers still are, until `forget`."""
        keeper = self.keepers.pop(queue)
        self._former.append(keeper)
        return keeper

    def forget(self, keeper: Supervisor) -> None:
        """The last worker of a queue that is no more has gone."""
        self._former.remove(keeper)

    # --- its life

    def start(self) -> list[Deferred[None]]:
        """Start all workers; each queue's fires when its first is ready or has failed to be."""
        self._guard.start()
        return [keeper.start() for keeper in self.keepers.values()]

    def stop(self) -> list[Deferred[None]]:
        """End all workers; each fires when those of one queue have been reaped."""
        return [keeper.stop() for keeper in self._everyone()]

    def hurry(self) -> None:
        """End all workers at once."""
        for keeper in self._everyone():
            keeper.hurry()

    def close(self) -> None:
        """Nobody is left."""
        self._guard.stop()

    # --- who they are

    def workers(self) -> list[tuple[Post, Member]]:
        """Every worker, with its post."""
        return [
            (post, worker)
            for keeper in self._everyone()
            for post in keeper.places
            for worker in post.everyone
        ]

    def backing_off(self) -> list[tuple[Supervisor, Post]]:
        """Every post that stands empty in a crash loop, with who keeps it."""
        return [(keeper, post) for keeper in self._everyone() for post in keeper.backing_off]

    def post(self, name: str) -> tuple[Supervisor, Post]:
        """
        A worker's post by its name, with who keeps it.

        Raises:
            UnknownWorker: There is none.
        """
        found = [
            (keeper, post)
            for keeper in self.keepers.values()
            if (post := keeper.post(name)) is not None
        ]
        if found:
            # A guest may have left a queue for another: the post that it holds is meant.
            return max(found, key=lambda pair: bool(pair[1].everyone))
        message = f"no worker is called {name!r}"
        raise UnknownWorker(message)

    # --- workers from outside: the Registrar protocol of `jobgate.pool.reception`

    @property
    def patience(self) -> float:
        """Seconds from a connection to its HELLO: the longest `boot_timeout` there is."""
        times = [queue.boot_timeout for queue in self._config.queues.values()]
        return max(times, default=0.0) or WorkerConfig().boot_timeout

    def register(self, hello: Hello, transport: Any, address: str) -> RemoteWorker:  # noqa: ANN401 (TCP, UNIX or TLS: no type says all)
        """
        Make a worker of a connection that has said HELLO.

        Raises:
            JobgateError: Its token does not allow it, or there is no such queue.
        """
        token = self._tokens.find(hello.token.encode())
        if self._tokens:
            if token is None:
                raise Unauthorized("send a known token in HELLO")
            if not token.may(f"work:{hello.queue}"):
                message = f"the token {token.name!r} may not work:{hello.queue}"
                raise Forbidden(message)
        keeper = self.keepers[self._dispatcher[hello.queue].config.name]
        if keeper.stopping:
            raise ShuttingDown("the gate takes no more workers")
        numbers = [post.number for post in keeper.posts]
        worker = keeper.guests.admit(hello.name, self._is_taken, transport, address, numbers)
        worker.token = token.sha256 if token is not None else ""
        return worker

    def reconfigure(self, config: GateConfig, tokens: Tokens) -> None:
        """Take on other names and rights; who may not do what he does any more is sent away."""
        self._config, self._tokens = config, tokens
        for keeper in self.keepers.values():
            for post in keeper.guests.posts:
                for worker in post.everyone:
                    token = tokens.of(worker.token)
                    if tokens and not (token and token.may(f"work:{worker.queue}")):
                        worker.retire()

    # --- inside

    def _everyone(self) -> list[Supervisor]:
        return [*self.keepers.values(), *self._former]

    def _is_taken(self, name: str) -> bool:
        """Whether a name is somebody's, or that of a child that may yet be started."""
        queue, _, number = name.rpartition("-")
        if number.isdecimal() and queue in self._config.queues:
            return True
        return any(post.name == name for post, _ in self.workers())
