"""
Fakes for tests of whatever runs workers: ours, and those of programs that embed a gate.

A `SpawningReactor` is a clock that spawns `FakeChild`s instead of processes. What the
gate writes goes through real pipes, so the code under test is the code that runs; no
process, port or second of waiting is needed::

    reactor = SpawningReactor()
    with reactor:
        gate = Gate(config, reactor, inline_journal(reactor))
        gate.start()
        reactor.advance(0)
        child = reactor.workers[0]
        child.hello()
        reply = gate.call("resize", b"body")
        child.reply(b"done")
        assert reply.result.body == b"done"
"""

from __future__ import annotations

from jobgate.testing.child import FakeChild, Given
from jobgate.testing.reactor import SpawningReactor
from jobgate.testing.recorder import Recorder
from jobgate.testing.stores import inline_journal

__all__ = ["FakeChild", "Given", "Recorder", "SpawningReactor", "inline_journal"]
