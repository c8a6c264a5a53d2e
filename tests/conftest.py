import ctypes
import os
import pydoc_data.topics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# The workers of the tests share the cores: with a thread each, they do not wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token files and corpora of the tests stay out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["VITRINE_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def prose() -> str:
    """60,000 characters of English that every Python carries, in 96 or fewer different characters."""
    topics = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics))
    return "".join(character for character in text if character.isascii())[:60_000]


@pytest.fixture
def book(tmp_path: Path, prose: str) -> Path:
    """A small text file to train on."""
    file = tmp_path / "book.txt"
    file.write_text(prose, encoding="utf-8")
    return file


@pytest.fixture
def vitrine(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """The command, in a process of its own, in a folder of its own."""

    def run(*arguments: object, timeout_s: float = 120) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "vitrine", *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    return run


PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2  # linux/prctl.h, linux/capability.h


def obey_permissions() -> None:
    """Before a process of root starts: take away what lets it write where it may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


TINY = [
    "--set",
    "model.n_layers=2",
    "--set",
    "model.d_model=32",
    "--set",
    "model.n_heads=2",
    "--set",
    "model.context=32",
    "--set",
    "training.batch_size=4",
    "--set",
    "training.evaluate_every=10",
    "--set",
    "training.evaluation_tokens=512",
    "--set",
    "recording.keyframe_every=5",
    "--set",
    "data.tokenizer=char",
]
