"""
The ports of a factory: opened all or none, and changed while they are in use.

Knows Twisted's endpoint strings, and two things more: `tls:`, which can ask the other side for
its certificate, and what a UNIX socket needs that a dead process has left behind. Must not
know what is spoken there.
"""

from __future__ import annotations

import re
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, DeferredList, fail, maybeDeferred
from twisted.internet.endpoints import SSL4ServerEndpoint, serverFromString

from jobgate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from OpenSSL.crypto import PKey
    from twisted.internet.interfaces import (
        IListeningPort,
        IProtocolFactory,
        IStreamServerEndpoint,
    )
    from twisted.python.failure import Failure

__all__ = ["Ports", "endpoint", "host_and_port", "is_tls"]

_BACKLOG = 4096
"""Connections the kernel keeps for us: Twisted's default of 50 drops a burst."""
_LAST_PORT = 65535
_PARTS = re.compile(r"(?<!\\):")
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_TLS_WANTS = "tls:PORT:privateKey=FILE:certificate=FILE, and interface=, trustRoots= or backlog="


class Ports:
    """
    Where one factory listens.

    Args:
        reactor: Opens the ports.
        factory: Makes a protocol for each connection.

    Attributes:
        open: What is open, by its endpoint string.
    """

    def __init__(self, reactor: Any, factory: IProtocolFactory) -> None:  # noqa: ANN401 (IReactorTCP, -UNIX and -SSL: no type can say all)
        self._reactor = reactor
        self._factory = factory
        self.open: dict[str, IListeningPort] = {}

    def listen(self, texts: Iterable[str]) -> Deferred[None]:
        """
        Open these as well.

        Returns:
            Fires when all are open; fails with the first that cannot be, none of them left open.
        """
        opened: dict[str, IListeningPort] = {}

        def all_open(_: object) -> None:
            self.open |= opened

        def failed(failure: Failure) -> Failure:
            for port in opened.values():
                port.stopListening()
            return failure

        def opening(text: str) -> Deferred[None]:
            made = endpoint(self._reactor, text)
            _make_way(text)
            listening: Deferred[IListeningPort] = made.listen(self._factory)
            return listening.addCallback(lambda port: opened.update({text: port}))

        waits: list[Deferred[None]] = []
        for text in texts:
            try:
                waits.append(opening(text))
            except (ValueError, ConfigError) as error:
                refused = error if isinstance(error, ConfigError) else _no_endpoint(error)
                waits.append(fail(refused))
        every = DeferredList(waits, fireOnOneErrback=True, consumeErrors=True)
        return every.addCallbacks(all_open, failed)

    def relisten(self, texts: Sequence[str]) -> Deferred[None]:
        """Open those of these that are not open, then close all others."""
        done = self.listen([text for text in texts if text not in self.open])
        return done.addCallback(lambda _: self.close([t for t in self.open if t not in texts]))

    def close(self, texts: Iterable[str] | None = None) -> Deferred[None]:
        """Close these, or all; fires when they are closed."""
        texts = list(self.open) if texts is None else texts
        closing = [maybeDeferred(self.open.pop(text).stopListening) for text in texts]
        return DeferredList(closing).addCallback(lambda _: None)


def endpoint(reactor: Any, text: str) -> IStreamServerEndpoint:  # noqa: ANN401 (as above)
    """
    The endpoint that a string describes; nothing is opened.

    Raises:
        ValueError: It describes none, whatever Twisted's own parsers raise.
    """
    kind, *arguments = _PARTS.split(text)
    try:
        if kind in ("tcp", "tcp6", "ssl", "tls"):
            _check_port(arguments)
        if kind == "tls":
            return _tls(reactor, text)
        if kind in ("tcp", "tcp6", "ssl", "unix") and "backlog=" not in text:
            text = f"{text}:backlog={_BACKLOG}"
        if kind == "unix" and "lockfile=" not in text:
            # `_make_way` asks the socket itself; a lock that names a process id outlives it.
            text = f"{text}:lockfile=0"
        made: IStreamServerEndpoint = serverFromString(reactor, text)
    except Exception as error:
        raise ValueError(str(error)) from error
    return made


