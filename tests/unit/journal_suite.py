"""
What every store must do: a model to compare it with, and promises one by one.

A store joins by a `Place` (how it is opened, how it crashes, how its time passes) and two
classes, `Promises` and a machine made by `machine_for`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from unittest.mock import ANY

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from msgspec.structs import replace

from jobgate.errors import BadRequest, QueueFull, Unprocessable
from jobgate.jobs.job import (
    CALLBACKS,
    FOLLOWS,
    TERMINAL,
    Change,
    Ending,
    Job,
    NewJob,
    Reply,
    State,
)
from jobgate.jobs.journal import Key, LeaseTerms
from jobgate.jobs.lots import ids_of, one_body, singles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from twisted.internet.defer import Deferred

    from jobgate.jobs.job import Taken
    from jobgate.jobs.journal import Journal

QUEUES = ("q", "r")
DAY = 24 * 3600
AGEING = 10_000


class Place(Protocol):
    """Where a store under test lives."""

    durable: bool
    """Whether it survives the gate."""

    def open(self, listener: Callable[[Sequence[Change]], None]) -> tuple[Journal, dict[str, Any]]:
        """Open it (anew), as a gate's start does; the journal, and what opening gave."""

    def crash(self) -> None:
        """End the gate without a word, as `kill -9` does."""

    def advance(self, seconds: float) -> None:
        """Let time pass."""

    def set_wall(self, seconds: float) -> None:
        """Somebody moves the clock on the wall by so much."""

    def wait(self, deferred: Deferred[Any]) -> Any:
        """The result of a Deferred, or its error raised."""

    def hold(self) -> None:
        """What is asked from now on is to happen as one group, if there are such."""

    def release(self) -> None:
        """Now it is."""

    def tell(self, listener: Callable[[Sequence[Change]], None]) -> None:
        """Have another listener than `open` was given."""

    def done(self) -> None:
        """Clean up."""


def new(id_: str, **changes: Any) -> NewJob:
    """A job with a body of its own."""
    fields = {"id": id_, "queue": "q", "body": id_.encode(), "content_type": "t/p", **changes}
    return NewJob(**fields)


def together(jobs: Sequence[NewJob]) -> NewJob:
    """Jobs that are alike but for id and body, as a lot."""
    body = one_body([job.body for job in jobs])
    return replace(jobs[0], ids=[job.id for job in jobs], body=body)


def jobs_of(taken: Iterable[Taken]) -> list[Taken]:
    """What has been taken, job by job."""
    return [each for lot in taken for each in singles(lot)]


def apart(changes: Iterable[Change]) -> Iterator[Change]:
    """What has been told, job by job."""
    for change in changes:
        for id_ in ids_of(change):
            yield replace(change, id=id_, ids=())


OK = Ending(State.SUCCEEDED, Reply(200, "t/p", b"done"))
FAILED = Ending(State.FAILED, error={"title": "no"}, output="last words")
DEAD = Ending(State.DEAD, error={"title": "never"})
AGAIN = Ending(State.QUEUED, spent=False)
LATER = Ending(State.SCHEDULED, error={"title": "not yet"}, delay=5.0)
ENDINGS = (OK, FAILED, DEAD, AGAIN, LATER)


@dataclass
class Fact:
    """What the model knows of a job."""

    new: NewJob
    seq: int
    created: int
    turn: int
    state: State
    held: bool = False
    attempt: int = 0
    spent: int = 0
    due: int = 0
    expires: int = 0
    started: bool = False
    finished: int = 0
    lease: str = ""
    graph: str = ""
    needs: list[str] = field(default_factory=list)
    unmet: set[str] = field(default_factory=set)
    replied: bool = False
    tries: int = 0
    gone: bool = False


