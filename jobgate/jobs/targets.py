"""
Where a callback may go: what its URL must look like, and which addresses it may reach.

Who pushes a job chooses the URL, and the gate stands inside of a network that they may
not enter: so only addresses of the public Internet are reached, unless the operator allows
more. Pure. Must not know who asks, nor resolve or connect anything.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from jobgate.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Network, IPv6Network

__all__ = ["Addresses", "callback_url"]

_LONGEST: Final = 2048
"""Characters of a URL."""
_A_HOST: Final = "a URL with the name or address of a host, and perhaps a port"
_CHARACTERS: Final = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+\Z")
"""What RFC 3986 (section 2) lets a URL be made of; also, none of it can end a header."""
_LABEL: Final = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
_HOST: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*\.?\Z")
_NETLOC: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]@]+)(:(?P<port>\d{1,5}))?\Z")


def callback_url(url: str, name: str = "Jobgate-Callback") -> str:
    """
    Check the URL of a callback.

    Args:
        url: What the caller gave.
        name: What to call it in the error.

    Raises:
        BadRequest: It is no URL that a callback can be sent to.
    """
    problem = _problem(url)
    if problem:
        shown = url if len(url) <= 80 else url[:80] + "…"
        message = f"{name}: found {shown!r}, wanted {problem}"
        raise BadRequest(message)
    return url


def _problem(url: str) -> str:
    """What the URL should have been; empty if nothing is wrong with it."""
    if len(url) > _LONGEST:
        return f"at most {_LONGEST} characters"
    if not _CHARACTERS.match(url):
        return "an http or https URL of RFC 3986's characters (others as %XX, hosts as xn--…)"
    try:
        scheme, netloc, *_ = urlsplit(url)
    except ValueError:
        # In whose words, and for which hosts, differs between versions of Python.
        return _A_HOST
    if scheme not in ("http", "https"):
        return "a URL that begins with http:// or https://"
    if "@" in netloc:
        return "a URL without a user name or password"
    parts = _NETLOC.match(netloc)
    if parts is None or not _is_host(parts["host"]):
        return _A_HOST
    if parts["port"] and not 0 < int(parts["port"]) < 65536:
        return "a port from 1 to 65535"
    return ""


def _is_host(host: str) -> bool:
    if not host.startswith("["):
        return _HOST.match(host) is not None
    try:
        IPv6Address(host[1:-1])
    except ValueError:
        return False
    return True


# The special-purpose address registries of IANA (RFC 6890), as far as they are not meant to
# be reached from anywhere. Python's own tables (`is_global`) differ between its versions.
_SPECIAL_4: Final = {
    "0.0.0.0/8": "unspecified",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "shared by a provider's customers",
    "127.0.0.0/8": "loopback",
    "169.254.0.0/16": "link-local",
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "reserved",
    "192.0.2.0/24": "reserved",
    "192.88.99.0/24": "a 6to4 relay",
    "192.168.0.0/16": "private",
    "198.18.0.0/15": "reserved",
    "198.51.100.0/24": "reserved",
    "203.0.113.0/24": "reserved",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",
}
_SPECIAL_6: Final = {
    "::/128": "unspecified",
    "::1/128": "loopback",
    "64:ff9b::/96": "NAT64",
    "64:ff9b:1::/48": "NAT64",
    "fc00::/7": "private",
    "fe80::/10": "link-local",
    "fec0::/10": "private",
    "ff00::/8": "multicast",
    "2001::/23": "reserved",
    "2001:db8::/32": "reserved",
    "2002::/16": "6to4",
    "3fff::/20": "reserved",
}
_GLOBAL_6: Final = IPv6Address("2000::"), IPv6Address("3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
"""All of IPv6 that is given out for the public Internet (2000::/3)."""


class Addresses:
    """
    Which addresses may be reached.

    Args:
        allow: Ranges that may be although they are not public.

    Raises:
        ValueError: One of them is no range.
    """

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self._allowed: list[IPv4Network | IPv6Network] = [ip_network(text) for text in allow]
        self._special = [
            (ip_network(text), kind) for text, kind in (_SPECIAL_4 | _SPECIAL_6).items()
        ]

    def refusal(self, text: str) -> str:
        """
        What an address is that must not be reached, such as `loopback`; empty if it may be.

        Raises:
            ValueError: It is no address.
        """
        address = _meant(ip_address(text))
        if any(address in network for network in self._allowed):
            return ""
        for network, kind in self._special:
            if address in network:
                return kind
        if isinstance(address, IPv6Address) and not _GLOBAL_6[0] <= address <= _GLOBAL_6[1]:
            return "reserved"
        return ""


def _meant(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """An IPv4 address that is written as one of IPv6 is reached as what it is."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
