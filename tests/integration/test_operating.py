"""
What operators do: start, check, look, change, stop, and kill.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
from background import background, result
from callers import Callers
from openapi_spec_validator import validate
from program import (
    TWISTD,
    WORKERS,
    Program,
    alive,
    at_rest,
    eventually,
    lines_of,
    marked,
    sdk,
    to_toml,
    twistd,
)
from raw_http import RawConnection

from jobgate.options import Options
from jobgate.web.problems import PROBLEMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROOT = WORKERS.parent.parent.parent
ECHO = {"command": sdk("echo"), "workers": 1}
ACTOR = {"command": sdk("actor"), "workers": 1, "kill_timeout": 0.5}


def steps(*taken: tuple[str, Any]) -> bytes:
    """A body for `workers/actor.py`."""
    return json.dumps(taken).encode()


STREAM = steps(("chunks", {"count": 4, "pause": 0.3}))


# --- the command line and the file


def refused(folder: Path, *arguments: str, config: str | None = None) -> str:
    """Start with something wrong; returns the one line on stderr."""
    if config is not None:
        (folder / "jobgate.toml").write_text(config)
        arguments = ("--config", "jobgate.toml", *arguments)
    done = twistd("-n", "--pidfile=", "jobgate", *arguments, cwd=folder)
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert done.stderr.endswith("\n"), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "listening" not in done.stdout
    return done.stderr


def complaint(
    folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str, config: str | None = None
) -> str:
    """The same without starting a process: the one line that the options complain with."""
    if config is not None:
        (folder / "jobgate.toml").write_text(config)
        arguments = ("--config", "jobgate.toml", *arguments)
    with contextlib.chdir(folder), pytest.raises(SystemExit) as ended:
        Options().parseOptions(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert said.count("\n") == 1, said
    return said


def test_check_prints_a_configuration_that_loads_again(tmp_path: Path) -> None:
    """What `--check` prints is what is in force: a fixed point."""
    config = {
        "gate": {"name": "g1", "max_body": "1MiB", "idle_timeout": "2m"},
        "tokens": [{"name": "ci", "sha256": "a" * 64, "allow": ["call:*"], "rate": "600/m"}],
        "queues": {
            "a.b": {**ECHO, "timeout": "500ms", "env": {"A b": 'quoted "x"\n', "B": "ü"}},
            "l": {"command": "jq .", "protocol": "lines", "send": "-j\n{line}\n", "until": "{r}"},
        },
    }
    (tmp_path / "jobgate.toml").write_text(to_toml(config))
    first = twistd("-n", "jobgate", "--config", "jobgate.toml", "--check", cwd=tmp_path)
    assert (first.returncode, first.stderr) == (0, "")
    (tmp_path / "again.toml").write_text(first.stdout)
    second = twistd("-n", "jobgate", "--config", "again.toml", "--check", cwd=tmp_path)
    assert (second.returncode, second.stderr) == (0, "")
    assert second.stdout == first.stdout
    assert "timeout = 0.5" in first.stdout


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    """Each option is a key."""
    (tmp_path / "jobgate.toml").write_text(to_toml({"queues": {"q": ECHO}}))
    done = twistd(
        "-n",
        "jobgate",
        "--workers",
        "7",
        "--queue-size",
        "9",
        "--timeout",
        "2m",
        "--store",
        "sqlite:jobs.db",
        "--long-polling-timeout",
        "7",
        "-p",
        "1234",
        "--check",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    lines = (
        "workers = 7",
        "size = 9",
        "timeout = 120",
        "tcp:1234:interface=127.0.0.1",
        f'store = "sqlite:{tmp_path / "jobs.db"}"',
        "long_poll_timeout = 7",
    )
    for line in lines:
        assert line in done.stdout


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("[queues.q]\ncomand = ['x']\n", ["queues.q.comand", "command"]),
        ("[queues.q]\nworkers = 'four'\n", ["queues.q.workers", '"four"', "whole number"]),
        ("[queues.q]\nworkers = 0\n", ["queues.q.workers", "0", "at least 1"]),
        ("[queues.q]\ntimeout = 'soon'\n", ["queues.q.timeout", '"soon"', "seconds"]),
        ("[queues.q]\nprotocol = 'smoke'\n", ["queues.q.protocol", '"smoke"', '"lines"']),
        ('[queues.q]\ncommand = "x"\nshards = 9\n', ["queues.q.shards", "9", "workers"]),
        ("[queues.'no spaces']\n", ["no spaces", "1 to 64"]),
        ("[gate]\nmax_body = '1 GiB'\n", ["gate.max_body", "63MiB"]),
        ("[gate]\nlisten = ['tcp:0']\n", ["gate.listen", "loopback", "insecure"]),
        ("[gate]\nlisten = []\n", ["gate.listen"]),
        ("[gate]\nlisten = 'tcp:1'\n", ["gate.listen", "list of texts"]),
        ("[gat]\n", ["gat", "gate"]),
        ("[queues.q]\nworkers = 1\nworkers = 2\n", ["not TOML"]),
        ("queues = 3\n", ["queues", "3", "table"]),
        ("[[tokens]]\nname = 'x'\n", ["tokens[0].sha256"]),
        ("[[tokens]]\nname = 'x'\nsha256 = 'abc'\n", ["tokens[0].sha256", "abc"]),
        (
            "[[tokens]]\nname='x'\nsha256='" + "a" * 64 + "'\nallow=['fly']\n",
            ["tokens[0].allow", "fly", "admin"],
        ),
        ("[gate]\nstore = 'memory'\n", ["gate.store", '"memory"', "sqlite:PATH"]),
        ("[queues.q]\nprotocol='lines'\nuntil_regex='('\n", ["queues.q.until_regex", "regular"]),
    ],
)
def test_a_bad_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str, said: list[str]
) -> None:
    """It names the file, the key, what was found and what is wanted."""
    line = complaint(tmp_path, capsys, config=config)
    for word in ["jobgate.toml", *said]:
        assert word in line


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("[queues.q]\ncomand = ['x']\n", ["jobgate.toml", "queues.q.comand", "command"]),
        ("[gate]\nlisten = ['tcp:0']\n", ["jobgate.toml", "gate.listen", "loopback", "insecure"]),
        (
            "[gate]\nlisten = ['nonsense:1:interface=127.0.0.1']\n",
            ["jobgate.toml: gate.listen: found ", "nonsense"],
        ),
        (
            "[gate]\naudit = '/no/such/folder/audit'\n",
            ["jobgate.toml: gate.audit: found ", "/no/such/folder/audit", "wanted a file"],
        ),
        (
            "[gate]\nstore = 'sqlite:/no/such/folder/jobs.db'\n",
            ["jobgate.toml: gate.store: ", "/no/such/folder"],
        ),
        (
            "[gate]\nlisten = ['unix:/no/such/folder/socket']\n",
            ["jobgate.toml: gate.listen: found /no/such/folder/socket"],
        ),
        (
            "[gate]\nlisten = ['unix:callers']\nworker_listen = ['unix:/no/such/folder/socket']\n",
            ["jobgate.toml: gate.worker_listen: found /no/such/folder/socket"],
        ),
    ],
)
def test_a_bad_file_ends_the_program(tmp_path: Path, config: str, said: list[str]) -> None:
    """One line on stderr, exit 1, nothing started."""
    line = refused(tmp_path, config=config)
    for word in said:
        assert word in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "eighty"], ["--port", "eighty"]),
        (["--port", "70000"], ["--port", "70000"]),
        (["--workers", "3"], ["--workers", "--worker"]),
        (["--worker", "x", "--workers", "many"], ["--workers", "many"]),
        (["--worker", "python 'x"], ["--worker", "python 'x"]),
        (["--worker", ""], ["--worker"]),
        (["--queue", "q"], ["--queue", "q"]),
        (["--worker", "x", "--protocol", "smoke"], ["protocol", "smoke"]),
        (["--worker", "x", "--timeout", "soon"], ["timeout", "soon"]),
        (["--worker", "x", "--queue", "a b"], ["a b"]),
        (["--nonsense"], ["nonsense"]),
        (["--config", "not-there.toml"], ["not-there.toml", "No such file"]),
        (["--config", "."], ["cannot be read"]),
        (["--listen", "tcp:0"], ["listen", "loopback"]),
        (["an", "argument"], ["argument"]),
    ],
)
def test_a_bad_option_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: list[str]
) -> None:
    """The same for the command line."""
    line = complaint(tmp_path, capsys, *arguments)
    for word in said:
        assert word in line


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    """Exit 1, and no worker is left."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused(tmp_path, "--worker", " ".join(sdk("echo")), "--port", str(port))
        assert str(port) in line


