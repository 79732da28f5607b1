"""
`jobgate.jobs.targets`: where a callback may go.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import URI

from jobgate.errors import BadRequest
from jobgate.jobs.targets import Addresses, callback_url

GOOD = [
    "http://example.com",
    "https://hooks.example.com:8443/jobs?token=a%20b&x=1#part",
    "HTTP://EXAMPLE.com/",
    "http://a_b.example./",
    "http://127.0.0.1:8080/",
    "http://[::1]:8080/x",
    "http://[2001:db8::7]/",
    "https://xn--bcher-kva.example/",
    "http://x/" + "a" * 2039,
]
BAD = {
    "": "http",
    "example.com/hook": "begins with http",
    "//example.com/": "begins with http",
    "/hook": "begins with http",
    "ftp://example.com/": "begins with http",
    "file:///etc/passwd": "begins with http",
    "javascript:alert(1)": "begins with http",
    "http://": "name or address of a host",
    "http:///hook": "name or address of a host",
    "https:example.com": "name or address of a host",
    "http://user@example.com/": "user name",
    "http://user:secret@example.com/": "user name",
    "http://good.example@10.0.0.1/": "user name",
    "http://exa mple.com/": "characters",
    "http://example.com/\r\nX: y": "characters",
    "http://example.com/\n": "characters",
    "http://example.com/\0": "characters",
    "http://example.com\\@10.0.0.1/": "characters",
    "http://b\xfccher.example/": "characters",
    'http://example.com/"': "characters",
    "http://example.com:0/": "1 to 65535",
    "http://example.com:65536/": "1 to 65535",
    "http://example.com:port/": "name or address of a host",
    "http://example.com:/": "name or address of a host",
    "http://a..b/": "name or address of a host",
    "http://.example/": "name or address of a host",
    "http://-a.example/": "name or address of a host",
    "http://%31%30.0.0.1/": "name or address of a host",
    "http://" + "a" * 64 + ".example/": "name or address of a host",
    "http://" + "a.b" * 90 + "/": "name or address of a host",
    "http://[fe80::1%25eth0]/": "name or address of a host",
    "http://[::1/": "name or address of a host",
    "http://[1.2.3.4]/": "name or address of a host",
    "http://[::1]x/": "name or address of a host",
    "http://x/" + "a" * 2040: "2048",
}
hosts = st.from_regex(r"[A-Za-z0-9._\[\]:%@-]{0,24}", fullmatch=True)
urls = st.builds(
    lambda scheme, host, rest: f"{scheme}://{host}{rest}",
    st.sampled_from(["http", "https", "HTTP", "ftp", "ws"]),
    hosts,
    st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=20).map(lambda t: "/" + t),
)


class CallbackURLTests(SynchronousTestCase):
    """What a callback's URL must look like."""

    def test_good(self) -> None:
        """What can be sent to is let through as it is."""
        for url in GOOD:
            self.assertEqual(callback_url(url), url)

    def test_bad(self) -> None:
        """What cannot is refused, with the field's name, what was found, and what is wanted."""
        for url, wanted in BAD.items():
            error = self.assertRaises(BadRequest, callback_url, url)
            self.assertIn("Jobgate-Callback: found ", error.detail)
            self.assertIn(wanted, error.detail, url)
            self.assertLess(len(error.detail), 250)
            self.assertTrue(error.detail.isprintable())

    def test_name(self) -> None:
        """The field may have another name."""
        self.assertIn(
            "callback: found", self.assertRaises(BadRequest, callback_url, "", "callback").detail
        )

    @given(urls)
    @example("http://a:80:80/")
    @example("http://a]/")
    def test_one_reading(self, url: str) -> None:
        """What is let through means the same to the client that sends it as it did here."""
        try:
            callback_url(url)
        except BadRequest:
            return
        sent = URI.fromBytes(url.encode("ascii"))
        read = urlsplit(url)
        self.assertIn(sent.scheme, (b"http", b"https"))
        self.assertEqual(sent.host.decode().lower(), read.hostname)
        self.assertEqual(sent.port, read.port or {"http": 80, "https": 443}[read.scheme])
        self.assertEqual((read.username, read.password), (None, None))
        for byte in b"\r\n \0":
            self.assertNotIn(byte, sent.originForm)


