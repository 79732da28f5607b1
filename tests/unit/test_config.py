"""
`jobgate.config` and `jobgate.options`: load, check, explain.
"""

from __future__ import annotations

import io
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from jobgate.config import (
    Bytes,
    GateConfig,
    Rate,
    Seconds,
    Secret,
    from_tables,
    is_loopback,
    load,
    to_toml,
)
from jobgate.errors import ConfigError
from jobgate.options import Options, from_environment

BASE = Path("/base")


def read(tables: dict[str, Any]) -> GateConfig:
    """Tables as a configuration."""
    return from_tables(tables, "my.toml", BASE)


def queue(**keys: Any) -> dict[str, Any]:
    """Tables with one queue."""
    return {"queues": {"q": keys}}


class ValuesTests(SynchronousTestCase):
    """Durations, sizes and rates."""

    def test_durations(self) -> None:
        """Numbers are seconds; texts have a unit."""
        for text, wanted in (
            ("500ms", 0.5),
            ("2m", 120),
            ("1.5h", 5400),
            ("1d", 86400),
            (3, 3),
            (0.25, 0.25),
            (0, 0),
            ("10 s", 10),
        ):
            self.assertEqual(Seconds.read(text), wanted)
        for bad in (
            "",
            "5",
            "m",
            "2 weeks",
            "-1s",
            -1,
            float("nan"),
            float("inf"),
            True,
            None,
            [],
            "1e3s",
            "1s\n",
        ):
            self.assertRaises(ValueError, Seconds.read, bad)

    def test_sizes(self) -> None:
        """Numbers are bytes; units are powers of 1024."""
        for text, wanted in (
            ("16MiB", 16 * 2**20),
            ("64KiB", 65536),
            ("1.5 GiB", 3 * 2**29),
            ("10B", 10),
            ("7", 7),
            (5, 5),
            (0, 0),
        ):
            self.assertEqual(Bytes.read(text), wanted)
        for bad in ("", "MiB", "1XB", -1, 1.5, True, None, "-5B", "1 mib", "1MiB\n"):
            self.assertRaises(ValueError, Bytes.read, bad)

    def test_rates(self) -> None:
        """So many a second, minute, hour or day."""
        for text, wanted in (("100/s", 100), ("600/m", 10), ("3600/h", 1), ("0.5/s", 0.5)):
            self.assertEqual(Rate.read(text), wanted)
        for bad in ("", "100", "0/s", "/s", "-1/s", 100, "1/week"):
            self.assertRaises(ValueError, Rate.read, bad)

    def test_rates_in_words(self) -> None:
        """As one would say it, not as a fraction."""
        for text, wanted in (
            ("100/s", "100 requests a second"),
            ("60/m", "1 request a second"),
            ("2/m", "2 requests a minute"),
            ("1/h", "1 request an hour"),
            ("7/d", "7 requests a day"),
            ("0.1/d", "0.1 requests a day"),
        ):
            self.assertEqual(Rate.read(text).words, wanted)


