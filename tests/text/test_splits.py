"""Which documents are held back, and the index that says where each one lies."""

import hashlib
import json
import random
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import TINY
from vitrine import open_run, train
from vitrine.errors import CorpusError
from vitrine.recording.reporter import Reporter
from vitrine.text import token_files
from vitrine.text.token_files import copy_prepared, documents, open_prepared, prepare
from vitrine.text.tokenizer import decode
from vitrine.training import tokens as run_tokens
from vitrine.training.tokens import check_corpus, open_tokens


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def texts() -> list[str]:
    """60 documents of different lengths, each with a name of its own."""
    draw = random.Random(1)
    return [f"document {number}: " + "so it goes. " * draw.randrange(1, 40) for number in range(60)]


def folder_of(path: Path, texts: list[str]) -> Path:
    path.mkdir()
    for number, text in enumerate(texts):
        (path / f"{number:02}.txt").write_text(text)
    return path


def jsonl(file: Path, texts: list[str]) -> Path:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def sides(prepared: token_files.Prepared, source: int = 0) -> tuple[set[str], set[str]]:
    """The documents of both sides of a source, by the index."""
    found: tuple[set[str], set[str]] = set(), set()
    rows = documents(prepared)
    for held, ids in ((False, prepared.train[source]), (True, prepared.validation)):
        mine = rows[rows["validation"] & held | ~rows["validation"] & (not held) & (rows["source"] == source)]
        for row, end in zip(mine, [*mine["first_token"][1:], len(ids)], strict=True):
            if row["source"] == source:
                text = decode(prepared.tokenizer, ids[int(row["first_token"]) : int(end)].tolist())
                found[held].add(text.removesuffix("<|endoftext|>"))
    return found


def test_whole_documents_are_held_back_by_their_content(texts, tmp_path, cache):
    """The same ones, as files or as rows, in any order; about as many bytes as the share says."""
    rows = texts[::-1]
    pq.write_table(pa.table({"text": rows}), tmp_path / "rows.parquet")
    (tmp_path / "rows.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in rows))
    forms = [folder_of(tmp_path / "folder", texts), jsonl(tmp_path / "rows.jsonl", rows)]
    forms += [tmp_path / "rows.parquet", tmp_path / "rows.csv"]
    found = [sides(prepare([str(form)], tokenizer="byte", cache=cache)) for form in forms]
    train, held = found[0]
    assert all(other == found[0] for other in found)
    assert (train | held, train & held) == (set(texts), set())
    longest = max(map(len, texts))
    assert abs(sum(map(len, held)) - 0.1 * sum(map(len, texts))) <= longest / 2


def test_a_larger_share_holds_back_more_of_the_same(texts, tmp_path, cache):
    file = jsonl(tmp_path / "rows.jsonl", texts)
    held = [
        sides(prepare([str(file)], tokenizer="byte", validation=share, cache=cache))[1] for share in (0.05, 0.1, 0.5)
    ]
    assert held[0] < held[1] < held[2]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7])
def test_equal_documents_are_on_one_side_in_all_sources(share, texts, tmp_path, cache):
    files = [jsonl(tmp_path / "a.jsonl", texts * 2), jsonl(tmp_path / "b.jsonl", [*texts[::3], "another"])]
    prepared = prepare([str(file) for file in files], tokenizer="byte", validation=share, cache=cache)
    (train_a, held_a), (train_b, held_b) = sides(prepared, 0), sides(prepared, 1)
    assert all([train_a, held_a, train_b, held_b])
    assert not (train_a | train_b) & (held_a | held_b)
    assert len(documents(prepared)) == 2 * len(texts) + len(texts[::3]) + 1


@pytest.mark.parametrize("share", [0.0001, 0.5, 0.9999])
def test_each_source_keeps_something_on_both_sides(share, tmp_path, cache):
    files = [jsonl(tmp_path / f"{name}.jsonl", [f"{name} one", f"{name} two, longer"]) for name in "ab"]
    asked = {"validation": share, "validation_split": "documents"}
    prepared = prepare([str(file) for file in files], tokenizer="byte", cache=cache, **asked)
    assert [tuple(map(len, sides(prepared, source))) for source in (0, 1)] == [(1, 1), (1, 1)]


