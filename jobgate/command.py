"""
What travels: a Command goes one way, its one Reply comes back.

Plain data. Knows nothing of queues, workers or HTTP; every time here is in
seconds on the gate's own (monotonic) clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.python.failure import Failure

    from jobgate.gate.queues import CommandQueue
    from jobgate.stream import ReplyStream

__all__ = [
    "DONE",
    "PRIORITY",
    "RUNNING",
    "WAITING",
    "Batch",
    "Command",
    "Input",
    "Lot",
    "Reply",
    "Waiter",
    "Worker",
]

WAITING: Final[str] = "waiting"
RUNNING: Final[str] = "running"
DONE: Final[str] = "done"
"""The three states of a command: in a queue, at a worker, settled."""


_FOREVER: Final = float("inf")

PRIORITY: Final = 3
"""What a command has if nothing is said (RFC 9218, section 4.1)."""


class Worker(Protocol):
    """
    What a Runner drives: anything that can be handed a command.

    Attributes:
        name: The worker's name, as in `Jobgate-Worker`.
    """

    name: str

    @property
    def takes_batches(self) -> bool:
        """Whether commands go to it together; else each goes alone, and waits for no company."""

    @property
    def lots(self) -> int:
        """How many jobs of one lot it takes as one command; 1: it is handed them one by one."""

    @property
    def output(self) -> str:
        """The last that it printed; empty where that is not known here."""

    @property
    def lanes(self) -> int:
        """How many commands it runs at the same time: one, if it answers in order."""

    @property
    def room(self) -> int:
        """How many more commands, or batches of them, it can be handed now."""

    @property
    def idle(self) -> bool:
        """Whether it has no command in hand."""

    def send(self, command: Command) -> bool:
        """Hand over a command; False if the worker turns out to be unfit. Never raises."""

    def send_batch(self, batch: Batch) -> bool:
        """Hand over commands that are to be run together; as `send`."""

    def cancel(self, command: Command) -> None:
        """Nobody wants this command's reply any more: do as the queue's `cancel` says."""

    def overran(self, cause: str) -> None:
        """One of its commands ran too long: end it."""


class Reply:
    """
    The one outcome of a command that did not fail.

    Attributes:
        body: The worker's bytes; for a streamed reply empty.
        content_type: What the worker said it is.
        status: The HTTP status the worker chose, 200 unless it said otherwise.
        stream: The parts of a streamed reply as they come, else None.
        jobs: What its graph is to grow by, as JSON; empty if nothing.
    """

    __slots__ = ("body", "content_type", "jobs", "status", "stream")

    def __init__(
        self,
        body: bytes | bytearray,
        content_type: str,
        status: int = 200,
        stream: ReplyStream | None = None,
        jobs: bytes = b"",
    ) -> None:
        self.body = body
        self.content_type = content_type
        self.status = status
        self.stream = stream
        self.jobs = jobs

    def __repr__(self) -> str:
        return f"<Reply {self.status} {self.content_type} {len(self.body)} B>"


class Waiter(Protocol):
    """
    Who is told what becomes of a command, once: a Deferred, or what is as good as one.

    Nothing that goes wrong with the caller comes back from here.
    """

    def callback(self, reply: Reply) -> None:
        """It ended well."""

    def errback(self, failure: Failure) -> None:
        """It did not."""

    def cancel(self) -> None:
        """Nobody waits any more: have the command leave."""


class Input(NamedTuple):
    """
    What became of a job that a command's job needed (contract 4.3).

    Attributes:
        name: The job's name in its graph.
        content_type: What the body is: that of its reply, or of the problem it ended with.
        body: All of it.
    """

    name: str
    content_type: str
    body: bytes


class Command:
    """
    One piece of work.

    Attributes:
        queue: The name of its queue.
        id: Opaque, unguessable, sortable by time (`Jobgate-Id`).
        body: The caller's bytes.
        content_type: What the caller said they are.
        priority: 0 (first) to 7, as in RFC 9218.
        headers: What is handed on to the worker: `traceparent`, `jobgate-key`.
        accepted: When the gate took it.
        deadline: When its caller's time is up (queue and run together).
        queue_deadline: When it has waited too long; its queue sets it.
        due: The next moment at which something about it must be looked at.
        attempt: Starts, the one under way included.
        deaths: Workers that died while it alone was with them.
        unread: Workers that were lost before it, or any other they had, had reached them whole.
        began: When its present start began to run; 0 while it waits.
        ended: When it was settled; 0 before.
        worker: The worker that has it, or had it last.
        shard: The CommandQueue it belongs to.
        declined: Workers that will not have it.
        state: WAITING, RUNNING or DONE.
        reply: Told once of its Reply or a JobgateError.
        stream: Where the parts of a streamed reply go, once one has come.
        bucket: Those with whom the deadlines keep it.
        offered: How far its worker's input reaches with it, in bytes.
        caller: The name of the token it was sent with, for the audit.
        graph: The graph its job belongs to; empty outside of graphs.
        inputs: What became of the jobs that its job needed.
        extra: Bytes of its inputs.
        batch: Those it is with at its worker; while it waits, those it must go with alone.
        excused: Starts that do not use up `attempts`: a death of a batch blames nobody.
        job: Its caller is the journal: it has been accepted and counted there, waits as long
            as it must, and what becomes of it after a failure is decided there.
        on_start: Told when it begins to run, where somebody keeps a record of that.
        recorded: The start that the journal has on record; 0 for none.
        on_progress: Told what its worker says of its progress: it, done, total, note.
        progress: What it said last, where somebody wants to know.
        ids: Of all jobs of a lot; empty for a single command.
        size: How many commands it counts as.
    """

    # Class attributes are the defaults: most commands never set most of them.
    reply: Waiter
    shard: CommandQueue
    headers: dict[str, str] | None = None
    queue_deadline: float = _FOREVER
    attempt: int = 0
    deaths: int = 0
    unread: int = 0
    began: float = 0.0
    ended: float = 0.0
    declined: list[Worker] | None = None
    state: str = WAITING
    stream: ReplyStream | None = None
    bucket: set[Command] | None = None
    offered: int = 0
    caller: str = ""
    graph: str = ""
    inputs: tuple[Input, ...] = ()
    extra: int = 0
    batch: Batch | None = None
    excused: int = 0
    forget: Callable[[Command], None] | None = None
    job: bool = False
    on_start: Callable[[Command], None] | None = None
    recorded: int = 0
    on_progress: Callable[[Command, float, float | None, str | None], None] | None = None
    progress: tuple[float, float | None, str | None] | None = None
    ids: Sequence[str] = ()
    size: int = 1

    def __init__(
        self,
        queue: str,
        id: str,  # noqa: A002 (the contract's word)
        body: bytes,
        content_type: str,
        priority: int,
        accepted: float,
        deadline: float,
    ) -> None:
        self.queue = queue
        self.id = id
        self.body = body
        self.content_type = content_type
        self.priority = priority
        self.accepted = accepted
        self.deadline = self.due = deadline
        # No default above: compiled, one whose type is a Protocol would not be set.
        self.worker: Worker | None = None

    def leave(self, _: object = None) -> None:
        """The caller is gone: what the reply calls when it is cancelled."""
        if self.forget is not None:
            self.forget(self)

    def __repr__(self) -> str:
        return f"<Command {self.queue} {self.id} {self.state} attempt={self.attempt}>"


class Lot(Command):
    """
    Jobs that came together, as one command for as long as nobody wants one of them alone.

    It has the first one's id, and their bodies with a newline behind each. Somebody has it: the
    queue it waits in, or the worker who took it; there its parts take its place.

    Args:
        queue: As a Command's, like all that is not told here.
        ids: Theirs.
        make: Makes commands of its parts, of which the others begin at these of its jobs.

    Attributes:
        on_parted: Who has it.
    """

    on_parted: Callable[[Lot, list[Command]], None] | None = None

    def __init__(
        self,
        queue: str,
        ids: Sequence[str],
        body: bytes,
        content_type: str,
        priority: int,
        accepted: float,
        make: Callable[[Sequence[int]], list[Command]],
    ) -> None:
        super().__init__(queue, ids[0], body, content_type, priority, accepted, _FOREVER)
        self.ids = ids
        self.size = len(ids)
        self._make = make

    def part(self, starts: Sequence[int]) -> list[Command]:
        """
        Be several commands from now on.

        Args:
            starts: Where the others begin: indices into its ids, rising.

        Returns:
            All of them, in order.
        """
        parts = self._make(starts)
        for part in parts:
            part.accepted = self.accepted
            part.state = self.state
            part.worker = self.worker
            part.attempt = self.attempt
            part.shard = self.shard
        self.state = DONE
        if self.on_parted is not None:
            self.on_parted(self, parts)
        return parts


class Batch:
    """
    Commands that are with a worker together.

    Args:
        members: In the order in which they are written.
        suspect: One of them may have killed a worker: they run again with nobody else.

    Attributes:
        members: As given; those that have been answered stay in it.
        left: How many of them the worker has not answered yet.
        suspect: As given.
    """

    __slots__ = ("_halves", "left", "members", "suspect")

    def __init__(self, members: list[Command], *, suspect: bool = False) -> None:
        self.members = members
        self.suspect = suspect
        self.left = len(members)
        self._halves: tuple[Batch, Batch] | None = None

    def __repr__(self) -> str:
        return f"<Batch {self.left}/{len(self.members)}{' suspect' * self.suspect}>"

    def half_of(self, command: Command) -> Batch:
        """
        With whom a member is to run again, now that they have lost their worker.

        All who were not answered are parted in the middle when the first of them asks, before
        anything else becomes of any.
        """
        if self._halves is None:
            left = [member for member in self.members if member.state is RUNNING]
            middle = (len(left) + 1) // 2
            self._halves = Batch(left[:middle], suspect=True), Batch(left[middle:], suspect=True)
        first, second = self._halves
        return first if command in first.members else second