class ComplaintsTests(SynchronousTestCase):
    """Every mistake names source, key, what was found and what is wanted."""

    def wrong(self, tables: dict[str, Any], *parts: str) -> None:
        error = self.assertRaises(ConfigError, read, tables)
        text = str(error)
        self.assertTrue(text.startswith("my.toml: "), text)
        self.assertNotIn("\n", text)
        for part in (*parts, "found", "wanted"):
            self.assertIn(part, text)

    def test_nearest_key(self) -> None:
        """An unknown key suggests the nearest one, in every table."""
        self.wrong({"gates": {}}, "gates", "'gate'")
        self.wrong({"gate": {"lisen": []}}, "gate.lisen", "'listen'")
        self.wrong(queue(worker=4), "queues.q.worker", "'workers'")
        self.wrong(queue(time_out=4), "queues.q.time_out", "'timeout'")
        self.wrong({"tokens": [{"name": "a", "sha": "x"}]}, "tokens[0].sha", "'sha256'")
        self.wrong(queue(zzzzzz=4), "zzzzzz", "one of", "workers")
        self.wrong(queue(name="x"), "queues.q.name")

    def test_types(self) -> None:
        """A value of the wrong type or out of bounds says what would be right."""
        cases = [
            (queue(workers="four"), "queues.q.workers", '"four"', "whole number", "at least 1"),
            (queue(workers=0), "queues.q.workers", "0", "at least 1"),
            (queue(workers=True), "queues.q.workers", "true"),
            (queue(workers=4.5), "queues.q.workers", "4.5"),
            (queue(timeout="soon"), "queues.q.timeout", '"soon"', "500ms"),
            (queue(timeout=-1), "queues.q.timeout", "-1"),
            (queue(max_waiting_bytes="lots"), "queues.q.max_waiting_bytes", "MiB"),
            (queue(protocol="smoke"), "queues.q.protocol", '"frames" or "lines"'),
            (queue(retry="often"), "queues.q.retry", '"if-not-started"'),
            (queue(full_status=500), "queues.q.full_status", "503 or 429"),
            (queue(env={"A": 1}), "queues.q.env", "A = 1", "table of texts"),
            (queue(env=[]), "queues.q.env"),
            (queue(command=5), "queues.q.command", "list of texts"),
            (queue(command=["a", 5]), "queues.q.command"),
            (queue(in_flight=257), "queues.q.in_flight", "256"),
            (queue(backoff={"jitter": 2}), "queues.q.backoff.jitter", "a number, at least 0"),
            ({"gate": {"insecure": "yes"}}, "gate.insecure", "true or false"),
            ({"gate": {"front": "slow"}}, "gate.front", '"fast" or "klein"'),
            ({"gate": 5}, "gate", "5", "table"),
            ({"queues": []}, "queues", "table"),
            ({"queues": {"q": 5}}, "queues.q", "5"),
            ({"tokens": {}}, "tokens", "[[tokens]]"),
            ({"tokens": [5]}, "tokens[0]", "5"),
        ]
        for tables, *parts in cases:
            self.wrong(tables, *parts)

    def test_content(self) -> None:
        """What has the right type but makes no sense is refused too."""
        sha = "a" * 64
        lines = {"protocol": "lines"}
        cases = [
            ({"queues": {"no spaces": {}}}, "queues", "no spaces"),
            ({"queues": {"x" * 65: {}}}, "64"),
            ({"queues": {"a\n": {}}}, "queues"),
            ({"gate": {"name": "a b"}}, "gate.name"),
            ({"gate": {"listen": []}}, "gate.listen"),
            ({"gate": {"max_body": "64MiB"}}, "gate.max_body", "63MiB"),
            ({"gate": {"store": "memory:x"}}, "gate.store", "memory:x"),
            ({"gate": {"store": "sqlite:"}}, "gate.store", "sqlite:PATH"),
            ({"gate": {"store": "sqlite::memory:"}}, "gate.store", '"memory:"'),
            (queue(command=["x"], shards=5, workers=4), "queues.q.shards", "workers = 4"),
            (queue(command='python "w.py'), "queues.q.command", "command line"),
            (queue(**lines, in_flight=2), "queues.q.in_flight", "1"),
            (queue(**lines, send="x\n"), "queues.q.send", "{line}"),
            (queue(**lines, send="{line}"), "queues.q.send", "newline"),
            (queue(**lines, until="a", until_regex="b"), "queues.q.until_regex", "until"),
            (queue(**lines, until="a\nb"), "queues.q.until"),
            (queue(**lines, until_regex="("), "queues.q.until_regex", "regular expression"),
            (queue(**lines, boot_until_regex="["), "queues.q.boot_until_regex"),
            (queue(**lines, reply_type="a\r\nb"), "queues.q.reply_type"),
            (queue(until="x"), "queues.q.until", "lines"),
            (queue(send="x{line}\n"), "queues.q.send", "lines"),
            (queue(command=["a\0b"]), "queues.q", "NUL"),
            (queue(cwd="a\0b"), "queues.q.cwd", "a folder"),
            ({"tokens": [{"name": "a", "sha256": "abc"}]}, "tokens[0].sha256", "64 hex"),
            ({"tokens": [{"sha256": sha}]}, "tokens[0].name"),
            ({"tokens": [{"name": "a"}]}, "tokens[0].sha256", "nothing"),
            (
                {"tokens": [{"name": "a", "sha256": sha, "allow": ["fly"]}]},
                "tokens[0].allow",
                '"fly"',
            ),
            ({"tokens": [{"name": "a", "sha256": sha, "rate": "5"}]}, "tokens[0].rate", "100/s"),
            (
                {"tokens": [{"name": "a", "sha256": sha}, {"name": "a", "sha256": "b" * 64}]},
                "tokens",
                '"a"',
            ),
        ]
        for tables, *parts in cases:
            self.wrong(tables, *parts)

    def test_callbacks(self) -> None:
        """Ranges and the secret of callbacks; what is wrong with a secret never shows it."""
        for secret in ("AAAA", "whsec_", "whsec_short", "whsec_" + "A" * 20, "whsec_é" * 9, 7):
            self.wrong({"callbacks": {"secret": secret}}, 'callbacks.secret: found "***"', "base64")
        for allow in ("10.0.0.1/8", "localhost", "10/8", ""):
            self.wrong({"callbacks": {"allow": [allow]}}, "callbacks.allow", f'"{allow}"', "range")
        self.wrong({"callbacks": {"allow": "10.0.0.0/8"}}, "callbacks.allow", "list of texts")
        self.wrong({"callbacks": {"runners": 0}}, "callbacks.runners", "at least 1")
        self.wrong({"callbacks": {"secrets": ""}}, "callbacks.secrets", "'secret'")
        self.wrong({"callback": {}}, "'callbacks' perhaps")

    def test_two_tokens_with_one_secret(self) -> None:
        """Two names for one secret would shadow each other."""
        sha = "a" * 64
        self.wrong(
            {"tokens": [{"name": "a", "sha256": sha}, {"name": "b", "sha256": sha}]}, "sha256"
        )

    def test_loopback_rule(self) -> None:
        """Without tokens only loopback may be listened on, unless the operator insists."""
        good = (
            "tcp:8080:interface=127.0.0.1",
            "tcp:80:interface=localhost",
            r"tcp6:80:interface=\:\:1",
            "unix:/run/x",
            "tcp:1:interface=127.5.5.5",
        )
        bad = (
            "tcp:8080",
            "tcp:8080:interface=0.0.0.0",
            "tcp:8080:interface=",
            "tcp6:80",
            "tcp:80:interface=10.0.0.1",
            "ssl:443",
            "tcp:80:interface=127.evil.example",
        )
        for endpoint in good:
            self.assertTrue(is_loopback(endpoint), endpoint)
            read({"gate": {"listen": [endpoint]}})
        for endpoint in bad:
            self.assertFalse(is_loopback(endpoint), endpoint)
            self.wrong({"gate": {"listen": [endpoint]}}, "gate.listen", "insecure = true")
            read({"gate": {"listen": [endpoint], "insecure": True}})
            read({"gate": {"listen": [endpoint]}, "tokens": [{"name": "a", "sha256": "a" * 64}]})

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers(-5, 300) | st.floats() | st.text(max_size=4),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(st.text(max_size=4), inner, max_size=2)
            ),
            max_leaves=4,
        ),
        st.sampled_from(
            ["gate", "queues", "tokens", "workers", "command", "env", "timeout", "send", "size"]
        ),
    )
    def test_never_anything_else(self, value: Any, key: str) -> None:
        """Whatever a file says: a configuration or a ConfigError of one line."""
        for tables in ({key: value}, {"gate": {key: value}}, queue(**{key: value})):
            try:
                read(tables)
            except ConfigError as error:
                self.assertNotIn("\n", str(error))


