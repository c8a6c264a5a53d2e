"""ARCHITECTURE.md tells the truth about the house."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROWS = [
    line.split()
    for line in re.search(r"```map\n(.*?)```", (ROOT / "ARCHITECTURE.md").read_text(), re.S)[1].splitlines()
]
LEVEL = {name: level for level, row in enumerate(ROWS) for name in row}
FILES = sorted(file for file in (ROOT / "vitrine").rglob("*.py") if file != ROOT / "vitrine/__init__.py")
TORCH_FREE = ("errors", "draws", "config", "census", "presets", "tokenizer", "runs", "data", "corpora")


def test_the_map_names_every_module_and_no_other():
    assert set(LEVEL) == {_home(file) for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_imports_only_from_the_rows_above_it(file):
    for imported in _imports(file):
        assert LEVEL[imported] < LEVEL[_home(file)] or imported == _home(file), f"{file.name} imports {imported}"


def test_the_lower_rows_never_import_torch():
    modules = ", ".join(f"vitrine.{_module(file)}" for file in FILES if _home(file) in TORCH_FREE)
    check = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_the_public_names_can_all_be_imported():
    import vitrine

    for name in vitrine.__all__:
        assert getattr(vitrine, name) is not None
        assert getattr(vitrine, name).__doc__


def test_the_four_lines_of_a_step_stand_in_order_on_one_screen():
    source = (ROOT / "vitrine/step.py").read_text()
    body = source[source.index("def step(") :]
    marks = [body.index(f"# {phase}\n") for phase in ("forward", "loss", "backward", "update")]
    assert marks == sorted(marks)
    assert body.count("\n") < 25


def test_the_model_does_not_know_that_it_is_watched():
    source = (ROOT / "vitrine/model.py").read_text()
    assert not re.search(r"observe|record|hook|runs", source)


def _module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT / "vitrine").with_suffix("").parts).removesuffix(".__init__")


def _home(file: Path) -> str:
    return _module(file).split(".")[0]


def _imports(file: Path) -> set[str]:
    """The parts of the house that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vitrine"):
            parts = node.module.split(".")
            names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
            found |= {name for name in names if name in LEVEL}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("vitrine.")}
    return found
