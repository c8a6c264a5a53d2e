"""Where texts come from, and where they are kept."""

import json
import os
import threading
from pathlib import Path

import pytest

from tests import warm
from tests.conftest import TINY
from vitrine import open_run
from vitrine.errors import CorpusError
from vitrine.text import builtin
from vitrine.text.builtin import located
from vitrine.text.cache import cache_folder, contents
from vitrine.text.token_files import source_digests


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """A cache of its own, and its folder of texts."""
    monkeypatch.setenv("VITRINE_CACHE", str(tmp_path / "cache"))
    return cache_folder() / "corpora"


def through_a_pipe(path: Path, content: bytes) -> str:
    """What `located` makes of a named pipe that something is written into."""
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(content,))
    writer.start()
    try:
        return located(str(path))
    finally:
        writer.join()


def test_a_pipe_is_copied_into_the_cache_by_its_content(own, tmp_path):
    first = through_a_pipe(tmp_path / "one", b"some text" * 300_000)
    assert Path(first).read_bytes() == b"some text" * 300_000
    assert through_a_pipe(tmp_path / "two", b"some text" * 300_000) == first
    assert [file.name for file in own.iterdir()] == [Path(first).name]
    contents(clear=True)
    assert Path(first).is_file()  # perhaps it is the only copy


def test_a_pipe_that_is_empty_or_too_long_is_refused_and_nothing_is_left(own, tmp_path, monkeypatch):
    with pytest.raises(CorpusError, match=r"is empty\. Send text through it"):
        through_a_pipe(tmp_path / "one", b"")
    monkeypatch.setattr(builtin, "free_bytes", lambda _: 1000)
    with pytest.raises(CorpusError, match=r"does not fit on the disk of .*: 1,001 bytes came"):
        through_a_pipe(tmp_path / "two", b"a" * 1001)
    assert not list(own.iterdir())


def test_a_corpus_is_found_from_any_folder_and_an_empty_argument_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert located("book.txt") == str(tmp_path / "book.txt")
    assert located("hf:owner/name") == "hf:owner/name"
    with pytest.raises(CorpusError, match="An argument is empty, and names no text"):
        located("")


def test_a_training_reads_standard_input_and_its_text_stays(own, tmp_path, prose):
    asked = ["train", "-", *TINY, "--steps", "20", "--json"]
    how = {"cwd": tmp_path, "env": {**os.environ, "VITRINE_CACHE": str(tmp_path / "cache")}}
    made = warm.vitrine(*asked, stdin=prose, check=True, **how)
    assert Path(json.loads(made.stdout)["run"]).name == "stdin-1"
    run = open_run(tmp_path / "runs" / "stdin-1")
    (text,) = run.config.data.corpus
    assert Path(text).read_text() == prose
    assert Path(text).parent == own
    digests = json.loads(run.facts()["source_digests"])
    assert source_digests(run.config.data.corpus) == digests  # so that `resume` finds it as it was
    empty = warm.vitrine(*asked, stdin="", **how)
    assert empty.returncode == 2
    assert empty.stderr.endswith("standard input is empty. Send text through it: cat book.txt | vitrine train -\n")
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == ["stdin-1"]
