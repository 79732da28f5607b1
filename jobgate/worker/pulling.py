"""
A worker that pulls: what `jobgate.worker.pull` does.

    from jobgate.worker import pull

    pull(handler, "http://gate:8080", "resize")

It takes one command at a time under a lease, keeps the lease alive while the handler runs, and
gives the reply and takes the next command in one exchange. What is done with a command, `answers`
knows. It runs in the worker and imports the standard library only, when it is asked for.
"""

from __future__ import annotations

import os
import sys
from _thread import start_new_thread
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jobgate.worker.answers import run_one
from jobgate.worker.commands import Fail, describe
from jobgate.worker.line import Answer, Line, Lost
from jobgate.worker.patience import Patience
from jobgate.worker.pulled import Desk, Pulled, told
from jobgate.worker.signals import take_signals

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobgate.worker.commands import Command

__all__ = ["Puller"]

_DECLINED = 1.0
"""Seconds for others to take what this worker has declined."""


def _new_key() -> dict[str, str]:
    """The header by which the gate knows a request that is sent again."""
    return {"Idempotency-Key": os.urandom(16).hex()}


def _plain(seconds: float) -> str:
    """A number as a query has it: without an exponent."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".")


class Puller:
    """
    A worker that pulls.

    Args:
        url: Where the gate is.
        queue: The queue to work for.
        token: What allows it.
        lease: Seconds for which a command belongs to this worker unless it says more.
        wait: Seconds for which one request waits for a command.
        files: Certificate, key and authorities, for `https`.

    Raises:
        ValueError: `url`, `lease` or `wait` make no sense.
    """

    def __init__(
        self,
        url: str,
        queue: str,
        token: str,
        lease: float,
        wait: float,
        files: tuple[str, str, str],
    ) -> None:
        if not (lease > 0 and wait >= 0):
            msg = f"found lease={lease!r}, wait={wait!r}, wanted seconds above 0, and from 0"
            raise ValueError(msg)
        self._line = Line(url, token, files)
        self._url, self._queue = url, queue
        self._lease, self._wait = lease, wait
        self._terms = f"lease={_plain(lease)}&wait={_plain(wait)}"
        self._current: Pulled | None = None
        self._asking = False
        self._leaving = False
        self._known = self._well = False
        self._ended = False
        self._patience = Patience()
        self._key = _new_key()

    def serve(self, handler: Callable[[Command], object]) -> None:
        """
        Run commands until this process is told to end.

        Raises:
            SystemExit: The gate has refused this worker before it had ever let it in (1).
        """
        take_signals(self._told_to_end)
        os.register_at_fork(after_in_child=self._line.disown)
        start_new_thread(self._hold, ())
        command = None
        try:
            while command is not None or not self._leaving:
                command = self._pull() if command is None else self._run(handler, command)
        finally:
            self._ended = True

    # --- one exchange after the other

    def _pull(self) -> Pulled | None:
        """The next command; None if none came, or the gate could not be asked."""
        began = monotonic()
        # The first answer is to come at once: it says whether all is well.
        terms = self._terms if self._well else f"lease={_plain(self._lease)}&wait=0"
        try:
            path = f"/pull/{quote(self._queue, safe='')}?{terms}"
            answer = self._ask(path, b"", self._key, waiting=True)
        except Lost as lost:
            # What that request may have been given, the next one is given by the same key.
            if not self._leaving:
                self._try_later(f"{lost}; trying again")
            return None
        self._key = _new_key()
        if answer.status >= 400 and not (answer.later or self._known):
            sys.exit(f"jobgate.worker: {self._url} refused this worker: {answer.why}")
        if answer.status not in (200, 204):
            self._try_later(f"{answer.why}; trying again", answer.after)
            return None
        asked_well, self._known, self._well = self._well, True, True
        if not asked_well:
            self._patience.say(f"pulling from {self._queue} at {self._url}")
        if answer.status == 200:
            return self._taken(answer)
        if asked_well and monotonic() - began < max(min(self._wait, 1.0), 0.001):
            self._patience.rest()  # a gate that stops lets nobody wait
        elif asked_well:
            self._patience.renew()
        return None

    def _run(self, handler: Callable[[Command], object], command: Pulled) -> Pulled | None:
        """Run a command, tell what became of it; returns the next one, if that came at once."""
        desk: Any = command._link  # noqa: SLF001 - family
        self._current = desk.current = command
        try:
            run_one(desk, handler, command)
            return self._tell(command, *told(desk))
        finally:
            self._current = desk.current = None

    def _tell(
        self,
        command: Pulled,
        way: str,
        body: Any,  # noqa: ANN401 (bytes, or a buffer of bytes)
        headers: dict[str, str],
    ) -> Pulled | None:
        """Say what became of a command until the gate has taken note of it."""
        given_up = monotonic() + self._lease
        repeated = False
        headers |= command.lease | _new_key()
        while not (self._leaving and repeated and monotonic() > given_up):
            path = f"{command.path}/{way}"
            crossing = way == "reply" and not self._leaving
            if crossing:
                path += f"?next={quote(self._queue, safe='')}&{self._terms}"
            try:
                answer = self._ask(path, body, headers, waiting=crossing)
            except Lost as lost:
                if not self._leaving:
                    self._try_later(f"{lost}; trying again")
                elif repeated:
                    self._patience.rest()
                repeated = True
                continue
            if answer.status < 300:
                self._patience.renew()
                if way == "decline":
                    self._patience.wait(_DECLINED)
                return self._taken(answer) if crossing and answer.status == 200 else None
            if answer.later:
                self._try_later(f"{answer.why}; trying again", answer.after)
                repeated = True
            elif answer.status == 413 and way == "reply":
                way, headers = "fail", command.lease
                body = describe(Fail("the reply is larger than the gate takes", retry=False))
            else:
                if not (repeated and answer.status == 409):  # else it may have had this very reply
                    self._patience.say(
                        f"{command.id}, attempt {command.attempt}: dropped: {answer.why}"
                    )
                return None
        return None

    def _ask(self, path: str, body: Any, headers: Any, *, waiting: bool) -> Answer:  # noqa: ANN401
        """Send a request; SIGTERM ends it early if it only waits for a command."""
        self._asking = waiting
        try:
            answer = self._line.ask("POST", path, body, headers, wait=waiting * self._wait)
        finally:
            self._asking = False
        assert answer is not None, "it is wanted"
        return answer

    def _taken(self, answer: Answer) -> Pulled:
        self._patience.renew()
        return Pulled(Desk(), self._line, self._queue, answer)

    def _hold(self) -> None:
        """Extend leases for as long as their commands are run: the helper thread."""
        path = f"extend?lease={_plain(self._lease)}"
        while not self._ended:
            sleep(self._lease / 12)
            command = self._current
            if command is None or monotonic() - command.held < self._lease / 4:
                continue
            self._extend(command, f"{command.path}/{path}")

    def _extend(self, command: Pulled, path: str) -> None:
        """Extend the lease of a command that is still run."""
        begun = monotonic()
        try:
            answer = self._line.ask(
                "POST", path, b"", command.lease, wanted=lambda: self._current is command
            )
        except Lost:
            return  # the next look at it is soon
        if answer is None:
            return
        if answer.status in (404, 409):
            # Its caller has left, it was cancelled, or another has it by now.
            command._cancelled = True  # noqa: SLF001 - family
            command.held = float("inf")
        elif answer.status < 300:
            command.held = begun

    # --- patience

    def _try_later(self, why: str, after: float = 0.0) -> None:
        """Something is wrong for the moment."""
        self._well = False
        self._patience.say(f"{self._url}: {why}")
        self._patience.rest(after)

    def _told_to_end(self) -> None:
        self._leaving = True
        self._patience.end()
        if self._asking:
            self._line.end_waiting()
