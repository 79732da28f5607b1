"""
What a child runs before it becomes the worker.

Started as `python -I -S launcher.py CWD PARENT_PID COMMAND...` with the standard
library alone: makes the child the leader of a process group of its own, ties its
life to the gate's, changes the folder and becomes the command. Descriptor 3 closes
when that worked; otherwise what went wrong is written to it.
"""

import fcntl
import os
import signal
import sys

_STATUS = 3
_PR_SET_PDEATHSIG = 1


def _die_with_parent(parent: int) -> None:
    """Ask the kernel to kill us when the gate dies (Linux prctl(2)); elsewhere EOF must do."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        return
    if os.getppid() != parent:
        os._exit(1)


def main(cwd: str, parent: str, *command: str) -> None:
    """Become the command."""
    fcntl.fcntl(_STATUS, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    try:
        os.setsid()
        _die_with_parent(int(parent))
        os.chdir(cwd)
        # Python ignores these two, and what is ignored stays so in what it becomes.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        os.execvp(command[0], command)  # noqa: S606 (becoming it is the point)
    except OSError as error:
        what = cwd if error.filename == cwd else command[0]
        os.write(_STATUS, f"cannot start {what!r}: {error.strerror}".encode())
        os._exit(127)


if __name__ == "__main__":
    main(*sys.argv[1:])
