"""One small run, trained once; each test that changes it has a copy."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.conftest import TINY
from vitrine.cli.main import app

STEPS = 20


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, own_cache: Path, prose: str) -> Path:
    """20 steps, with keyframes at 0, 5, 10, 15 and 20."""
    from vitrine import train

    folder = tmp_path_factory.mktemp("small")
    (folder / "book.txt").write_text(prose, encoding="utf-8")
    pairs = dict(pair.split("=") for pair in TINY[1::2])
    settings = {name: int(value) if value.isdigit() else value for name, value in pairs.items()}
    return train(folder / "book.txt", run=folder / "run", steps=STEPS, settings=settings).path


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    """The small run, for a test to change."""
    return Path(shutil.copytree(small, tmp_path / "run"))


@pytest.fixture
def command() -> Callable[..., Result]:
    """`vitrine ARGUMENTS`, in this process."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])
