"""nanoGPT's .bin: token ids that were made elsewhere."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vitrine.errors import CorpusError
from vitrine.text import ids as module
from vitrine.text.token_files import documents, prepare, tokens_of
from vitrine.text.tokenizer import load_tokenizer, save_tokenizer, train_bpe
from vitrine.training import request as asking
from vitrine.training.request import Request

ROWS = ["one sheep", "two shéép", "three 🐑🐑🐑"]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    file = tmp_path / "tokenizer.json"
    save_tokenizer(train_bpe(iter([" ".join(ROWS)] * 3), 270), file)
    return file


@pytest.fixture
def ids(tokenizer: Path) -> list[int]:
    """The rows as nanoGPT's scripts write them: an end of text after each."""
    made = load_tokenizer(tokenizer)
    return [number for row in ROWS for number in [*made.encode(row).ids, made.get_vocab_size() - 1]]


def write(file: Path, ids: list[int]) -> str:
    np.array(ids, "<u2").tofile(file)
    return str(file)


def test_ids_are_taken_as_they_are_and_the_end_is_held_back(ids, tokenizer, tmp_path, cache):
    prepared = prepare([write(tmp_path / "train.bin", ids)], tokenizer=str(tokenizer), validation=0.25, cache=cache)
    cut = int(len(ids) * 0.75)
    assert (prepared.train[0].tolist(), prepared.validation.tolist()) == (ids[:cut], ids[cut:])
    assert prepared.train_bytes + prepared.validation_bytes == len("".join(ROWS).encode())
    assert prepared.validation_split == "end"
    rows = documents(prepared)
    firsts = [0, len(load_tokenizer(tokenizer).encode(ROWS[0]).ids) + 1]
    assert rows["first_token"].tolist()[:2] == firsts
    assert rows["offset"].tolist()[:2] == [2 * first for first in firsts]
    assert prepared.manifest["sources"][0]["documents"] == len(ROWS)
    assert prepare([str(tmp_path / "train.bin")], tokenizer=str(tokenizer), validation=0.25, cache=cache).train


@pytest.mark.parametrize("chunk_bytes", [2, 6, 2**20])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
def test_chunks_do_not_show(chunk_bytes, share, ids, tokenizer, tmp_path, cache, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk_bytes)
    prepared = prepare([write(tmp_path / "a.bin", ids)], tokenizer=str(tokenizer), validation=share, cache=cache)
    cut, end = len(prepared.train[0]), load_tokenizer(tokenizer).get_vocab_size() - 1
    firsts = [0, *[place + 1 for place, number in enumerate(ids[:-1]) if number == end]]
    expected = [(False, first) for first in firsts if first < cut]
    expected += [(True, first - cut) for first in sorted({*firsts, cut}) if cut <= first < len(ids)]
    assert [(row["validation"], row["first_token"]) for row in documents(prepared)] == expected
    assert prepared.manifest["sources"][0]["documents"] == len(ROWS)
    assert (*prepared.train[0], *prepared.validation) == tuple(ids)


def test_it_counts_the_bytes_of_a_tokenizer_of_words_too(tmp_path, cache):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"one": 0, "two": 1, "three": 2}))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "words.json"))
    file = write(tmp_path / "a.bin", [0, 1, 2] * 4)
    prepared = prepare([file], tokenizer=str(tmp_path / "words.json"), validation=0, cache=cache)
    assert prepared.train_bytes == len("one two three " * 4) - 1
    assert documents(prepared).size == 1  # there is no end of text to tell documents by


@pytest.mark.parametrize("name", ["auto", "char", "bpe:300"])
def test_ids_without_their_tokenizer_are_refused(name, ids, tmp_path, cache):
    with pytest.raises(CorpusError, match=rf"a.bin holds token ids.*data.tokenizer = {name} would be learned"):
        prepare([write(tmp_path / "a.bin", ids)], tokenizer=name, cache=cache)


def test_an_id_that_the_tokenizer_lacks_is_refused_by_its_place(ids, tokenizer, tmp_path, cache):
    known = load_tokenizer(tokenizer).get_vocab_size()
    file = write(tmp_path / "a.bin", [*ids, known - 1, known, known + 5])
    with pytest.raises(
        CorpusError, match=rf"a.bin has the id {known} at place {len(ids) + 1}, and the tokenizer {known} "
    ):
        prepare([file], tokenizer=str(tokenizer), cache=cache)
    assert not list((cache / "tokens").iterdir())


def test_what_is_no_file_of_ids_is_refused(tokenizer, tmp_path, cache):
    for content, said in ((b"123", "has 3 bytes, an odd number"), (b"", "holds no token ids")):
        (tmp_path / "a.bin").write_bytes(content)
        with pytest.raises(CorpusError, match=said):
            prepare([str(tmp_path / "a.bin")], tokenizer=str(tokenizer), cache=cache)
    write(tmp_path / "a.bin", [1, 2])
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(CorpusError, match="Give them as two sources"):
        prepare([str(tmp_path / "a.*")], tokenizer=str(tokenizer), cache=cache)


def test_text_and_ids_can_be_two_sources(ids, tokenizer, tmp_path, cache):
    (tmp_path / "a.txt").write_text(ROWS[0])
    corpus = [str(tmp_path / "a.txt"), write(tmp_path / "a.bin", ids)]
    prepared = prepare(corpus, tokenizer=str(tokenizer), validation=0, cache=cache)
    assert prepared.train[0].tolist() == ids[: ids.index(max(ids)) + 1]
    assert prepared.train[1].tolist() == ids


def test_ids_can_be_measured(ids, tokenizer, tmp_path):
    found, size = tokens_of([write(tmp_path / "a.bin", ids)], load_tokenizer(tokenizer))
    assert (found.tolist(), size) == (ids, len("".join(ROWS).encode()))


def test_val_bin_beside_them_is_the_validation_text(ids, tokenizer, tmp_path):
    for name, content in (("train.bin", ids * 20), ("val.bin", ids * 4)):
        write(tmp_path / name, content)
    data = {"tokenizer": str(tokenizer)}
    request = Request((str(tmp_path / "train.bin"),), preset="nano", settings={"data": data}, steps=2)
    prepared = asking.prepare(request)
    assert prepared.config.data.validation == [str(tmp_path / "val.bin")]
    assert (len(prepared.tokens.train[0]), len(prepared.tokens.validation)) == (len(ids) * 20, len(ids) * 4)
    own = replace(request, settings={"data": {**data, "validation": 0.5}})
    assert len(asking.prepare(own).tokens.validation) == len(ids) * 10
