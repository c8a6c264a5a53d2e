"""What the contracts of import-linter (pyproject.toml) cannot say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_what_reads_texts_and_runs_never_loads_torch():
    """A lazy import would pass the contract."""
    files = [*(ROOT / "vitrine/text").glob("*.py"), *(ROOT / "vitrine/runs").glob("*.py")]
    modules = ["_files", "_json", "errors", "randomness", "config", "presets", "notebook", "model.inventory"]
    modules += [f"{file.parent.name}.{file.stem}" for file in files if file.stem != "__init__"]
    check = f"import sys, {', '.join(f'vitrine.{module}' for module in modules)}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_the_public_names_can_all_be_imported():
    import vitrine

    for name in vitrine.__all__:
        assert getattr(vitrine, name) is not None
        assert getattr(vitrine, name).__doc__
