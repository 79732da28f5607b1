"""
What the documentation says of names is true to the code, and says it of all of them: keys and
their defaults, problems, routes, options, metrics, files, links.

Only what can be read off both sides is compared here; that commands and outputs are as shown is
seen by running them.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import tomllib
from argparse import ArgumentParser
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from jobgate.cli import COMMANDS
from jobgate.config import from_tables
from jobgate.config.settings import (
    BatchConfig,
    CallbackSettings,
    GateSettings,
    QueueConfig,
    Scale,
    TokenConfig,
)
from jobgate.config.units import Seconds
from jobgate.gate import Gate
from jobgate.ids import IdMaker
from jobgate.jobs.graph import Node
from jobgate.jobs.job import State
from jobgate.options import Options
from jobgate.pool.environment import environment
from jobgate.pool.report import Report
from jobgate.testing import SpawningReactor, inline_journal
from jobgate.web import job_views, views
from jobgate.web.fields import CALL_FIELDS, PUSH_FIELDS
from jobgate.web.handler import HTTPHandler
from jobgate.web.metrics import Metrics
from jobgate.web.openapi import document
from jobgate.web.problems import PROBLEMS
from jobgate.wire import frames
from jobgate.worker import Command, pull, serve
from tests.unit.pages import (
    CODE,
    DOCS,
    LINK,
    PAGES,
    ROOT,
    anchors,
    documents,
    prose,
    rows,
    sections,
    text,
)

_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def gate() -> Gate:
    """A gate with one queue of each kind that shows something of its own."""
    queues = {"q": {"command": "q", "batch": {"size": 2}}}
    reactor = SpawningReactor()
    config = from_tables({"queues": queues}, "test", Path("/"))
    return Gate(config, reactor, inline_journal(reactor))


class ConfigurationTests(SynchronousTestCase):
    """docs/configuration.md has every key, with its default, and no other."""

    PAGE = DOCS / "configuration.md"
    KEYS = sections(PAGE)

    def documented(self, *names: str) -> dict[str, Any]:
        """The keys below these headings with their defaults; None where there is none."""
        found: dict[str, Any] = {}
        for name in names:
            for key, default, _ in (row for row in rows(self.KEYS[name]) if len(row) == 3):
                word = default.strip("`")
                value = None if word == default else tomllib.loads(f"it = {word}")["it"]
                found[key.strip("`")] = value
        return found

    def test_gate(self) -> None:
        told = self.documented("`[gate]`")
        self.assertEqual(sorted(told), sorted(GateSettings.__struct_fields__))
        given = from_tables({"gate": told}, "test", Path("/"))
        self.assertEqual(given.gate, from_tables({}, "test", Path("/")).gate)

    def test_callbacks(self) -> None:
        told = self.documented("`[callbacks]`")
        self.assertEqual(sorted(told), sorted(CallbackSettings.__struct_fields__))
        self.assertEqual(told.pop("secret"), None)
        given = from_tables({"callbacks": told}, "test", Path("/"))
        self.assertEqual(given.callbacks, CallbackSettings())

    def test_tokens(self) -> None:
        told = self.documented("`[[tokens]]`")
        self.assertEqual(sorted(told), sorted(TokenConfig.__struct_fields__))
        digest = {"name": "n", "sha256": "0" * 64}
        self.assertEqual(
            [key for key, value in told.items() if value is None and key in digest], list(digest)
        )
        defaults = {field.name: field.default for field in msgspec.structs.fields(TokenConfig)}
        self.assertEqual((list(defaults["allow"]), defaults["rate"]), (told["allow"], told["rate"]))

    def test_queues(self) -> None:
        told = self.documented(
            "Workers",
            "Serving for long enough",
            "Waiting",
            "Running",
            "Jobs",
            '`protocol = "lines"`',
        )
        self.assertEqual(sorted(told), sorted({*QueueConfig.__struct_fields__} - {"name"}))
        self.assertEqual([key for key, value in told.items() if value is None], ["command"])
        del told["command"]
        given, usual = (
            from_tables({"queues": {"q": keys}}, "test", Path("/")).queues["q"]
            for keys in (told, {})
        )
        self.assertEqual(given, usual)

    def test_bounds_of_workers(self) -> None:
        told = self.documented("As many workers as are needed")
        self.assertEqual(sorted(told), sorted(Scale.__struct_fields__))
        self.assertEqual(msgspec.structs.asdict(Scale()), told)

    def test_batch(self) -> None:
        told = self.documented("Batches")
        self.assertEqual(sorted(told), sorted(BatchConfig.__struct_fields__))
        target = {"target": told.pop("target")}
        for given, usual in (
            ({"batch": told}, {}),
            ({"batch": {"linger": "auto", **target}}, {"batch": {"linger": "auto"}}),
        ):
            one, other = (
                from_tables({"queues": {"q": keys}}, "test", Path("/")).queues["q"].batch
                for keys in (given, usual)
            )
            self.assertEqual(one.target_seconds, other.target_seconds)
            self.assertEqual(
                (one.size, one.linger, one.max_bytes), (other.size, other.linger, other.max_bytes)
            )

    def test_options(self) -> None:
        """Those of twistd jobgate, and for each the key that it stands for."""
        options = Options()
        known = {f"--{name.rstrip('=')}" for name in options.longOpt}
        known -= {"--version", "--help"}
        part = self.KEYS["The command line"]
        self.assertEqual(set(_OPTION.findall(part)), known)
        short = set(re.findall(r"`(-[a-z])`", part))
        self.assertEqual(short, {f"-{name}" for name in options.shortOpt.replace(":", "")})
        keys = {f"batch.{key}" for key in BatchConfig.__struct_fields__}
        keys |= {*GateSettings.__struct_fields__, *QueueConfig.__struct_fields__}
        for _, key, _ in rows(part):
            self.assertIn(key.strip("`"), keys | {""})


class HttpTests(SynchronousTestCase):
    """docs/http.md has every route and every problem, and no other."""

    PAGE = DOCS / "http.md"

    def test_routes(self) -> None:
        told: set[tuple[str, str]] = set()
        for request, _, _ in rows(sections(self.PAGE)["Routes"]):
            spans = CODE.findall(request)
            methods = [span.split(" ")[0] for span in spans if not span.startswith("/")]
            paths = [span.split(" ")[-1] for span in spans if "/" in span]
            for path in paths:
                # A further path stands in the place of the last part of the first.
                first = paths[0]
                whole = path if path == first else first.rsplit("/", 1)[0] + path
                told |= {(method, whole) for method in methods}
        known = {
            (method.upper(), path)
            for path, operations in document(HTTPHandler.app)["paths"].items()
            for method in operations
        }
        shape = re.compile(r"<\w+>|{\w+}")
        self.assertEqual(
            sorted((method, shape.sub("*", path)) for method, path in told),
            sorted((method, shape.sub("*", path)) for method, path in known),
        )

    def test_problems(self) -> None:
        """Slug, status and title as they are sent."""
        told = {
            row[1].strip("`"): row[0]
            for row in rows(sections(self.PAGE)["Problems"])
            if len(row) == 4
        }
        known = {slug: str(problem.status) for slug, problem in PROBLEMS.items()}
        self.assertEqual(told, {**known, "command-failed": "400 to 599"})

    def test_slugs_everywhere(self) -> None:
        """Wherever a page shows a problem, or a status and a slug, they belong together."""
        statuses = {slug: {problem.status} for slug, problem in PROBLEMS.items()}
        statuses["queue-full"].add(429)
        statuses["command-failed"] = set(range(400, 600))
        for page in PAGES:
            for slug in re.findall(r"/problems/([a-z-]+)", text(page)):
                self.assertIn(slug, PROBLEMS, page)
            for status, slug in re.findall(r"\b([45]\d\d)\s+`([a-z]+(?:-[a-z]+)*)`", text(page)):
                self.assertIn(int(status), statuses[slug], page)

    def test_headers(self) -> None:
        """Those that are read, beside what every request may have."""
        for page, heading, known in (
            (self.PAGE, "Request headers", CALL_FIELDS | {b"accept", b"authorization"}),
            (DOCS / "jobs.md", "Push", PUSH_FIELDS),
        ):
            cells = [row[0] for row in rows(sections(page)[heading])]
            names = {name.split(":")[0].lower() for cell in cells for name in CODE.findall(cell)}
            self.assertEqual(names, {name.decode() for name in known} | {"content-type"})

    def test_documents(self) -> None:
        """Where a page shows a whole document of a kind, it has the members that are sent."""
        kinds: dict[type[msgspec.Struct], set[str]] = {
            views.Queue: {"depth", "shards"},
            views.Worker: {"rss", "last_crash"},
            Report: {"kind", "cause", "output"},
            job_views.Job: {"progress", "tries", "links"},
        }
        seen: Counter[str] = Counter()
        for page in PAGES:
            for found in documents(page):
                for kind, marks in kinds.items():
                    if marks <= found.keys():
                        seen[kind.__name__] += 1
                        known = [
                            field.encode_name
                            for field in msgspec.structs.fields(kind)
                            if field.default is not msgspec.UNSET or field.name in found
                        ]
                        self.assertEqual(list(found), known, page)
        self.assertEqual(set(seen), {kind.__name__ for kind in kinds})

    def test_members_of_a_graph(self) -> None:
        part = rows(sections(DOCS / "graphs.md")["Submitting"])
        told = [CODE.findall(row[0])[0] for row in part]
        self.assertEqual(sorted(told), sorted(Node.__struct_fields__))

    def test_states(self) -> None:
        told = [row[0].strip("`") for row in rows(sections(DOCS / "jobs.md")["States"])]
        self.assertEqual(sorted(told), sorted(state.word for state in State))


class CommandLineTests(SynchronousTestCase):
    """docs/cli.md has every option of every command, and no other."""

    def test_commands(self) -> None:
        table = rows(text(DOCS / "cli.md").split("\n## ")[0])
        named = {CODE.findall(row[0])[0]: row[1] for row in table}
        self.assertEqual(named, COMMANDS)

    def test_options(self) -> None:
        of_the_gate = {f"--{name.rstrip('=')}" for name in Options().longOpt}
        parts = sections(DOCS / "cli.md")
        for name in COMMANDS:
            parser = ArgumentParser()
            import_module(f"jobgate.cli.{name.replace('-', '_')}").arguments(parser)
            known = set(parser._option_string_actions)
            part = parts[f"`jobgate {name}`"]
            told = set(_OPTION.findall(part))
            missing = {word for word in known if word.startswith("--")} - told
            self.assertEqual(missing - {"--help", "--json"}, set(), name)
            self.assertEqual(told - known - of_the_gate, set(), name)


class MetricsTests(SynchronousTestCase):
    """docs/operating.md has every metric, and no other."""

    def test_names(self) -> None:
        part = sections(DOCS / "operating.md")["Metrics"]
        told = {name for row in rows(part) for name in re.findall(r"jobgate_\w+", row[0])}
        shown = Metrics(gate()).render("").body.decode()
        known = set(re.findall(r"^# TYPE (\w+) ", shown, re.MULTILINE))
        self.assertEqual(told, known)


class WorkersTests(SynchronousTestCase):
    """docs/workers.md has all that a worker can meet, and no more."""

    PARTS = sections(DOCS / "workers.md")

    def test_command(self) -> None:
        told = {
            name
            for row in rows(self.PARTS["What a handler is given"])
            for name in re.findall(r"command\.(\w+)", row[0])
        }
        self.assertEqual(told, {name for name in dir(Command) if not name.startswith("_")})

    def test_arguments(self) -> None:
        """Of `serve` and `pull`, with the defaults that are said."""
        told = {name for row in rows(self.PARTS["Registering"]) for name in CODE.findall(row[0])}
        known = set(inspect.signature(serve).parameters)
        self.assertEqual(told, known - {"handler", "batch"})
        told_of_pull = {
            name: row[1]
            for row in rows(sections(DOCS / "pull.md")["Pull workers in Python"])
            for name in CODE.findall(row[0])
        }
        parameters = dict(inspect.signature(pull).parameters)
        for name in ("handler", "url", "queue"):
            del parameters[name]
        self.assertEqual(set(told_of_pull), set(parameters))
        for name in ("lease", "wait"):
            self.assertTrue(told_of_pull[name].startswith(f"{parameters[name].default}: "), name)

    def test_frames(self) -> None:
        """The types by number and name."""
        told = [(row[0], row[1]) for row in rows(self.PARTS["Types"])]
        known = {
            value: name
            for name in frames.__all__
            if isinstance(value := getattr(frames, name), int) and value != frames.MAX_FRAME
        }
        self.assertEqual(told, [(str(value), known[value]) for value in sorted(known)])

    def test_environment(self) -> None:
        """What a worker finds is what it is given, and what is handed on."""
        part = rows(self.PARTS["What a worker finds around it"])
        told = {name for row in part for name in re.findall(r"`([A-Z][A-Z_]+)`", row[0])}
        passed = {"HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR"}
        config = QueueConfig(name="q", soft_timeout=Seconds(1)).worker()
        with patch.dict(os.environ, dict.fromkeys(passed, "C")):
            self.assertEqual(told, set(environment(config, "q", "q-1")))


class EmbeddingTests(SynchronousTestCase):
    """docs/embedding.md has the arguments as they are."""

    def test_signatures(self) -> None:
        page = prose(DOCS / "embedding.md")
        told = dict(re.findall(r"`gate\.(\w+)\(([^)]+)\)`", page))
        self.assertEqual(list(told), ["call", "push", "pull"])
        for method, arguments in told.items():
            known = list(inspect.signature(getattr(Gate, method)).parameters.values())[1:]
            call = ast.parse(f"f({arguments})", mode="eval").body
            assert isinstance(call, ast.Call)
            self.assertEqual(
                [ast.unparse(word) for word in call.args],
                [one.name for one in known if one.kind is not one.KEYWORD_ONLY],
            )
            self.assertEqual(
                {str(word.arg): ast.literal_eval(word.value) for word in call.keywords},
                {one.name: one.default for one in known if one.kind is one.KEYWORD_ONLY},
            )


class PagesTests(SynchronousTestCase):
    """What pages say of each other, and of files."""

    def test_links(self) -> None:
        """Every link within this repository leads somewhere, to its very heading."""
        for page in [*PAGES, ROOT / "CHANGELOG.md"]:
            for link in LINK.findall(prose(page)):
                if link.startswith(("http://", "https://")):
                    continue
                path, _, anchor = link.partition("#")
                target = (page.parent / path).resolve() if path else page
                self.assertTrue(target.exists(), f"{page}: {link}")
                if anchor:
                    self.assertIn(anchor, anchors(target), f"{page}: {link}")

    def test_every_page_is_linked(self) -> None:
        """From the README, directly, so that nobody has to know that there is one."""
        linked = {link.partition("#")[0] for link in LINK.findall(prose(ROOT / "README.md"))}
        for page in PAGES[1:]:
            if page.parent == DOCS:
                self.assertIn(f"docs/{page.name}", linked)

    def test_files_inside(self) -> None:
        """docs/inside.md names files and folders that are there, and every folder."""
        page = DOCS / "inside.md"
        package = ROOT / "jobgate"
        for name in re.findall(r"`((?:\w+/)*\w+\.py|(?:\w+/)+)`", text(page)):
            places = [package / name, ROOT / name, *package.glob(f"*/{name}")]
            places += ROOT.glob(f"tests/*/{name}")
            self.assertTrue(any(place.exists() for place in places), name)
        rooms = [path.parent.name for path in package.glob("*/__init__.py")]
        named = "|".join(sorted(rooms))
        for name in re.findall(rf"\b((?:{named})/\w+)", text(page)):
            places = [package / name, package / f"{name}.py"]
            self.assertTrue(any(place.exists() for place in places), name)
        told = {row[0].strip("`/") for row in rows(sections(page)["The rooms"])}
        folders = {path.parent for path in package.glob("**/__init__.py")} - {package}
        self.assertEqual(told, {str(folder.relative_to(package)) for folder in folders})

    def test_files_elsewhere(self) -> None:
        """Files of the tests and of the benchmarks; the latter's page has them all."""
        for page in PAGES:
            for name in re.findall(r"`?((?:tests|benchmarks)/[\w/]+\.py)", text(page)):
                self.assertTrue((ROOT / name).exists(), f"{page}: {name}")
        folder = ROOT / "benchmarks"
        told = set(re.findall(r"\b(\w+\.(?:py|lua))\b", text(folder / "README.md")))
        for path in (*folder.glob("*.py"), *folder.glob("*.lua")):
            self.assertIn(path.name, told)
            told.discard(path.name)
        self.assertEqual(told, set())

    def test_ids(self) -> None:
        """Ids are shown as they are made."""
        shape = re.sub("[0-9a-f]", "x", IdMaker("").make())
        for page in PAGES:
            for found in re.findall(r"\bgate(-[0-9a-f]{16,})", text(page)):
                self.assertEqual(re.sub("[0-9a-f]", "x", found), shape, f"{page}: {found}")
