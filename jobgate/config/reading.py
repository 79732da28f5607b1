"""
From tables to a configuration, with an explanation of whatever is wrong.

Every complaint names the source, the key, what was found and what is wanted. Must not
start or open anything but the file.
"""

from __future__ import annotations

import difflib
import re
import shlex
import tomllib
import types
from ipaddress import ip_address, ip_network
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

from jobgate.config.settings import (
    AUTO_SIZE,
    CallbackSettings,
    GateConfig,
    GateSettings,
    QueueConfig,
    TokenConfig,
    WorkerConfig,
    file_of,
    usual_backlog,
)
from jobgate.config.units import AUTO, HIDDEN, Bytes, Rate, Seconds, Secret
from jobgate.config.writing import show
from jobgate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["from_tables", "is_loopback", "is_queue_name", "load"]

_QUEUE_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_GATE_NAME = re.compile(r"[A-Za-z0-9._~-]{1,64}\Z")
_GRANT = re.compile(r"(call|push|pull|work):(\*|[A-Za-z0-9._*-]+)\Z|(jobs|admin|metrics)\Z")
_MAX_BODY = 63 * 1024 * 1024
"""Bytes: a body and its meta must fit one frame of 64 MiB."""
_S = TypeVar("_S", bound=msgspec.Struct)


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
        name: reader.queue(name, table, gate.store)
        for name, table in reader.table(tables, "queues").items()
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
                        'an endpoint on a loopback address, as "tcp:8080:interface=127.0.0.1",'
                        " as long as there are no [[tokens]] (or insecure = true, if you mean it)",
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


class _Reader:
    """Reads one source; every complaint says which."""

    def __init__(self, source: str, base: Path) -> None:
        self._source = source
        self._base = base

    def wrong(self, key: str, found: object, wanted: str) -> NoReturn:
        message = f"{self._source}: {key}: found {show(found)}, wanted {wanted}"
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
        path = file_of(settings.store)
        if path:
            settings = msgspec.structs.replace(settings, store=f"sqlite:{self._base / path}")
        elif settings.store != "memory:":
            self.wrong("gate.store", settings.store, '"memory:" or "sqlite:PATH"')
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

    def queue(self, name: str, table: object, store: str) -> QueueConfig:
        where = f"queues.{name}"
        if not _QUEUE_NAME.match(name):
            self.wrong("queues", name, "a name of 1 to 64 of A-Z a-z 0-9 . _ -")
        if isinstance(table, dict) and "name" in table:
            known = [field for field in QueueConfig.__struct_fields__ if field != "name"]
            self.unknown("name", known, where)
        usual = {"max_backlog": usual_backlog(store)}
        queue = self.struct(where, QueueConfig, usual | table if isinstance(table, dict) else table)
        if queue.batch.linger == AUTO and queue.batch.size == 1:
            batch = msgspec.structs.replace(queue.batch, size=AUTO_SIZE)
            queue = msgspec.structs.replace(queue, batch=batch)
        if isinstance(queue.command, str):
            try:
                command = tuple(shlex.split(queue.command))
            except ValueError as error:
                self.wrong(f"{where}.command", queue.command, f"a command line ({error})")
        else:
            command = queue.command
        if "\0" in queue.cwd:
            self.wrong(f"{where}.cwd", queue.cwd, "a folder")
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
                found = HIDDEN if hints[key] is Secret and value else value
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
        kind = "whole number" if arguments[0] is int else "number"
        return f"a {kind}, at least {low}" + (f" and at most {high}" if high else "")
    if origin is Literal:
        return " or ".join(show(value) for value in arguments)
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
