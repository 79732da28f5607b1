"""
How far long work is, for whoever looks on: a bar on a terminal, nothing elsewhere.

The bar needs rich (`pip install 'jobgate[cli]'`); without it there is only the summary.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Meter"]

_REDRAW = 0.1
"""Seconds between two updates of the bar."""


class Meter:
    """
    Counts what has been moved.

    Args:
        what: What is being done.
        unit: What is counted.
        total: Bytes in all, if known.
        shown: Whether anybody may look on.

    Attributes:
        count: How many have been moved.
        size: How many bytes that was.
    """

    def __init__(self, what: str, unit: str, total: int | None, *, shown: bool) -> None:
        self.count = 0
        self.size = 0
        self._what = what
        self._unit = unit
        self._total = total
        self._shown = shown and sys.stderr.isatty()
        self._began = time.monotonic()
        self._drawn = 0.0
        self._note = ""
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        """Begin."""
        if self._shown:
            self._begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """End, with a summary for people."""
        if self._bar is not None:
            self._draw()
            self._bar.stop()
        if self._shown:
            seconds = self.seconds
            rate = f"{self.count / seconds:,.0f} {self._unit}/s" if seconds else ""
            sys.stderr.write(
                f"{self._what}: {self.count:,} {self._unit}, {self.size:,} bytes"
                f" in {seconds:.1f} s, {rate}\n"
            )

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.monotonic() - self._began

    def moved(self, count: int, size: int) -> None:
        """So many more, of so many bytes."""
        self.count += count
        self.size += size
        if self._bar is not None and time.monotonic() - self._drawn > _REDRAW:
            self._draw()

    def say(self, note: str) -> None:
        """What is being waited for; "" when that is over."""
        self._note = note
        if self._bar is not None:
            self._draw()

    def _begin(self) -> None:
        try:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )
        except ImportError:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(self._what, total=self._total, rate="", note="")
        self._bar.start()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        rate = f"{self.count / max(self.seconds, 0.001):,.0f} {self._unit}/s"
        self._bar.update(self._task, completed=self.size, rate=rate, note=self._note)
