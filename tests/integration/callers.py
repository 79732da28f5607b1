"""
Callers that never rest: what changes under them must not be seen by them.
"""

from __future__ import annotations

import itertools
import os
import threading
from typing import TYPE_CHECKING, Self

from program import eventually

if TYPE_CHECKING:
    from program import Program


class Callers:
    """
    Calls without pause, from several connections, until it is left.

    Attributes:
        answers: Status and body of all that came back, with the expected body.
        failures: Calls that got no answer at all.
    """

    def __init__(self, gate: Program, queues: list[str], count: int = 6) -> None:
        self._gate = gate
        self._queues = itertools.cycle(queues)
        self._over = threading.Event()
        self.answers: list[tuple[str, int, bytes, bytes]] = []
        self.failures: list[Exception] = []
        self._threads = [threading.Thread(target=self._call) for _ in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.some_more()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let the last ones come back."""
        self._over.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a caller still waits"

    def some_more(self, count: int = 50) -> None:
        """Wait until so many more were answered."""
        before = len(self.answers)
        eventually(lambda: len(self.answers) + len(self.failures) > before + count, 30)

    def all_well(self) -> None:
        """Assert that every single call succeeded, each with its own reply."""
        assert not self.failures, self.failures[:3]
        bad = [answer for answer in self.answers if answer[1] != 200 or answer[2] != answer[3]]
        assert not bad, bad[:3]

    def _call(self) -> None:
        with self._gate.connect() as connection:
            while not self._over.is_set():
                queue, body = next(self._queues), os.urandom(8).hex().encode()
                try:
                    answer = connection.request("POST", f"/call/{queue}", body)
                except OSError as error:
                    self.failures.append(error)
                    return
                self.answers.append((queue, answer.status, answer.body, body))
                if answer.status != 200:
                    self._over.wait(0.02)