REFUSED = {
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "10.255.0.1": "private",
    "100.64.0.1": "shared",
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "169.254.169.254": "link-local",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.0.0.8": "reserved",
    "192.0.2.1": "reserved",
    "192.88.99.1": "6to4",
    "192.168.0.1": "private",
    "198.19.255.255": "reserved",
    "198.51.100.1": "reserved",
    "203.0.113.1": "reserved",
    "224.0.0.1": "multicast",
    "239.255.255.255": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "reserved",
    "::": "unspecified",
    "::1": "loopback",
    "::ffff:10.0.0.1": "private",
    "::ffff:7f00:1": "loopback",
    "::7f00:1": "reserved",
    "64:ff9b::10.0.0.1": "NAT64",
    "64:ff9b::8.8.8.8": "NAT64",
    "64:ff9b:1::1": "NAT64",
    "100::1": "reserved",
    "fc00::1": "private",
    "fd12:3456::1": "private",
    "fe80::1": "link-local",
    "fe80::1%2": "link-local",
    "febf::1": "link-local",
    "fec0::1": "private",
    "ff02::1": "multicast",
    "2001::1": "reserved",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2": "reserved",
    "2001:db8::1": "reserved",
    "2002:a00:1::": "6to4",
    "2002:7f00:1::1": "6to4",
    "3fff::1": "reserved",
    "4000::1": "reserved",
    "5f00::1": "reserved",
}
PUBLIC = [
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.0",
    "100.128.0.0",
    "172.32.0.0",
    "192.169.0.0",
    "223.255.255.255",
    "::ffff:8.8.8.8",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2606:4700::1111",
    "2a00::1",
]
four = st.integers(0, 2**32 - 1).map(lambda number: str(ip_address(number)))
six = st.integers(2**32, 2**128 - 1).map(lambda number: str(ip_address(number)))


class AddressesTests(SynchronousTestCase):
    """Which addresses may be reached."""

    def test_refused(self) -> None:
        """What is not public is refused, in whatever form, and the error says what it is."""
        addresses = Addresses()
        for address, kind in REFUSED.items():
            self.assertIn(kind, addresses.refusal(address), address)

    def test_public(self) -> None:
        """What is public is not."""
        addresses = Addresses()
        for address in PUBLIC:
            self.assertEqual(addresses.refusal(address), "", address)

    def test_allowed(self) -> None:
        """What the operator allows may be reached, and nothing beside it."""
        addresses = Addresses(["127.0.0.0/8", "fd00::/8", "10.0.0.7"])
        for address in ("127.9.9.9", "::ffff:127.0.0.1", "fd00::1", "10.0.0.7", "1.1.1.1"):
            self.assertEqual(addresses.refusal(address), "", address)
        for address in ("::1", "10.0.0.8", "fc00::1", "169.254.169.254", "64:ff9b::7f00:1"):
            self.assertNotEqual(addresses.refusal(address), "", address)

    def test_no_range(self) -> None:
        """What is no range is not taken for one."""
        self.assertRaises(ValueError, Addresses, ["10.0.0.1/8"])

    @given(st.one_of(four, six))
    def test_never_more_than_python(self, address: str) -> None:
        """What Python calls private, loopback, multicast and the like is never reached."""
        if Addresses().refusal(address):
            return
        meant = ip_address(address)
        for kind in ("private", "loopback", "link_local", "multicast", "reserved", "unspecified"):
            self.assertFalse(getattr(meant, f"is_{kind}"), (address, kind))
        self.assertTrue(meant.is_global)

    @given(four)
    def test_mapped(self, address: str) -> None:
        """An IPv4 address in IPv6's clothes is judged as what it is."""
        addresses = Addresses(["10.0.0.0/8"])
        self.assertEqual(addresses.refusal(f"::ffff:{address}"), addresses.refusal(address))

    @given(st.one_of(four, six), st.integers(0, 32))
    def test_allow_wins(self, address: str, bits: int) -> None:
        """Whatever is allowed may be reached."""
        allow = str(ip_network(f"{address}/{bits}", strict=False))
        self.assertEqual(Addresses([allow]).refusal(address), "")
