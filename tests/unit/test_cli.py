"""
The `jobgate` command itself: finding a command, its help and its exit status.
"""

from __future__ import annotations

import sys
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from jobgate import __version__
from jobgate.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: str) -> tuple[int, str, str]:
    """Run a command line in this process: exit status, stdout, stderr."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as ended:
            return int(ended.code or 0), out.getvalue(), err.getvalue()
    raise AssertionError("it did not exit")


class CommandsTests(SynchronousTestCase):
    """Every command is there, and no other."""

    def test_overview(self) -> None:
        for arguments in ((), ("--help",), ("-h",), ("help",)):
            status, out, err = run(*arguments)
            self.assertEqual((status, err), (0, ""))
            for name in COMMANDS:
                self.assertIn(f"  {name} ", out)

    def test_version(self) -> None:
        self.assertEqual(run("--version"), (0, f"jobgate {__version__}\n", ""))

    def test_unknown(self) -> None:
        wanted = "jobgate: found no command 'chek', wanted 'check' perhaps\n"
        self.assertEqual(run("chek"), (2, "", wanted))

    def test_help_of_each(self) -> None:
        for name in COMMANDS:
            status, out, err = run(name, "--help")
            self.assertEqual((status, err), (0, ""))
            self.assertTrue(out.startswith(f"usage: jobgate {name} "), out)

    def test_bad_option_of_each(self) -> None:
        for name in COMMANDS:
            status, out, err = run(name, "--nonsense")
            self.assertEqual((status, out), (2, ""))
            self.assertIn(f"jobgate {name}: error: ", err)

    def test_each_is_a_module(self) -> None:
        for name in COMMANDS:
            module = import_module(f"jobgate.cli.{name.replace('-', '_')}")
            self.assertTrue(module.__doc__)

    def test_script(self) -> None:
        tables = tomllib.loads((ROOT / "pyproject.toml").read_text())
        self.assertEqual(tables["project"]["scripts"], {"jobgate": "jobgate.cli:main"})

    def test_docs(self) -> None:
        docs = (ROOT / "docs" / "cli.md").read_text()
        for name in COMMANDS:
            self.assertIn(f"\n## `jobgate {name}`\n", docs)


class EndsTests(SynchronousTestCase):
    """How a command's end becomes an exit status."""

    def end(self, raised: BaseException) -> tuple[int, str, str]:
        """Run a command that ends so."""
        check = import_module("jobgate.cli.check")

        def run_it(_: object) -> int:
            raise raised

        self.patch(check, "run", run_it)
        return run("check")

    def test_interrupted(self) -> None:
        self.assertEqual(self.end(KeyboardInterrupt()), (130, "", ""))

    def test_broken_pipe(self) -> None:
        with Path("/dev/null").open("w") as out:
            self.patch(sys, "stdout", out)
            check = import_module("jobgate.cli.check")

            def run_it(_: object) -> int:
                raise BrokenPipeError

            self.patch(check, "run", run_it)
            ended = self.assertRaises(SystemExit, main, ["check"])
        self.assertEqual(ended.code, 141)