def test_the_default_is_documents_where_there_are_more_than_twenty(texts, tmp_path, cache):
    few, many = jsonl(tmp_path / "few.jsonl", texts[:20]), jsonl(tmp_path / "many.jsonl", texts[:21])
    same = jsonl(tmp_path / "same.jsonl", texts[:1] * 21)
    singles = [tmp_path / f"{number}.txt" for number in range(21)]
    for file, text in zip(singles, texts, strict=False):
        file.write_text(text)
    for files, split in (([few], "end"), ([many], "documents"), ([same], "end"), (singles, "end")):
        assert prepare([str(file) for file in files], tokenizer="byte", cache=cache).validation_split == split
    assert prepare([str(many)], tokenizer="byte", validation=0, cache=cache).validation_split == "end"


def test_a_source_of_one_document_is_cut_at_its_end(texts, tmp_path, cache):
    (tmp_path / "one.txt").write_text("x" * 100)
    corpus = [str(tmp_path / "one.txt"), str(jsonl(tmp_path / "rows.jsonl", texts))]
    prepared = prepare(corpus, tokenizer="byte", cache=cache)
    assert [source["held_back"] for source in prepared.manifest["sources"]] == ["end", "documents"]
    assert len(prepared.train[0]) == 90
    with pytest.raises(CorpusError, match=r"needs a source with two different documents: .*one.txt has one. Try"):
        prepare(corpus[:1], tokenizer="byte", validation_split="documents", cache=cache)


def test_the_digest_says_how_the_text_was_split(texts, tmp_path, cache):
    file = str(jsonl(tmp_path / "rows.jsonl", texts))
    digests = {
        prepare([file], tokenizer="byte", validation_split=how, cache=cache).corpus_digest
        for how in ("end", "documents")
    }
    assert len(digests) == 2


def test_bpe_learns_from_the_documents_that_are_not_held_back_and_small_shares_have_one(tmp_path, cache):
    rows = [
        f"{word} " * 30
        for word in ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett"] * 3
    ]
    file = str(jsonl(tmp_path / "rows.jsonl", [f"{row}{number}" for number, row in enumerate(rows)]))
    first, second, third = (
        prepare([file], tokenizer="bpe:290", validation=share, cache=cache) for share in (0.1, 0.05, 0.5)
    )
    assert first.validation_split == "documents"
    assert first.tokenizer.to_str() == second.tokenizer.to_str() != third.tokenizer.to_str()


def test_the_index_has_the_place_of_every_document(texts, tmp_path, cache):
    """By bytes of the unpacked file; the place of a row of .parquet is its number."""
    file = jsonl(tmp_path / "rows.jsonl", texts)
    pq.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet")
    folder = folder_of(tmp_path / "folder", texts)
    prepared = prepare([str(file), str(tmp_path / "rows.parquet"), str(folder)], tokenizer="bpe:300", cache=cache)
    rows, raw = documents(prepared), file.read_bytes()
    lines = [json.loads(raw[int(row["offset"]) :].split(b"\n")[0])["text"] for row in rows[rows["source"] == 0]]
    assert lines == texts
    assert rows[rows["source"] == 1]["offset"].tolist() == list(range(60))
    paths = [source["path"] for source in prepared.manifest["sources"][2]["files"]]
    assert [Path(paths[row["file"]]).read_text() for row in rows[rows["source"] == 2]] == texts
    assert set.union(*sides(prepared, 1)) == set(texts)


def test_a_document_that_the_cut_goes_through_has_a_row_on_both_sides(texts, tmp_path, cache):
    file = jsonl(tmp_path / "rows.jsonl", ["abcde", "fghij"])
    prepared = prepare([str(file)], tokenizer="byte", validation=0.3, cache=cache)
    rows = documents(prepared)
    assert rows["validation"].tolist() == [False, False, True]
    assert rows["first_token"].tolist() == [0, 6, 0]
    assert rows["offset"][1] == rows["offset"][2] == len('{"text": "abcde"}\n')
    whole = prepare([str(file)], tokenizer="byte", validation=0.5, cache=cache)
    assert documents(whole)["validation"].tolist() == [False, True]


def test_a_long_document_has_one_row(tmp_path, prose, cache):
    (tmp_path / "long.txt").write_text(prose * 20)
    rows = documents(prepare([str(tmp_path / "long.txt")], tokenizer="byte", validation=0.5, cache=cache))
    assert rows["first_token"].tolist() == [0, 0]
    assert documents(prepare([str(tmp_path / "long.txt")], tokenizer="byte", validation=0, cache=cache)).size == 1


def test_validation_files_have_rows_of_their_own(texts, tmp_path, cache):
    (tmp_path / "other.txt").write_text("another text")
    corpus = str(jsonl(tmp_path / "rows.jsonl", texts))
    prepared = prepare([corpus], tokenizer="byte", validation=[str(tmp_path / "other.txt")], cache=cache)
    last = documents(prepared)[-1]
    assert (last["source"], last["validation"], last["first_token"]) == (1, True, 0)
    assert prepared.manifest["sources"][1]["held_back"] == "all"


