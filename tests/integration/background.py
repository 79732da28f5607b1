"""
Calls that a test does not wait for at once.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_threads = ThreadPoolExecutor(max_workers=64, thread_name_prefix="caller")

LONGEST = 40.0
"""Seconds for any answer: over every deadline that a test here sets."""


def background(function: Callable[..., Any], *arguments: Any, **named: Any) -> Future[Any]:
    """Run it in a thread of its own."""
    return _threads.submit(function, *arguments, **named)


def result(future: Future[Any], within: float = LONGEST) -> Any:
    """Its result, with a deadline."""
    return future.result(within)
