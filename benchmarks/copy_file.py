"""
A file through a gate with `jobgate write` and `jobgate read`, and the gate killed meanwhile.

    python benchmarks/copy_file.py --lines 1000000 --kills 3

Generates the file, starts both sides at once, kills the gate with SIGKILL when the copy has come so
far, and starts it again on the same port. Ends with 0 if the copy is the file, byte for byte, and
neither side has taken more than 150 MB.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import signal
import sys
import tempfile
import time
from hashlib import file_digest
from pathlib import Path
from typing import TYPE_CHECKING

from processes import BenchmarkError, Child, end_on_signals
from servers import LISTENING, READY_WITHIN, free_port, twistd

if TYPE_CHECKING:
    from collections.abc import Sequence

JOBGATE = [sys.executable, "-m", "jobgate.cli"]
MOST_MEMORY = 150_000_000
"""Bytes that each side may take."""
LOOK_EVERY = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    """Copy a file and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=0, help="bytes of each line, at least")
    parser.add_argument("--kills", type=int, default=0, help="how often the gate is killed")
    parser.add_argument("--store", default="sqlite:jobgate.db")
    parser.add_argument("--within", type=float, default=1800, help="seconds for all of it")
    given = parser.parse_args(arguments)
    end_on_signals()
    with tempfile.TemporaryDirectory() as name:
        try:
            return copy(Path(name), given)
        except BenchmarkError as error:
            sys.stderr.write(f"{error}\n")
            return 2


def copy(folder: Path, given: argparse.Namespace) -> int:
    """The run itself; returns the exit status."""
    source, target = folder / "source", folder / "copy"
    with contextlib.ExitStack() as stack:

        def start(name: str, *arguments: str) -> Child:
            child = Child.start([*JOBGATE, *arguments], folder / name)
            return stack.enter_context(child)

        generated = start("generate", "generate", str(given.lines), "--size", str(given.size))
        generated.process.wait(given.within)
        generated.log.rename(source)
        port = free_port()
        (folder / "jobgate.toml").write_text(f'[gate]\nstore = "{given.store}"\n')
        gate = stack.enter_context(start_gate(folder, port))
        url = f"http://127.0.0.1:{port}"
        began = time.monotonic()
        reader = start("read", "read", url, "file", str(target), "--json")
        writer = start("write", "write", url, "file", str(source), "--json")
        most = {"read": 0, "write": 0}
        kills = [(number + 1) / (given.kills + 1) for number in range(given.kills)]
        while reader.process.poll() is None or writer.process.poll() is None:
            if time.monotonic() > began + given.within:
                raise BenchmarkError(f"not done within {given.within} s:\n{gate.tail()}")
            for name, child in (("read", reader), ("write", writer)):
                most[name] = max(most[name], peak(child))
            if kills and share(target, source) > kills[0]:
                kills.pop(0)
                gate.process.send_signal(signal.SIGKILL)
                gate.process.wait()
                gate = stack.enter_context(start_gate(folder, port))
            time.sleep(LOOK_EVERY)
        seconds = time.monotonic() - began
    same = digest(source) == digest(target)
    for name in ("write", "read"):
        summary = json.loads((folder / name / "output.log").read_text())
        print(
            f"{name}: {summary['lines']:,} lines in {summary['seconds']:.1f} s,"
            f" {summary['lines'] / summary['seconds']:,.0f} lines/s,"
            f" {summary['repeated']} repeated, at most {most[name] / 1e6:.0f} MB"
        )
    print(
        f"copied {source.stat().st_size:,} bytes in {seconds:.1f} s, the gate killed"
        f" {given.kills - len(kills)} times: sha256 {'the same' if same else 'NOT the same'}"
    )
    return 0 if same and not kills and max(most.values()) < MOST_MEMORY else 1


def start_gate(folder: Path, port: int) -> Child:
    """A gate on this port, with the store that it had before."""
    argv = [twistd(), "--pidfile=", "-n", "jobgate", "--config", str(folder / "jobgate.toml")]
    child = Child.start([*argv, "--port", str(port)], folder / "gate")
    child.wait_for(LISTENING, READY_WITHIN)
    return child


def peak(child: Child) -> int:
    """The most bytes of RAM it has taken so far; 0 once it is gone."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{child.process.pid}/status").read_text()
        if found := re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE):
            return int(found[1]) * 1024
    return 0


def share(target: Path, source: Path) -> float:
    """How much of the file has been copied."""
    return target.stat().st_size / source.stat().st_size if target.exists() else 0.0


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
