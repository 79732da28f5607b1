"""
The command line: options, the file, and how the two become one configuration.

The command line wins over the file. A mistake in either is one line on stderr that
names where it is, what was found and what is wanted, and exit status 1.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import msgspec
from twisted.python import usage

from jobgate.config import file_of, from_tables, load, to_toml
from jobgate.errors import ConfigError
from jobgate.listening import endpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobgate.config import GateConfig

__all__ = ["Options", "configuration", "from_environment"]

_DEFAULT_FILE = "jobgate.toml"
_UNKNOWN = re.compile(r"option (--?\S+) not recognized")
_QUEUE_KEYS = {
    "workers": "workers",
    "protocol": "protocol",
    "queue-size": "size",
    "batch-size": "batch",
    "batch-linger": "batch",
    "timeout": "timeout",
}
"""Options that are keys of a queue."""


class Options(usage.Options):
    """What `twistd jobgate` understands."""

    synopsis = "[options]"
    longdesc = "Put slow programs behind HTTP."
    optFlags: ClassVar = [
        ["check", None, "Validate, print the effective configuration, and exit."],
        ["demo", None, "Serve the bundled workers, to try jobgate."],
    ]
    optParameters: ClassVar = [
        ["config", "c", None, "The configuration file (./jobgate.toml if it is there)."],
        ["worker", "w", None, "A command that is a worker; split as a shell would."],
        ["queue", "q", None, "The name of the queue of --worker (default)."],
        ["workers", None, None, "How many workers each queue has: a number, or MIN-MAX."],
        ["protocol", None, None, "How workers are spoken to: frames or lines."],
        ["queue-size", None, None, "How many calls may wait in a queue."],
        ["batch-size", None, None, "How many commands a worker gets at a time, at most."],
        ["batch-linger", None, None, 'How long they wait for company: "5ms", full or auto.'],
        ["timeout", None, None, 'How long a command may run: seconds, or "500ms", "2m".'],
        ["store", None, None, "Where jobs are kept: memory: or sqlite:PATH."],
        ["long-poll-timeout", None, None, "How long a pull waits that does not say: seconds."],
        ["long-polling-timeout", None, None, "The same."],
        ["port", "p", None, "The port on 127.0.0.1; 0 picks a free one. Replaces listen."],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []
        self.configuration: GateConfig | None = None

    def opt_listen(self, endpoint: str) -> None:
        """A Twisted endpoint string to listen on; may be given again. Replaces listen."""
        self["listen"].append(endpoint)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Read the command line; a mistake ends the process with status 1."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            _give_up(f"options: {self._explain(str(error))}")

    def parseArgs(self, *arguments: str) -> None:
        """
        There is nothing to say beside options.

        Raises:
            UsageError: Something has been said.
        """
        if arguments:
            found = shlex.join(arguments)
            message = f"found {found!r} beside the options, wanted options only (see --help)"
            raise usage.UsageError(message)

    def _explain(self, trouble: str) -> str:
        """What twistd's own message leaves out: which option was meant."""
        unknown = _UNKNOWN.fullmatch(trouble)
        if unknown is None:
            return trouble
        near = get_close_matches(unknown[1], [f"--{name}" for name in self.longOpt], n=1)
        wanted = f"{near[0].rstrip('=')!r} perhaps" if near else "one that --help lists"
        return f"found an unknown option {unknown[1]!r}, wanted {wanted}"

    def postOptions(self) -> None:
        """Load and check everything, so that nothing is started on a bad configuration."""
        try:
            self.configuration = configuration(self)
        except ConfigError as error:
            _give_up(str(error))
        if self["check"]:
            sys.stdout.write(to_toml(self.configuration))
            raise SystemExit(0)


def configuration(options: Any) -> GateConfig:  # noqa: ANN401 (a dict whose values are of many types)
    """
    The configuration that options and file make together.

    Raises:
        ConfigError: Something is wrong with either.
    """
    path, tables = _file(options)
    source = str(path) if path is not None else "options"
    base = path.parent if path is not None else Path.cwd()
    # The file is checked as it stands first, so that a mistake in it is named as the file's.
    own = from_tables(_without_refusal(tables) if _listens(options) else tables, source, base)
    _check_endpoints(own)
    merged = _merge(options, tables)
    if merged == tables and not _listens(options):
        return own
    # The file is good, so what is wrong now came with the options.
    effective = from_tables(merged, "options", base)
    _check_endpoints(effective)
    # What only shows once it is started may be wrong in either.
    place = "options" if path is None else f"{path} and options"
    return msgspec.structs.replace(effective, source=place)


