import asyncio
import contextlib
import ctypes
import fcntl
import gc
import os
import pydoc_data.topics
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

# The workers of the tests share the cores: with a thread each, they do not wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from typer.testing import CliRunner

from tests import warm

# A shell starts its background commands with SIGINT ignored, and the commands under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token files and corpora of the tests stay out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["VITRINE_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def prose() -> str:
    """60,000 characters of English from Python's own documentation, in 96 or fewer different characters."""
    topics = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics))
    return "".join(character for character in text if character.isascii())[:60_000]


@pytest.fixture
def book(tmp_path: Path, prose: str) -> Path:
    """A small text file to train on."""
    file = tmp_path / "book.txt"
    file.write_text(prose, encoding="utf-8")
    return file


def vitrine_in(
    folder: Path, *arguments: object, stdin: str | bytes | None = None, check: bool = False
) -> "subprocess.CompletedProcess[str]":
    """`vitrine ARGUMENTS` in this process, as if typed in that folder. A mistake of ours is raised, not printed."""
    from vitrine.cli import main

    words = [str(argument) for argument in arguments]
    if words[0] == "report":  # in a process whose own child is forked, too
        return warm.vitrine(*words, cwd=folder, check=check)
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "STARTED_S", time.monotonic())
        patch.setattr(os, "nice", lambda by: 0)  # beside a training: the tests do not give way, and could not undo it
        done = CliRunner().invoke(main.app, words, input=stdin, catch_exceptions=False)
    assert not (check and done.exit_code), done.stderr
    # The bytes: the runner's text has lost what stands before a line feed.
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout_bytes.decode(), done.stderr)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that all workers of the tests share: the first that asks for it makes it. Change a copy, never it."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / f"shared-{name}"
    with open(base / f"shared-{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            (folder / "made").touch()
    return folder


@pytest.fixture(scope="session")
def book_file(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Path:
    """The small text file, where all can read it."""
    write = lambda folder: (folder / "book.txt").write_text(prose, encoding="utf-8")  # noqa: E731
    return made_once(tmp_path_factory, "text", write) / "book.txt"


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, own_cache: Path, book_file: Path) -> Path:
    """A run of 20 steps, with keyframes at 0, 5, 10, 15 and 20, and two texts; read only."""

    def make(folder: Path) -> None:
        with_text = ["--set", "recording.text_samples=1"]
        vitrine_in(folder, "train", book_file, *TINY, *with_text, "--steps", 20, "--run", "run", check=True)

    return made_once(tmp_path_factory, "small", make) / "run"


def unpack_old_run(folder: Path) -> Path:
    """A run of 20 steps that revision 40aa924 made on another machine; its text is no longer there."""
    with tarfile.open(Path(__file__).parent / "runs" / "run-of-40aa924.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "old"


@pytest.fixture
def vitrine(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """The command, in this process, in a folder of its own."""
    return partial(vitrine_in, tmp_path)


@pytest.fixture(autouse=True)
def no_loop_of_the_browser(request: pytest.FixtureRequest) -> Iterator[None]:
    """The browser's event loop runs between the tests, too: a test without a browser may have a loop of its own."""
    if "chromium" in request.fixturenames:
        yield
        return
    running = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    yield
    asyncio._set_running_loop(running)


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
    "recording.text_samples=0",
    "--set",
    "data.tokenizer=char",
]
