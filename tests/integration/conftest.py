"""
Real programs, real children, real sockets.

`start_gate` runs the program as its users do; `gate_in_process` embeds a Gate under the
running reactor. Both make sure that nothing is left.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import pytest_twisted
from program import Program
from socket_worker import SdkWorker

from jobgate.config import from_tables
from jobgate.gate import Gate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

    Employ = Callable[..., SdkWorker]
    StartGate = Callable[..., Program]
    Embed = Callable[[Mapping[str, Any]], Awaitable[Gate]]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A script has put us into its background. What is started here would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _programs(folder: Callable[[], Path]) -> Iterator[StartGate]:
    running: list[Program] = []

    def start(
        config: Mapping[str, Any] | str,
        *arguments: str,
        front: str = "",
        **how: Any,
    ) -> Program:
        program = Program(folder(), config, arguments or ("-p", "0"), front)
        running.append(program)
        return program.start(**how)

    try:
        yield start
        for program in running:
            program.stop()
    finally:
        for program in running:
            program.end_by_force()


@pytest.fixture
def start_gate(tmp_path: Path) -> Iterator[StartGate]:
    """Start a gate; at the end it must go in good order and leave nothing."""
    yield from _programs(lambda: tmp_path)


@pytest.fixture(scope="module")
def start_shared_gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartGate]:
    """Start a gate that the tests of a module share."""
    yield from _programs(lambda: tmp_path_factory.mktemp("gate"))


@pytest.fixture
def employ(tmp_path: Path) -> Iterator[Employ]:
    """Start SDK workers; none is left."""
    started: list[SdkWorker] = []

    def start(address: str, **settings: object) -> SdkWorker:
        started.append(SdkWorker(tmp_path, address, **settings))
        return started[-1]

    yield start
    for worker in started:
        worker.end()


@pytest.fixture(params=["fast", "klein"])
def front(request: pytest.FixtureRequest) -> str:
    """Both ways in, one after the other."""
    name: str = request.param
    return name


def _selectables(reactor: Any) -> set[Any]:
    return {*reactor.getReaders(), *reactor.getWriters()}


def _children() -> set[psutil.Process]:
    found = psutil.Process().children()
    return {p for p in found if p.status() != psutil.STATUS_ZOMBIE}


@pytest_twisted.async_yield_fixture
async def embed() -> AsyncIterator[Embed]:
    """Make and start Gates in this process; the reactor must be as clean afterwards as before."""
    from twisted.internet import reactor
    from twisted.internet.task import deferLater

    clock: Any = reactor
    before = _selectables(clock), set(clock.getDelayedCalls()), _children()
    gates: list[Gate] = []

    async def make(tables: Mapping[str, Any]) -> Gate:
        gate = Gate(from_tables(tables, "test", Path.cwd()))
        gates.append(gate)
        await gate.start()
        return gate

    yield make
    for gate in gates:
        await gate.stop()
    for _ in range(200):
        left = (
            _selectables(clock) - before[0],
            set(clock.getDelayedCalls()) - before[1],
            _children() - before[2],
        )
        if not any(left):
            break
        await deferLater(clock, 0.02)
    # deferLater's own call is over by now; whatever else is there, was left behind.
    assert not any(left), left


@pytest.fixture(scope="session", autouse=True)
def _many_descriptors() -> None:
    """Tests with ten thousand connections need as many descriptors as the system allows."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
