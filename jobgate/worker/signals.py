"""
SIGTERM and Ctrl-C, for workers that come by themselves: the first lets the command end.
"""

from __future__ import annotations

import signal

TYPE_CHECKING = False  # as in `jobgate.worker`
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["take_signals"]


def take_signals(told_to_end: Callable[[], None]) -> None:
    """Call for the first of them, so that the command under way ends first; a second one kills."""

    def first(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        told_to_end()

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, first)
    except ValueError:
        return  # not the main thread: signals are its business