def test_a_text_that_moved_is_named_where_it_lies_now(texts, tmp_path, cache):
    folder = folder_of(tmp_path / "folder", texts)
    prepare([str(folder)], tokenizer="byte", cache=cache)
    moved = shutil.move(folder, tmp_path / "moved")
    again = prepare([str(moved)], tokenizer="byte", cache=cache)
    copy_prepared(again, tmp_path / "tokens")
    kept = open_prepared(tmp_path / "tokens")
    assert kept.manifest["sources"][0]["files"][0]["path"] == str(tmp_path / "moved" / "00.txt")
    assert documents(kept).tolist() == documents(again).tolist()


def test_token_files_of_an_earlier_version_are_read_and_in_the_cache_made_anew(texts, tmp_path, cache):
    file = str(jsonl(tmp_path / "rows.jsonl", texts))
    prepared = prepare([file], tokenizer="byte", validation_split="end", cache=cache)
    new = json.loads((prepared.folder / "manifest.json").read_text())
    kept = ("dtype", "files", "train_bytes", "validation_bytes", "tokenizer_name", "corpus_digest", "source_digests")
    (prepared.folder / "manifest.json").write_text(json.dumps({"version": 1, **{name: new[name] for name in kept}}))
    (prepared.folder / "index.bin").unlink()
    old = open_prepared(prepared.folder)
    assert (old.validation_split, old.summary, len(old.train[0])) == ("end", None, len(prepared.train[0]))
    with pytest.raises(CorpusError, match="has no index of documents: an earlier Vitrine wrote it"):
        documents(old)
    assert len(documents(prepare([file], tokenizer="byte", validation_split="end", cache=cache))) == 61


def test_a_run_without_the_key_in_its_config_means_the_end(texts, tmp_path, monkeypatch):
    """As runs have it that were made before there was a choice; their token ids can be made anew."""
    monkeypatch.setattr(run_tokens, "KEPT_TOKENS_BYTES", 0)
    monkeypatch.setenv("VITRINE_CACHE", str(tmp_path / "cache"))
    settings = {
        name: int(value) if value.isdigit() else value for name, value in (w.split("=") for w in TINY if "=" in w)
    }
    file = jsonl(tmp_path / "rows.jsonl", texts)
    run = train(file, run=str(tmp_path / "r"), steps=2, settings={**settings, "data.validation_split": "end"})
    ids = open_tokens(run).validation.tolist()
    config = run.path / "config.toml"
    config.write_text(config.read_text().replace('validation_split = "end"\n', ""))
    shutil.rmtree(tmp_path / "cache")
    old = open_run(run.path)
    assert open_tokens(old).validation.tolist() == ids
    check_corpus(old, Reporter())


def test_a_damaged_index_is_made_anew(texts, tmp_path, cache):
    file = str(jsonl(tmp_path / "rows.jsonl", texts))
    prepared = prepare([file], tokenizer="byte", cache=cache)
    (prepared.folder / "index.bin").write_bytes(b"0" * 24)
    with pytest.raises(CorpusError, match=r"index.bin has 24 bytes; 1440 were written"):
        open_prepared(prepared.folder)
    assert len(documents(prepare([file], tokenizer="byte", cache=cache))) == 60


def test_the_index_is_what_the_page_says(tmp_path, cache):
    """The example of docs/run-format.md, byte by byte."""
    page = (Path(__file__).parents[2] / "docs/run-format.md").read_text()
    rows = re.findall(r"^\| \d \| `([0-9a-f ]+)` \|", page, re.MULTILINE)
    file = jsonl(tmp_path / "rows.jsonl", ["one", "two", "three", "four"])
    asked = {"validation": 0.3, "validation_split": "documents"}
    prepared = prepare([str(file)], tokenizer="byte", cache=cache, **asked)
    assert (prepared.folder / "index.bin").read_bytes() == bytes.fromhex("".join(rows))
    assert len(rows) == 4


def test_the_key_of_a_document_is_what_the_page_says(texts, tmp_path, cache):
    prepared = prepare([str(jsonl(tmp_path / "rows.jsonl", texts))], tokenizer="byte", cache=cache)
    held = sides(prepared)[1]

    def key(text: str) -> int:
        digest = hashlib.blake2b(text.encode(), digest_size=8, key=b"vitrine: documents").digest()
        return int.from_bytes(digest, "little")

    assert held == set(sorted(texts, key=key)[: len(held)])
