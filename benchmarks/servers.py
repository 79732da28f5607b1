"""
How each server of the benchmark is started, and when it counts as ready.

Every server gets a folder, a free port and a process group of its own, so that all servers of a
comparison can be alive at once.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from processes import BenchmarkError, Child

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "ROOT",
    "Running",
    "Starter",
    "compiled",
    "gate",
    "mosec",
    "outside_gate",
    "script",
    "version_of",
]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
READY_WITHIN = 30.0
LISTENING = r"listening on http://127\.0\.0\.1:(\d+)"


@dataclass(frozen=True)
class Running:
    """
    A server that answers.

    Attributes:
        child: Its processes.
        url: Where to post.
        ready_after: Seconds from its start until it listened.
    """

    child: Child
    url: str
    ready_after: float

    def at(self, path: str) -> str:
        """
        Return the URL of another path of this server.
        """
        return "/".join(self.url.split("/")[:3]) + path


if TYPE_CHECKING:
    Starter = Callable[[Path], Running]
    """Starts a server in a folder."""
else:
    Starter = object


def started(child: Child, path: str) -> Running:
    """
    Wait for the line with the port.
    """
    try:
        port = child.wait_for(LISTENING, READY_WITHIN)[1]
        ready_after = time.monotonic() - child.began
    except BaseException:
        child.stop()
        raise
    return Running(child, f"http://127.0.0.1:{port}{path}", ready_after)


def script(name: str, *arguments: str) -> Starter:
    """
    Return the starter of a baseline: a script here that prints where it listens.
    """

    def start(folder: Path) -> Running:
        argv = [sys.executable, str(HERE / name), *arguments]
        return started(Child.start(argv, folder), "/constant")

    return start


def gate(worker: str, *arguments: str, store: str = "", **settings: object) -> Starter:
    """
    Return the starter of a jobgate with one queue, ``bench``, and one of the workers here.

    A folder that is there already is used again, with what an earlier gate has left in it.

    Args:
        worker: The file in ``workers/``.
        *arguments: Of the worker.
        store: The key ``store``; empty: jobgate's own default, a file in the folder.
        **settings: Keys of the queue; whatever is not given is jobgate's own default.
    """

    def start(folder: Path) -> Running:
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "jobgate.toml"
        command = [sys.executable, str(HERE / "workers" / worker), *arguments]
        config.write_text(config_text({"command": command, **settings}, store=store))
        argv = [twistd(), "--pidfile=", "-n", "jobgate", "--config", str(config)]
        return started(Child.start(argv, folder), "/call/bench")

    return start


def outside_gate(workers: int, **settings: object) -> Starter:
    """
    Return the starter of a jobgate whose workers come by themselves, over loopback TCP.

    Args:
        workers: How many ``workers/echo_outside.py`` there are.
        **settings: Keys of the queue, as in `gate`.
    """

    def start(folder: Path) -> Running:
        folder.mkdir(parents=True)
        config, port = folder / "jobgate.toml", free_port()
        config.write_text(config_text(settings, f"tcp:{port}:interface=127.0.0.1"))
        argv = [sys.executable, str(HERE / "with_workers.py")]
        argv += [str(workers), f"tcp://127.0.0.1:{port}"]
        argv += [twistd(), "--pidfile=", "-n", "jobgate", "--config", str(config)]
        running = started(Child.start(argv, folder), "/call/bench")
        try:
            running.child.wait_for("(?s)" + ".*".join(["has registered"] * workers), READY_WITHIN)
        except BaseException:
            running.child.stop()
            raise
        return running

    return start


def config_text(settings: Mapping[str, object], worker_listen: str = "", store: str = "") -> str:
    """
    Write the configuration: a free port, one queue, perhaps a port for workers or a store.
    """
    lines = ["[gate]", 'listen = ["tcp:0:interface=127.0.0.1"]']
    if worker_listen:
        lines.append(f"worker_listen = [{toml(worker_listen)}]")
    if store:
        lines.append(f"store = {toml(store)}")
    lines += ["", "[queues.bench]"]
    return "\n".join([*lines, *(f"{key} = {toml(value)}" for key, value in settings.items()), ""])


def toml(value: object) -> str:
    """
    Write a value as TOML (strings, numbers, lists and tables of them).
    """
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


def twistd() -> str:
    """
    Find the ``twistd`` of this interpreter.

    Raises:
        BenchmarkError: There is none.
    """
    folder = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    found = shutil.which("twistd", path=folder)
    if found is None:
        raise BenchmarkError("twistd is not installed beside this interpreter")
    return found


def mosec(name: str) -> Starter:
    """
    Return the starter of a baseline that is a mosec server.
    """

    def start(folder: Path) -> Running:
        return start_mosec(name, folder)

    return start


def start_mosec(name: str, folder: Path) -> Running:
    """
    Start mosec, which does not say where it listens and cannot choose a port by itself.
    """
    port = free_port()
    argv = [sys.executable, str(HERE / name), "--address", "127.0.0.1"]
    argv += ["--port", str(port), "--path", str(folder / "ipc"), "--log-level", "warning"]
    argv += ["--max-request-size", str(2**24)]
    # Its front is a program that lies beside the interpreter.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    child = Child.start(argv, folder, {"PATH": path})
    try:
        wait_for_port(child, port)
    except BaseException:
        child.stop()
        raise
    ready_after = time.monotonic() - child.began
    return Running(child, f"http://127.0.0.1:{port}/inference", ready_after)


def free_port() -> int:
    """
    Return a port that nobody listens on now.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(child: Child, port: int) -> None:
    """
    Wait until a connection to a port is accepted.

    Raises:
        BenchmarkError: The child ended before, or the time is up; with the end of its output.
    """
    while time.monotonic() < child.began + READY_WITHIN:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if child.process.poll() is not None:
            break
        time.sleep(0.01)
    raise BenchmarkError(f"nothing listens on its port:\n{child.tail()}")


def version_of(package: str) -> str | None:
    """
    Return the version of an installed package, or None.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def compiled() -> bool:
    """
    Say whether the jobgate that is installed, and so is measured, was compiled when it was built.

    Raises:
        BenchmarkError: None is.
    """
    try:
        spec = importlib.util.find_spec("jobgate.command")
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise BenchmarkError("jobgate is not installed: pip install '.[bench]'")
    return not spec.origin.endswith(".py")