def test_without_a_file(start_gate: Callable[..., Program], tmp_path: Path) -> None:
    """`--worker`: one queue, "default", relative to where it was started."""
    (tmp_path / "mine.py").write_text(
        "from jobgate.worker import serve\nserve(lambda c: c.body.upper())\n"
    )
    gate = start_gate(
        to_toml({"queues": {"other": ECHO}}),
        "--worker",
        "python mine.py",
        "--workers",
        "2",
        "-p",
        "0",
    )
    gate.ready("default", 2)
    assert gate.call("default", b"hi").body == b"HI"


def test_unbound_options_make_a_plain_server(tmp_path: Path) -> None:
    """No file, no options: no queues, and it says nothing is wrong."""
    done = twistd("-n", "jobgate", "--check", cwd=tmp_path)
    assert done.returncode == 0
    assert "[queues" not in done.stdout


# --- daemon, tac


def test_daemonised(tmp_path: Path) -> None:
    """Without `-n`: pid and log file; SIGTERM ends it and nothing is left."""
    (tmp_path / "jobgate.toml").write_text(to_toml({"queues": {"q": ECHO}}))
    done = twistd(
        "--pidfile",
        "gate.pid",
        "--logfile",
        "gate.log",
        "jobgate",
        "-p",
        "0",
        cwd=tmp_path,
        env={"TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    log = tmp_path / "gate.log"
    pid = int(eventually((tmp_path / "gate.pid").read_text, 10))
    try:
        found = eventually(
            lambda: re.search(r"jobgate listening on (\S+)", log.read_text()), 20, "it listens"
        )
        with RawConnection(found[1]) as caller:
            assert caller.request("POST", "/call/q", b"hi").body == b"hi"
        # twistd changes to its --rundir, the worker to the folder of the file.
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: not alive(pid), 15, "it is gone")
        eventually(lambda: not marked(tmp_path), 2, "nobody is left")
        assert not (tmp_path / "gate.pid").exists()
        assert "Traceback" not in log.read_text()
    finally:
        for process in marked(tmp_path):
            process.kill()


def test_a_daemon_that_cannot_start_says_so(tmp_path: Path) -> None:
    """One line, exit 1, no pid file."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = twistd(
            "--pidfile", "gate.pid", "--logfile", "gate.log", "jobgate", "-p", port, cwd=tmp_path
        )
    assert done.returncode == 1
    assert port in done.stderr
    assert "Traceback" not in done.stderr
    eventually(lambda: not (tmp_path / "gate.pid").exists(), 5)


def test_the_tac_file(tmp_path: Path) -> None:
    """`twistd -ny jobgate.tac` with $JOBGATE_CONFIG."""
    config = tmp_path / "elsewhere.toml"
    gate = {"listen": ["tcp:0:interface=127.0.0.1"]}
    config.write_text(to_toml({"gate": gate, "queues": {"q": ECHO}}))
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [TWISTD, "--pidfile=", "-ny", str(ROOT / "jobgate.tac")],
            cwd=tmp_path,
            env={**os.environ, "JOBGATE_CONFIG": str(config), "TMPDIR": str(tmp_path)},
            stdout=file,
            stderr=file,
        )
    try:
        found = eventually(lambda: re.search(r"listening on (\S+)", log.read_text()), 20)
        with RawConnection(found[1]) as caller:
            assert caller.request("POST", "/call/q", b"hi").body == b"hi"
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        eventually(lambda: not marked(tmp_path), 2)
    finally:
        process.kill()
        process.wait()


def test_the_tac_file_with_a_bad_configuration(tmp_path: Path) -> None:
    """One line, exit 1."""
    (tmp_path / "bad.toml").write_text("[gat]\n")
    done = twistd(
        "-ny", str(ROOT / "jobgate.tac"), cwd=tmp_path, env={"JOBGATE_CONFIG": "bad.toml"}
    )
    assert done.returncode == 1
    assert "bad.toml" in done.stderr
    assert done.stderr.count("\n") == 1


# --- who may come in

TOKENS = {
    name: {"name": name, "sha256": sha256(f"{name}-secret".encode()).hexdigest(), **more}
    for name, more in {
        "caller": {"allow": ["call:q"]},
        "everything": {"allow": ["call:*", "admin", "metrics"]},
        "slow": {"allow": ["call:*"], "rate": "2/s"},
        "nothing": {},
    }.items()
}


def bearer(name: str) -> dict[str, str]:
    """The header that says who it is."""
    return {"Authorization": f"Bearer {name}-secret"}


@pytest.fixture(scope="module")
def guarded(start_shared_gate: Callable[..., Program]) -> Program:
    """A gate with tokens."""
    gate = {"audit": "audit.log", "name": "g7"}
    queues = {"q": ECHO, "other": ECHO}
    return start_shared_gate({"gate": gate, "tokens": list(TOKENS.values()), "queues": queues})


def test_no_token_and_a_wrong_one(guarded: Program) -> None:
    """401 with WWW-Authenticate."""
    for headers in ({}, bearer("unknown"), {"Authorization": "Basic x"}, {"Authorization": ""}):
        answer = guarded.post("/call/q", b"x", headers)
        assert (answer.status, answer.slug) == (401, "unauthorized")
        assert answer["WWW-Authenticate"].startswith("Bearer")
    assert guarded.get("/no/such/route").status == 401


def test_what_a_token_may(guarded: Program) -> None:
    """`allow`, and nothing else."""
    assert guarded.post("/call/q", b"x", bearer("caller")).status == 200
    lower = {"authorization": "bearer caller-secret"}
    assert guarded.post("/call/q", b"x", lower).status == 200
    for method, path in [("POST", "/call/other"), ("GET", "/metrics"), ("GET", "/workers")]:
        answer = guarded.request(method, path, b"", bearer("caller"))
        assert (answer.status, answer.slug) == (403, "forbidden"), path
    assert guarded.post("/call/q", b"x", bearer("nothing")).status == 403
    assert guarded.post("/call/other", b"x", bearer("everything")).status == 200
    assert guarded.get("/metrics", bearer("everything")).status == 200
    assert guarded.get("/queues", bearer("everything")).status == 200


def test_a_token_cannot_probe_for_queues(guarded: Program) -> None:
    """Who may not call it is not told whether it is there."""
    assert guarded.post("/call/not-there", b"x", bearer("caller")).status == 403


def test_health_and_problems_are_open(guarded: Program) -> None:
    """For probes, and for people with a problem."""
    for path in ("/healthz", "/readyz", "/problems/queue-full"):
        assert guarded.get(path).status == 200


def test_the_rate_of_a_token(guarded: Program) -> None:
    """429 with Retry-After; others are not affected; it recovers."""
    answers = [guarded.post("/call/q", b"x", bearer("slow")) for _ in range(6)]
    assert answers[0].status == 200
    assert answers[-1].status == 429
    assert answers[-1].slug == "quota-exceeded"
    assert int(answers[-1]["Retry-After"]) >= 1
    assert guarded.post("/call/q", b"x", bearer("caller")).status == 200
    eventually(lambda: guarded.post("/call/q", b"x", bearer("slow")).status == 200, 5, every=0.1)


def test_with_tokens_any_host_will_do(guarded: Program) -> None:
    """The rule for web pages is for gates without tokens."""
    headers = {**bearer("caller"), "Host": "gate.example", "Origin": "https://page.example"}
    assert guarded.post("/call/q", b"x", headers).status == 200


def test_the_audit(guarded: Program) -> None:
    """A line at acceptance, a line at outcome; never bodies."""
    body = b"a body that must not be told"
    answer = guarded.post("/call/q", body, bearer("everything"))
    path = guarded.folder / "audit.log"
    lines = eventually(
        lambda: (
            [x for x in map(json.loads, lines_of(path)) if x["id"] == answer["Jobgate-Id"]][1:]
            and [x for x in map(json.loads, lines_of(path)) if x["id"] == answer["Jobgate-Id"]]
        )
    )
    accepted, ended = lines
    assert (accepted["event"], ended["event"]) == ("accepted", "ended")
    for line in lines:
        assert line["queue"] == "q"
        assert line["token"] == "everything"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["at"])
    assert ended["status"] == 200
    assert ended["attempt"] == 1
    assert ended["ran"] >= 0
    assert body.decode() not in path.read_text()
    assert "secret" not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert answer["Jobgate-Id"].startswith("g7-")


@pytest.fixture(scope="module")
def plain(start_shared_gate: Callable[..., Program]) -> Program:
    """A gate without tokens."""
    return start_shared_gate(
        {
            "queues": {
                "q": ECHO,
                "actor": ACTOR,
                "two": {**ACTOR, "workers": 2},
                "sharded": {**ACTOR, "workers": 4, "shards": 4},
                "small": {**ACTOR, "size": 1},
                "small-429": {**ACTOR, "size": 1, "full_status": 429},
                "short": {**ACTOR, "queue_timeout": 0.3},
                "bytes": {**ACTOR, "max_waiting_bytes": 1000},
                "priorities": ACTOR,
            }
        }
    )


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost"}, 200),
        ({"Host": "localhost:8080"}, 200),
        ({"Host": "127.0.0.1:1"}, 200),
        ({"Host": "127.9.9.9"}, 200),
        ({"Host": "[::1]:8080"}, 200),
        ({"Host": "app.localhost"}, 200),
        ({"Host": "LOCALHOST"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "evil.example@localhost"}, 403),
        ({"Host": "192.168.1.1"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": "localhost", "Origin": "http://localhost"}, 200),
        ({"Host": "localhost:81", "Origin": "http://localhost:80"}, 403),
        ({"Host": "localhost", "Origin": "https://evil.example"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
        ({"Host": "localhost", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "localhost", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "localhost", "Sec-Fetch-Site": "none"}, 200),
        ({"Host": "localhost", "Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_web_pages_are_kept_out(plain: Program, headers: dict[str, str], status: int) -> None:
    """Without tokens: loopback names, and no foreign origin."""
    answer = plain.post("/call/q", b"x", headers)
    assert answer.status == status
    if status == 403:
        assert answer.slug == "forbidden"
    assert plain.get("/queues", headers).status == status


def test_tls_endpoint(start_gate: Callable[..., Program], tmp_path: Path) -> None:
    """`listen = ["ssl:..."]`: small and large answers, refusals, streams, keep-alive, pulls."""
    _make_certificate(tmp_path)
    listen = "ssl:0:interface=127.0.0.1:privateKey=key.pem:certKey=cert.pem"
    gate = start_gate(
        {
            "gate": {"listen": [listen], "max_body": 4_000_000},
            "queues": {"q": ECHO, "actor": ACTOR},
        },
        "--workers",
        "1",
    )
    assert gate.url.startswith("https://127.0.0.1:")
    port = int(gate.url.rpartition(":")[2])
    context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=10)

    def ask(path: str, body: bytes) -> tuple[int, bytes]:
        connection.request("POST", path, body)
        response = connection.getresponse()
        return response.status, response.read()

    try:
        assert ask("/call/q", b"hi") == (200, b"hi")
        large = os.urandom(3_000_000)
        assert ask("/call/q", large) == (200, large)
        status, body = ask("/call/actor", steps(("chunks", {"count": 20, "size": 100_000})))
        assert (status, len(body)) == (200, sum(len(f"{n}:\n") + 100_000 for n in range(20)))
        assert ask("/push/letters", b"dear Ada")[0] == 202
        assert ask("/pull/letters?wait=5", b"") == (200, b"dear Ada")
        status, body = ask("/call/q", b"x" * 5_000_000)
        assert status == 413
        assert json.loads(body)["type"] == "/problems/body-too-large"
    finally:
        connection.close()


def _make_certificate(folder: Path) -> None:
    import datetime as dt
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now, day = dt.datetime.now(dt.UTC), dt.timedelta(days=1)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    private = serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(pem, private, serialization.NoEncryption()))


def test_a_unix_socket(start_gate: Callable[..., Program], tmp_path: Path) -> None:
    """No web page can reach it: any Host will do."""
    path = tmp_path / "gate.sock"
    listen = [f"unix:{path}", "tcp:0:interface=127.0.0.1"]
    gate = start_gate({"gate": {"listen": listen}, "queues": {"q": ECHO}}, "--workers", "1")
    assert gate
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(10)
        caller.connect(str(path))
        caller.sendall(b"POST /call/q HTTP/1.0\r\nHost: any.thing\r\nContent-Length: 2\r\n\r\nhi")
        said = b"".join(iter(lambda: caller.recv(65536), b""))
    assert said.startswith(b"HTTP/1.1 200 ")
    assert said.endswith(b"\r\n\r\nhi")


# --- looking


def test_health_ready_queues_and_workers(plain: Program, tmp_path: Path) -> None:
    """What each says while something runs and something waits."""
    go = tmp_path / "go"
    assert plain.get("/healthz").json["status"] == "ok"
    assert plain.get("/readyz").json["status"] == "ready"
    callers = [background(plain.call, "actor", steps(("until", str(go)))) for _ in range(3)]
    plain.waiting("actor", 2)
    queue = plain.queue("actor")
    assert (queue["name"], queue["depth"], queue["running"]) == ("actor", 2, 1)
    assert queue["bytes_waiting"] > 0
    [worker] = plain.workers("actor")
    assert worker["name"] == "actor-1"
    assert worker["state"] == "busy"
    assert worker["command"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", worker["since"])
    assert worker["rss"] > 1_000_000
    numbers = plain.conserved()["actor"]
    assert (numbers["commands_waiting"], numbers["commands_running"]) == (2, 1)
    go.touch()
    answers = [result(caller) for caller in callers]
    assert worker["command"] in [answer["Jobgate-Id"] for answer in answers]
    listed = plain.get("/queues").json["queues"]
    assert {"q", "actor", "two"} <= {queue["name"] for queue in listed}
    numbers = at_rest(plain, "actor")
    assert numbers["commands_succeeded_total"] >= 3
    assert "jobgate_commands_accepted_total" in plain.get("/metrics").body.decode()
    openmetrics = plain.get("/metrics", {"Accept": "application/openmetrics-text"})
    assert openmetrics["Content-Type"].startswith("application/openmetrics-text")
    assert openmetrics.body.endswith(b"# EOF\n")


def test_openapi(plain: Program) -> None:
    """It validates, and every route in it is there."""
    document = plain.get("/openapi.json").json
    assert document["openapi"].startswith("3.1")
    validate(document)
    named = {"queue": "q", "name": "q-1", "slug": "queue-full", "lease": "q-2", "need": "n"}
    for path, operations in document["paths"].items():
        for method in operations:
            target = re.sub(r"{(\w+)}", lambda match: named[match[1]], path)
            query = "?wait=0" if path.startswith("/pull") else ""
            answer = plain.request(method.upper(), target + query, b"")
            # Nobody has died, and nothing has been pushed or pulled.
            kept = ("/graphs/", "/jobs/", "/leases/")
            nothing = target.endswith("/report") or target.startswith(kept)
            assert str(answer.status) in operations[method]["responses"] or (
                answer.status in (404, 409) and nothing
            ), (method, target, answer)
    for path in ("/call/{queue}", "/readyz", "/metrics", "/workers/{name}/recycle"):
        assert path in document["paths"]


def test_every_problem_has_a_page(plain: Program) -> None:
    """The type of a problem is an address that answers."""
    for slug in PROBLEMS:
        answer = plain.get(f"/problems/{slug}")
        assert answer.status == 200, slug
        assert answer.body
    assert plain.get("/problems/no-such").status == 404
    contract = (
        "unknown-queue not-found method-not-allowed bad-request unprocessable body-too-large"
        " queue-full would-miss-deadline gate-full quota-exceeded queue-timeout worker-timeout"
        " worker-died poison-command worker-protocol-error command-failed no-worker shutting-down"
        " unauthorized forbidden"
    )
    assert set(contract.split()) <= set(PROBLEMS)


# --- what callers may ask for


def test_what_an_answer_carries(plain: Program) -> None:
    """Id, attempt, worker, Server-Timing; traceparent handed on."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = plain.call("actor", b"", {"traceparent": trace, "Jobgate-Key": "k"})
    assert answer.json["headers"] == {"traceparent": trace, "jobgate-key": "k"}
    assert answer.json["id"] == answer["Jobgate-Id"]
    assert answer["Jobgate-Attempt"] == "1"
    assert answer["Jobgate-Worker"] == "actor-1"
    assert re.fullmatch(r"queue;dur=\d+(\.\d+)?, run;dur=\d+(\.\d+)?", answer["Server-Timing"])
    assert re.fullmatch(r"gate-[A-Za-z0-9._~-]{22,}", answer["Jobgate-Id"])
    slow = plain.call("actor", steps(("sleep", 0.2)))
    run = float(re.search(r"run;dur=([\d.]+)", slow["Server-Timing"])[1])  # type: ignore[index]
    assert 190 < run < 2000
    assert plain.call("actor", b"", {"traceparent": "nonsense"}).json["headers"] == {}


def test_ids_are_unique_and_sort_by_time(plain: Program) -> None:
    """Behind the gate's name."""
    ids = [plain.call("q")["Jobgate-Id"] for _ in range(5)]
    assert len(set(ids)) == 5
    times = [identifier[:17] for identifier in ids]
    assert times == sorted(times)


@pytest.fixture
def busy(plain: Program, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Keep the worker of a queue busy until the test is over."""
    go, callers = tmp_path / "go", []

    def keep_busy(queue: str) -> None:
        callers.append(background(plain.call, queue, steps(("until", str(go)))))
        plain.running(queue)

    yield keep_busy
    go.touch()
    for caller in callers:
        result(caller)


def test_jobgate_timeout_while_waiting(plain: Program, busy: Callable[[str], None]) -> None:
    """504 `queue-timeout`, `executed: no`."""
    busy("actor")
    for headers in ({"Jobgate-Timeout": "0.4"},):
        started = time.monotonic()
        answer = plain.call("actor", b"", headers)
        assert 0.3 < time.monotonic() - started < 1.4
        assert (answer.status, answer.slug) == (504, "queue-timeout")
        assert answer.json["executed"] == "no"


def test_prefer_wait(plain: Program, busy: Callable[[str], None]) -> None:
    """`wait=1` alone is `Jobgate-Timeout: 1`; the shorter of both counts."""
    busy("actor")
    started = time.monotonic()
    assert plain.call("actor", b"", {"Prefer": "wait=1"}).slug == "queue-timeout"
    assert 0.9 < time.monotonic() - started < 2.5
    started = time.monotonic()
    both = {"Prefer": "wait=20", "Jobgate-Timeout": "0.3"}
    assert plain.call("actor", b"", both).slug == "queue-timeout"
    assert time.monotonic() - started < 1.4


def test_jobgate_timeout_may_only_shorten(plain: Program, busy: Callable[[str], None]) -> None:
    """The queue's own `queue_timeout` holds."""
    busy("short")
    started = time.monotonic()
    answer = plain.call("short", b"", {"Jobgate-Timeout": "20"})
    assert (answer.status, answer.slug) == (504, "queue-timeout")
    assert time.monotonic() - started < 1.4


def test_jobgate_timeout_is_told_to_the_worker(plain: Program) -> None:
    """`remaining` is the caller's."""
    assert plain.call("actor", b"", {"Jobgate-Timeout": "5"}).json["remaining"] <= 5
    assert 5 < plain.call("actor").json["remaining"] <= 60


def test_queue_full(plain: Program, busy: Callable[[str], None]) -> None:
    """503 or `full_status`, with Retry-After; `Jobgate-No-Queue` is full at once."""
    for queue, status in (("small", 503), ("small-429", 429)):
        busy(queue)
        answer = plain.call(queue, b"", {"Jobgate-No-Queue": "?1"})
        assert (answer.status, answer.slug) == (status, "queue-full")
        waiting = background(plain.call, queue)
        plain.waiting(queue)
        answer = plain.call(queue)
        assert (answer.status, answer.slug) == (status, "queue-full")
        assert answer.json["status"] == status
        assert int(answer["Retry-After"]) >= 1
        assert answer.json["executed"] == "no"
        ready = plain.get("/readyz")
        assert (ready.status, queue in ready.json["queues"]) == (503, True)
        assert not waiting.done()
    plain.conserved()


def test_no_queue_when_a_worker_is_free(plain: Program) -> None:
    """Then it is served."""
    for value in ("?1", "?0"):
        assert plain.call("q", b"x", {"Jobgate-No-Queue": value}).status == 200


def test_max_waiting_bytes(plain: Program, busy: Callable[[str], None]) -> None:
    """Bodies that wait are bounded together."""
    busy("bytes")
    small = steps(("reply", "x" * 700))
    waiting = background(plain.call, "bytes", small)
    plain.waiting("bytes")
    answer = plain.call("bytes", small)
    assert (answer.status, answer.slug) == (503, "queue-full")
    assert not waiting.done()


def test_would_miss_its_deadline(plain: Program, tmp_path: Path) -> None:
    """Once it is known how long commands run, one that cannot make it is refused at once."""
    for _ in range(3):
        plain.call("two", steps(("sleep", 0.5)))
    go = tmp_path / "go"
    callers = [background(plain.call, "two", steps(("until", str(go)))) for _ in range(8)]
    plain.waiting("two", 6)
    started = time.monotonic()
    answer = plain.call("two", b"", {"Jobgate-Timeout": "0.2"})
    assert (answer.status, answer.slug) == (503, "would-miss-deadline"), answer
    assert int(answer["Retry-After"]) >= 1
    assert answer.json["executed"] == "no"
    assert time.monotonic() - started < 0.2
    assert plain.queue("two")["expected_wait"] > 0.2
    go.touch()
    assert {result(caller).status for caller in callers} == {200}


def test_priority(plain: Program, tmp_path: Path) -> None:
    """u=0 first, then arrival; the default is 3."""
    go, seen = tmp_path / "go", tmp_path / "seen"
    callers = [background(plain.call, "priorities", steps(("until", str(go))))]
    plain.running("priorities")
    for count, wish in enumerate(("u=7", "", "u=0", "u=3", "i", "u=5", "u=0, i"), 1):
        headers = {"Priority": wish} if wish else {}
        body = steps(("note", [str(seen), f"{count} {wish}"]))
        callers.append(background(plain.call, "priorities", body, headers))
        plain.waiting("priorities", count)
    go.touch()
    for caller in callers:
        assert result(caller).status == 200
    order = [line.split()[0] for line in lines_of(seen)]
    assert order == ["3", "7", "2", "4", "5", "6", "1"]


def test_the_same_key_gets_the_same_worker(plain: Program) -> None:
    """With as many shards as workers, a key has a worker of its own."""
    plain.ready("sharded", 4)
    used = set()
    for key in "abcdefgh":
        callers = [background(plain.call, "sharded", b"", {"Jobgate-Key": key}) for _ in range(5)]
        workers = {result(caller)["Jobgate-Worker"] for caller in callers}
        assert len(workers) == 1
        used |= workers
    assert len(used) > 1
    # Without a key whoever is free takes it.
    keyless = [background(plain.call, "sharded", steps(("sleep", 0.2))) for _ in range(4)]
    assert len({result(caller)["Jobgate-Worker"] for caller in keyless}) == 4


# --- changing


def test_recycle_makes_before_it_breaks(start_gate: Callable[..., Program]) -> None:
    """Callers hammer one worker that is replaced under them: not one call fails."""
    gate = start_gate({"queues": {"q": ECHO}})
    with Callers(gate, ["q"]) as callers:
        for _ in range(3):
            [pid] = [w["pid"] for w in gate.workers("q") if w["state"] in ("ready", "busy")]
            assert gate.post("/workers/q-1/recycle").status == 202
            eventually(lambda pid=pid: not alive(pid), 10, "the old one has gone")
            callers.some_more()
    callers.all_well()
    assert gate.workers("q")[0]["restarts"] == 3
    assert gate.get("/workers/q-1/report").status == 404
    assert gate.post("/workers/nobody/recycle").status == 404


def test_a_recycled_worker_finishes_what_it_has(plain: Program, tmp_path: Path) -> None:
    """However long that takes; the new one serves meanwhile."""
    go = tmp_path / "go"
    slow = background(plain.call, "actor", steps(("until", str(go))))
    plain.running("actor")
    before = plain.worker_pids("actor")
    assert plain.post("/workers/actor-1/recycle").status == 202
    eventually(lambda: len(plain.worker_pids("actor")) == 2, 10)
    assert plain.call("actor").json["pid"] not in before
    assert not slow.done()
    go.touch()
    assert result(slow).json["pid"] in before
    eventually(lambda: len(plain.worker_pids("actor")) == 1, 10)


def test_reload_of_a_queue(start_gate: Callable[..., Program]) -> None:
    """All its workers are replaced, and nobody notices."""
    gate = start_gate({"queues": {"q": {**ECHO, "workers": 2}}})
    gate.ready("q", 2)
    before = set(gate.worker_pids("q"))
    with Callers(gate, ["q"]) as callers:
        assert gate.post("/queues/q/reload").status == 202
        eventually(lambda: not before & set(gate.worker_pids("q")), 15)
        callers.some_more()
    callers.all_well()


def test_pause_resume_purge(plain: Program) -> None:
    """Paused: calls come in and wait. Purged: their callers are told that nothing ran."""
    assert plain.post("/queues/q/pause").json["state"] == "paused"
    callers = [background(plain.call, "q", b"x") for _ in range(3)]
    plain.waiting("q", 3)
    assert plain.post("/queues/q/resume").json["state"] == "open"
    assert [result(caller).status for caller in callers] == [200] * 3
    plain.post("/queues/q/pause")
    callers = [background(plain.call, "q", b"x") for _ in range(3)]
    plain.waiting("q", 3)
    assert plain.post("/queues/q/purge").json == {"purged": 3}
    for caller in callers:
        answer = result(caller)
        assert (answer.status, answer.slug, answer.json["executed"]) == (503, "purged", "no")
    plain.post("/queues/q/resume")
    assert plain.call("q", b"x").status == 200
    plain.conserved()
    for action in ("pause", "resume", "purge", "reload"):
        assert plain.post(f"/queues/nothing/{action}").slug == "unknown-queue"


def test_sighup_with_a_good_file(start_gate: Callable[..., Program]) -> None:
    """Queues come and go, workers change in number and in kind, and no call fails."""
    stays, grows = {**ECHO}, {**ECHO, "workers": 1}
    gate = start_gate({"queues": {"stays": stays, "grows": grows, "goes": ECHO}})
    stayed = gate.worker_pids("stays")
    with Callers(gate, ["stays", "grows"]) as callers:
        new = {"stays": {**stays, "size": 77}, "grows": {**grows, "workers": 3}, "comes": ECHO}
        gate.write_config({"queues": new})
        gate.signal(signal.SIGHUP)
        gate.logged("the configuration was reread")
        gate.ready("grows", 3)
        gate.ready("comes")
        assert gate.call("comes", b"new").body == b"new"
        assert gate.call("goes").slug == "unknown-queue"
        callers.some_more()
        # Another program for the same queue: the new one answers before the old one goes.
        gate.write_config({"queues": {**new, "grows": {**grows, "env": {"X": "1"}}}})
        old = set(gate.worker_pids("grows"))
        gate.signal(signal.SIGHUP)
        eventually(lambda: not old & set(gate.worker_pids("grows")), 15, "the old ones have gone")
        gate.ready("grows", 1)
        callers.some_more()
    callers.all_well()
    assert gate.worker_pids("stays") == stayed
    assert gate.queue("stays")["size"] == 77
    assert "goes" not in gate.conserved()
    assert gate.get("/readyz").status == 200


def test_sighup_lets_a_removed_queue_finish(
    start_gate: Callable[..., Program], tmp_path: Path
) -> None:
    """What it has accepted is run; then its workers go."""
    go = tmp_path / "go"
    gate = start_gate({"queues": {"q": ECHO, "goes": ACTOR}})
    callers = [background(gate.call, "goes", steps(("until", str(go)))) for _ in range(3)]
    gate.waiting("goes", 2)
    [pid] = gate.worker_pids("goes")
    gate.write_config({"queues": {"q": ECHO}})
    gate.signal(signal.SIGHUP)
    eventually(lambda: gate.call("goes").slug == "unknown-queue")
    assert alive(pid)
    go.touch()
    assert [result(caller).status for caller in callers] == [200] * 3
    eventually(lambda: not alive(pid), 10, "its worker has gone")


def test_sighup_with_a_bad_file_changes_nothing(start_gate: Callable[..., Program]) -> None:
    """And says why, in a line."""
    gate = start_gate({"queues": {"q": ECHO}})
    pids = gate.worker_pids("q")
    for config, why in [
        ("[queues.q]\ncomand = 3\n", "comand"),
        ("not TOML", "not TOML"),
        ("[queues.q]\ncommand = ['x']\nworkers = 0\n", "workers"),
        ("[gate]\naudit = '/no/such/folder/audit'\n", "gate.audit: found .*/no/such/folder/audit"),
        ("[gate]\nworker_listen = ['unix:/no/such']\n", "gate.worker_listen: found .*/no/such"),
    ]:
        gate.write_config(config)
        gate.signal(signal.SIGHUP)
        gate.logged(f"nothing is changed: .*{why}")
        assert gate.call("q", b"x").body == b"x"
    assert gate.worker_pids("q") == pids


def test_sighup_with_a_program_that_does_not_start(start_gate: Callable[..., Program]) -> None:
    """The old workers stay as long as the new ones cannot be had."""
    gate = start_gate({"queues": {"q": ECHO}})
    gate.write_config({"queues": {"q": {**ECHO, "command": ["no-such-program"]}}})
    gate.signal(signal.SIGHUP)
    gate.logged("the new worker failed")
    assert gate.call("q", b"x").body == b"x"
    gate.write_config({"queues": {"q": ACTOR}})
    gate.signal(signal.SIGHUP)
    eventually(lambda: gate.call("q", steps(("reply", "new"))).body == b"new", 10)


def test_sighup_changes_tokens(start_gate: Callable[..., Program]) -> None:
    """A new token works, an old one does not, on connections that are open as well."""
    tokens = TOKENS
    gate = start_gate({"tokens": [tokens["caller"]], "queues": {"q": ECHO}})
    assert gate.post("/call/q", b"", bearer("everything")).status == 401
    with gate.connect() as caller:
        assert caller.request("POST", "/call/q", b"", bearer("caller")).status == 200
        gate.write_config({"tokens": [tokens["everything"]], "queues": {"q": ECHO}})
        gate.signal(signal.SIGHUP)
        gate.logged("the configuration was reread")
        assert caller.request("POST", "/call/q", b"", bearer("everything")).status == 200
        assert caller.request("POST", "/call/q", b"", bearer("caller")).status == 401


def test_sighup_counts_for_requests_that_came_before(start_gate: Callable[..., Program]) -> None:
    """The very same bytes as before, on the same connection, meet the new limits and queues."""
    gate = start_gate({"queues": {"q": ECHO, "goes": ECHO}})
    with gate.connect() as caller, gate.connect() as other:
        for _ in range(3):
            assert caller.request("POST", "/call/q", b"12345").status == 200
            assert other.request("POST", "/call/goes", b"12345").status == 200
        gate.write_config({"gate": {"max_body": 4}, "queues": {"q": ECHO}})
        gate.signal(signal.SIGHUP)
        gate.logged("the configuration was reread")
        assert other.request("POST", "/call/goes", b"1234").slug == "unknown-queue"
        assert caller.request("POST", "/call/q", b"1234").status == 200
        assert caller.request("POST", "/call/q", b"12345").slug == "body-too-large"


def test_sighup_changes_the_address(start_gate: Callable[..., Program], tmp_path: Path) -> None:
    """The new one is open before the old one is closed."""
    first, second = tmp_path / "1.sock", tmp_path / "2.sock"

    def config(path: Path) -> dict[str, Any]:
        listen = ["tcp:0:interface=127.0.0.1", f"unix:{path}"]
        return {"gate": {"listen": listen}, "queues": {"q": ECHO}}

    gate = start_gate(config(first), "--workers", "1")
    assert first.exists()
    gate.write_config(config(second))
    gate.signal(signal.SIGHUP)
    eventually(lambda: second.exists() and not first.exists(), 10)
    assert gate.call("q", b"x").body == b"x"


def test_reload_of_shards_keeps_the_queue_served(start_gate: Callable[..., Program]) -> None:
    """More or fewer shards for the same workers: whoever waits and whoever comes is served."""
    queue = {**ACTOR, "workers": 2, "queue_timeout": 5}
    gate = start_gate({"queues": {"q": queue}})
    gate.ready("q", 2)
    for shards in (2, 1, 2):
        gate.write_config({"queues": {"q": {**queue, "shards": shards}}})
        gate.signal(signal.SIGHUP)
        eventually(lambda n=shards: len(gate.queue("q")["shards"]) == n, 10)
        assert [gate.call("q").status for _ in range(4)] == [200] * 4


def test_reload_that_gives_a_queue_workers(start_gate: Callable[..., Program]) -> None:
    """A queue without a command gets one: what waited is run."""
    gate = start_gate({"queues": {"q": {"queue_timeout": 10}, "other": ECHO}}, "-p", "0")
    waiting = background(gate.call, "q", b"x")
    gate.waiting("q")
    gate.write_config({"queues": {"q": {**ECHO, "queue_timeout": 10}, "other": ECHO}})
    gate.signal(signal.SIGHUP)
    assert result(waiting).body == b"x"
    gate.write_config({"queues": {"q": {"command": ["false"], "workers": 1}, "other": ECHO}})
    [pid] = gate.worker_pids("q")
    gate.signal(signal.SIGHUP)
    gate.logged("the new worker failed")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: gate.call("q", timeout=60).slug == "no-worker", 15)


# --- stopping


def test_sigterm_under_load_loses_no_accepted_call(start_gate: Callable[..., Program]) -> None:
    """Everything that was accepted gets its own reply; later calls get 503 or no connection."""
    gate = start_gate({"queues": {"q": {**ACTOR, "workers": 2, "in_flight": 4}}})
    before = [background(gate.call, "q", steps(("sleep", 0.05), ("reply", n))) for n in range(40)]
    eventually(lambda: gate.metrics()["q"]["commands_accepted_total"] == 40)
    with gate.connect() as open_before:
        assert open_before.request("GET", "/readyz").status == 200
        gate.signal(signal.SIGTERM)
        gate.logged("draining")
        ready = open_before.request("GET", "/readyz")
        assert (ready.status, ready.json["status"]) == (503, "draining")
        late = open_before.request("POST", "/call/q", b"")
        assert (late.status, late.slug) == (503, "shutting-down")
        assert late["Connection"] == "close"
        assert late.json["executed"] == "no"
    answers = [result(caller) for caller in before]
    assert [answer.status for answer in answers] == [200] * 40
    assert [answer.json for answer in answers] == list(range(40))
    assert gate.wait() == 0


def test_sigterm_lets_callers_hammer_on(start_gate: Callable[..., Program]) -> None:
    """Whoever calls while it drains gets his reply, 503 shutting-down, or no connection."""
    gate = start_gate({"queues": {"q": ECHO}})
    callers = Callers(gate, ["q"])
    with callers:
        gate.signal(signal.SIGTERM)
        assert gate.wait() == 0
    for _, status, body, expected in callers.answers:
        assert status in (200, 503)
        assert body == expected if status == 200 else b"shutting-down" in body


def test_a_second_sigterm_hurries(start_gate: Callable[..., Program]) -> None:
    """Accepted calls end as `shutting-down` with what is known of them; exit 0."""
    gate = start_gate({"queues": {"q": {**ACTOR, "kill_timeout": 60}}})
    running = background(gate.call, "q", steps(("stubborn", 0)))
    gate.running("q")
    waiting = background(gate.call, "q")
    gate.waiting("q")
    gate.signal(signal.SIGTERM)
    gate.logged("draining")
    assert not running.done()
    started = time.monotonic()
    gate.signal(signal.SIGTERM)
    ends = []
    for caller in (running, waiting):
        try:
            answer = result(caller)
            assert (answer.status, answer.slug) == (503, "shutting-down")
            ends.append(answer.json["executed"])
        except OSError as error:
            ends.append(type(error).__name__)
    assert gate.wait() == 0
    assert time.monotonic() - started < 5
    assert ends == ["maybe", "no"]


def test_drain_timeout(start_gate: Callable[..., Program]) -> None:
    """What is left then gets 503 `shutting-down`."""
    gate = start_gate({"gate": {"drain_timeout": 0.5}, "queues": {"q": ACTOR}})
    running = background(gate.call, "q", steps(("sleep", 30)))
    gate.running("q")
    waiting = background(gate.call, "q")
    gate.waiting("q")
    started = time.monotonic()
    gate.signal(signal.SIGTERM)
    for caller, executed in ((running, "maybe"), (waiting, "no")):
        answer = result(caller)
        assert (answer.status, answer.slug) == (503, "shutting-down")
        assert answer.json["executed"] == executed
    assert 0.4 < time.monotonic() - started < 4
    assert gate.wait() == 0


def test_a_stream_is_finished_before_the_end(start_gate: Callable[..., Program]) -> None:
    """SIGTERM in mid-stream: all of it still comes."""
    gate = start_gate({"queues": {"q": ACTOR}})
    with gate.connect() as caller:
        caller.send(
            b"POST /call/q HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
            % (len(STREAM), STREAM)
        )
        caller.head()
        assert caller.chunk() == b"0:\n"
        gate.signal(signal.SIGTERM)
        assert [caller.chunk() for _ in range(4)] == [b"1:\n", b"2:\n", b"3:\n", b""]
    assert gate.wait() == 0


def test_a_large_reply_is_delivered_before_the_end(start_gate: Callable[..., Program]) -> None:
    """Its caller is slow, but reads: SIGTERM does not cut it short."""
    gate = start_gate({"queues": {"q": ACTOR}})
    size = 20_000_000
    with gate.connect(receive_buffer=65536) as caller:
        body = steps(("big", size))
        caller.send(
            b"POST /call/q HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        caller.head()
        gate.signal(signal.SIGTERM)
        gate.logged("draining")
        assert len(caller.rest()) == size
    assert gate.wait() == 0


def test_sighup_while_it_drains_is_ignored(start_gate: Callable[..., Program]) -> None:
    """Nothing is started any more."""
    gate = start_gate({"queues": {"q": ACTOR}})
    running = background(gate.call, "q", steps(("sleep", 0.7), ("reply", "done")))
    gate.running("q")
    gate.signal(signal.SIGTERM)
    gate.logged("draining")
    gate.write_config({"queues": {"new": ECHO}})
    gate.signal(signal.SIGHUP)
    assert result(running).body == b"done"
    assert gate.wait() == 0


def test_sigint_drains_too(start_gate: Callable[..., Program]) -> None:
    """Ctrl-C is as polite."""
    gate = start_gate({"queues": {"q": ACTOR}})
    running = background(gate.call, "q", steps(("sleep", 0.5), ("reply", "done")))
    gate.running("q")
    gate.signal(signal.SIGINT)
    assert result(running).body == b"done"
    assert gate.wait() == 0


def test_sigterm_with_a_worker_that_will_not_go(start_gate: Callable[..., Program]) -> None:
    """A child that ignores everything is killed after `kill_timeout`."""
    script = "trap '' TERM; cat >/dev/null; while :; do sleep 1; done"
    queue = {"command": ["sh", "-c", script], "protocol": "lines", "workers": 1}
    gate = start_gate({"queues": {"q": {**queue, "kill_timeout": 0.5}}})
    gate.ready("q")
    started = time.monotonic()
    gate.signal(signal.SIGTERM)
    assert gate.wait() == 0
    assert time.monotonic() - started < 6


def test_sigterm_during_a_crash_loop_and_a_boot(start_gate: Callable[..., Program]) -> None:
    """Neither holds up the end."""
    gate = start_gate(
        {
            "queues": {
                "crash": {"command": ["false"], "workers": 2},
                "fine": ECHO,
            }
        }
    )
    gate.write_config({"queues": {"boots": {"command": ["sleep", "60"], "workers": 2}}})
    gate.signal(signal.SIGHUP)
    eventually(lambda: len(gate.workers("boots")) == 2, 10)
    started = time.monotonic()
    gate.signal(signal.SIGTERM)
    assert gate.wait() == 0
    assert time.monotonic() - started < 5


def test_kill_9_of_the_gate_leaves_no_child_and_no_grandchild(
    start_gate: Callable[..., Program],
) -> None:
    """After two seconds at the latest."""
    gate = start_gate(
        {
            "queues": {
                "actor": {**ACTOR, "workers": 3},
                "deaf": {"command": ["sleep", "1000"], "protocol": "lines", "workers": 2},
                "sh": {"command": ["sh", "-c", "sleep 1000 & wait"], "protocol": "lines"},
            }
        }
    )
    gate.ready("sh", 4)
    grandchild = gate.call("actor", steps(("grandchild", 1000))).json["grandchild"]
    busy = background(gate.call, "actor", steps(("sleep", 1000)))
    gate.running("actor")
    everyone = gate.kill()
    assert len(everyone) >= 3 + 2 + 8 + 2
    with pytest.raises((OSError, http.client.HTTPException)):
        result(busy)
    gate.nobody_is_left(everyone, 2.0)
    assert not alive(grandchild)


def test_a_dead_warden_is_replaced(start_gate: Callable[..., Program]) -> None:
    """The one that ends orphans may itself be killed."""
    import psutil

    gate = start_gate({"queues": {"q": ACTOR}})

    def warden() -> list[psutil.Process]:
        found = []
        for child in psutil.Process(gate.pid).children():
            with contextlib.suppress(psutil.Error):  # it may die while it is looked at
                if "warden" in " ".join(child.cmdline()):
                    found.append(child)
        return found

    [first] = warden()
    first.kill()
    eventually(lambda: [p for p in warden() if p.pid != first.pid], 5, "another warden")
    grandchild = gate.call("q", steps(("grandchild", 1000))).json["grandchild"]
    everyone = gate.kill()
    gate.nobody_is_left(everyone, 2.0)
    assert not alive(grandchild)
