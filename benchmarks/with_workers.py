"""
Become a program, with workers from outside beside it: ``with_workers.py N WHERE PROGRAM...``.

The workers are children of the process that becomes the program, so that what they use is counted
with what it uses. They wait for the gate as every worker from outside does, and have sessions of
their own, as the gate's own children have: Linux shares the CPUs out by sessions, where it makes
autogroups of them (sched(7)), and a row would show that instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    count, where, *program = sys.argv[1:]
    worker = str(Path(__file__).parent / "workers" / "echo_outside.py")
    for _ in range(int(count)):
        subprocess.Popen([sys.executable, worker, where], start_new_session=True)
    os.execv(program[0], program)