class LoadTests(SynchronousTestCase):
    """Files."""

    def test_missing(self) -> None:
        """A file that is not there is named."""
        path = Path(self.mktemp())
        error = self.assertRaises(ConfigError, load, path)
        self.assertIn(str(path), str(error))

    def test_not_toml(self) -> None:
        """A file that is not TOML, or not text, is named with what is wrong."""
        for data in (b"[gate", b"\xff\xfe"):
            path = Path(self.mktemp())
            path.write_bytes(data)
            error = self.assertRaises(ConfigError, load, path)
            self.assertIn("not TOML", str(error))

    def test_paths(self) -> None:
        """`cwd` and `audit` are relative to the file."""
        config = read({"gate": {"audit": "audit.log"}, "queues": {"q": {"cwd": "sub"}}})
        self.assertEqual(
            (config.queues["q"].cwd, config.gate.audit), ("/base/sub", "/base/audit.log")
        )

    def test_command(self) -> None:
        """A command may be a list or a text split as a shell would."""
        self.assertEqual(
            read(queue(command="python 'my w.py'")).queues["q"].command, ("python", "my w.py")
        )
        self.assertEqual(read(queue(command=["a", "b c"])).queues["q"].command, ("a", "b c"))

    def test_memory_holds_fewer_jobs(self) -> None:
        """A million a queue, unless the file says otherwise; queues that are made hold as many."""
        tables = {"gate": {"store": "memory:"}, "queues": {"q": {}, "r": {"max_backlog": 5}}}
        config = from_tables(tables, "test", Path.cwd())
        found = [config.queues["q"], config.queues["r"], config.queue("s")]
        self.assertEqual([queue.max_backlog for queue in found], [1_000_000, 5, 1_000_000])
        in_a_file = from_tables({"queues": {"q": {}}}, "test", Path.cwd())
        self.assertEqual(in_a_file.queues["q"].max_backlog, 10_000_000)
        self.assertEqual(in_a_file.queue("s").max_backlog, 10_000_000)

    def test_defaults_of_the_contract(self) -> None:
        """Without a key its default is the contract's."""
        config = read(queue())
        found = config.queues["q"]
        self.assertEqual(
            (found.workers, found.in_flight, found.size, found.queue_timeout, found.timeout, found.boot_timeout,  # noqa: E501
             found.kill_timeout, found.cancel, found.retry, found.attempts, found.shards, found.full_status),  # noqa: E501
            (4, 1, 128, 30, 60, 30, 5, "cooperative", "if-not-started", 3, 1, 503),
        )  # fmt: skip
        gate = config.gate
        self.assertEqual(
            (gate.max_body, gate.max_connections, gate.max_buffered, gate.header_timeout, gate.body_timeout,  # noqa: E501
             gate.idle_timeout, gate.drain_timeout, gate.front, gate.insecure),
            (16 * 2**20, 20000, 256 * 2**20, 10, 60, 75, 75, "fast", False),
        )  # fmt: skip

    def test_secret(self) -> None:
        """A secret is what its base64 stands for, and no text of ours ever has it."""
        shown = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
        config = read({"callbacks": {"secret": shown, "allow": ["127.0.0.0/8", "::1"]}})
        self.assertEqual(config.callbacks.secret.key[:3], b"1\xf2\x90")
        self.assertEqual(config.callbacks.allow, ("127.0.0.0/8", "::1"))
        for text in (to_toml(config), repr(config), f"{config.callbacks!r}"):
            self.assertNotIn("MfKQ9", text)
        self.assertIn('secret = "***"', to_toml(config))
        self.assertEqual((Secret().key, repr(Secret()), read({}).callbacks.runners), (b"", "", 8))


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


