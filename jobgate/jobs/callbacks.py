"""
Callbacks: commands whose worker is an HTTP client.

A job whose end is to be told makes another job, in the queue `CALLBACKS`, whose Road is one
like any other; what is here drains it. Must not know stores, nor when to try again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from jobgate import __version__
from jobgate.command import Reply
from jobgate.config import QueueConfig, Seconds
from jobgate.errors import CommandFailed, InternalError, JobgateError
from jobgate.jobs.job import CALLBACKS, Notice
from jobgate.jobs.outbound import Outbound, Refused, explain
from jobgate.jobs.targets import Addresses, callback_url
from jobgate.jobs.webhooks import signed
from jobgate.pool.roles import Loss

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure

    from jobgate.command import Batch, Command
    from jobgate.config import CallbackSettings
    from jobgate.pool.roles import Crew, Foreman

    Document = Callable[[str], Deferred[bytes | None]]

__all__ = ["QUEUE", "Callbacks"]

QUEUE: Final = QueueConfig(name=CALLBACKS, timeout=Seconds(30), queue_timeout=Seconds(0))
"""How the queue of callbacks is run; `timeout` is for a whole delivery."""

_TITLE: Final = "The callback was not delivered"
_BAD_GATEWAY: Final = 502
_read_notice = msgspec.json.Decoder(Notice).decode


class Callbacks:
    """
    Delivers callbacks, as workers of their Road.

    They wait in the store until both are known: where they come from (`work_for`) and what
    is to be told (`tell`).

    Args:
        settings: The table `[callbacks]`.
        reactor: Connections, name resolution and timers.
        now: Seconds since the epoch.

    Attributes:
        workers: Those who deliver.
    """

    def __init__(
        self,
        settings: CallbackSettings,
        reactor: Any,  # noqa: ANN401 (IReactorTCP, -Time and -PluggableNameResolver: no type can say all)
        now: Callable[[], float] = time.time,
    ) -> None:
        self._reactor = reactor
        self._now = now
        self._foreman: Foreman | None = None
        self._document: Document | None = None
        self.workers: list[_Deliverer] = []
        self.reconfigure(settings)

    def work_for(self, foreman: Foreman) -> None:
        """Their Road is there."""
        self._foreman = foreman
        self._staff()

    def tell(self, document: Document) -> None:
        """
        What is to be told.

        Args:
            document: Gives a job's state document by its id, as JSON; None if it is not kept.
        """
        self._document = document
        self._staff()

    def reconfigure(self, settings: CallbackSettings) -> None:
        """Take on other settings; what is under way goes on with those it began with."""
        self._settings = settings
        self._outbound = Outbound(self._reactor, Addresses(settings.allow))
        self._staff()

    def stop(self) -> None:
        """Deliver no more; what is under way is cut off."""
        for worker in self._dismiss(0):
            worker.cut_off(Loss("stopped", "the gate is shutting down"))
        self._foreman = None

    def _staff(self) -> None:
        """Have as many workers as there are to be."""
        if self._foreman is None or self._document is None:
            return
        self._dismiss(self._settings.runners)
        while len(self.workers) < self._settings.runners:
            post = len(self.workers)
            worker = _Deliverer(f"{CALLBACKS}-{post + 1}", self._deliver, self._reactor)
            self.workers.append(worker)
            self._foreman.worker_ready(worker, post)

    def _dismiss(self, keep: int) -> list[_Deliverer]:
        """Let all but so many go; they end what they have in hand."""
        gone, self.workers = self.workers[keep:], self.workers[:keep]
        for worker in gone:
            if self._foreman is not None:
                self._foreman.worker_leaving(worker)
            worker.retire()
        return gone

    async def _deliver(self, command: Command) -> Reply:
        """
        Raises:
            JobgateError: It was not delivered.
        """
        assert self._document is not None, "nobody was hired before"
        notice = _notice(command.body)
        document = await self._document(notice.job)
        if document is None:
            raise _failed(f"the job {notice.job} is no longer kept", again=False)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"jobgate/{__version__}",
            **signed(command.id, int(self._now()), document, self._settings.secret.key),
        }
        host = urlsplit(notice.url).netloc
        try:
            status = await self._outbound.post(notice.url, headers, document)
        except Refused as error:
            raise _failed(str(error), again=False) from None
        except Exception as error:  # noqa: BLE001 (whatever a network and a stranger can do)
            raise _failed(f"{host}: {explain(error)}") from None
        if 200 <= status < 300:
            return Reply(msgspec.json.encode({"status": status}), "application/json")
        # Standard Webhooks: 410 says that this receiver wants no more.
        note = "; redirects are not followed" if 300 <= status < 400 else ""
        said = _failed(f"{host} answered {status}, wanted 200 to 299{note}", again=status != 410)
        said.executed = "yes"
        raise said


def _notice(body: bytes) -> Notice:
    """
    Raises:
        JobgateError: It is no notice that could be delivered.
    """
    try:
        notice = _read_notice(body)
    except msgspec.DecodeError as error:
        raise _failed(f"it cannot be read: {error}", again=False) from None
    callback_url(notice.url)
    return notice


def _failed(detail: str, *, again: bool = True) -> CommandFailed:
    error = CommandFailed(_TITLE, detail, _BAD_GATEWAY, again=again)
    error.executed = "maybe"
    return error


class _Deliverer:
    """
    One of the workers: delivers one callback at a time.

    Args:
        name: As in `Jobgate-Worker`.
        deliver: Does it; fails with a JobgateError.
        clock: Seconds and timers.
    """

    _log = Logger()
    _crew: Crew
    takes_batches = False
    lots = 1
    lanes = 1
    output = ""

    def __init__(
        self,
        name: str,
        deliver: Callable[[Command], Coroutine[Any, Any, Reply]],
        clock: IReactorTime,
    ) -> None:
        self.name = name
        self._deliver = deliver
        self._clock = clock
        self._command: Command | None = None
        self._delivery: Deferred[None] | None = None
        self._serial = 0
        self._retired = False

    def __repr__(self) -> str:
        return f"<{self.name} {'idle' if self.idle else 'busy'}>"

    # --- what a Runner sees: the Worker protocol

    @property
    def room(self) -> int:
        """How many more commands it can be handed now."""
        return 1 if self.idle and not self._retired else 0

    @property
    def idle(self) -> bool:
        """Whether it has no command in hand."""
        return self._command is None

    def send(self, command: Command) -> bool:
        """Hand over a command; False once it has been retired."""
        if self._retired:
            return False
        self._command = command
        self._serial += 1
        self._crew.began(command, self._clock.seconds())
        self._delivery = Deferred.fromCoroutine(self._run(command, self._serial))
        self._delivery.addErrback(self._bug)
        return True

    def send_batch(self, batch: Batch) -> bool:
        """Never called: callbacks are delivered one at a time."""
        raise NotImplementedError

    def cancel(self, command: Command) -> None:
        """Nobody wants this delivery any more."""
        if command is self._command:
            self.cut_off(Loss("stopped", "nobody wants it any more"))

    def overran(self, cause: str) -> None:
        """It takes too long."""
        self.cut_off(Loss("timeout", cause))

    # --- its life

    def hire(self, crew: Crew) -> None:
        """Give it its Runner."""
        self._crew = crew

    def retire(self) -> None:
        """Take no more commands, and finish what is in hand."""
        self._retired = True
        self._crew.stop()

    def cut_off(self, loss: Loss) -> None:
        """End what is under way, as a worker is lost; there is room again."""
        command, delivery = self._command, self._delivery
        if command is None or delivery is None:
            return
        self._serial += 1
        self._command = self._delivery = None
        delivery.cancel()
        self._crew.lost(command, loss, begun=True, alone=True)
        self._crew.rested()

    # --- inside

    async def _run(self, command: Command, serial: int) -> None:
        error: JobgateError | None = None
        try:
            # In a turn of its own: while it is being handed over, it must not end.
            await deferLater(self._clock, 0)
            reply = await self._deliver(command)
        except JobgateError as known:
            error = known
        except Exception:  # noqa: BLE001 (whatever it is, the place among the workers is kept)
            error = InternalError("the gate failed to deliver the callback")
            if serial == self._serial:
                self._log.failure("{worker!r} failed", worker=self)
        if serial != self._serial:
            return  # it has been cut off, and perhaps has another command by now
        self._command = self._delivery = None
        if error is None:
            self._crew.replied(command, reply, self._clock.seconds())
        else:
            self._log.info("{id}: {why}", id=command.id, why=error.detail)
            self._crew.failed(command, error, self._clock.seconds())

    def _bug(self, failure: Failure) -> None:
        self._log.failure("{worker!r} failed", failure, worker=self)
