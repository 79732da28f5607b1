"""
The configuration: load it, check it, explain what is wrong with it.

`jobgate.toml` becomes a `GateConfig`; every key, its type and its default is a field
here (contract section 3). Must not start or open anything.
"""

from __future__ import annotations

import binascii
import difflib
import re
import shlex
import tomllib
import types
from ipaddress import ip_address, ip_network
from math import isfinite
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NoReturn,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import Meta

from jobgate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "AUTO",
    "FULL",
    "Backoff",
    "BatchConfig",
    "Bytes",
    "CallbackSettings",
    "GateConfig",
    "GateSettings",
    "Linger",
    "QueueConfig",
    "Rate",
    "Scale",
    "Seconds",
    "Secret",
    "TokenConfig",
    "WorkerConfig",
    "from_tables",
    "is_loopback",
    "is_queue_name",
    "load",
    "to_toml",
]

_QUEUE_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_GATE_NAME = re.compile(r"[A-Za-z0-9._~-]{1,64}\Z")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\Z")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|[KMGT]i?B)?\Z")
_RATE = re.compile(r"(\d+(?:\.\d+)?)/(s|m|h|d)\Z")
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZES = {"K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_GRANT = re.compile(r"(call|push|pull|work):(\*|[A-Za-z0-9._*-]+)\Z|(jobs|admin|metrics)\Z")
_MAX_BODY = 63 * 1024 * 1024
"""Bytes: a body and its meta must fit one frame of 64 MiB."""
_SHORTEST_KEY = 16
"""Bytes of a secret; fewer could be guessed."""
_HIDDEN = "***"
"""Stands for a secret wherever it would be seen."""


class Seconds(float):
    """A duration: a number of seconds, or a text such as `500ms` or `2m`."""

    __slots__ = ()
    wanted = 'a number of seconds, or a text such as "500ms" or "2m"'

    @classmethod
    def read(cls, value: object) -> Seconds:
        """
        Raises:
            ValueError: It is no duration.
        """
        if isinstance(value, str) and (match := _DURATION.match(value)):
            return cls(float(match[1]) * _UNITS[match[2]])
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(cls.wanted)  # noqa: TRY004 (the text's own errors are ValueErrors)
        if value >= 0 and isfinite(value):
            return cls(value)
        raise ValueError


class Bytes(int):
    """A size: a number of bytes, or a text such as `16MiB`."""

    wanted = 'a number of bytes, or a text such as "64KiB" or "16MiB"'

    @classmethod
    def read(cls, value: object) -> Bytes:
        """
        Raises:
            ValueError: It is no size.
        """
        if isinstance(value, str) and (match := _SIZE.match(value)):
            unit = match[2] or "B"
            return cls(int(float(match[1]) * _SIZES.get(unit[0], 1)))
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(value)
        raise ValueError


class Rate(float):
    """Requests a second, written `100/s`, `600/m` or `1000/h`."""

    __slots__ = ()
    wanted = 'a text such as "100/s", "600/m" or "1000/h"'

    @classmethod
    def read(cls, value: object) -> Rate:
        """
        Raises:
            ValueError: It is no rate.
        """
        if isinstance(value, str) and (match := _RATE.match(value)) and float(match[1]) > 0:
            return cls(float(match[1]) / _UNITS[match[2]])
        raise ValueError


class Secret(str):
    """
    A key that signs, as Standard Webhooks writes it; it is never shown.

    Attributes:
        key: The bytes that it stands for; none if it is empty.
    """

    __slots__ = ("key",)
    wanted = f'"whsec_" and then at least {_SHORTEST_KEY} bytes in base64'
    key: bytes

    def __new__(cls, text: str = "") -> Self:
        """
        Raises:
            ValueError: It is no such text.
        """
        secret = super().__new__(cls, text)
        secret.key = binascii.a2b_base64(text.removeprefix("whsec_"), strict_mode=True)
        if text and not (text.startswith("whsec_") and len(secret.key) >= _SHORTEST_KEY):
            raise ValueError(cls.wanted)
        return secret

    def __repr__(self) -> str:
        return _HIDDEN if self else ""

    @classmethod
    def read(cls, value: object) -> Secret:
        """
        Raises:
            ValueError: It is no secret.
        """
        if isinstance(value, str):
            return cls(value)
        raise ValueError(cls.wanted)


class Linger(Seconds):
    """How long the oldest of a batch waits for company: a duration, `full` or `auto`."""

    __slots__ = ()
    wanted = 'a number of seconds, a text such as "5ms", "full" or "auto"'

    @classmethod
    def read(cls, value: object) -> Linger:
        """
        Raises:
            ValueError: It is neither a duration nor one of the two words.
        """
        if value == "full":
            return FULL
        if value == "auto":
            return AUTO
        return cls(super().read(value))

    @property
    def word(self) -> str:
        """What it is written as, if it is no duration."""
        return "full" if self == FULL else "auto" if self == AUTO else ""


FULL = Linger("inf")
"""Only full batches go, or when a deadline forces it."""
AUTO = Linger(-1)
"""The gate decides, from what it measures."""
_TARGET = 0.05
"""Seconds that `auto` keeps to if nothing else is said."""
_MOST_TOGETHER = 4096
_AUTO_SIZE = 256
"""Members that a batch may have under `auto` if nothing else is said."""

_S = TypeVar("_S", bound=msgspec.Struct)
_Count = Annotated[int, Meta(ge=0)]
_Positive = Annotated[int, Meta(ge=1)]
_MOST_WORKERS = 1000


class Scale(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    How many workers a queue has: as its load asks for, within bounds.

    Attributes:
        min: As many live always.
        max: More never do.
        up_after: Seconds that commands wait before one more worker is started.
        down_after: Seconds without work after which one that is not needed goes.
    """

    min: Annotated[int, Meta(ge=0, le=_MOST_WORKERS)] = 1
    max: Annotated[int, Meta(ge=1, le=_MOST_WORKERS)] = 8
    up_after: Seconds = Seconds(1)
    down_after: Seconds = Seconds(60)


class BatchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    How commands are put together; one at a time while `size` is 1.
    """

    size: Annotated[int, Meta(ge=1, le=_MOST_TOGETHER)] = 1
    linger: Linger = Linger(0)
    target: Seconds | None = None
    max_bytes: Bytes = Bytes(8 * 1024**2)

    @property
    def target_seconds(self) -> float:
        """What waiting and running are to stay under, with `auto`; 0 without."""
        if self.linger != AUTO:
            return 0.0
        return _TARGET if self.target is None else float(self.target)


class Backoff(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a failed job waits for its next attempt: longer each time, within bounds."""

    first: Seconds = Seconds(1)
    factor: Annotated[float, Meta(ge=1, le=100)] = 2.0
    max: Seconds = Seconds(60)
    jitter: Annotated[float, Meta(ge=0, le=1)] = 0.2


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    How the workers of one queue are started and spoken to.

    A change of any of these replaces the workers; `cwd` is absolute once loaded.
    """

    command: tuple[str, ...] | str = ()
    env: dict[str, str] = {}
    cwd: str = "."
    protocol: Literal["frames", "lines"] = "frames"
    in_flight: Annotated[int, Meta(ge=1, le=256)] = 1
    batch: BatchConfig = BatchConfig()
    timeout: Seconds = Seconds(60)
    soft_timeout: Seconds = Seconds(0)
    boot_timeout: Seconds = Seconds(30)
    kill_timeout: Seconds = Seconds(5)
    cancel: Literal["drop", "cooperative", "kill"] = "cooperative"
    max_commands: _Count = 0
    max_age: Seconds = Seconds(0)
    max_memory: Bytes = Bytes(0)
    send: str = "{line}\n"
    until: str = ""
    until_regex: str = ""
    boot_until: str = ""
    boot_until_regex: str = ""
    reply_type: str = "text/plain; charset=utf-8"


class QueueConfig(WorkerConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    One queue: its workers, its bounds and its times.

    Attributes:
        name: The queue's name; the table's key, not a key in it.
    """

    name: str = ""
    workers: Annotated[int, Meta(ge=1, le=_MOST_WORKERS)] | Scale = 4
    idle_shutdown: Seconds = Seconds(0)
    shards: _Positive = 1
    size: _Count = 128
    max_waiting_bytes: Bytes = Bytes(64 * 1024**2)
    full_status: Literal[503, 429] = 503
    queue_timeout: Seconds = Seconds(30)
    retry: Literal["never", "if-not-started", "safe"] = "if-not-started"
    attempts: _Positive = 3
    backoff: Backoff = Backoff()
    max_backlog: _Count = 10_000_000
    expires: Seconds = Seconds(0)
    result_ttl: Seconds = Seconds(3600)

    @property
    def scale(self) -> Scale:
        """How many workers it has; with a fixed number both bounds are that."""
        if isinstance(self.workers, Scale):
            return self.workers
        return Scale(min=self.workers, max=self.workers)

    def worker(self) -> WorkerConfig:
        """The part of it that its workers are started with; how long batches wait is none of it."""
        fields = {name: getattr(self, name) for name in WorkerConfig.__struct_fields__}
        return WorkerConfig(**{**fields, "batch": BatchConfig(size=self.batch.size)})


class GateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[gate]`."""

    name: str = "gate"
    listen: tuple[str, ...] = ("tcp:8080:interface=127.0.0.1",)
    worker_listen: tuple[str, ...] = ()
    max_body: Bytes = Bytes(16 * 1024**2)
    max_connections: _Positive = 20_000
    max_buffered: Bytes = Bytes(256 * 1024**2)
    header_timeout: Seconds = Seconds(10)
    body_timeout: Seconds = Seconds(60)
    idle_timeout: Seconds = Seconds(75)
    drain_timeout: Seconds = Seconds(75)
    store: str = "sqlite:jobgate.db"
    long_poll_timeout: Seconds = Seconds(20)
    auto_queues: bool = True
    max_auto_queues: _Count = 1000
    front: Literal["fast", "klein"] = "fast"
    audit: str = ""
    insecure: bool = False


class TokenConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the tables `[[tokens]]`."""

    name: str
    sha256: str
    allow: tuple[str, ...] = ()
    rate: Rate | None = None


class CallbackSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[callbacks]`."""

    secret: Secret = Secret()
    allow: tuple[str, ...] = ()
    runners: Annotated[int, Meta(ge=1, le=1000)] = 8


class GateConfig(msgspec.Struct, frozen=True, kw_only=True):
    """
    Everything the gate is told.

    Attributes:
        gate: The table `[gate]`.
        callbacks: The table `[callbacks]`.
        queues: The tables `[queues.NAME]` by name.
        tokens: The tables `[[tokens]]`.
        source: The file it came from, for messages; empty without one.
    """

    gate: GateSettings = GateSettings()
    callbacks: CallbackSettings = CallbackSettings()
    queues: dict[str, QueueConfig] = {}
    tokens: tuple[TokenConfig, ...] = ()
    source: str = ""


def load(path: Path) -> dict[str, Any]:
    """
    The tables of a file, unchecked.

    Raises:
        ConfigError: It cannot be read or is not TOML.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        message = f"{path}: cannot be read: {error.strerror}"
        raise ConfigError(message) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        message = f"{path}: not TOML: {error}"
        raise ConfigError(message) from None


def from_tables(tables: Mapping[str, Any], source: str, base: Path) -> GateConfig:
    """
    Check tables and make them a configuration.

    Args:
        tables: As TOML gives them.
        source: What to call them in messages: a file's path, or "options".
        base: The folder that relative paths start from.

    Raises:
        ConfigError: Something is wrong; the message names source, key, found and wanted.
    """
    reader = _Reader(source, base)
    known = ["callbacks", "gate", "queues", "tokens"]
    for key in tables:
        if key not in known:
            reader.unknown(key, known)
    gate = reader.gate(reader.table(tables, "gate"))
    callbacks = reader.callbacks(reader.table(tables, "callbacks"))
    queues = {
        name: reader.queue(name, table) for name, table in reader.table(tables, "queues").items()
    }
    entries = tables.get("tokens", [])
    if not isinstance(entries, list):
        reader.wrong("tokens", entries, "tables [[tokens]]")
    tokens = tuple(reader.token(number, table) for number, table in enumerate(entries))
    for key in ("name", "sha256"):
        values = [getattr(token, key) for token in tokens]
        for value in values:
            if values.count(value) > 1:
                reader.wrong(f"tokens.{key}", value, f"a {key} that no other token has")
    if not tokens and not gate.insecure:
        for key in ("listen", "worker_listen"):
            for endpoint in getattr(gate, key):
                if not is_loopback(endpoint):
                    reader.wrong(
                        f"gate.{key}",
                        endpoint,
                        "a loopback address as long as there are no [[tokens]]"
                        " (or insecure = true, if you mean it)",
                    )
    return GateConfig(gate=gate, callbacks=callbacks, queues=queues, tokens=tokens, source=source)


def is_queue_name(name: str) -> bool:
    """Whether a queue may be called so."""
    return _QUEUE_NAME.match(name) is not None


def is_loopback(endpoint: str) -> bool:
    """Whether a Twisted endpoint string can be reached from this machine only."""
    kind, *arguments = re.split(r"(?<!\\):", endpoint)
    if kind == "unix":
        return True
    interface = next((a[10:] for a in arguments if a.startswith("interface=")), "")
    interface = interface.replace("\\:", ":").strip("[]")
    try:
        return interface == "localhost" or ip_address(interface).is_loopback
    except ValueError:
        return False


def to_toml(config: GateConfig) -> str:
    """The effective configuration, as a file that says the same."""
    lines = _table("gate", config.gate, ()) + _table("callbacks", config.callbacks, ())
    for name, queue in config.queues.items():
        # Without a command others drain it, as many as there are.
        skip = ("name",) if queue.command else ("name", "command", "workers")
        lines += _table(f"queues.{_key(name)}", queue, skip)
    for token in config.tokens:
        lines += _table("tokens", token, (), array=True)
    return "\n".join(lines)


class _Reader:
    """Reads one source; every complaint says which."""

    def __init__(self, source: str, base: Path) -> None:
        self._source = source
        self._base = base

    def wrong(self, key: str, found: object, wanted: str) -> NoReturn:
        message = f"{self._source}: {key}: found {_show(found)}, wanted {wanted}"
        raise ConfigError(message)

    def unknown(self, key: str, known: list[str], where: str = "") -> NoReturn:
        name = f"{where}.{key}" if where else key
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        wanted = f"{near[0]!r} perhaps" if near else f"one of {', '.join(sorted(known))}"
        message = f"{self._source}: {name}: found an unknown key {key!r}, wanted {wanted}"
        raise ConfigError(message)

    def table(self, tables: Mapping[str, Any], key: str) -> dict[str, Any]:
        table = tables.get(key, {})
        if not isinstance(table, dict):
            self.wrong(key, table, f"a table [{key}]")
        return dict(table)

    def gate(self, table: dict[str, Any]) -> GateSettings:
        settings = self.struct("gate", GateSettings, table)
        if not _GATE_NAME.match(settings.name):
            self.wrong("gate.name", settings.name, "1 to 64 of A-Z a-z 0-9 . _ ~ -")
        if not settings.listen:
            self.wrong("gate.listen", [], "at least one endpoint")
        if settings.max_body > _MAX_BODY:
            self.wrong("gate.max_body", table["max_body"], "at most 63MiB, what fits a frame")
        if settings.audit:
            settings = msgspec.structs.replace(settings, audit=str(self._base / settings.audit))
        kind, colon, place = settings.store.partition(":")
        if not colon or kind not in ("memory", "sqlite") or (kind == "sqlite") != bool(place):
            self.wrong("gate.store", settings.store, '"memory:" or "sqlite:PATH"')
        if kind == "sqlite":
            settings = msgspec.structs.replace(settings, store=f"sqlite:{self._base / place}")
        return settings

    def callbacks(self, table: dict[str, Any]) -> CallbackSettings:
        settings = self.struct("callbacks", CallbackSettings, table)
        for text in settings.allow:
            try:
                ip_network(text)
            except ValueError as error:
                self.wrong("callbacks.allow", text, f'an address range as "10.0.0.0/8" ({error})')
        return settings

    def token(self, number: int, table: object) -> TokenConfig:
        where = f"tokens[{number}]"
        token = self.struct(where, TokenConfig, table)
        if not re.fullmatch(r"[0-9a-fA-F]{64}", token.sha256):
            self.wrong(f"{where}.sha256", token.sha256, "the 64 hex digits of the token's SHA-256")
        for grant in token.allow:
            if not _GRANT.match(grant):
                self.wrong(
                    f"{where}.allow",
                    grant,
                    '"call:QUEUE", "push:QUEUE", "pull:QUEUE", "work:QUEUE" (or :*),'
                    ' "jobs", "admin" or "metrics"',
                )
        return msgspec.structs.replace(token, sha256=token.sha256.lower())

    def queue(self, name: str, table: object) -> QueueConfig:
        where = f"queues.{name}"
        if not _QUEUE_NAME.match(name):
            self.wrong("queues", name, "a name of 1 to 64 of A-Z a-z 0-9 . _ -")
        if isinstance(table, dict) and "name" in table:
            known = [field for field in QueueConfig.__struct_fields__ if field != "name"]
            self.unknown("name", known, where)
        queue = self.struct(where, QueueConfig, table)
        if queue.batch.linger == AUTO and queue.batch.size == 1:
            batch = msgspec.structs.replace(queue.batch, size=_AUTO_SIZE)
            queue = msgspec.structs.replace(queue, batch=batch)
        if isinstance(queue.command, str):
            try:
                command = tuple(shlex.split(queue.command))
            except ValueError as error:
                self.wrong(f"{where}.command", queue.command, f"a command line ({error})")
        else:
            command = queue.command
        queue = msgspec.structs.replace(
            queue, name=name, command=command, cwd=str((self._base / queue.cwd).resolve())
        )
        self._check_queue(where, queue)
        return queue

    def _check_queue(self, where: str, queue: QueueConfig) -> None:
        scale = queue.scale
        fixed = queue.workers is not scale
        if scale.min > scale.max:
            self.wrong(f"{where}.workers.max", scale.max, f"at least min = {scale.min}")
        if queue.shards > max(1, scale.min):
            # Every shard needs a worker of its own, also when nothing is to be done; who comes by
            # itself is counted upon, too.
            most = f"workers{'' if fixed else '.min'} = {scale.min}"
            most = most if scale.min else "1 with workers.min = 0"
            self.wrong(f"{where}.shards", queue.shards, f"at most {most}")
        if queue.command and not scale.min and not queue.size:
            self.wrong(f"{where}.size", 0, "at least 1 with workers.min = 0: the first must wait")
        batch = queue.batch
        if batch.target is not None and (batch.linger != AUTO or not batch.target):
            wanted = "a time over 0" if batch.linger == AUTO else 'linger = "auto" with it'
            self.wrong(f"{where}.batch.target", batch.target, wanted)
        if queue.protocol == "lines":
            if queue.in_flight > 1:
                self.wrong(f"{where}.in_flight", queue.in_flight, '1 with protocol = "lines"')
            if "{line}" not in queue.send:
                self.wrong(f"{where}.send", queue.send, "a text with {line} in it")
            if not queue.send.endswith("\n"):
                self.wrong(f"{where}.send", queue.send, "a text that ends with a newline")
        else:
            defaults = WorkerConfig()
            for key in ("send", "until", "until_regex", "boot_until", "boot_until_regex"):
                if getattr(queue, key) != getattr(defaults, key):
                    self.wrong(f"{where}.{key}", getattr(queue, key), 'protocol = "lines" with it')
        for key in ("until", "boot_until"):
            if getattr(queue, key) and getattr(queue, f"{key}_regex"):
                self.wrong(
                    f"{where}.{key}_regex", getattr(queue, f"{key}_regex"), f"either it or {key}"
                )
            if "\n" in getattr(queue, key):
                self.wrong(f"{where}.{key}", getattr(queue, key), "a line without its newline")
            try:
                re.compile(getattr(queue, f"{key}_regex").encode())
            except re.error as error:
                self.wrong(
                    f"{where}.{key}_regex",
                    getattr(queue, f"{key}_regex"),
                    f"a regular expression ({error})",
                )
        if not queue.reply_type.isascii() or not queue.reply_type.isprintable():
            self.wrong(f"{where}.reply_type", queue.reply_type, "a media type")
        for argument in (*queue.command, *queue.env, *queue.env.values()):
            if "\0" in argument:
                self.wrong(where, argument, "command and env without NUL characters")

    def struct(self, where: str, kind: type[_S], table: object) -> _S:
        """Check keys and types one by one, so that a complaint can name both."""
        if not isinstance(table, dict):
            self.wrong(where, table, f"a table [{where}]")
        hints = get_type_hints(kind, include_extras=True)
        known = [
            name for name in kind.__struct_fields__ if name != "name" or kind is not QueueConfig
        ]
        values: dict[str, Any] = {}
        for key, value in table.items():
            if key not in known:
                self.unknown(key, known, where)
            nested = _struct_in(hints[key])
            if nested is not None and isinstance(value, dict):
                values[key] = self.struct(f"{where}.{key}", nested, value)
                continue
            try:
                values[key] = msgspec.convert(value, hints[key], dec_hook=_read)
            except (msgspec.ValidationError, ValueError):
                found = _HIDDEN if hints[key] is Secret and value else value
                self.wrong(f"{where}.{key}", found, _describe(hints[key]))
        try:
            return kind(**values)
        except TypeError:
            missing = next(name for name in ("name", "sha256") if name not in values)
            self.wrong(f"{where}.{missing}", None, _describe(hints[missing]))


def _read(kind: type, value: object) -> object:
    """Turn what TOML has into one of the types above, for msgspec."""
    if issubclass(kind, Seconds | Bytes | Rate | Secret):
        return kind.read(value)
    raise NotImplementedError(kind)


def _struct_in(hint: Any) -> type[msgspec.Struct] | None:  # noqa: ANN401 (as below)
    """The table that a key may have as its value."""
    kinds = (hint, *get_args(hint))
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, msgspec.Struct)), None)


def _describe(hint: Any) -> str:  # noqa: ANN401 (type hints have no common type)
    """What a type wants, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        low, high = arguments[1].ge, arguments[1].le
        return f"a whole number, at least {low}" + (f" and at most {high}" if high else "")
    if origin is Literal:
        return " or ".join(_show(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(kind) for kind in arguments if kind is not type(None))
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return f"a table {{ {', '.join(hint.__struct_fields__)} }}"
    if origin is tuple:
        return "a list of texts"
    if origin is dict:
        return "a table of texts"
    if hasattr(hint, "wanted"):
        return str(hint.wanted)
    return "true or false" if hint is bool else "a text"


def _show(value: object) -> str:
    """A value as TOML writes it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(_show(item) for item in value)}]"
    if isinstance(value, dict):
        return (
            f"{{ {', '.join(f'{_key(k)} = {_show(v)}' for k, v in value.items())} }}"
            if value
            else "{}"
        )
    if isinstance(value, msgspec.Struct):
        fields = ((name, getattr(value, name)) for name in value.__struct_fields__)
        return _show({name: field for name, field in fields if field is not None})
    if isinstance(value, Linger) and value.word:
        return _show(value.word)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(float(value))
    return str(value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _show(name)


def _table(
    name: str, struct: msgspec.Struct, skip: tuple[str, ...], *, array: bool = False
) -> list[str]:
    lines = [f"[[{name}]]" if array else f"[{name}]"]
    for field in struct.__struct_fields__:
        value = getattr(struct, field)
        if field not in skip and value is not None:
            shown = f"{float(value)}/s" if isinstance(value, Rate) else value
            if isinstance(value, Secret):
                shown = repr(value)
            lines.append(f"{field} = {_show(shown)}")
    return [*lines, ""]
