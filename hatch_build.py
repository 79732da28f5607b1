"""
Compiles the road of a command with mypyc, where a build is told to: ``JOBGATE_COMPILE=1``.

The modules are named in ``pyproject.toml``. What is installed without that, or to be edited, is
plain Python and does the same, only slower.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_SETUP = """\
import sys
from mypyc.build import mypycify
from setuptools import setup

# Extras need not be there to be compiled against.
options = ["--config-file", "mypy.toml", "--ignore-missing-imports"]
modules = mypycify([*options, *sys.argv[1:]], debug_level="0")
setup(name="jobgate", packages=[], ext_modules=modules, script_args=["build_ext", "-b", "built"])
"""


class CompiledRoad(BuildHookInterface[Any]):
    """
    Puts what was compiled beside the modules that it was made from.

    Both are in the wheel; Python takes the compiled one.
    """

    _folder: TemporaryDirectory[str] | None = None

    def dependencies(self) -> list[str]:
        """What is needed to compile: mypy reads the types of what is imported."""
        return [*self.config["requires"], *self.metadata.core.dependencies] if _wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """
        Compile, in a folder of its own: nothing may be left in the source tree.

        Raises:
            CalledProcessError: It cannot be compiled; what was printed says why.
        """
        if not _wanted() or version == "editable":
            return
        # Gone with this process at the latest, also where it cannot be compiled.
        self._folder = TemporaryDirectory(prefix="jobgate-")
        folder = Path(self._folder.name)
        shutil.copytree(Path(self.root, "jobgate"), folder / "jobgate")
        # Not by its own name: setuptools would read it.
        shutil.copy(Path(self.root, "pyproject.toml"), folder / "mypy.toml")
        command = [sys.executable, "-c", _SETUP, *self.config["modules"]]
        subprocess.run(command, cwd=folder, check=True)  # noqa: S603 (its words are all ours)
        built = folder / "built"
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["force_include"].update(
            {str(file): str(file.relative_to(built)) for file in built.rglob("*.so")}
        )

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002 (hatchling's)
        """The wheel has been written."""
        if self._folder is not None:
            self._folder.cleanup()


def _wanted() -> bool:
    return os.environ.get("JOBGATE_COMPILE", "0") not in ("", "0")
