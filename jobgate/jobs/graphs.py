"""
Graphs: how they come in, grow, are waited for and are ended.

The store links their jobs, lets them go or cancels them; here documents become jobs, by the
rules in `graph` and the configuration of their queues. Must not know HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec
from twisted.internet.threads import deferToThreadPool

from jobgate import errors
from jobgate.config import is_queue_name
from jobgate.ids import IdMaker
from jobgate.jobs import graph as rules
from jobgate.jobs.inputs import as_input
from jobgate.jobs.job import TERMINAL, NewJob
from jobgate.jobs.waiting import Ended
from jobgate.wire.frames import MAX_FRAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from jobgate.command import Input
    from jobgate.config import GateSettings, QueueConfig
    from jobgate.jobs.graph import MakeJob, Node
    from jobgate.jobs.job import Change, Job, State, Taken
    from jobgate.jobs.jobs import Jobs
    from jobgate.jobs.journal import Graph, Key, Stored

__all__ = ["Graphs", "Submission", "Submitted"]

_T = TypeVar("_T")

_LARGE: Final = 64 * 1024
"""Bytes of a document that takes long enough for others to be held up: a thread reads it."""
_json = msgspec.json.Encoder().encode


class Submission(NamedTuple):
    """
    Who submits a graph, and what else was said.

    Attributes:
        need_push: Raises `Forbidden` for a queue that they may not push to.
        caller: The name of their token.
        headers: What is handed on to the workers, as JSON text; empty if nothing.
        key: Their idempotency key.
    """

    need_push: Callable[[str], None]
    caller: str = ""
    headers: str = ""
    key: Key | None = None


class Submitted(NamedTuple):
    """
    A graph that has come in.

    Attributes:
        id: Its id; if the key was known, that of the graph that it stands for.
        answer: Its id and those of its jobs, as JSON text; for a known key, what was said then.
        stored: What became of the put.
    """

    id: str
    answer: str
    stored: Stored


class _AllEnded(Ended):
    """A Watcher of a graph that waits for the end of the last of its jobs."""

    def __init__(self) -> None:
        super().__init__()
        self._left: set[str] = set()
        self._told: dict[str, State] | None = {}

    def knows(self, left: Iterable[str]) -> None:
        """These had not ended, while it was watched: what has been told since then is newer."""
        told = self._told or {}
        self._told = None
        self._left = {name for name in left if name not in told}
        self._left |= {name for name, state in told.items() if state < TERMINAL}
        self._end_if_over()

    def changed(self, change: Change) -> None:
        """One of its jobs is new, has ended, or is tried again."""
        if self._told is not None:
            self._told[change.id] = change.state
        elif change.state < TERMINAL:
            self._left.add(change.id)
        else:
            self._left.discard(change.id)
            self._end_if_over()

    def _end_if_over(self) -> None:
        if not self._left:
            self.end()


class Graphs:
    """
    All graphs of a gate.

    Args:
        jobs: The gate's.
        reactor: For a thread, where documents are large.
        settings: The table `[gate]` in force.
        may_push: Whether somebody, by their token's name, may push to a queue.
    """

    def __init__(
        self,
        jobs: Jobs,
        reactor: Any,  # noqa: ANN401 (IReactorTime and -Threads: no type can say both)
        settings: Callable[[], GateSettings],
        may_push: Callable[[str, str], bool],
    ) -> None:
        self._jobs = jobs
        self._reactor = reactor
        self._settings = settings
        self._may_push = may_push
        jobs.outcomes.growing.growth = self.growth

    async def submit(self, document: bytes, by: Submission) -> Submitted:
        """
        Check a graph and store it as a whole.

        Raises:
            BadRequest: It cannot be read.
            Unprocessable: It can be read, but not carried out; or its key was used otherwise.
            Forbidden: It names a queue that its sender may not push to.
            QueueFull: As many jobs wait as may.
            StoreUnavailable: The store cannot keep it.
        """
        nodes = await self._aside(document, rules.read, document)
        for queue in _queues(nodes.values()):
            by.need_push(queue)
        plan = await self._aside(document, self._plan, nodes, self._configs(nodes.values()), by)
        key = by.key
        if key is not None:
            keep = max(job.keep for job in plan.jobs)
            key = msgspec.structs.replace(key, answer=plan.answer, keep=keep)
        stored = await self._jobs.put(plan.jobs, key=key, graph=plan.id)
        if stored.kept is not None:
            return Submitted(stored.kept.id, stored.kept.answer, stored)
        return Submitted(plan.id, plan.answer, stored)

    async def growth(self, taken: Taken, text: bytes) -> tuple[NewJob, ...]:
        """
        The jobs that a job's worker has answered with.

        Raises:
            BadRequest: They cannot be read.
            Unprocessable: They can be read, but not added to the job's graph.
        """
        nodes = await self._aside(text, rules.read_growth, text)
        for name, node in nodes.items():
            if not self._may_push(taken.caller, node.queue):
                where = rules.path(name, "queue")
                message = f"{where}: who submitted the graph may not push to {node.queue!r}"
                raise errors.Unprocessable(message, path=where)
        older = {need for node in nodes.values() for need in node.needs if need not in nodes}
        known = await self._jobs.journal.named(taken.graph, list(older)) if older else {}
        configs = self._configs(nodes.values())
        return await self._aside(text, self._grown, nodes, known, configs, taken)

    async def get(self, name: str, *, needs: bool = True) -> Graph:
        """
        A graph with all its jobs.

        Args:
            name: Its id.
            needs: Also what they need; for a graph that has not ended in any case.

        Raises:
            UnknownJob: There is none of that id.
        """
        graph = await self._jobs.journal.graph(name, needs=needs)
        if graph is None:
            raise errors.UnknownJob(f"no graph is called {name!r}")
        return graph

    async def wait(self, name: str, seconds: float, may: Callable[[str], None]) -> Graph:
        """
        A graph, once all its jobs have ended, or as it is when the time is up.

        Of one that has ended nobody asks any more what its jobs needed.

        Args:
            name: Its id.
            seconds: How long.
            may: Raises for who may not wait for one of somebody, by their token's name.

        Raises:
            UnknownJob: There is none of that id.
        """
        ended = _AllEnded()
        self._jobs.watches.add(name, ended)
        try:
            found = await self._jobs.journal.unended(name)
            if found is not None:
                caller, left = found
                may(caller)
                ended.knows(left)
                if not ended.over and seconds > 0:
                    await self._jobs.watches.linger(ended, seconds)
        finally:
            self._jobs.watches.remove(name, ended)
        return await self.get(name, needs=False)

    async def input(self, job: Job, name: str) -> Input:
        """
        What became of a job that this one needed, as its worker would be handed it.

        Raises:
            NotFound: It needs none of that name, or that has not ended.
        """
        if name not in job.needs:
            raise errors.NotFound(f"the job needs none that is called {name!r}")
        named = await self._jobs.journal.named(job.graph, [name])
        found = await self._jobs.journal.endings(list(named.values()), MAX_FRAME)
        if not found:
            raise errors.NotFound(f"{name!r} has not ended")
        (ending,) = found.values()
        return as_input(name, ending)

    # --- inside

    def _plan(
        self, nodes: Mapping[str, Node], configs: Mapping[str, QueueConfig], by: Submission
    ) -> _Plan:
        protocols = {name: config.protocol for name, config in configs.items()}
        rules.check(nodes, protocols)
        # Its own, since this may be a thread of its own.
        new_id = IdMaker(self._settings().name).make
        name = new_id()
        ids = {node: new_id() for node in nodes}
        make = _maker(configs, by.caller, by.headers)
        jobs = rules.jobs(nodes, protocols, ids, make, self._settings().max_body)
        return _Plan(name, jobs, _json({"id": name, "jobs": ids}).decode())

    def _grown(
        self,
        nodes: Mapping[str, Node],
        known: Mapping[str, str],
        configs: Mapping[str, QueueConfig],
        taken: Taken,
    ) -> tuple[NewJob, ...]:
        protocols = {name: config.protocol for name, config in configs.items()}
        rules.check(nodes, protocols, known=known)
        new_id = IdMaker(self._settings().name).make
        ids = {**known, **{node: new_id() for node in nodes}}
        make = _maker(configs, taken.caller, taken.headers)
        return tuple(rules.jobs(nodes, protocols, ids, make, self._settings().max_body))

    def _configs(self, nodes: Iterable[Node]) -> dict[str, QueueConfig]:
        """Of those of their queues that there are: graphs make none."""
        backlogs = self._jobs.backlogs
        return {
            queue: backlogs[queue].road.config
            for queue in _queues(nodes)
            if queue in backlogs and is_queue_name(queue)
        }

    async def _aside(self, data: bytes, call: Callable[..., _T], *args: object) -> _T:
        """Call at once, or, as long as it may take others' time, in a thread."""
        if len(data) < _LARGE:
            return call(*args)
        pool = self._reactor.getThreadPool()
        result: _T = await deferToThreadPool(self._reactor, pool, call, *args)
        return result


class _Plan(NamedTuple):
    """A graph that can be stored."""

    id: str
    jobs: list[NewJob]
    answer: str


def _queues(nodes: Iterable[Node]) -> dict[str, None]:
    return dict.fromkeys([node.queue for node in nodes])


def _maker(configs: Mapping[str, QueueConfig], caller: str, headers: str) -> MakeJob:
    def make(
        queue: str,
        id: str,  # noqa: A002 (the contract's word)
        body: bytes,
        content_type: str,
        priority: int,
        delay: float,
        name: str,
        needs: tuple[str, ...],
        when: str,
    ) -> NewJob:
        config = configs[queue]
        return NewJob(
            id=id,
            queue=queue,
            body=body,
            content_type=content_type,
            priority=priority,
            attempts=config.attempts,
            delay=delay,
            expires=config.expires,
            keep=config.result_ttl,
            headers=headers,
            caller=caller,
            once=config.retry == "never",
            name=name,
            needs=needs,
            when=when,
        )

    return make