class Model:
    """Jobs as a dict, and the rules in their plainest form."""

    def __init__(self) -> None:
        self.jobs: dict[str, Fact] = {}
        self.leases: dict[str, int] = {}
        self.ended_leases: set[str] = set()
        self.seq = 0

    def put(self, jobs: Iterable[NewJob], now: int, claim: int = 0, graph: str = "") -> None:
        added = []
        for index, job in enumerate(jobs):
            self.seq += 1
            due = now + round(job.delay * 1000) if job.delay else 0
            state = State.BLOCKED if job.needs else State.SCHEDULED if due else State.QUEUED
            fact = Fact(
                job,
                self.seq,
                now,
                (due or now) + job.priority * AGEING,
                state,
                held=state is State.QUEUED and index < claim,
                due=due,
                expires=now + round(job.expires * 1000) if job.expires else 0,
                graph=graph,
                needs=list(job.needs),
                unmet=set(job.needs),
            )
            self.jobs[job.id] = fact
            added.append(fact)
        for fact in added:
            for id_ in fact.needs:
                parent = self.jobs[id_]
                if parent.state >= TERMINAL and fact.state is State.BLOCKED:
                    self.met(fact, parent, now)

    def met(self, fact: Fact, parent: Fact, now: int) -> None:
        fact.unmet.discard(parent.new.id)
        if parent.state is not State.SUCCEEDED and fact.new.when != "finished":
            self.end(fact, State.CANCELLED, now)
        elif not fact.unmet:
            fact.state = State.SCHEDULED if fact.due > now else State.QUEUED

    def end(self, fact: Fact, state: State, now: int) -> None:
        assert state >= TERMINAL
        fact.state, fact.finished, fact.lease, fact.held = state, now, "", False
        if fact.new.callback:
            told = f"{fact.new.id}-{state.word}"
            if told not in self.jobs:
                self.put([new(told, queue=CALLBACKS, attempts=10)], now)
        for child in list(self.jobs.values()):
            if child.state is State.BLOCKED and fact.new.id in child.unmet:
                self.met(child, fact, now)

    def settle(self, fact: Fact, ending: Ending, now: int) -> None:
        if ending.state >= TERMINAL:
            fact.replied = ending.reply is not None
            self.end(fact, ending.state, now)
            return
        fact.state, fact.lease = ending.state, ""
        if ending.state is State.SCHEDULED:
            fact.due = now + round(ending.delay * 1000)
            fact.turn = fact.due + fact.new.priority * AGEING

    def start(self, fact: Fact, lease: str = "") -> None:
        fact.attempt += 1
        fact.state, fact.held, fact.lease, fact.started = State.RUNNING, False, lease, True

    def finish(self, fact: Fact, ending: Ending, now: int) -> None:
        fact.spent += ending.spent
        fact.tries += ending.error is not None
        self.settle(fact, ending, now)

    def crash(self, now: int, downtime: int) -> None:
        for lease in self.leases:
            self.leases[lease] += downtime
        for fact in list(self.jobs.values()):
            if fact.new.call and fact.state < TERMINAL:
                fact.replied = False
                self.end(fact, State.FAILED, now)
        for fact in list(self.jobs.values()):
            fact.held = False
            if fact.state is State.RUNNING and not fact.lease:
                if fact.new.once:
                    fact.tries += 1
                    self.end(fact, State.DEAD, now)
                else:
                    fact.state = State.QUEUED

    def takeable(self, queue: str, now: int) -> list[Fact]:
        return sorted(
            (
                fact
                for fact in self.jobs.values()
                if fact.new.queue == queue
                and fact.state is State.QUEUED
                and not fact.held
                and not (fact.expires and fact.expires <= now)
            ),
            key=lambda fact: (fact.turn, fact.seq),
        )

    def counts(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for fact in self.jobs.values():
            if fact.state < TERMINAL:
                found.setdefault(fact.new.queue, [0] * len(State))[fact.state] += 1
        return found


class Promises:
    """What every store promises, one by one; for a `SynchronousTestCase` that has `make_place`."""

    make_place: Callable[[], Place]

    def setUp(self) -> None:
        self.place = self.make_place()
        self.told: list[Change] = []
        self.journal, _ = self.place.open(self.tell)

    def tearDown(self) -> None:
        self.place.done()

    def tell(self, changes: Sequence[Change]) -> None:
        self.told += apart(changes)

    def do(self, deferred: Deferred[Any]) -> Any:
        return self.place.wait(deferred)

    def put(self, *jobs: NewJob, **how: Any) -> None:
        self.do(self.journal.put(jobs, **how))

    def state(self, name: str) -> State:
        job: Job = self.do(self.journal.get(name))
        return job.state

    def start(self, name: str, attempt: int = 1) -> None:
        self.do(self.journal.start(name, attempt, "w-1"))

    def end(self, name: str, ending: Ending = OK, attempt: int = 1) -> bool:
        done: bool = self.do(self.journal.finish(name, attempt, ending))
        return done

    def take(self, queue: str = "q", count: int = 100) -> list[str]:
        taken = self.do(self.journal.take(queue, count, 1 << 20))
        return [id_ for lot in taken for id_ in ids_of(lot)]

    def reopen(self, *, crash: bool = False) -> dict[str, list[int]]:
        if crash:
            self.place.crash()
        else:
            self.do(self.journal.close())
        self.told.clear()
        self.journal, counts = self.place.open(self.tell)
        return counts

    def test_order(self) -> None:
        """By priority, then arrival; a level is worth ten seconds of waiting."""
        self.put(new("a", priority=5), new("b"), new("c", priority=0), new("d"))
        self.place.advance(19.0)
        self.put(new("e", priority=3))
        self.place.advance(2.0)
        self.put(new("f", priority=3))
        assert self.take() == ["c", "b", "d", "e", "a", "f"]

    def test_ahead(self) -> None:
        """What is taken and has not started is ahead still."""
        self.put(*(new(name) for name in "abcd"), new("x", queue="r"))
        assert self.take(count=2) == ["a", "b"]
        self.start("a")
        assert [self.do(self.journal.ahead(name)) for name in "abcdx"] == [0, 0, 1, 2, 0]

    def test_all_or_none(self) -> None:
        """A put that is refused stores nothing."""
        with pytest.raises(QueueFull, match="queue q has 0 jobs waiting, and may have 1"):
            self.put(new("a", queue="r"), new("b"), new("c"), limits={"q": 1, "r": 5})
        with pytest.raises(Unprocessable):
            self.put(new("a"), new("b", needs=("nobody",)))
        assert self.do(self.journal.get("a")) is None
        assert self.told == []
        assert self.journal.writes == 2

    def test_claimed(self) -> None:
        """What is claimed is not taken, until it is given back."""
        self.put(new("a"), new("b", delay=5.0), new("c"), claim=2)
        assert [(change.id, change.claimed) for change in self.told] == [
            ("a", True),
            ("b", False),
            ("c", False),
        ]
        assert self.take() == ["c"]
        self.do(self.journal.give_back([["a"], ["c"]]))
        assert self.take() == ["a", "c"]

    def test_fences(self) -> None:
        """An attempt ends once, and only while it runs."""
        self.put(new("a"), claim=1)
        assert not self.end("a")
        self.start("a")
        assert not self.end("a", attempt=2)
        assert self.end("a", AGAIN)
        assert not self.end("a")
        assert self.take() == ["a"]
        self.start("a", 2)
        assert not self.end("a", FAILED, attempt=1)
        assert self.end("a", OK, attempt=2)
        assert not self.end("a", FAILED, attempt=2)
        job = self.do(self.journal.get("a"))
        assert (job.state, job.attempt, job.spent, job.error) == (State.SUCCEEDED, 2, 1, None)

    def test_dead_letters(self) -> None:
        """Every attempt's error and last output is there, over a restart, until it is purged."""
        self.put(new("a"), claim=1)
        for attempt in (1, 2):
            self.start("a", attempt)
            problem = {"title": f"no {attempt}"}
            state = State.QUEUED if attempt == 1 else State.DEAD
            ending = Ending(state, error=problem, output=f"out {attempt}")
            self.place.advance(1.0)
            assert self.end("a", ending, attempt)
            job = self.do(self.journal.get("a"))
            assert job.error == problem
            if attempt == 1:
                assert self.take() == ["a"]
        if self.place.durable:
            self.reopen()
        self.place.advance(90 * DAY)
        self.do(self.journal.sweep())
        tries = self.do(self.journal.tries("a"))
        assert [(t.attempt, t.error, t.output, t.worker) for t in tries] == [
            (1, {"title": "no 1"}, "out 1", "w-1"),
            (2, {"title": "no 2"}, "out 2", "w-1"),
        ]
        assert all(t.finished == t.started + 1.0 for t in tries)
        assert self.do(self.journal.purge("q")) == 1
        assert self.do(self.journal.get("a")).gone
        assert self.do(self.journal.tries("a")) == []

    def test_retry(self) -> None:
        """A dead job is as new, but its attempts go on counting."""
        self.put(new("a", attempts=1, expires=3.0), claim=1)
        self.start("a")
        self.end("a", DEAD)
        self.place.advance(10.0)
        assert self.do(self.journal.retry("a"))
        assert not self.do(self.journal.retry("a"))
        (job,) = self.do(self.journal.take("q", 1, 100))
        assert (job.id, job.attempt, job.spent) == ("a", 1, 0)
        self.place.advance(3.0)
        self.start("a", 2)
        assert self.end("a", OK, 2)
        assert self.do(self.journal.result("a")) == OK.reply

    def test_time(self) -> None:
        """Delays end, what waits too long is handed over, outcomes go, and then the fact."""
        self.put(new("a", delay=5.0, keep=60.0), new("b", expires=8.0))
        due = self.do(self.journal.sweep())
        assert due.after == 5.0
        assert self.take() == ["b"]
        self.place.advance(5.0)
        due = self.do(self.journal.sweep())
        assert (self.take(), due.after) == (["a"], 3.0)
        self.place.advance(3.0)
        due = self.do(self.journal.sweep())
        assert [job.id for job in due.expired] == ["b"]
        self.start("a")
        self.end("a")
        self.do(self.journal.finish_waiting("b", DEAD))
        assert self.do(self.journal.sweep()).after == 60.0
        self.place.advance(59.9)
        self.do(self.journal.sweep())
        assert self.do(self.journal.result("a")) == OK.reply
        self.place.advance(0.2)
        self.do(self.journal.sweep())
        assert self.do(self.journal.get("a")).gone
        assert self.do(self.journal.result("a")) is None
        assert self.do(self.journal.body("a")) is None
        self.place.advance(DAY)
        assert self.do(self.journal.sweep()).after == float("inf")
        assert self.do(self.journal.get("a")) is None

    def test_leases(self) -> None:
        """A lease covers what runs, can be had again by its key, and lapses."""
        self.put(*(new(name) for name in "abc"))
        assert self.take() == ["a", "b", "c"]
        key = Key("scope", "print", "said")
        terms = LeaseTerms("L", 10.0, "puller", key)
        self.do(self.journal.cancel("c", "why"))
        leased = self.do(self.journal.lease([([name], 1) for name in "abc"], terms))
        assert leased.jobs == (("a", 1), ("b", 1))
        again, jobs = self.do(self.journal.leased_by_key(key))
        assert (again, [job.id for job in jobs]) == (leased, ["a", "b"])
        assert self.do(self.journal.get("a")).until == leased.until
        assert self.end("a")
        assert self.do(self.journal.get("a")).until == 0
        assert self.do(self.journal.leased("L")).jobs == (("b", 1),)
        self.place.advance(9.0)
        assert self.do(self.journal.sweep()).lapsed == ()
        self.do(self.journal.extend("L", 10.0))
        self.place.advance(9.0)
        assert self.do(self.journal.sweep()).lapsed == ()
        self.place.advance(1.0)
        (job,) = self.do(self.journal.sweep()).lapsed
        assert (job.id, job.attempt, job.state) == ("b", 1, State.RUNNING)
        self.end("b", AGAIN)
        assert self.do(self.journal.leased("L")) is None
        assert self.do(self.journal.extend("L", 5.0)) is None
        assert not self.do(self.journal.finish_lease("L", OK))
        assert self.do(self.journal.leased_by_key(key)) is None
        assert not self.end("b")

    def test_kin(self) -> None:
        """Jobs that came together, as lines do, are each a job of its own all the same."""
        kin = [new(f"kin-{index:032}") for index in range(8)]
        names = [job.id for job in kin]
        self.put(together(kin), key=Key("scope", "print"))
        assert [change.id for change in self.told] == names
        assert [self.do(self.journal.ahead(name)) for name in names] == list(range(8))
        assert [self.do(self.journal.body(name))[1] for name in names] == [job.body for job in kin]
        assert self.do(self.journal.get(f"kin-{8:032}")) is None
        assert self.do(self.journal.kept(Key("scope", ""))).id == names[0]
        self.put(together(kin), new("single"), kin[3])
        assert [change.id for change in self.told] == [*names, "single"]
        taken = jobs_of(self.do(self.journal.take("q", 3, 1 << 20)))
        assert [(job.id, job.body) for job in taken] == [(job.id, job.body) for job in kin[:3]]
        self.do(self.journal.consume([(names[:3], 1)]))
        assert self.take(count=4) == names[3:7]
        self.do(self.journal.give_back([[names[5]]]))
        pairs = [(name, 1) for name in (names[3], names[4], names[6])]
        lots = [(names[3:5], 1), ([names[6]], 1)]
        leased = self.do(self.journal.lease(lots, LeaseTerms("L", 10.0)))
        assert leased.jobs == tuple(pairs)
        assert self.take(count=1) == [names[5]]
        assert self.end(names[4], FAILED)
        assert self.do(self.journal.leased("L")).jobs == (pairs[0], pairs[2])
        assert self.do(self.journal.finish_lease("L", OK))
        assert self.do(self.journal.result(names[6])) == OK.reply
        self.do(self.journal.cancel(names[7], "why"))
        states = [self.state(name) for name in names]
        done, queued = State.SUCCEEDED, State.QUEUED
        gone = [State.FAILED, queued, done, State.CANCELLED]
        assert states == [done, done, done, done, *gone]
        found, after = [], ""
        while not found or after:
            jobs, after = self.do(self.journal.page("q", None, 2, after))
            found += [job.id for job in jobs]
        assert found == ["single", *reversed(names)]

    def test_kin_that_are_many(self) -> None:
        """However many there are, and wherever they are cut."""
        kin = [new(f"kin-{index:032}", body=b"%d" % index * (index % 3)) for index in range(300)]
        with pytest.raises(QueueFull, match=r"queue q has 0 jobs waiting.* no room for 300 more"):
            self.put(together(kin), limits={"q": 299})
        lots = [together(kin[at : at + 100]) for at in (0, 100, 200)]
        self.put(*lots, limits={"q": 300})
        with pytest.raises(QueueFull, match="queue q has 300 jobs waiting"):
            self.put(new("a"), limits={"q": 300})
        jobs, after = self.do(self.journal.page("q", State.QUEUED, 7, ""))
        more, _ = self.do(self.journal.page("q", None, 200, after))
        assert [job.id for job in jobs + more] == [job.id for job in kin[:92:-1]]
        taken = []
        while lots := self.do(self.journal.take("q", 77, 100)):
            batch = jobs_of(lots)
            assert sum(len(job.body) for job in batch) <= 100
            self.do(self.journal.consume([(ids_of(lot), 1) for lot in lots]))
            taken += [(job.id, job.body) for job in batch]
        assert taken == [(job.id, job.body) for job in kin]
        job = self.do(self.journal.get(kin[200].id))
        assert (job.state, job.attempt) == (State.SUCCEEDED, 1)
        more = [new(f"skin-{index:032}", expires=1.0) for index in range(1100)]
        self.put(*(together(more[at : at + 110]) for at in range(0, 1100, 110)))
        assert len(self.take(count=50)) == 50
        self.place.advance(2.0)
        expired: set[str] = set()
        while due := self.do(self.journal.sweep()).expired:
            assert len(due) < 1000
            expired |= {job.id for job in due}
            self.place.hold()
            ends = [self.journal.finish_waiting(job.id, DEAD) for job in due[:600]]
            self.place.release()
            for end in ends:
                self.do(end)
        assert expired == {job.id for job in more}
        assert self.do(self.journal.purge("q")) == 1100

    def test_kin_wait(self) -> None:
        """Time and operators do to each of them what they do to any."""
        kin = [new(f"kin-{index:032}", delay=5.0, expires=8.0) for index in range(4)]
        names = [job.id for job in kin]
        self.put(together(kin))
        assert self.take() == []
        self.place.advance(5.0)
        self.do(self.journal.sweep())
        assert self.take(count=1) == names[:1]
        self.do(self.journal.give_back([names[:1]]))
        self.place.advance(3.0)
        due = self.do(self.journal.sweep())
        assert sorted(job.id for job in due.expired) == names
        assert self.do(self.journal.finish_waiting(names[1], DEAD))
        assert self.do(self.journal.retry(names[1]))
        assert self.take() == [names[1]]
        assert self.do(self.journal.purge("q")) == 3
        self.do(self.journal.forget(names[2]))
        assert [self.do(self.journal.get(name)) is None for name in names] == [
            False,
            False,
            True,
            False,
        ]

    def test_kin_survive(self) -> None:
        """A gate that dies leaves them as it leaves any."""
        if not self.place.durable:
            return
        kin = [new(f"kin-{index:032}", once=index > 3) for index in range(6)]
        names = [job.id for job in kin]
        self.put(together(kin[:4]), together(kin[4:]))
        assert self.take(count=5) == names[:5]
        self.do(self.journal.consume([(names[:2], 1)]))
        self.start(names[4])
        assert self.reopen(crash=True) == {"q": [0, 0, 3, 0, 0, 0, 0, 0]}
        self.put(new("later"))
        assert self.take() == [names[2], names[3], names[5], "later"]
        assert self.state(names[4]) is State.DEAD
        needy = new("needy", needs=(names[1], names[2]))
        self.put(needy)
        assert self.do(self.journal.get("needy")).needs == {
            names[1]: State.SUCCEEDED,
            names[2]: State.QUEUED,
        }

    def test_needs(self) -> None:
        """Who needs an end waits for it once, however often it comes."""
        self.put(new("p"), new("o"), claim=2)
        self.put(new("c", needs=("p", "o"), when="finished"), new("d", needs=("c",)))
        self.start("p")
        self.end("p", FAILED)
        assert self.do(self.journal.retry("p"))
        assert self.take() == ["p"]
        self.start("p", 2)
        self.end("p", OK, 2)
        assert self.state("c") is State.BLOCKED
        self.do(self.journal.cancel("o", "why"))
        assert self.state("c") is State.QUEUED
        (job,) = self.do(self.journal.take("q", 1, 100))
        assert job.inputs == (("p", "p"), ("o", "o"))
        self.start("c")
        self.end("c", DEAD)
        job = self.do(self.journal.get("d"))
        assert (job.state, job.needs) == (State.CANCELLED, {"c": State.DEAD})
        assert job.error["detail"] == "it needed c, which is dead"
        assert job.error["executed"] == "no"

    def test_graphs(self) -> None:
        """A graph's outcomes stay until the last of them has been kept for its time."""
        self.put(
            new("a", name="first", keep=60.0),
            new("b", name="second", needs=("a",), keep=60.0),
            graph="G",
            claim=1,
        )
        self.start("a")
        self.end("a")
        self.place.advance(600.0)
        self.do(self.journal.sweep())
        self.take()
        self.start("b")
        grown = Ending(State.SUCCEEDED, OK.reply, jobs=(new("c", name="third"),))
        self.end("b", grown)
        graph = self.do(self.journal.graph("G"))
        assert list(graph.jobs) == ["first", "second", "third"]
        assert graph.jobs["second"].needs == {"first": State.SUCCEEDED}
        assert self.do(self.journal.graph("G", needs=False)).jobs == graph.jobs
        self.place.advance(59.5)
        self.do(self.journal.cancel("G", "enough"))
        assert self.state("c") is State.CANCELLED
        assert not self.do(self.journal.graph("G", needs=False)).jobs["second"].needs
        assert self.do(self.journal.graph("G")).jobs["second"].needs
        self.place.advance(59.0)
        self.do(self.journal.sweep())
        assert self.do(self.journal.result("a")) == OK.reply
        self.place.advance(3600.0)
        self.do(self.journal.sweep())
        assert self.do(self.journal.graph("G")).gone
        self.place.advance(2 * DAY)
        self.do(self.journal.sweep())
        assert self.do(self.journal.graph("G")) is None

    def test_keys(self) -> None:
        """A key stands for the first use, until so long after its end."""
        key = Key("scope", "print", "said", 100.0)
        self.put(new("a"), key=key, claim=1)
        stored = self.do(self.journal.put([new("b")], key=Key("scope", "other")))
        assert stored.kept == self.do(self.journal.kept(key))
        assert (stored.kept.id, stored.kept.fingerprint) == ("a", "print")
        assert self.do(self.journal.get("b")) is None
        self.place.advance(500.0)
        self.do(self.journal.sweep())
        self.start("a")
        self.end("a")
        self.place.advance(99.0)
        self.do(self.journal.sweep())
        assert self.do(self.journal.kept(key)) is not None
        self.place.advance(70.0)
        self.do(self.journal.sweep())
        assert self.do(self.journal.kept(key)) is None
        self.put(new("c"), key=key)
        assert self.do(self.journal.kept(key)).id == "c"
        self.do(self.journal.cancel("c", "why"))
        self.do(self.journal.forget("c"))
        assert self.do(self.journal.kept(key)) is None
        assert self.do(self.journal.get("c")) is None

    def test_callbacks(self) -> None:
        """An end that is to be told is a job in the same step, also if it comes again."""
        self.put(new("a", callback="http://h/"), claim=1)
        self.start("a")
        self.told.clear()
        self.end("a", DEAD)
        assert [(change.id, change.queue) for change in self.told] == [
            ("a", "q"),
            ("a-dead", CALLBACKS),
        ]
        self.do(self.journal.retry("a"))
        self.take()
        self.start("a", 2)
        self.end("a", DEAD, 2)
        self.do(self.journal.retry("a"))
        self.do(self.journal.cancel("a", "why"))
        jobs = self.do(self.journal.take(CALLBACKS, 10, 1000))
        assert [(job.id, job.body) for job in jobs] == [
            ("a-dead", b'{"job":"a","state":"dead","url":"http://h/"}'),
            ("a-dead-2", b'{"job":"a","state":"dead","url":"http://h/"}'),
            ("a-cancelled", b'{"job":"a","state":"cancelled","url":"http://h/"}'),
        ]

    def test_a_new_gate(self) -> None:
        """What the last gate had is to be had again; its time and its leases go on."""
        if not self.place.durable:
            return
        self.put(new("a"), new("b"), new("c", once=True), new("d", call=True), claim=4)
        self.put(new("e"), new("f", delay=1e6), new("g", needs=("c",)))
        for name in "acd":
            self.start(name)
        assert self.take() == ["e"]
        self.do(self.journal.lease([(["e"], 1)], LeaseTerms("L", 50.0)))
        before = self.journal.now()
        self.place.set_wall(-1e6)
        counts = self.reopen(crash=True)
        assert self.journal.now() >= before - 1.0
        assert counts == {"q": [0, 1, 2, 1, 0, 0, 0, 0]}
        assert {(each.id, each.state, each.before) for each in self.told} == {
            ("c", State.DEAD, None),
            ("d", State.FAILED, None),
            ("g", State.CANCELLED, None),
        }
        assert self.do(self.journal.get("d")).error["slug"] == "worker-died"
        self.do(self.journal.close())
        self.place.advance(1000.0)
        self.journal, _ = self.place.open(self.tell)
        leased = self.do(self.journal.leased("L"))
        assert 48.0 <= leased.until - self.journal.now() <= 52.0
        assert [(job.id, job.attempt) for job in self.do(self.journal.take("q", 9, 99))] == [
            ("a", 1),
            ("b", 0),
        ]


def machine_for(make: Callable[[], Place]) -> type[RuleBasedStateMachine]:
    """A state machine that drives a store and the model side by side."""

    class JournalMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.place = make()
            self.model = Model()
            self.seen: dict[str, State] = {}
            self.attempts: dict[str, int] = {}
            self.names = 0
            self.swept = 0.0
            self.keys: dict[str, tuple[str, str]] = {}
            self.lots: list[NewJob] = []

        @initialize()
        def begin(self) -> None:
            self.journal, counts = self.place.open(self.changed)
            assert counts == {}

        # --- helpers

        def do(self, deferred: Deferred[Any]) -> Any:
            return self.place.wait(deferred)

        def now(self) -> int:
            return int(self.journal.now() * 1000)

        def changed(self, changes: Sequence[Change]) -> None:
            """Each change follows from the one before it, and from nothing else."""
            for change in apart(changes):
                if change.before is None:
                    assert change.id not in self.seen or not self.place.durable, change
                else:
                    assert self.seen[change.id] is change.before, change
                    assert change.state in FOLLOWS[change.before], change
                self.seen[change.id] = change.state
                # Attempts only rise.
                assert change.attempt >= self.attempts.get(change.id, 0), change
                self.attempts[change.id] = change.attempt

        def name(self, *, kin: bool = False) -> str:
            self.names += 1
            return f"kin-{self.names:032}" if kin else f"j{self.names}"

        def some(self, data: st.DataObject, facts: Iterable[Fact]) -> Fact | None:
            facts = sorted(facts, key=lambda fact: fact.seq)
            return data.draw(st.sampled_from(facts)) if facts else None

        def any(self, data: st.DataObject) -> Fact | None:
            return self.some(data, self.model.jobs.values())

        # --- in

        @rule(
            count=st.integers(1, 6),
            claim=st.sampled_from([0, 0, 1, 4]),
            kin=st.booleans(),
            queue=st.sampled_from(QUEUES),
            priority=st.integers(0, 7),
            fields=st.fixed_dictionaries(
                {},
                optional={
                    "delay": st.sampled_from([0.5, 3.0, 100.0]),
                    "expires": st.sampled_from([1.0, 8.0, 50.0]),
                    "call": st.just(value=True),
                    "once": st.just(value=True),
                    "callback": st.just("http://h/"),
                    "headers": st.just('{"a":1}'),
                    "keep": st.sampled_from([2.0, 7200.0]),
                },
            ),
        )
        def put(
            self,
            count: int,
            claim: int,
            kin: bool,
            queue: str,
            priority: int,
            fields: dict[str, Any],
        ) -> None:
            """Some of them are a lot, as lines of one push are."""
            kin = kin and count > 1 and not fields.keys() & {"call", "callback"}
            jobs = [
                new(self.name(kin=kin), queue=queue, priority=priority, **fields)
                for _ in range(count)
            ]
            now = self.now()
            lots = [together(jobs)] if kin else jobs
            assert self.do(self.journal.put(lots, claim=claim)).kept is None
            self.model.put(jobs, now, count if kin and claim else claim)
            if kin:
                self.lots.append(lots[0])

        @rule(data=st.data())
        def put_again(self, data: st.DataObject) -> None:
            """It is harmless, whatever has become of the job."""
            fact = self.any(data)
            if fact is not None:
                self.do(self.journal.put([fact.new], claim=1))
            if self.lots and self.lots[-1].id in self.model.jobs:
                self.do(self.journal.put([self.lots[-1]], claim=1))

        @rule(limit=st.integers(0, 12), count=st.integers(1, 3))
        def put_limited(self, limit: int, count: int) -> None:
            waiting = sum(
                fact.new.queue == "q" and fact.state < State.RUNNING
                for fact in self.model.jobs.values()
            )
            jobs = [new(self.name(kin=True)) for _ in range(count)]
            now = self.now()
            try:
                lots = [together(jobs)] if count > 1 else jobs
                self.do(self.journal.put(lots, limits={"q": limit}))
            except QueueFull:
                assert waiting + count > limit
            else:
                assert waiting + count <= limit
                self.model.put(jobs, now)

        @rule(key=st.sampled_from("abc"), body=st.sampled_from("xy"))
        def put_with_key(self, key: str, body: str) -> None:
            name = self.name()
            now = self.now()
            stored = self.do(self.journal.put([new(name)], key=Key(key, body, "said", DAY)))
            if key in self.keys:
                assert (stored.kept.id, stored.kept.fingerprint) == self.keys[key]
                assert stored.kept.answer == "said"
                return
            assert stored.kept is None
            self.keys[key] = (name, body)
            self.model.put([new(name)], now)

        @rule(
            data=st.data(),
            count=st.integers(1, 7),
            whens=st.lists(st.sampled_from(["succeeded", "finished"]), min_size=7, max_size=7),
            graph=st.booleans(),
        )
        def put_linked(
            self, data: st.DataObject, count: int, whens: list[str], graph: bool
        ) -> None:
            """A graph, or jobs that need each other and some that are there."""
            names = [self.name() for _ in range(count)]
            others = [] if graph else sorted(self.model.jobs)[:5]
            jobs = []
            for index, name in enumerate(names):
                pool = names[:index] + others
                needs = (
                    data.draw(st.lists(st.sampled_from(pool), max_size=3, unique=True))
                    if pool
                    else []
                )
                jobs.append(
                    new(
                        name,
                        queue=QUEUES[index % 2],
                        needs=tuple(needs),
                        when=whens[index],
                        name=f"n-{name}" if graph else "",
                        callback="http://h/" if index == 3 else "",
                    )
                )
            # Jobs may need such as come after them.
            order = data.draw(st.permutations(jobs))
            id_ = f"G{names[0]}" if graph else ""
            now = self.now()
            self.do(self.journal.put(order, claim=2, graph=id_))
            self.model.put(order, now, 2, id_)

        @rule()
        def put_needing_nobody(self) -> None:
            with pytest.raises(Unprocessable, match="nobody"):
                self.do(self.journal.put([new("lost", needs=("nobody",))]))

        # --- out, and back

        @rule(
            queue=st.sampled_from([*QUEUES, "none"]),
            count=st.integers(1, 6),
            max_bytes=st.sampled_from([1, 5, 80, 1000]),
        )
        def take(self, queue: str, count: int, max_bytes: int) -> None:
            wanted = self.model.takeable(queue, self.now())[:count]
            total = 0
            for index, fact in enumerate(wanted):
                total += len(fact.new.body)
                if index and total > max_bytes:
                    wanted = wanted[:index]
                    break
            taken = jobs_of(self.do(self.journal.take(queue, count, max_bytes)))
            assert [job.id for job in taken] == [fact.new.id for fact in wanted]
            for job, fact in zip(taken, wanted, strict=True):
                fact.held = True
                assert job.body == fact.new.body
                assert (job.attempt, job.spent) == (fact.attempt, fact.spent)
                assert (job.headers, job.content_type) == (fact.new.headers, "t/p")
                assert (job.call, job.once) == (fact.new.call, fact.new.once)
                assert job.graph == fact.graph
                inputs = tuple((self.model.jobs[n].new.name or n, n) for n in fact.needs)
                assert job.inputs == inputs

        @rule(data=st.data())
        def give_back(self, data: st.DataObject) -> None:
            fact = self.any(data)
            if fact is not None:
                self.do(self.journal.give_back([[fact.new.id], ["nobody"]]))
                fact.held = False
                if fact.state is State.RUNNING and not fact.lease:
                    # It had been declined after its start.
                    fact.state = State.QUEUED

        def start_some(self, data: st.DataObject) -> Fact | None:
            fact = self.some(data, (fact for fact in self.model.jobs.values() if fact.held))
            if fact is not None:
                self.do(self.journal.start(fact.new.id, fact.attempt + 1, "w-1"))
                self.model.start(fact)
            return fact

        @rule(data=st.data())
        def start(self, data: st.DataObject) -> None:
            self.start_some(data)

        @rule(data=st.data(), attempt=st.integers(0, 3))
        def start_what_is_not_ours(self, data: st.DataObject, attempt: int) -> None:
            fact = self.some(data, (fact for fact in self.model.jobs.values() if not fact.held))
            if fact is not None:
                self.do(self.journal.start(fact.new.id, attempt, "w-2"))
                if fact.state is State.RUNNING and not fact.lease and attempt > fact.attempt:
                    # A batch that killed its worker goes again at once.
                    fact.attempt = attempt

        @rule(data=st.data(), ending=st.sampled_from(ENDINGS))
        def finish(self, data: st.DataObject, ending: Ending) -> None:
            running = [f for f in self.model.jobs.values() if f.state is State.RUNNING]
            fact = self.some(data, running) or self.start_some(data)
            if fact is not None:
                now = self.now()
                assert self.do(self.journal.finish(fact.new.id, fact.attempt, ending))
                self.model.finish(fact, ending, now)

        @rule(data=st.data(), attempt=st.integers(0, 4), ending=st.sampled_from(ENDINGS))
        def finish_stale(self, data: st.DataObject, attempt: int, ending: Ending) -> None:
            fact = self.any(data)
            if fact is None or (fact.state is State.RUNNING and fact.attempt == attempt):
                return
            assert not self.do(self.journal.finish(fact.new.id, attempt, ending))

        @rule(
            data=st.data(),
            count=st.integers(1, 3),
            chain=st.booleans(),
            ending=st.sampled_from(ENDINGS[:3]),
        )
        def grow(self, data: st.DataObject, count: int, chain: bool, ending: Ending) -> None:
            fact = self.some(
                data,
                (f for f in self.model.jobs.values() if f.state is State.RUNNING and f.graph),
            )
            if fact is None:
                return
            names = [self.name() for _ in range(count)]
            jobs = tuple(
                new(name, name=f"n-{name}", needs=(names[index - 1],) if chain and index else ())
                for index, name in enumerate(names)
            )
            more = Ending(ending.state, ending.reply, ending.error, jobs=jobs)
            now = self.now()
            assert self.do(self.journal.finish(fact.new.id, fact.attempt, more))
            children = [
                child
                for child in self.model.jobs.values()
                if child.state is State.BLOCKED and fact.new.id in child.needs
            ]
            self.model.put(jobs, now, graph=fact.graph)
            for child in children:
                child.needs += names
                child.unmet |= set(names)
            self.model.finish(fact, more, now)

        @rule(
            data=st.data(),
            state=st.sampled_from([State.DEAD, State.FAILED, State.CANCELLED]),
        )
        def finish_waiting(self, data: st.DataObject, state: State) -> None:
            fact = self.any(data)
            if fact is None:
                return
            now = self.now()
            done = self.do(
                self.journal.finish_waiting(fact.new.id, Ending(state, error={"title": "x"}))
            )
            assert done == (fact.state < State.RUNNING and state in FOLLOWS[fact.state])
            if done:
                fact.replied = False
                self.model.end(fact, state, now)

        @rule(
            data=st.data(),
            steps=st.lists(
                st.sampled_from(
                    ["put", "lot", "start", "finish", "stale", "take", "back", "cancel"]
                ),
                min_size=2,
                max_size=12,
            ),
            twice=st.booleans(),
        )
        def together(self, data: st.DataObject, steps: list[str], twice: bool) -> None:
            """Many at once are as one after another; what fails among them fails alone."""
            now = self.now()
            model, journal = self.model, self.journal
            waiting: list[tuple[Deferred[Any], object]] = []
            self.place.hold()
            if twice:
                steps = ["put", "twice", *steps]
            for step in steps:
                if step == "put":
                    jobs = [new(self.name(), priority=len(waiting) % 3) for _ in range(2)]
                    waiting.append((journal.put(jobs, claim=1), ANY))
                    model.put(jobs, now, 1)
                elif step == "lot":
                    kin = [new(self.name(kin=True)) for _ in range(3)]
                    claim = data.draw(st.integers(0, 1))
                    waiting.append((journal.put([together(kin)], claim=claim), ANY))
                    model.put(kin, now, 3 * claim)
                elif step == "twice":
                    waiting.append((journal.put([*jobs, new(self.name())]), ANY))
                    model.put([new(f"j{self.names}")], now)
                elif step == "start":
                    fact = self.some(data, (f for f in model.jobs.values() if f.held))
                    if fact is not None:
                        model.start(fact)
                        run = fact.new.id, fact.attempt
                        if data.draw(st.booleans()):
                            journal.note_start(*run, "w-3")
                        else:
                            waiting.append((journal.start(*run, "w-3"), None))
                elif step == "finish":
                    running = (f for f in model.jobs.values() if f.state is State.RUNNING)
                    fact = self.some(data, running)
                    if fact is not None:
                        ending = data.draw(st.sampled_from(ENDINGS))
                        run = fact.new.id, fact.attempt
                        if data.draw(st.booleans()):
                            journal.note_finish(*run, ending)
                        else:
                            waiting.append((journal.finish(*run, ending), True))
                        model.finish(fact, ending, now)
                elif step == "stale":
                    fact = self.any(data)
                    if fact is not None:
                        waiting.append((journal.finish(fact.new.id, 99, OK), False))
                elif step == "take":
                    wanted = model.takeable("q", now)[:3]
                    ids = [fact.new.id for fact in wanted]
                    taken = journal.take("q", 3, 1000)
                    taken.addCallback(lambda lots: [job.id for job in jobs_of(lots)])
                    waiting.append((taken, ids))
                    for fact in wanted:
                        fact.held = True
                elif step == "back":
                    held = [f for f in model.jobs.values() if f.held]
                    lots = [ids for ids, _ in self.in_lots(data, held)]
                    waiting.append((journal.give_back(lots), None))
                    for fact in held:
                        fact.held = False
                else:
                    fact = self.any(data)
                    if fact is not None:
                        waiting.append((journal.cancel(fact.new.id, "why"), ANY))
                        if fact.state < TERMINAL:
                            fact.replied = False
                            model.end(fact, State.CANCELLED, now)
            self.place.release()
            for deferred, wanted_result in waiting:
                assert self.do(deferred) == wanted_result

        # --- leases

        @rule(data=st.data(), seconds=st.sampled_from([1.0, 10.0, 500.0]))
        def lease(self, data: st.DataObject, seconds: float) -> None:
            held = sorted(f.new.id for f in self.model.jobs.values() if f.held)
            if not held:
                return
            chosen = data.draw(st.lists(st.sampled_from(held), min_size=1, unique=True))
            facts = [self.model.jobs[id_] for id_ in chosen]
            id_ = f"L{self.name()}"
            now = self.now()
            pairs = [(fact.new.id, fact.attempt + 1) for fact in facts]
            lots = self.in_lots(data, facts)
            leased = self.do(self.journal.lease(lots, LeaseTerms(id_, seconds, "puller")))
            for fact in facts:
                self.model.start(fact, id_)
            self.model.leases[id_] = now + round(seconds * 1000)
            assert sorted(leased.jobs) == sorted(pairs)
            assert leased.until == self.model.leases[id_] / 1000

        def in_lots(
            self, data: st.DataObject, facts: Iterable[Fact]
        ) -> list[tuple[list[str], int]]:
            """Jobs that are to start, some of them together, whether they came so or not."""
            lots: list[tuple[list[str], int]] = []
            for fact in facts:
                attempt = fact.attempt + 1
                if lots and lots[-1][1] == attempt and data.draw(st.booleans()):
                    lots[-1][0].append(fact.new.id)
                else:
                    lots.append(([fact.new.id], attempt))
            return lots

        @rule(data=st.data(), start=st.integers(0, 3), count=st.integers(1, 9))
        def consume(self, data: st.DataObject, start: int, count: int) -> None:
            """Pullers have some of what is held; what has been cancelled is not theirs."""
            held = sorted((f for f in self.model.jobs.values() if f.held), key=lambda f: f.seq)
            facts = held[start : start + count]
            if not facts:
                return
            now = self.now()
            lots = self.in_lots(data, facts)
            cancelled = self.some(data, facts) if data.draw(st.booleans()) else None
            if cancelled is not None:
                self.do(self.journal.cancel(cancelled.new.id, "because"))
                cancelled.replied = False
                self.model.end(cancelled, State.CANCELLED, now)
            self.do(self.journal.consume(lots))
            for fact in facts:
                if fact.state < TERMINAL:
                    self.model.start(fact)
                    fact.replied = False
                    self.model.end(fact, State.SUCCEEDED, now)

        def covered(self, lease: str) -> set[tuple[str, int]]:
            return {
                (fact.new.id, fact.attempt)
                for fact in self.model.jobs.values()
                if fact.lease == lease
            }

        @precondition(lambda self: self.model.leases)
        @rule(data=st.data(), seconds=st.sampled_from([1.0, 60.0]))
        def extend(self, data: st.DataObject, seconds: float) -> None:
            id_ = data.draw(st.sampled_from(sorted(self.model.leases)))
            now = self.now()
            leased = self.do(self.journal.extend(id_, seconds))
            covered = self.covered(id_)
            if not covered:
                assert leased is None
                return
            self.model.leases[id_] = now + round(seconds * 1000)
            assert set(leased.jobs) == covered
            assert leased.until == self.model.leases[id_] / 1000

        @precondition(lambda self: self.model.leases)
        @rule(data=st.data(), ending=st.sampled_from(ENDINGS))
        def finish_lease(self, data: st.DataObject, ending: Ending) -> None:
            id_ = data.draw(st.sampled_from(sorted(self.model.leases)))
            covered = self.covered(id_)
            now = self.now()
            done = self.do(self.journal.finish_lease(id_, ending))
            if id_ not in self.model.ended_leases:
                assert done == bool(covered)
            for job, _ in covered:
                self.model.finish(self.model.jobs[job], ending, now)
            if covered:
                self.model.ended_leases.add(id_)
                assert self.do(self.journal.finish_lease(id_, ending))
                assert set(self.do(self.journal.leased(id_)).jobs) == covered

        # --- what people ask for

        @rule(data=st.data())
        def cancel(self, data: st.DataObject) -> None:
            fact = self.any(data)
            if fact is None:
                return
            now = self.now()
            before = self.do(self.journal.cancel(fact.new.id, "because"))
            self.check(fact, before)
            if fact.state < TERMINAL:
                fact.replied = False
                self.model.end(fact, State.CANCELLED, now)
                after = self.do(self.journal.get(fact.new.id))
                assert after.error["detail"] == "because"

        @rule(data=st.data())
        def cancel_graph(self, data: st.DataObject) -> None:
            fact = self.some(data, (f for f in self.model.jobs.values() if f.graph))
            if fact is None:
                return
            now = self.now()
            assert self.do(self.journal.cancel(fact.graph, "all")) is None
            for each in list(self.model.jobs.values()):
                if each.graph == fact.graph and each.state < TERMINAL:
                    self.model.end(each, State.CANCELLED, now)

        @rule(data=st.data())
        def retry(self, data: st.DataObject) -> None:
            fact = self.any(data)
            if fact is None:
                return
            now = self.now()
            done = self.do(self.journal.retry(fact.new.id))
            assert done == (fact.state in (State.FAILED, State.DEAD) and not fact.gone)
            if done:
                fact.state, fact.spent, fact.finished = State.QUEUED, 0, 0
                fact.due, fact.replied = 0, False
                fact.turn = now + fact.new.priority * AGEING
                fact.expires = now + round(fact.new.expires * 1000) if fact.new.expires else 0

        @rule(data=st.data())
        def forget(self, data: st.DataObject) -> None:
            """Only what nothing refers to, so that the model stays plain."""
            needed = {n for fact in self.model.jobs.values() for n in fact.needs}
            fact = self.some(
                data,
                (f for f in self.model.jobs.values() if f.new.id not in needed and not f.graph),
            )
            if fact is None:
                return
            self.do(self.journal.forget(fact.new.id))
            if fact.state >= TERMINAL or fact.held:
                del self.model.jobs[fact.new.id]
                del self.seen[fact.new.id]
                self.attempts.pop(fact.new.id, None)
                self.keys = {k: v for k, v in self.keys.items() if v[0] != fact.new.id}

        @rule(queue=st.sampled_from(QUEUES))
        def purge(self, queue: str) -> None:
            now = self.now()
            facts = [f for f in self.model.jobs.values() if f.new.queue == queue]
            waiting = [f for f in facts if f.state < State.RUNNING and not f.held]
            dead = [f for f in facts if f.state is State.DEAD and not f.gone]
            count = self.do(self.journal.purge(queue))
            # What waits is cancelled, or was already by what it needs.
            assert len(dead) <= count <= len(waiting) + len(dead)
            for fact in waiting:
                if fact.state < TERMINAL:
                    self.model.end(fact, State.CANCELLED, now)
            for fact in dead:
                fact.gone = True

        # --- time and fate

        @rule(seconds=st.sampled_from([0.001, 1.0, 6.0, 61.0]))
        def advance(self, seconds: float) -> None:
            self.place.advance(seconds)

        @rule(seconds=st.sampled_from([0.0, 7200.0, 2.0 * DAY]))
        def sweep(self, seconds: float) -> None:
            self.place.advance(seconds)
            now = self.now()
            due = self.do(self.journal.sweep())
            self.swept = now / 1000
            facts = self.model.jobs.values()
            lapsed = {f.new.id for f in facts if f.lease and self.model.leases[f.lease] <= now}
            expired = {
                f.new.id
                for f in facts
                if f.state < State.RUNNING and f.expires and f.expires <= now
            }
            assert {job.id for job in due.lapsed} == lapsed
            assert {job.id for job in due.expired} == expired
            for fact in facts:
                if fact.state is State.SCHEDULED and fact.due <= now and fact.new.id not in expired:
                    fact.state, fact.due = State.QUEUED, 0
            times = [f.due for f in facts if f.state is State.SCHEDULED]
            times += [f.expires for f in facts if f.state < State.RUNNING and f.expires > now]
            times += [self.model.leases[f.lease] for f in facts if f.lease]
            soonest = min((at for at in times if at > now), default=None)
            if soonest is not None:
                assert due.after <= (soonest - now) / 1000 + 1e-6
            self.find_the_gone(now)

        def find_the_gone(self, now: int) -> None:
            """What is dropped may be; and what has been for long is not there at all."""
            for name, fact in list(self.model.jobs.items()):
                job = self.do(self.journal.get(name))
                kept = fact.finished + round(fact.new.keep * 1000)
                if job is None:
                    assert fact.gone
                    assert kept + DAY * 1000 <= now
                    self.vanish(fact)
                elif job.gone and not fact.gone:
                    assert fact.state >= TERMINAL
                    assert fact.state is not State.DEAD
                    assert kept <= now
                    # Nobody may still ask for it.
                    for other in self.model.jobs.values():
                        assert other.state >= TERMINAL or name not in other.needs
                        if fact.graph and other.graph == fact.graph:
                            assert other.state >= TERMINAL
                    fact.gone = True
                    fact.replied = False
                    fact.tries = 0
            self.keys = {
                key: named
                for key, named in self.keys.items()
                if self.do(self.journal.kept(Key(key, ""))) is not None
            }

        def vanish(self, fact: Fact) -> None:
            del self.model.jobs[fact.new.id]
            self.seen.pop(fact.new.id)
            for other in self.model.jobs.values():
                if fact.new.id in other.needs:
                    other.needs.remove(fact.new.id)

        @rule(
            crash=st.booleans(),
            down=st.sampled_from([0.0, 30.0]),
            wall=st.sampled_from([0.0, -9000.0, 40.0]),
        )
        def restart(self, crash: bool, down: float, wall: float) -> None:
            before = self.journal.now()
            if crash:
                self.place.crash()
            else:
                self.do(self.journal.close())
            self.place.advance(down)
            self.place.set_wall(wall)
            if not self.place.durable:
                self.model = Model()
                self.seen.clear()
                self.keys.clear()
            ended = {n for n, f in self.model.jobs.items() if f.state >= TERMINAL}
            # What a gate had becomes free without a Change, told by the counts.
            for name, fact in self.model.jobs.items():
                if fact.state < TERMINAL:
                    self.seen.pop(name, None)
            changes: list[Change] = []
            self.journal, counts = self.place.open(changes.extend)
            # It never goes back by more than a crash can hide; if nothing is stored, nobody looks.
            after = self.journal.now()
            if self.place.durable and self.model.seq:
                assert after >= (self.swept - 10.0 if crash else before - 0.001)
            self.model.crash(self.now(), 0)
            for lease in self.model.leases:
                live = self.do(self.journal.leased(lease))
                if live is not None and lease not in self.model.ended_leases:
                    # At least the time for which no gate ran has been added.
                    had = self.model.leases[lease]
                    self.model.leases[lease] = round(live.until * 1000)
                    assert live.until - had / 1000 >= max(0.0, after - before) - 0.002
            assert counts == self.model.counts()
            now_ended = {
                n for n, f in self.model.jobs.items() if f.state >= TERMINAL and n not in ended
            }
            assert {change.id for change in apart(changes)} == now_ended
            assert all(change.before is None for change in changes)
            for name, fact in self.model.jobs.items():
                self.seen[name] = fact.state
            self.place.tell(self.changed)

        # --- what holds at every moment

        def check(self, fact: Fact, job: Job | None) -> None:
            assert job is not None, fact
            assert job.state is fact.state, (fact, job)
            assert (job.attempt, job.spent) == (fact.attempt, fact.spent), (fact, job)
            assert (job.queue, job.graph) == (fact.new.queue, fact.graph)
            assert job.created == fact.created / 1000
            assert job.finished == fact.finished / 1000, (fact, job)
            assert job.due == (fact.due / 1000 if fact.state is State.SCHEDULED else 0), fact
            until = self.model.leases[fact.lease] / 1000 if fact.lease else 0
            assert job.until == until, (fact, job)
            assert job.gone == fact.gone
            jobs = self.model.jobs
            assert job.needs == {jobs[n].new.name or n: jobs[n].state for n in fact.needs}

        @invariant()
        def as_the_model_says(self) -> None:
            jobs, _ = self.do(self.journal.page("", None, 10_000, ""))
            assert {job.id for job in jobs} == set(self.model.jobs)
            for job in jobs:
                name, fact = job.id, self.model.jobs[job.id]
                self.check(fact, job)
                assert self.seen[name] is fact.state
                if fact.state is State.BLOCKED:
                    assert fact.unmet

        @invariant()
        def time_goes_on(self) -> None:
            assert not self.journal.trouble

        @rule(data=st.data())
        def look_closer(self, data: st.DataObject) -> None:
            fact = self.any(data)
            if fact is None:
                return
            name = fact.new.id
            self.check(fact, self.do(self.journal.get(name)))
            reply = self.do(self.journal.result(name))
            assert (reply is not None) == (fact.replied and fact.state >= TERMINAL), fact
            body = self.do(self.journal.body(name))
            assert body == (None if fact.gone else ("t/p", fact.new.body)) or (
                fact.new.queue == CALLBACKS
            )
            tries = self.do(self.journal.tries(name))
            assert len(tries) <= fact.tries
            ahead = self.do(self.journal.ahead(name))
            if fact.state is State.QUEUED:
                assert (
                    ahead
                    == sum(
                        (other.turn, other.seq) < (fact.turn, fact.seq)
                        for other in self.model.jobs.values()
                        if other.new.queue == fact.new.queue and other.state is State.QUEUED
                    )
                    or fact.new.queue == CALLBACKS
                )
            if fact.graph:
                graph = self.do(self.journal.graph(fact.graph))
                inside = [f for f in self.model.jobs.values() if f.graph == fact.graph]
                inside.sort(key=lambda each: each.seq)
                assert [job.id for job in graph.jobs.values()] == [f.new.id for f in inside]

        @rule(
            queue=st.sampled_from(["", *QUEUES]),
            state=st.sampled_from([None, *State]),
            limit=st.integers(1, 4),
        )
        def pages(self, queue: str, state: State | None, limit: int) -> None:
            found: list[str] = []
            after = ""
            while True:
                jobs, after = self.do(self.journal.page(queue, state, limit, after))
                assert len(jobs) <= limit
                found += [job.id for job in jobs]
                if not after:
                    break
                assert len(jobs) == limit
            wanted = {
                name
                for name, f in self.model.jobs.items()
                if (not queue or f.new.queue == queue) and (state is None or f.state is state)
            }
            assert set(found) == wanted
            assert len(found) == len(wanted)
            facts = [self.model.jobs[name] for name in found]
            ours = [fact.seq for fact in facts if fact.new.queue != CALLBACKS]
            assert ours == sorted(ours, reverse=True)
            with pytest.raises(BadRequest, match="after"):
                self.do(self.journal.page("", None, 5, "nonsense"))

        def teardown(self) -> None:
            self.place.done()

    return JournalMachine
