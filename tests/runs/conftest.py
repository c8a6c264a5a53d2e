"""The small run; each test that changes it has a copy."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from vitrine.cli.main import app


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    """The small run, for a test to change."""
    return Path(shutil.copytree(small, tmp_path / "run"))


@pytest.fixture
def command() -> Callable[..., Result]:
    """`vitrine ARGUMENTS`, in this process."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])