class TomlTests(SynchronousTestCase):
    """What `--check` prints is a file that says the same."""

    @example("q", ["\x7f"], {"\x7f": "\x7f"}, 0.0, 0, "100/s")
    @given(
        st.text("abcXYZ09._-", min_size=1, max_size=10),
        st.lists(text, max_size=3),
        st.dictionaries(text.filter(lambda key: "=" not in key), text, max_size=3),
        st.floats(0, 1e6),
        st.integers(0, 2**40),
        st.sampled_from(["100/s", "7/m", "1000/h", "1/d"]),
    )
    def test_round_trip(
        self,
        name: str,
        command: list[str],
        env: dict[str, str],
        seconds: float,
        size: int,
        rate: str,
    ) -> None:
        """Printed and read again it is the same configuration, whatever characters are in it."""
        config = from_tables(
            {
                "gate": {"drain_timeout": seconds, "max_buffered": size},
                "callbacks": {"allow": ["10.0.0.0/8"], "runners": 3},
                "queues": {name: {"command": command, "env": env, "timeout": seconds}},
                "tokens": [{"name": "a", "sha256": "A" * 64, "allow": ["call:*"], "rate": rate}],
            },
            "x",
            BASE,
        )
        again = from_tables(tomllib.loads(to_toml(config)), "x", BASE)
        self.assertEqual((again.queues, again.gate), (config.queues, config.gate))
        self.assertEqual(again.callbacks, config.callbacks)
        self.assertEqual(again.tokens, config.tokens)
        self.assertIn(f'rate = "{rate}"', to_toml(config))


