"""
What a store must do: the Journal.

Jobs, graphs, leases and idempotency keys live here; RAM holds only the window of a
backlog that is about to run. Every operation is one atomic step that has been stored
for good when its Deferred fires. Every step from a running job is fenced by `(job,
attempt)`, so what is late is told so and changes nothing. Ids are made by the gate:
putting twice is harmless. Jobs that came together may stay lots, as far as the store likes:
whoever means one of them, or some, says so by ids. Time is the store's: one clock for all
gates that share it, which never goes back while anyone looks.

A store may be on another machine and shared by several gates, so nothing here hands out
references to its insides, and what several jobs need is done for several at once. Must
not know HTTP, Roads or workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.internet.defer import Deferred

    from jobgate.jobs.job import Change, Ending, Job, NewJob, Reply, State, Taken, Try

__all__ = ["Due", "Graph", "Journal", "Kept", "Key", "LeaseTerms", "Leased", "Stored"]


class Key(msgspec.Struct, frozen=True):
    """
    An idempotency key (draft-ietf-httpapi-idempotency-key-header).

    Attributes:
        scope: A digest of token, method, path and the key itself.
        fingerprint: A digest of content type and body.
        answer: What is to be repeated besides the outcome, as JSON text.
        keep: Seconds for which it is remembered after what it names has ended.
    """

    scope: str
    fingerprint: str
    answer: str = ""
    keep: float = 3600.0


class Kept(msgspec.Struct, frozen=True):
    """
    What a key stands for already.

    Attributes:
        id: The first job (or the graph, or the lease) it was first used for.
    """

    id: str
    fingerprint: str
    answer: str


class Stored(msgspec.Struct, frozen=True):
    """
    What became of a put.

    Attributes:
        kept: The key was known: nothing was stored, this is what it stands for.
    """

    kept: Kept | None = None


class LeaseTerms(msgspec.Struct, frozen=True):
    """
    How long, and for whom.

    Attributes:
        id: The lease's own id.
        seconds: For how long.
        puller: Who has it, for people.
        key: Repeats the same lease while it lives.
    """

    id: str
    seconds: float
    puller: str = ""
    key: Key | None = None


class Leased(msgspec.Struct, frozen=True):
    """
    A lease that lives.

    Attributes:
        until: When it lapses.
        jobs: `(id, attempt)` of what it still covers.
    """

    id: str
    until: float
    jobs: tuple[tuple[str, int], ...]


class Due(msgspec.Struct, frozen=True):
    """
    What time alone has brought about.

    Attributes:
        lapsed: Running jobs whose lease is over, unchanged: the gate decides and `finish`es them.
        expired: Jobs that waited beyond their `expires`, unchanged, likewise.
        after: Seconds until something is due next; infinite if nothing is known to be.
    """

    lapsed: tuple[Job, ...]
    expired: tuple[Job, ...]
    after: float


class Graph(msgspec.Struct, frozen=True):
    """
    A graph and its jobs.

    Attributes:
        caller: The name of the token it came with.
        jobs: By name, in the order in which they were submitted.
        gone: Its outcome is no longer kept.
    """

    id: str
    created: float
    caller: str
    jobs: dict[str, Job]
    gone: bool = False


class Journal(Protocol):
    """
    A store of jobs.

    Every Deferred may fail with `StoreUnavailable` (it cannot be reached, is full, or is
    read-only), then nothing has changed; but the operations marked *lasting* wait and try
    again by themselves instead, in order, until they are stored or the journal is closed:
    what they say has happened already.

    An answer is as new as what the listener has been told when its Deferred fires: whoever
    asks for something, and watches it from then on, misses nothing.
    """

    @property
    def durability(self) -> str:
        """`fsync` or `memory`, for `Jobgate-Durability`."""

    @property
    def trouble(self) -> str:
        """Why it cannot store now, in words; empty while it can."""

    @property
    def writes(self) -> int:
        """Steps stored so far, for the metrics."""

    # --- its life

    def open(self, listener: Callable[[Sequence[Change]], None]) -> Deferred[dict[str, list[int]]]:
        """
        Open it. What a dead gate had taken is `QUEUED` again and what it ran, too, with its
        attempt counted but not spent; but a job that is to start only `once` and has started
        is `DEAD`, and a call that has not ended is `FAILED`, both as `worker-died`,
        `executed: maybe`. Time for which no gate ran is added to leases.
        The listener is told of jobs that ended by this, and of no others.

        Returns:
            For each queue with jobs that have not ended: how many, by state.

        Raises:
            ConfigError: Another gate has it, it is of a newer version, or it is no store of ours.
        """

    def close(self) -> Deferred[None]:
        """Store what is under way, then close."""

    def now(self) -> float:
        """The store's time, as near as this gate knows it."""

    # --- in

    def put(
        self,
        jobs: Sequence[NewJob],
        *,
        claim: int = 0,
        key: Key | None = None,
        graph: str = "",
        limits: dict[str, int] | None = None,
    ) -> Deferred[Stored]:
        """
        Store jobs, all or none.

        Args:
            jobs: In order; jobs of a graph may need each other.
            claim: The first so many, be it lots, are not left for `take`: this gate has them and
                runs them.
                A job that is blocked or delayed is never claimed.
            key: Its idempotency key; for what it stands for already nothing is stored.
            graph: The graph they form, by its new id.
            limits: Queue to the number of waiting jobs beyond which nothing more goes in.

        Raises:
            QueueFull: A limit is reached.
        """

    # --- out, and back

    def take(self, queue: str, count: int, max_bytes: int) -> Deferred[list[Taken]]:
        """
        Take queued jobs to run them here: first those whose turn it is, by priority and arrival.

        Args:
            queue: Its name.
            count: At most so many; a lot counts as all its jobs, and is parted if it must be.
            max_bytes: And about so many bytes of bodies, and of inputs that come along; one job
                is always given.
        """

    def give_back(self, lots: Sequence[Sequence[str]]) -> Deferred[None]:
        """
        Leave what was taken, and not started, for another `take`. Lasting.

        Args:
            lots: Jobs, lots, or parts of lots, by their ids.
        """

    def start(self, id: str, attempt: int, worker: str) -> Deferred[None]:  # noqa: A002 (the contract's word)
        """A job of ours starts; `attempt` counts it. Lasting."""

    def finish(self, id: str, attempt: int, ending: Ending) -> Deferred[bool]:  # noqa: A002
        """
        An attempt has ended. Lasting.

        Dependents are let go or cancelled in the same step.

        Returns:
            False if that attempt does not run (any more): stale, nothing has changed.

        Raises:
            Unprocessable: Its graph cannot take the jobs it brings: a name is taken, it would be
                too large, or one would wait for what waits for it. Nothing has changed.
        """

    def note_start(self, id: str, attempt: int, worker: str) -> None:  # noqa: A002
        """As `start`, where nobody waits for it: were it lost, the log would say so."""

    def note_finish(self, id: str, attempt: int, ending: Ending) -> None:  # noqa: A002
        """As `finish`, likewise."""

    def finish_waiting(self, id: str, ending: Ending) -> Deferred[bool]:  # noqa: A002
        """End a job that has not started (again): refused, expired or poison. Lasting."""

    def consume(self, lots: Sequence[tuple[Sequence[str], int]]) -> Deferred[None]:
        """
        Jobs of ours are a puller's for good: they succeeded. Lasting.

        Args:
            lots: Jobs, lots, or parts of lots, by their ids and the attempt that this is.
        """

    # --- leases

    def lease(
        self, lots: Sequence[tuple[Sequence[str], int]], terms: LeaseTerms
    ) -> Deferred[Leased]:
        """Jobs of ours, as for `consume`, start with a puller, until the lease lapses."""

    def leased(self, lease: str) -> Deferred[Leased | None]:
        """A lease that lives, or has been ended by `finish_lease` lately; None for any other."""

    def leased_by_key(self, key: Key) -> Deferred[tuple[Leased, list[Taken]] | None]:
        """The living lease that this key was used for, with its jobs."""

    def extend(self, lease: str, seconds: float) -> Deferred[Leased | None]:
        """Let it last for so many seconds from now; None if it lives no more."""

    def finish_lease(self, lease: str, ending: Ending) -> Deferred[bool]:
        """All that it covers has ended so; a repeated one is True, too; False if it had lapsed."""

    # --- what people ask for

    def get(self, id: str) -> Deferred[Job | None]:  # noqa: A002
        """A job."""

    def body(self, id: str) -> Deferred[tuple[str, bytes] | None]:  # noqa: A002
        """A job's content type and body."""

    def result(self, id: str) -> Deferred[Reply | None]:  # noqa: A002
        """A job's reply, if it ended with one that is still kept."""

    def tries(self, id: str) -> Deferred[list[Try]]:  # noqa: A002
        """The attempts that failed, oldest first."""

    def page(
        self, queue: str, state: State | None, limit: int, after: str
    ) -> Deferred[tuple[list[Job], str]]:
        """
        Jobs, newest first.

        Args:
            queue: Only of this queue; empty: of all.
            state: Only in this state.
            limit: At most so many.
            after: The cursor that an earlier page gave; empty: from the newest on.

        Returns:
            The jobs, and the cursor of the next page; empty if there is none.

        Raises:
            BadRequest: The cursor is none of ours.
        """

    def ahead(self, id: str) -> Deferred[int]:  # noqa: A002
        """How many queued jobs of the same queue have their turn before this one."""

    def graph(self, id: str, *, needs: bool = True) -> Deferred[Graph | None]:  # noqa: A002
        """
        A graph with all its jobs.

        Args:
            id: Its id.
            needs: Also what they need; for a graph that has not ended in any case.
        """

    def named(self, graph: str, names: Sequence[str]) -> Deferred[dict[str, str]]:
        """The ids of a graph's jobs by name, of those that there are."""

    def endings(self, ids: Sequence[str], max_bytes: int) -> Deferred[dict[str, Ending]]:
        """
        How jobs have ended, several at once.

        Args:
            ids: Which.
            max_bytes: Replies of so many bytes together; what does not fit is left out.

        Returns:
            By id, what there is to know of those that have ended.
        """

    def unended(self, graph: str) -> Deferred[tuple[str, list[str]] | None]:
        """Whose a graph is, and the ids of its jobs that have not ended."""

    def kept(self, key: Key) -> Deferred[Kept | None]:
        """What a key stands for."""

    def cancel(self, id: str, reason: str) -> Deferred[Job | None]:  # noqa: A002
        """
        End a job, or all jobs of a graph, as `CANCELLED`, with its dependents.

        Returns:
            The job as it was before; None if there is none (for a graph: always None).
        """

    def retry(self, id: str) -> Deferred[bool]:  # noqa: A002
        """Queue a `DEAD` or `FAILED` job anew with all its attempts; False for any other."""

    def forget(self, id: str) -> Deferred[None]:  # noqa: A002
        """
        Remove a job that has ended, or is held here unstarted, as if it had never been. Lasting.

        Its key goes with it.
        """

    def purge(self, queue: str) -> Deferred[int]:
        """Cancel all that waits in a queue and is not taken, drop its dead; how many."""

    # --- time

    def sweep(self) -> Deferred[Due]:
        """
        Do what time demands: queue what is due, drop what was kept long enough.

        Outcomes go after their `keep`; that there was one is remembered for 24 h more.
        """