def _file(options: Any) -> tuple[Path | None, dict[str, Any]]:  # noqa: ANN401 (as above)
    if options["config"]:
        path = Path(options["config"]).absolute()
        return path, load(path)
    if options["demo"]:
        path = Path(str(files("jobgate") / "demo" / "demo.toml"))
        return path, load(path)
    path = Path(_DEFAULT_FILE).absolute()
    if options["worker"] is None and path.exists():
        return path, load(path)
    return None, {}


def _merge(options: Any, tables: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401 (as above)
    """The tables with the options laid over them."""
    gate = dict(tables.get("gate", {}))
    queues = {name: dict(queue) for name, queue in tables.get("queues", {}).items()}
    if options["port"] is not None:
        gate["listen"] = [f"tcp:{_number('--port', options['port'])}:interface=127.0.0.1"]
    if options["listen"]:
        gate["listen"] = (
            [*gate["listen"], *options["listen"]]
            if options["port"] is not None
            else options["listen"]
        )
    if options["store"] is not None:
        gate["store"] = _store(options["store"])
    for option in ("long-polling-timeout", "long-poll-timeout"):
        if options[option] is not None:
            gate["long_poll_timeout"] = _seconds(options[option])
    named = options["queue"]
    if options["worker"] is not None:
        named = "default" if named is None else named
        try:
            command = shlex.split(options["worker"])
        except ValueError as error:
            message = (
                f"options: --worker: found {options['worker']!r}, wanted a command line ({error})"
            )
            raise ConfigError(message) from None
        if not command:
            message = "options: --worker: found nothing, wanted a command"
            raise ConfigError(message)
        # Relative to where twistd was started, as a shell user expects.
        queues.setdefault(named, {}).update(command=command, cwd=str(Path.cwd()))
    elif named is not None and named not in queues:
        message = (
            f"options: --queue: found {named!r}, wanted --worker with it, or a queue of the file"
        )
        raise ConfigError(message)
    for option, key in _QUEUE_KEYS.items():
        value = options[option]
        if value is None:
            continue
        if not queues:
            message = (
                f"options: --{option}: found no queue to apply it to, wanted --worker or --config"
            )
            raise ConfigError(message)
        for name in [named] if named else list(queues):
            new = _value(option, value)
            old = queues[name].get(key)
            if isinstance(new, dict) and isinstance(old, dict):
                # What the command line does not say of a table is left as the file has it.
                new = {**old, **new}
            queues[name][key] = new
    return {**tables, **({"gate": gate} if gate else {}), **({"queues": queues} if queues else {})}


def _store(text: str) -> str:
    """Relative to where twistd was started, as a shell user expects."""
    path = file_of(text)
    return f"sqlite:{Path.cwd() / path}" if path else text


def _value(option: str, text: str) -> Any:  # noqa: ANN401 (what TOML could have there)
    low, dash, high = text.partition("-")
    if option == "workers" and low and dash:
        return {"min": _number("--workers", low), "max": _number("--workers", high)}
    if option == "batch-size":
        return {"size": _number("--batch-size", text)}
    if option in ("workers", "queue-size"):
        return _number(f"--{option}", text)
    if option == "batch-linger":
        return {"linger": _seconds(text)}
    return _seconds(text) if option == "timeout" else text


def _seconds(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _number(option: str, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0 or (option == "--port" and number > 65535):
        wanted = "a port, 0 to 65535" if option == "--port" else "a whole number"
        message = f"options: {option}: found {text!r}, wanted {wanted}"
        raise ConfigError(message)
    return number


def _listens(options: Any) -> bool:  # noqa: ANN401 (as above)
    return options["port"] is not None or bool(options["listen"])


def _without_refusal(tables: dict[str, Any]) -> dict[str, Any]:
    """Where options replace `listen`, the file's own must not be what is refused."""
    gate = tables.get("gate")
    if not isinstance(gate, dict) or "listen" not in gate:
        return tables
    return {**tables, "gate": {key: value for key, value in gate.items() if key != "listen"}}


def _check_endpoints(config: GateConfig) -> None:
    """
    Raises:
        ConfigError: Nothing can be made of one of the endpoint strings.
    """
    from twisted.internet import reactor

    for key in ("listen", "worker_listen"):
        for text in getattr(config.gate, key):
            try:
                endpoint(reactor, text)
            except ValueError as error:
                wanted = f"a Twisted endpoint string ({error})"
                message = f"{config.source}: gate.{key}: found {text!r}, wanted {wanted}"
                raise ConfigError(message) from None


def _give_up(message: str) -> NoReturn:
    sys.stderr.write(f"jobgate: {message}\n")
    sys.stderr.flush()
    raise SystemExit(1)


def from_environment() -> Options:
    """
    The options of `jobgate.tac`: `$JOBGATE_CONFIG`, else as without any.

    Raises:
        SystemExit: Something is wrong with them; one line on stderr says what.
    """
    options = Options()
    path = os.environ.get("JOBGATE_CONFIG")
    options.parseOptions(["--config", path] if path else [])
    return options