class OptionsTests(SynchronousTestCase):
    """The command line and the file become one."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        here = os.getcwd()  # noqa: PTH109
        os.chdir(self.folder)
        self.addCleanup(os.chdir, here)
        self.file = self.folder / "my.toml"
        self.file.write_text('[queues.a]\ncommand = ["x"]\nworkers = 2\n[queues.b]\n')

    def parse(self, *arguments: str) -> GateConfig:
        options = Options()
        options.parseOptions(list(arguments))
        assert options.configuration is not None
        return options.configuration

    def fails(self, *arguments: str) -> str:
        out = io.StringIO()
        self.patch(sys, "stderr", out)
        error = self.assertRaises(SystemExit, self.parse, *arguments)
        self.assertEqual(error.code, 1)
        self.assertEqual(out.getvalue().count("\n"), 1, out.getvalue())
        return out.getvalue()

    def test_nothing(self) -> None:
        """Without options and file: no queues, the default port on loopback."""
        config = self.parse()
        self.assertEqual(
            (config.queues, config.gate.listen), ({}, ("tcp:8080:interface=127.0.0.1",))
        )

    def test_default_file(self) -> None:
        """./jobgate.toml is read if it is there, unless --worker says it all."""
        (self.folder / "jobgate.toml").write_text("[queues.z]\n")
        self.assertEqual(list(self.parse().queues), ["z"])
        self.assertEqual(list(self.parse("--worker", "w").queues), ["default"])

    def test_store(self) -> None:
        """A file is found from where twistd was started; what is none is no file's name."""
        found = self.parse("--store", "sqlite:a.db").gate.store
        self.assertEqual(found, f"sqlite:{self.folder / 'a.db'}")
        self.assertEqual(self.parse("--store", "memory:").gate.store, "memory:")
        for text in ("sqlite:", "sqlite::memory:", "memory"):
            self.assertIn(f'gate.store: found "{text}"', self.fails("--store", text))

    def test_worker(self) -> None:
        """--worker makes one queue, in the folder where twistd was started."""
        config = self.parse(
            "-w",
            "python 'a b.py'",
            "--workers",
            "3",
            "--protocol",
            "lines",
            "--queue-size",
            "7",
            "--timeout",
            "1.5",
        )
        found = config.queues["default"]
        self.assertEqual(
            (found.command, found.workers, found.protocol, found.size, found.timeout, found.cwd),
            (("python", "a b.py"), 3, "lines", 7, 1.5, str(self.folder)),
        )
        self.assertEqual(list(self.parse("-w", "x", "-q", "mine").queues), ["mine"])

    def test_batches(self) -> None:
        """Two options are keys of one table; what else the file says in it stays."""
        config = self.parse("-w", "x", "--batch-size", "8", "--batch-linger", "5ms")
        batch = config.queues["default"].batch
        self.assertEqual((batch.size, batch.linger), (8, 0.005))
        self.assertEqual(
            self.parse("-w", "x", "--batch-linger", "auto").queues["default"].batch.size, 256
        )
        self.file.write_text("[queues.a]\nbatch = { size = 4, linger = 1, max_bytes = 7 }\n")
        batch = self.parse("-c", "my.toml", "--batch-linger", "0.5").queues["a"].batch
        self.assertEqual((batch.size, batch.linger, batch.max_bytes), (4, 0.5, 7))

    def test_command_line_wins(self) -> None:
        """Options win over the file, for the queue that is named or for all."""
        config = self.parse("-c", "my.toml", "--workers", "9", "--timeout", "2m")
        self.assertEqual([q.workers for q in config.queues.values()], [9, 9])
        self.assertEqual(config.queues["a"].timeout, 120)
        config = self.parse("-c", "my.toml", "-q", "a", "--workers", "9")
        self.assertEqual([q.workers for q in config.queues.values()], [9, 4])

    def test_port_and_listen(self) -> None:
        """--port and --listen replace the file's `listen`, also one that would be refused."""
        self.file.write_text('[gate]\nlisten = ["tcp:80"]\n')
        self.assertEqual(
            self.parse("-c", "my.toml", "-p", "0").gate.listen, ("tcp:0:interface=127.0.0.1",)
        )
        config = self.parse("-c", "my.toml", "--listen", "unix:/a", "--listen", "unix:/b")
        self.assertEqual(config.gate.listen, ("unix:/a", "unix:/b"))

    def test_mistakes(self) -> None:
        """A mistake is one line on stderr that names the option, and status 1."""
        cases = [
            (["--no-such"], "no-such"),
            (["--port", "http"], "--port", "http", "65535"),
            (["--port", "65536"], "--port"),
            (["--port", "-1"], "--port"),
            (["-w", "x", "--workers", "many"], "--workers", "many"),
            (["-w", "x", "--workers", "0"], "workers", "0"),
            (["-w", "x", "--protocol", "smoke"], "protocol", "smoke"),
            (["-w", "x", "--timeout", "soon"], "timeout", "soon"),
            (["-w", "x", "--timeout", "nan"], "timeout"),
            (["-w", "x", "--batch-size", "many"], "--batch-size", "many"),
            (["-w", "x", "--batch-size", "0"], "batch.size", "0"),
            (["-w", "x", "--batch-linger", "long"], "batch.linger", "long"),
            (["-w", ""], "--worker"),
            (["-w", "python 'x"], "--worker"),
            (["-q", "nobody"], "--queue", "nobody"),
            (["--workers", "3"], "--workers"),
            (["-c", "nowhere.toml"], "nowhere.toml"),
            (["--listen", "tcp:80"], "listen", "tcp:80"),
            (["extra", "two words"], "found \"extra 'two words'\"", "wanted options"),
            (["--wrkers", "3"], "unknown option '--wrkers'", "'--workers' perhaps"),
            (["--xyzzy"], "unknown option '--xyzzy'", "--help"),
            (["-w", "x", "--queue", ""], 'found ""', "1 to 64"),
            (["--listen", "127.0.0.1:80"], "an endpoint", "tcp:8080:interface=127.0.0.1"),
        ]
        for arguments, *parts in cases:
            message = self.fails(*arguments)
            for part in parts:
                self.assertIn(part, message)

    def test_mistake_in_the_file(self) -> None:
        """A mistake in the file names the file, also when options would cover it."""
        self.file.write_text("[queues.a]\nworkers = 0\n")
        message = self.fails("-c", "my.toml", "--workers", "3")
        self.assertIn("my.toml", message)
        self.assertIn("queues.a.workers", message)

    def test_endpoint_in_the_file(self) -> None:
        """An endpoint that is none is the file's mistake, too, whatever else the file has."""
        self.file.write_text('[gate]\nlisten = ["tcp:http:interface=127.0.0.1"]\n')
        self.assertIn("my.toml: gate.listen: found ", self.fails("-c", "my.toml"))
        self.file.write_text('[gate]\nworker_listen = ["tcp:9\\u0000:interface=127.0.0.1"]\n')
        message = self.fails("-c", "my.toml", "--port", "0")
        self.assertIn("my.toml: gate.worker_listen: found ", message)
        self.file.write_text('[gate]\nname = "x"\n')
        message = self.fails("-c", "my.toml", "--listen", "tcp:http:interface=127.0.0.1")
        self.assertIn("options: gate.listen: found ", message)

    def test_ports_that_there_are(self) -> None:
        """What cannot be a port is found before anything is started."""
        for number in ("65536", "-1"):
            for kind in ("tcp", "tcp6"):
                message = self.fails("--listen", f"{kind}:{number}:interface=127.0.0.1")
                self.assertIn("wanted a Twisted endpoint string (a port is 0 to 65535)", message)

    def test_mistake_in_an_option_beside_a_file(self) -> None:
        """A mistake in an option is not said to be the file's."""
        message = self.fails("-c", "my.toml", "--workers", "0")
        self.assertNotIn("my.toml: queues", message)

    def test_check(self) -> None:
        """--check prints the effective configuration and exits 0."""
        out = io.StringIO()
        self.patch(sys, "stdout", out)
        error = self.assertRaises(
            SystemExit, self.parse, "-c", "my.toml", "--check", "--workers", "7"
        )
        self.assertEqual(error.code, 0)
        self.assertEqual(tomllib.loads(out.getvalue())["queues"]["a"]["workers"], 7)

    def test_environment(self) -> None:
        """$JOBGATE_CONFIG is what jobgate.tac reads."""
        self.patch(os, "environ", {**os.environ, "JOBGATE_CONFIG": "my.toml"})
        configuration = from_environment().configuration
        assert configuration is not None
        self.assertEqual(list(configuration.queues), ["a", "b"])