def is_tls(text: str) -> bool:
    """Whether an endpoint string means TLS."""
    return text.partition(":")[0] in ("ssl", "tls")


def host_and_port(port: IListeningPort) -> str:
    """Where a port is, as URLs write it; for a UNIX socket its path."""
    address: Any = port.getHost()
    if hasattr(address, "port"):
        host = f"[{address.host}]" if ":" in address.host else address.host
        return f"{host}:{address.port}"
    return address.name.decode() if address.name else ""


def _check_port(arguments: Iterable[str]) -> None:
    """
    Twisted finds a number that is no port only when it listens.

    Raises:
        ValueError: It is none.
    """
    named = [a.removeprefix("port=") for a in arguments if "=" not in a or a[:5] == "port="]
    if named and not 0 <= int(named[0]) <= _LAST_PORT:
        message = f"a port is 0 to {_LAST_PORT}"
        raise ValueError(message)


def _no_endpoint(error: ValueError) -> ConfigError:
    return ConfigError(f"{error}, wanted a Twisted endpoint string")


def _make_way(text: str) -> None:
    """
    Remove the UNIX socket that a dead process has left.

    Raises:
        ConfigError: Somebody listens there, or it is no socket.
    """
    kind, *arguments = _PARTS.split(text)
    if kind != "unix":
        return
    named = [a.removeprefix("address=") for a in arguments if "=" not in a or a[:8] == "address="]
    path = Path(re.sub(r"\\(.)", r"\1", named[0])) if named else Path()
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            message = f"found another kind of file at {path}, wanted a path for a UNIX socket"
            raise ConfigError(message)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(0)
            probe.connect(str(path))
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
        return
    except BlockingIOError:
        pass  # so many wait to be let in that one more cannot: somebody listens
    except OSError:
        return  # there is nothing, or nothing that we may touch: binding will tell
    message = f"found {path} in use, wanted a UNIX socket at which nobody listens"
    raise ConfigError(message)


def _tls(reactor: Any, text: str) -> IStreamServerEndpoint:  # noqa: ANN401 (as above)
    """
    `tls:PORT:privateKey=...:certificate=...:trustRoots=...`.

    The words are those of Twisted's own client endpoint of that name. With `trustRoots`, a
    file or folder of PEM certificates, the other side must show one that these have signed.
    """
    from twisted.internet import ssl

    _, *parts = (re.sub(r"\\(.)", r"\1", part) for part in _PARTS.split(text))
    given = dict(part.partition("=")[::2] for part in parts if "=" in part)
    plain = [part for part in parts if "=" not in part]
    unknown = set(given) - {"interface", "privateKey", "certificate", "trustRoots", "backlog"}
    if unknown or len(plain) != 1 or not {"privateKey", "certificate"} <= set(given):
        message = f"wanted {_TLS_WANTS}"
        raise ValueError(message)
    chain = _certificates(Path(given["certificate"]))
    key: PKey = ssl.KeyPair.load(Path(given["privateKey"]).read_bytes(), 1).original
    roots = _roots(Path(given["trustRoots"])) if "trustRoots" in given else None
    options = ssl.CertificateOptions(
        privateKey=key,
        certificate=chain[0].original,
        extraCertChain=[certificate.original for certificate in chain[1:]],
        trustRoot=None if roots is None else ssl.trustRootFromCertificates(roots),
    )
    backlog = int(given.get("backlog", _BACKLOG))
    return SSL4ServerEndpoint(reactor, int(plain[0]), options, backlog, given.get("interface", ""))


def _certificates(path: Path) -> list[Any]:
    """
    The certificates of a PEM file.

    Raises:
        ValueError: There are none.
    """
    from twisted.internet.ssl import Certificate

    found = [Certificate.loadPEM(pem) for pem in _CERTIFICATE.findall(path.read_bytes())]
    if not found:
        message = f"no PEM certificate in {path}"
        raise ValueError(message)
    return found


def _roots(path: Path) -> list[Any]:
    """The certificates of a file, or of all `.pem` files of a folder."""
    files = sorted(path.glob("*.pem")) if path.is_dir() else [path]
    return [certificate for file in files for certificate in _certificates(file)]
