"""What the cache holds, how it is emptied, and what killed processes leave in it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY
from vitrine import train
from vitrine.cli.render import render
from vitrine.errors import CorpusError
from vitrine.text.builtin import keep
from vitrine.text.cache import contents
from vitrine.text.token_files import copy_prepared, open_prepared, prepare
from vitrine.training import tokens as run_tokens
from vitrine.training.tokens import open_tokens


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VITRINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_says_what_there_is_and_is_emptied(vitrine, book, cache, tmp_path):
    prepared = prepare([str(book)], tokenizer="char")
    prepare([str(book)], tokenizer="byte")
    keep("topics.txt", b"x" * 1000)
    copy_prepared(prepared, tmp_path / "tokens")
    shared = sum(file.stat().st_size for file in (tmp_path / "tokens").iterdir() if file.stat().st_nlink > 1)
    whole = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    found = contents()
    assert {name: part.count for name, part in found.parts.items()} == {"tokens": 2, "scans": 1, "corpora": 1}
    assert sum(part.size_bytes for part in found.parts.values()) == whole
    assert (found.parts["tokens"].shared_bytes, found.own_bytes) == (shared, whole - shared)
    assert "in run folders, too" in render(found)

    said = json.loads(vitrine("cache", "--clear", "--json").stdout)
    assert said["freed_bytes"] == whole - shared
    assert not [file for file in cache.rglob("*") if file.is_file()]
    assert len(open_prepared(tmp_path / "tokens").train[0]) == len(prepared.train[0])
    again = vitrine("cache")
    assert again.returncode == 0
    assert "0 token files of texts, 0.0 MB" in again.stdout


def test_a_run_that_points_into_the_cache_makes_its_tokens_anew_from_the_same_text_alone(
    book, prose, tmp_path, monkeypatch
):
    monkeypatch.setattr(run_tokens, "KEPT_TOKENS_BYTES", 0)
    settings = dict(word.split("=") for word in TINY if "=" in word)
    run = train(
        book,
        run=str(tmp_path / "run"),
        steps=2,
        settings={name: int(value) if value.isdigit() else value for name, value in settings.items()},
    )
    assert [file.name for file in (run.path / "tokens").iterdir()] == ["pointer.json"]
    before = open_tokens(run)
    ids = [before.train[0].tolist(), before.validation.tolist()]
    contents(clear=True)
    after = open_tokens(run)
    assert [after.train[0].tolist(), after.validation.tolist()] == ids
    contents(clear=True)
    book.write_text(prose[::-1])
    with pytest.raises(CorpusError, match=f"{book} has changed since the run began"):
        open_tokens(run)


def test_texts_that_were_pasted_stay_when_it_is_emptied(cache):
    pasted = keep("text-0123.txt", b"the only copy")
    assert "1 texts that were pasted into the studio or came through a pipe stay" in render(contents(clear=True))
    assert pasted.read_bytes() == b"the only copy"


def test_an_empty_cache_has_nothing(cache):
    assert contents(clear=True).own_bytes == 0
    assert not cache.exists()


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(book, cache):
    (cache / "tokens").mkdir(parents=True)
    code = (
        "import sys, time; from pathlib import Path; from vitrine._files import partial\n"
        "with partial(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('x'); print(folder, flush=True); time.sleep(60)"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(cache / "tokens" / name)], stdout=subprocess.PIPE, text=True)
        for name in ("killed", "living")
    ]
    try:
        killed, living = (Path(writer.stdout.readline().strip()) for writer in writers)
        writers[0].send_signal(signal.SIGKILL)
        writers[0].wait()
        (cache / "scans").mkdir()
        scan = cache / "scans" / f"{'0' * 64}.{writers[0].pid}"  # as they were named before
        scan.write_text("{")
        prepare([str(book)], tokenizer="char")
        assert not killed.exists()
        assert not scan.exists()
        assert (living / "half").is_file()
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            writer.stdout.close()
