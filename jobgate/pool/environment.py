"""
What a child finds around it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobgate.config import WorkerConfig

__all__ = ["STACKS_SIGNAL", "environment"]

STACKS_SIGNAL = getattr(signal, "SIGRTMIN", signal.SIGUSR2)
"""What a worker that has said it can is told to dump its stacks by; hardly used by anybody else."""
_PASSED_ON = ("HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")


def environment(config: WorkerConfig, queue: str, worker: str) -> dict[str, str]:
    """
    The minimal environment of a child: nothing of the gate's own secrets.

    `PATH` begins with the folder of the gate's interpreter, so `python` is that one.
    Large blocks stay with the allocator: giving each back costs a page fault per 4 KiB.
    """
    env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    path = os.environ.get("PATH", os.defpath)
    env |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{path}",
        "PYTHONUNBUFFERED": "1",
        "MALLOC_MMAP_THRESHOLD_": str(64 * 1024 * 1024),
        "MALLOC_TRIM_THRESHOLD_": str(256 * 1024 * 1024),
        "JOBGATE_QUEUE": queue,
        "JOBGATE_WORKER": worker,
    }
    if config.soft_timeout:
        env["JOBGATE_STACKS"] = str(int(STACKS_SIGNAL))
    return env | config.env
