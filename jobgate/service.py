"""
The service: what `twistd jobgate` and `jobgate.tac` run.

Starts and stops in order, and turns signals into that: SIGTERM drains, a second one
hurries, SIGHUP rereads the configuration.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from jobgate import options
from jobgate.errors import ConfigError
from jobgate.gate import Gate
from jobgate.gate.audit import Audit
from jobgate.loop import settle, tune
from jobgate.options import Options
from jobgate.web.server import HTTPServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure

    from jobgate.config import GateConfig

__all__ = ["JobgateService", "Options", "from_environment", "makeService"]


class StartError(SystemExit, Exception):
    """
    It cannot start: one line on stderr and status 1.

    Also an Exception, so that a daemon's parent, which waits for one, hears of it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = 1
        if sys.__stderr__ is not None:
            sys.__stderr__.write(f"jobgate: {message}\n")
            sys.__stderr__.flush()


class JobgateService(Service):
    """
    A gate and its web side.

    Args:
        config: Everything it is told.
        reread: Makes the configuration anew, for SIGHUP; raises ConfigError.
        reactor: The running one if not given.
        signals: Whether to take over SIGTERM, SIGINT and SIGHUP.
        hello: Text to print once it listens, made from its first address.

    Attributes:
        gate: The gate, once started.
        server: Its web side, once started.
    """

    name = "jobgate"
    _log = Logger()

    def __init__(
        self,
        config: GateConfig,
        reread: Callable[[], GateConfig] | None = None,
        reactor: Any = None,  # noqa: ANN401 (IReactorTime, -Process and -TCP: no type can say all)
        *,
        signals: bool = False,
        hello: Callable[[str], str] | None = None,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self._config = config
        self._reread = reread
        self._reactor = reactor
        self._signals = signals
        self._hello = hello
        self._stopping: Deferred[None] | None = None
        self._drained: Deferred[None] | None = None
        self.gate: Gate | None = None
        self.server: HTTPServer | None = None

    # --- starting

    def privilegedStartService(self) -> None:
        """Open the ports, while twistd still may."""
        self._open()

    def startService(self) -> None:
        """Start the workers."""
        super().startService()
        self._open()
        assert self.gate is not None, "made by _open"
        if self._signals:
            self._reactor.callWhenRunning(self._take_signals)
        self._reactor.callWhenRunning(self._start_workers)

    def _open(self) -> None:
        if self.gate is not None:
            return
        config = self._config
        try:
            self.gate = Gate(config, self._reactor)
        except OSError as error:
            raise StartError(str(_no_audit(config, error))) from None
        self.server = HTTPServer(self.gate)
        problems: list[Failure] = []
        self.gate.open().addErrback(_wrong, config, "store").addErrback(problems.append)
        if not problems:
            self.server.listen().addErrback(_wrong, config, "listen").addErrback(problems.append)
        if not problems:
            opened = self.gate.listen()
            opened.addErrback(_wrong, config, "worker_listen").addErrback(problems.append)
        if problems:
            raise StartError(str(problems[0].value))

    def _start_workers(self) -> None:
        assert self.gate is not None, "made by _open"
        self.gate.start().addCallback(self._announce).addErrback(self._bug)

    def _announce(self, _: object) -> None:
        assert self.server is not None, "made by _open"
        for address in self.server.addresses():
            self._log.info("jobgate listening on {address}", address=address)
        if self._hello is not None and sys.__stdout__ is not None:
            sys.__stdout__.write(self._hello(self.server.addresses()[0]))
            sys.__stdout__.flush()
        if self._signals:
            # The process is ours.
            settle()

    # --- signals

    def _take_signals(self) -> None:
        """Instead of the reactor's own: those end the process by the signal, at once."""
        calls = {signal.SIGTERM: self.drain, signal.SIGINT: self.drain, signal.SIGHUP: self.reload}
        for number, call in calls.items():
            signal.signal(number, lambda *_, call=call: self._reactor.callFromThread(call))

    def drain(self) -> None:
        """Finish what has been accepted, then stop the reactor; a second call hurries."""
        if self._drained is not None:
            self._log.info("asked to stop again: hurrying")
            self._hurry()
            return
        assert self.gate is not None, "signals come after the start"
        self._log.info("draining")
        self._drained = self.gate.drain()
        self._drained.addErrback(self._bug)
        self._drained.addCallback(lambda _: self.stopService())
        self._drained.addErrback(self._bug)
        self._drained.addCallback(lambda _: self._reactor.stop())

    def _hurry(self) -> None:
        assert self.gate is not None, "only called after the start"
        assert self.server is not None, "only called after the start"
        self.gate.abandon()
        self.gate.hurry()
        self.server.hurry()

    def reload(self) -> None:
        """Reread the configuration and apply the difference; a bad one changes nothing."""
        assert self.gate is not None, "signals come after the start"
        assert self.server is not None, "signals come after the start"
        gate = self.gate
        if self._reread is None or gate.draining:
            return
        try:
            config = self._reread()
            _try_audit(config)
        except ConfigError as error:
            self._log.error("nothing is changed: {why}", why=str(error))
            return
        done = maybeDeferred(gate.reception.listen, config.gate.worker_listen)
        done.addErrback(_wrong, config, "worker_listen")
        relisten = self.server.relisten
        done.addCallback(lambda _: relisten(config).addErrback(_wrong, config, "listen"))
        done.addCallback(lambda _: self._apply(config))
        done.addErrback(self._not_applied)

    def _apply(self, config: GateConfig) -> None:
        assert self.gate is not None, "only called after the start"
        assert self.server is not None, "only called after the start"
        self.gate.reconfigure(config)
        self.server.reconfigure(config)
        self._config = config
        self._log.info("the configuration was reread")

    def _not_applied(self, failure: Failure) -> None:
        assert self.gate is not None, "only called after the start"
        self._log.error("nothing is changed: {why}", why=_explain(failure))
        # Where only the callers' ports could not be opened, the workers' have been.
        self.gate.listen().addErrback(self._bug)

    # --- stopping

    def stopService(self) -> Deferred[None]:
        """End in order: no new requests, the last answers, then the workers."""
        super().stopService()
        if self._stopping is None:
            self._stopping = Deferred.fromCoroutine(self._stop())
        told: Deferred[None] = Deferred()

        def tell(result: object) -> object:
            told.callback(None)
            return result

        self._stopping.addBoth(tell)
        return told

    async def _stop(self) -> None:
        if self.gate is None or self.server is None:
            return
        self.gate.abandon()
        await self.server.stop()
        await self.gate.stop()
        self._log.info("stopped")

    def _bug(self, failure: Failure) -> None:
        self._log.failure("the service failed", failure=failure)


def makeService(parsed: Options) -> JobgateService:
    """What `twistd jobgate` starts."""
    assert parsed.configuration is not None, "set by postOptions"
    from twisted.internet import reactor

    tune(reactor)
    return JobgateService(
        parsed.configuration,
        lambda: options.configuration(parsed),
        reactor,
        signals=True,
        hello=_demo if parsed["demo"] else None,
    )


def from_environment() -> JobgateService:
    """What `jobgate.tac` starts: `$JOBGATE_CONFIG`, else as `twistd jobgate` without options."""
    return makeService(options.from_environment())


def _demo(address: str) -> str:
    from jobgate.demo import invitation

    return invitation(address)


def _wrong(failure: Failure, config: GateConfig, key: str) -> NoReturn:
    """
    Raises:
        ConfigError: Names where the key is, the key, and why its value will not do.
    """
    raise ConfigError(f"{_place(config)}gate.{key}: {_explain(failure)}")


def _try_audit(config: GateConfig) -> None:
    """
    Raises:
        ConfigError: It cannot be written.
    """
    try:
        if config.gate.audit:
            Audit(config.gate.audit).close()
    except OSError as error:
        raise _no_audit(config, error) from None


def _no_audit(config: GateConfig, error: OSError) -> ConfigError:
    found = f"found {config.gate.audit!r}, wanted a file that can be written"
    return ConfigError(f"{_place(config)}gate.audit: {found} ({error.strerror})")


def _place(config: GateConfig) -> str:
    return f"{config.source}: " if config.source else ""


def _explain(failure: Failure) -> str:
    error: Any = failure.value
    while hasattr(error, "subFailure"):
        error = error.subFailure.value
    if isinstance(error, CannotListenError):
        port = error.port.decode() if isinstance(error.port, bytes) else error.port
        where = port if isinstance(port, str) else f"{error.interface or '*'}:{port}"
        return f"found {where}, wanted one that is free ({error.socketError})"
    return str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