class BatchTests(SynchronousTestCase):
    """`batch = { size, linger, target, max_bytes }`."""

    def batch(self, **keys: Any) -> Any:
        return read(queue(batch=keys)).queues["q"].batch

    def test_defaults(self) -> None:
        """One at a time."""
        batch = read(queue()).queues["q"].batch
        self.assertEqual((batch.size, batch.linger, batch.target), (1, 0, None))
        self.assertEqual(batch.max_bytes, 8 * 1024**2)
        self.assertEqual(self.batch(size=1, linger=0.0, max_bytes="8MiB"), batch)

    def test_linger(self) -> None:
        """A duration, or a word."""
        self.assertEqual(self.batch(size=8, linger="5ms").linger, 0.005)
        self.assertEqual(self.batch(size=8, linger=2).linger, 2)
        full, auto = self.batch(size=8, linger="full"), self.batch(size=8, linger="auto")
        self.assertEqual((full.linger.word, auto.linger.word), ("full", "auto"))
        self.assertEqual((full.target_seconds, auto.target_seconds), (0, 0.05))
        self.assertEqual(self.batch(linger="auto", target="20ms").target_seconds, 0.02)

    def test_auto_has_a_size(self) -> None:
        """Without a bound of one's own there is a sensible one."""
        self.assertEqual(self.batch(linger="auto").size, 256)
        self.assertEqual(self.batch(linger="auto", size=16).size, 16)

    def test_explained(self) -> None:
        """Key, found and wanted."""
        for keys, wanted in (
            ({"size": 0}, "batch.size: found 0, wanted a whole number, at least 1"),
            ({"size": "many"}, 'batch.size: found "many", wanted a whole number'),
            ({"linger": "long"}, 'batch.linger: found "long", wanted a number of seconds'),
            ({"linger": -1}, "batch.linger: found -1, wanted a number of seconds"),
            ({"max_bytes": "big"}, 'batch.max_bytes: found "big", wanted a number of bytes'),
            ({"sice": 2}, "batch.sice: found an unknown key 'sice', wanted 'size' perhaps"),
            ({"size": 2, "target": 1}, 'batch.target: found 1, wanted linger = "auto" with it'),
            (
                {"size": 2, "linger": "auto", "target": 0},
                "batch.target: found 0, wanted a time over 0",
            ),
        ):
            error = self.assertRaises(ConfigError, self.batch, **keys)
            self.assertIn(f"my.toml: queues.q.{wanted}", str(error))
        error = self.assertRaises(ConfigError, read, queue(batch=8))
        self.assertIn("queues.q.batch: found 8, wanted a table { size, linger, target", str(error))

    @given(
        size=st.integers(1, 4096),
        linger=st.one_of(st.sampled_from(["full", "auto", "3ms"]), st.floats(0, 1e6)),
        max_bytes=st.integers(0, 2**40),
    )
    def test_check_says_the_same(self, size: int, linger: object, max_bytes: int) -> None:
        """What --check prints can be loaded again."""
        tables = queue(batch={"size": size, "linger": linger, "max_bytes": max_bytes})
        config = read(tables)
        again = read(tomllib.loads(to_toml(config)))
        self.assertEqual(again.queues["q"].batch, config.queues["q"].batch)

    def test_what_the_workers_know_of_it(self) -> None:
        """How long a batch waits is no reason to replace workers; how large it is, is."""
        one = read(queue(batch={"size": 8, "linger": 1})).queues["q"]
        two = read(queue(batch={"size": 8, "linger": "full", "max_bytes": 5})).queues["q"]
        other = read(queue(batch={"size": 9, "linger": 1})).queues["q"]
        self.assertEqual(one.worker(), two.worker())
        self.assertNotEqual(one.worker(), other.worker())
