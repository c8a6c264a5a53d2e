"""Texts to token files, and back from the cache."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models

from vitrine._json import plain
from vitrine.errors import ConfigError, CorpusError
from vitrine.text import token_files
from vitrine.text.sources import Reading
from vitrine.text.token_files import open_prepared, prepare, source_digests, tokens_of
from vitrine.text.tokenizer import END_OF_TEXT, byte_tokenizer, char_tokenizer, decode

HOW = ("skip", "replace")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def text_of(prepared: token_files.Prepared) -> tuple[str, str]:
    """What the training and the validation tokens say."""
    train = "".join(decode(prepared.tokenizer, ids.tolist()) for ids in prepared.train)
    return train, decode(prepared.tokenizer, prepared.validation.tolist())


def jsonl(file: Path, documents: list[str]) -> Path:
    file.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return file


@pytest.mark.parametrize("share", [0.1, 0.5, 0.01])
def test_the_last_share_of_the_characters_is_held_back(share, book, prose, cache):
    prepared = prepare([str(book)], tokenizer="char", validation=share, cache=cache)
    cut = round(len(prose) * (1 - share))
    assert text_of(prepared) == (prose[:cut], prose[cut:])
    assert prepared.train_bytes + prepared.validation_bytes == len(prose.encode())


def test_the_split_of_a_whole_corpus_is_that_of_other_trainers(tmp_path, cache):
    """text[: int(0.9 * length)], as nanoGPT has it for tinyshakespeare's 1,115,394 characters."""
    file = tmp_path / "long.txt"
    file.write_text("ab" * (1_115_394 // 2))
    prepared = prepare([str(file)], tokenizer="char", cache=cache)
    assert (len(prepared.train[0]), len(prepared.validation)) == (1_003_854, 111_540)


def test_each_source_gives_its_share(tmp_path, cache):
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    files[0].write_text("a" * 100)
    files[1].write_text("b" * 50)
    prepared = prepare([str(file) for file in files], tokenizer="char", cache=cache)
    assert [len(ids) for ids in prepared.train] == [90, 45]
    assert text_of(prepared) == ("a" * 90 + "b" * 45, "a" * 10 + "b" * 5)


def test_validation_files_are_held_back_whole_and_their_characters_are_known(tmp_path, book, prose, cache):
    other = tmp_path / "other.txt"
    other.write_text("Ünknown\n" * 20)
    prepared = prepare([str(book)], tokenizer="char", validation=[str(other)], cache=cache)
    assert text_of(prepared) == (prose, "Ünknown\n" * 20)
    assert prepared.validation_bytes == other.stat().st_size


def test_nothing_is_held_back_when_nothing_is_asked_for(book, prose, cache):
    prepared = prepare([str(book)], tokenizer="char", validation=0, cache=cache)
    assert text_of(prepared) == (prose, "")


@pytest.mark.parametrize("tokenizer", ["byte", "bpe:300"])
def test_a_document_ends_with_the_end_of_text_and_its_name_inside_stays_text(tokenizer, tmp_path, cache):
    documents = ["one", f"two {END_OF_TEXT} and a half", "three"]
    file = jsonl(tmp_path / "rows.jsonl", documents)
    prepared = prepare([str(file)], tokenizer=tokenizer, validation=0, cache=cache)
    end = prepared.tokenizer.get_vocab_size() - 1
    ids = prepared.train[0]
    parts = np.split(ids, np.flatnonzero(ids == end) + 1)
    assert [decode(prepared.tokenizer, part[:-1].tolist()) for part in parts[:-1]] == documents
    assert len(parts[-1]) == 0


@pytest.mark.parametrize(("size", "dtype"), [("byte", "<u2"), ("bpe:66000", "<u4")])
def test_ids_take_two_bytes_where_they_fit(size, dtype, tmp_path, cache):
    if size.startswith("bpe"):
        large = char_tokenizer("".join(map(chr, range(32, 32 + 0xD000))) + "".join(map(chr, range(0xE000, 0x12000))))
        size = str(tmp_path / "tokenizer.json")
        large.save(size)
    (tmp_path / "a.txt").write_text("some text, some text")
    prepared = prepare([str(tmp_path / "a.txt")], tokenizer=size, cache=cache)
    assert prepared.train[0].dtype == np.dtype(dtype)
    assert text_of(prepared)[0] == "some text, some te"


def test_the_files_are_read_as_they_are_and_not_into_memory(book, cache):
    assert isinstance(prepare([str(book)], tokenizer="char", cache=cache).train[0], np.memmap)


def test_bpe_learns_from_the_training_text_alone(tmp_path, cache):
    file = tmp_path / "two.txt"
    file.write_text("abab" * 225 + "xyxy" * 25)
    tokenizer = prepare([str(file)], tokenizer="bpe:300", cache=cache).tokenizer
    assert any("ab" in token for token in tokenizer.get_vocab())
    assert not any("xy" in token for token in tokenizer.get_vocab())


def test_the_second_time_the_cache_serves(book, cache, monkeypatch):
    first = prepare([str(book)], tokenizer="bpe:300", cache=cache)
    monkeypatch.setattr(token_files, "_write", _never)
    monkeypatch.setattr(token_files, "scan", _never)
    second = prepare([str(book)], tokenizer="bpe:300", cache=cache)
    assert second.folder == first.folder
    assert text_of(second) == text_of(first)


def test_what_the_ids_depend_on_has_its_own_place(book, cache):
    asked = [
        {"tokenizer": "char"},
        {"tokenizer": "byte"},
        {"tokenizer": "bpe:300"},
        {"tokenizer": "char", "validation": 0.2},
        {"tokenizer": "char", "validation": [str(book)]},
    ]
    assert len({prepare([str(book)], cache=cache, **kind).corpus_digest for kind in asked}) == len(asked)
    book.write_text("another text entirely, long enough")
    changed = prepare([str(book)], tokenizer="char", cache=cache)
    assert text_of(changed)[0] == "another text entirely, long en"


@pytest.mark.parametrize(
    ("asked", "digest"),
    [
        ({"tokenizer": "char"}, "c0ac7fe236c7cbd8017dabc6144ec23e4fe408c665d481713cbe204c96885af1"),
        ({"tokenizer": "char", "validation": 0.05}, "c201da62291ee45df510274f9bde7c45cc292e6f4c3cef920baac1f65975e29f"),
        ({"tokenizer": "bpe:270"}, "f9a6a2709e974601be8209938b119582212b72bd5300c94b71af9c2821bcde5f"),
        ({"tokenizer": "bpe:270", "validation": 0}, "c6179904b620a2247f1936d5fe87a6ea9213231ab84440c9e1defd22af2fd973"),
        (
            {"tokenizer": "bpe:270", "validation": 0.2},
            "9aa91b3681cde44ac76bc54aa35350fa0a6bbf2f3c50672e5ba5cfa318c9cc3f",
        ),
    ],
)
def test_the_digest_of_a_corpus_is_what_it_was(asked, digest, tmp_path, cache):
    """As 40aa924 gave it: the ids of these have not changed since."""
    (tmp_path / "rhyme.txt").write_text("One for sorrow, two for joy, three for a girl, four for a boy.\n" * 40)
    assert prepare([str(tmp_path / "rhyme.txt")], cache=cache, **asked).corpus_digest == digest


def test_small_shares_have_one_bpe(tmp_path, cache):
    """The last tenth is left out where only a twentieth is held back; its place in the cache is a new one."""
    (tmp_path / "rhyme.txt").write_text("One for sorrow, two for joy, three for a girl, four for a boy.\n" * 40)
    first, second = (
        prepare([str(tmp_path / "rhyme.txt")], tokenizer="bpe:270", validation=share, cache=cache)
        for share in (0.1, 0.05)
    )
    assert first.tokenizer.to_str() == second.tokenizer.to_str()
    assert second.corpus_digest != "51f91a50750a6d7c9ffe0346f56c99fe0114966055143ec717d8f33520cd74e8"  # of 40aa924


def test_a_text_that_moved_is_the_same_text(book, tmp_path, cache):
    first = prepare([str(book)], tokenizer="char", cache=cache)
    moved = prepare([str(shutil.move(book, tmp_path / "moved.txt"))], tokenizer="char", cache=cache)
    assert moved.corpus_digest == first.corpus_digest
    assert source_digests([str(tmp_path / "moved.txt")]) == list(first.source_digests)


def test_an_edit_of_the_same_size_is_seen_though_its_time_is_set_back(book, prose, cache):
    first = prepare([str(book)], tokenizer="char", cache=cache)
    stat = book.stat()
    book.write_text("#" + prose[1:])
    os.utime(book, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = prepare([str(book)], tokenizer="char", cache=cache)
    assert second.corpus_digest != first.corpus_digest
    assert text_of(second)[0].startswith("#" + prose[1:100])


@pytest.mark.parametrize("seen", [True, False], ids=["its times tell", "its bytes tell"])
@pytest.mark.parametrize("change", ["same size", "longer", "to nothing"])
def test_a_text_that_changes_between_two_readings_is_refused_and_nothing_is_left(
    change, seen, book, prose, cache, monkeypatch
):
    """Else ids of another text would lie under its digest. Where times and inodes say nothing, the bytes do."""
    stat = book.stat()
    make = token_files.make_tokenizer

    def change_it(*arguments):
        made = make(*arguments)
        book.write_text({"same size": prose.swapcase(), "longer": prose + "more", "to nothing": ""}[change])
        os.utime(book, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        return made

    with monkeypatch.context() as patched:
        patched.setattr(token_files, "make_tokenizer", change_it)
        if not seen:
            patched.setattr(token_files, "stamps", lambda _: [])
        with pytest.raises(CorpusError, match=f"{book} changed while it was read"):
            prepare([str(book)], tokenizer="byte", validation=0, cache=cache)
    assert not list((cache / "tokens").iterdir())
    book.write_text(prose)
    assert prepare([str(book)], tokenizer="byte", validation=0, cache=cache).train[0][:-1].tobytes() == prose.encode(
        "utf-16-le"
    )


def test_token_files_that_would_fill_the_disk_are_refused_and_nothing_is_left(tmp_path, prose, cache, monkeypatch):
    (tmp_path / "long.txt").write_text(prose * 250)
    disk, free = shutil.disk_usage(tmp_path), iter([10**9, 80_000_000, 60_000_000])
    monkeypatch.setattr(token_files.shutil, "disk_usage", lambda _: disk._replace(total=10**11, free=next(free)))
    said = r"do not fit on the disk of .*: [1-9][\d,]+ tokens are written, more follow, and 80.0 MB are free. Set VITR"
    with pytest.raises(CorpusError, match=said):
        prepare([str(tmp_path / "long.txt")], tokenizer="char", cache=cache)
    assert not list((cache / "tokens").iterdir())


@pytest.mark.parametrize("damage", ["cut", "bit", "gone", "manifest"])
def test_a_damaged_cache_is_made_anew(damage, book, prose, cache):
    first = prepare([str(book)], tokenizer="char", cache=cache)
    file = first.folder / ("manifest.json" if damage == "manifest" else "train-0.bin")
    raw = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(raw[:-2])
    elif damage == "bit":
        file.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    elif damage == "manifest":
        file.write_bytes(raw[:50])
    with pytest.raises(CorpusError, match=r"damaged|missing or unreadable"):
        open_prepared(first.folder)
    again = prepare([str(book)], tokenizer="char", cache=cache)
    assert "".join(text_of(again)) == prose


def test_two_processes_at_once_make_the_same_files(book, cache):
    code = f"from vitrine.text.token_files import prepare; print(prepare([{str(book)!r}], tokenizer='bpe:400').corpus_digest)"
    environment = {**os.environ, "VITRINE_CACHE": str(cache)}
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = {process.communicate(timeout=60)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(said) == 1
    assert len(list((cache / "tokens").iterdir())) == 1


def test_a_copy_of_the_files_is_whole(book, tmp_path, cache):
    first = prepare([str(book)], tokenizer="char", cache=cache)
    token_files.copy_prepared(first, tmp_path / "tokens")
    shutil.rmtree(cache)
    assert text_of(open_prepared(tmp_path / "tokens")) == text_of(first)


def test_a_text_that_is_measured_once_has_its_ids_and_its_bytes(tmp_path):
    file = jsonl(tmp_path / "rows.jsonl", ["né", "b"])
    ids, size = tokens_of([str(file)], byte_tokenizer())
    assert ids.tolist() == [*"né".encode(), 256, *b"b", 256]
    assert size == 4
    (tmp_path / "short.txt").write_text("a")
    with pytest.raises(CorpusError, match="has 1 tokens; measuring a loss needs at least 2"):
        tokens_of([str(tmp_path / "short.txt")], char_tokenizer("a"))


@pytest.mark.parametrize(
    ("characters", "alphabet", "expected"),
    [
        (1_000_000, 65, "char"),
        (1_000_000, 200, "bpe:1024"),
        (10_000_000, 65, "bpe:4096"),
        (10**12, 200, "bpe:16384"),
        (1_000, 200, "bpe:512"),
    ],
)
def test_auto_takes_characters_for_a_small_plain_text_and_else_bpe_by_size(characters, alphabet, expected):
    facts = token_files.Scan("", 1, characters, characters, "".join(map(chr, range(32, 32 + alphabet))))
    assert token_files.choose_tokenizer([facts]) == expected


def test_a_tokenizer_of_no_known_kind_is_refused_and_nothing_is_left(book, tmp_path, cache):
    for name, said in (("bpe:many", "needs a vocabulary size"), ("chars", "There is no tokenizer at chars")):
        with pytest.raises(ConfigError, match=said):
            prepare([str(book)], tokenizer=name, cache=cache)
    assert not list((cache / "tokens").iterdir())


def test_a_character_that_a_given_tokenizer_lacks_is_refused_and_nothing_is_left(book, tmp_path, cache):
    char_tokenizer("abc").save(str(tmp_path / "small.json"))
    with pytest.raises(CorpusError, match="which the tokenizer has no token for"):
        prepare([str(book)], tokenizer=str(tmp_path / "small.json"), cache=cache)
    assert not list((cache / "tokens").iterdir())


def test_special_tokens_that_the_text_spells_stay_text_and_one_line_says_so(tmp_path, cache):
    """Also when the cache serves. A tokenizer that is learned from the text has none but the end of text."""
    (tmp_path / "chat.txt").write_text("<|im_start|>user\nhello<|im_end|>\n" * 3 + "a < b, <|im and <s> too")
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|im|>", "<s>", "#"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for _ in range(2):
        prepared = prepare([str(tmp_path / "chat.txt")], tokenizer=str(tmp_path / "tokenizer.json"), cache=cache)
        said = "<|im_start|> (3 times), <|im_end|> (3 times), <s> (1 times). They are learned as the characters"
        assert [warning.count(said) for warning in prepared.warnings] == [1]
        assert prepared.train[0].max() < 256
    assert prepare([str(tmp_path / "chat.txt")], tokenizer="byte", cache=cache).warnings == []


def test_pieces_of_a_long_text_give_the_ids_of_the_whole(tmp_path, prose, cache):
    """The text is read in pieces; where it is cut must not show in the ids."""
    long = prose * 12
    (tmp_path / "long.txt").write_text(long)
    prepared = prepare([str(tmp_path / "long.txt")], tokenizer="bpe:400", validation=0, cache=cache)
    whole = prepared.tokenizer.encode(long, add_special_tokens=False).ids
    assert prepared.train[0][:-1].tolist() == whole  # the last one is the end of text


def test_progress_tells_of_reading_and_of_tokens(book, cache):
    told = []
    prepare([str(book)], tokenizer="char", cache=cache, progress=lambda *facts: told.append(facts))
    size = book.stat().st_size
    assert {what for what, _, _ in told} == {"reading", "tokens"}
    assert told[-1] == ("tokens", size, size)


@pytest.mark.full
@pytest.mark.parametrize("tokenizer", ["char", "bpe:1024"])
@pytest.mark.parametrize("ending", ["txt", "parquet"])
def test_a_corpus_of_any_size_is_prepared_in_bounded_memory(ending, tokenizer, tmp_path, prose, cache):
    """Under 1 GB resident for 200 MB of text; the peak of a corpus of twice the size is the same."""
    peaks = []
    for copies in (1_700, 3_400):
        file = tmp_path / f"large-{copies}.{ending}"
        if ending == "parquet":
            with pq.ParquetWriter(file, pa.schema([("text", pa.string())])) as writer:
                for _ in range(copies // 100):
                    writer.write_table(pa.table({"text": [prose] * 100}))
        else:
            with open(file, "w") as handle:
                for _ in range(copies):
                    handle.write(prose)
        code = f"from vitrine.text.token_files import prepare; p = prepare([{str(file)!r}], tokenizer={tokenizer!r}); "
        if sys.platform == "linux":  # its getrusage counts what the parent had, too
            code += "print(1024 * int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]))"
        else:
            code += "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        environment = {**os.environ, "VITRINE_CACHE": str(cache)}
        said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        peaks.append(int(said.stdout))
    # The pages of token files that were mapped and read count too, and can be given back at any time.
    assert peaks[1] < 1e9
    assert peaks[1] < peaks[0] + 150e6


def _never(*_: object) -> None:
    raise AssertionError("the cache should have served")


def test_what_was_left_out_as_not_valid_is_told_and_kept_and_part_of_the_digest(tmp_path, cache):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, content in (("a.txt", b"good text " * 20), ("b.txt", b"bad \xff text " * 20)):
        (folder / name).write_bytes(content)
    with pytest.raises(CorpusError, match=r"^.*b.txt is not UTF-8: the byte at offset 4 is 0xff. Convert it"):
        prepare([str(folder)], tokenizer="byte", cache=cache)
    made = {how: prepare([str(folder)], tokenizer="byte", cache=cache, reading=Reading(invalid=how)) for how in HOW}
    assert len({prepared.corpus_digest for prepared in made.values()}) == 2
    for how, said in (("skip", "left out"), ("replace", "read with U+FFFD for what is not valid")):
        again = prepare([str(folder)], tokenizer="byte", cache=cache, reading=Reading(invalid=how))
        for prepared in (made[how], again):
            (warning,) = prepared.warnings
            assert warning.startswith(
                f"1 file or row is {said}, of {folder} (data.invalid = {how}): {folder / 'b.txt'} is"
            )
            (source,) = plain(prepared.summary.sources)
            assert source["invalid"]["count"] == 1
    (folder / "b.txt").unlink()
    alone = prepare([str(folder)], tokenizer="byte", cache=cache)
    assert text_of(alone) == text_of(made["skip"])
    assert prepare([str(folder)], tokenizer="byte", cache=cache, reading=Reading(invalid="skip")).folder == alone.folder


def test_a_folder_that_holds_a_tokenizer_is_one(book, tmp_path, cache):
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "tokenizer.json"
    byte_tokenizer().save(str(file))
    prepared = prepare([str(book)], tokenizer=str(tmp_path / "model"), cache=cache)
    assert prepared.tokenizer_name == str(file)
    assert prepared.corpus_digest == prepare([str(book)], tokenizer=str(file), cache=cache).corpus_digest
    file.unlink()
    with pytest.raises(
        ConfigError, match=r"no tokenizer at .*model/tokenizer.json. Give .* or of a folder that holds one"
    ):
        prepare([str(book)], tokenizer=str(tmp_path / "model"), cache=cache)


def test_a_vocabulary_that_lacks_bytes_of_the_text_is_refused_and_nothing_is_left(book, tmp_path, cache):
    state = json.loads(byte_tokenizer().to_str())
    state["model"]["vocab"] = {token: n for n, token in enumerate(t for t in state["model"]["vocab"] if t != "Ġ")}
    state["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(CorpusError, match=r"The text holds ' ' \(U\+0020\), .* it lacks the bytes 0x20. "):
        prepare([str(book)], tokenizer=str(tmp_path / "tokenizer.json"), cache=cache)
    assert not list((cache / "tokens").iterdir())


def test_text_that_is_unknown_to_the_tokenizer_is_counted(tmp_path, cache):
    (tmp_path / "a.txt").write_text("abcd" * 25)
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2, "?": 3}, [], unk_token="?"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    prepared = prepare([str(tmp_path / "a.txt")], tokenizer=str(tmp_path / "tokenizer.json"), cache=cache)
    (warning,) = prepared.warnings
    assert warning.startswith("25 of the 100 tokens (25.00%) are the tokenizer's token for what it does not know: ")
