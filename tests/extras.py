"""Whether every extra can be installed under its constraints, alone and together: `make check-extras`.

Nothing is installed: pip is only asked what it would install, in a new virtual environment. It needs pip's index, and
minutes.
"""

import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
OWN_CONSTRAINTS = {"benchmarks": "constraints-benchmarks.txt"}  # what it needs contradicts the others


def main() -> int:
    """Ask for each extra, and for all that share their constraints. 1 if one of them has no solution."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    together = ",".join(extra for extra in extras if extra not in OWN_CONSTRAINTS)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        for wanted in ("", *extras, together):
            constraints = OWN_CONSTRAINTS.get(wanted, "constraints.txt")
            command = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
            command += [
                "--dry-run",
                "--constraint",
                str(ROOT / constraints),
                f"{ROOT}[{wanted}]" if wanted else str(ROOT),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            failed |= done.returncode != 0
            said = "ok" if done.returncode == 0 else done.stderr
            print(f".[{wanted}] under {constraints}: {said}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
