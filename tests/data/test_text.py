"""Files to documents."""

import codecs
import gzip
import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from vitrine.data import text
from vitrine.data.text import Reading, find_sources, pieces, scan
from vitrine.errors import CorpusError
from vitrine.tokenizer import train_bpe

DOCUMENTS = ["First document, naïve.\n", 'Second:\ttwo "lines",\r\nand a comma.', "Dritte 🙂"]


def read(spec: Path | str, field: str = "") -> list[str]:
    """The documents of a source."""
    documents, held = [], ""
    for piece in pieces(find_sources([str(spec)])[0], Reading(field)):
        held += piece.text
        if piece.ends:
            documents.append(held)
            held = ""
    assert held == ""
    return documents


def write(file: Path, documents: list[str], field: str = "text") -> Path:
    """A file of the kind that its ending says, packed if its ending says so."""
    plain = file.with_suffix("") if file.suffix in (".gz", ".zst") else file
    if plain.suffix == ".jsonl":
        content = "".join(json.dumps({"id": 1, field: document}) + "\n" for document in documents).encode()
    elif plain.suffix == ".csv":
        rows = ['"' + document.replace('"', '""') + '"' for document in documents]
        content = (f"number,{field}\n" + "".join(f"7,{row}\n" for row in rows)).encode()
    elif plain.suffix == ".parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({field: documents}), sink)
        content = sink.getvalue().to_pybytes()
    else:
        content = "".join(documents).encode()
    if file.suffix == ".gz":
        content = gzip.compress(content)
    elif file.suffix == ".zst":
        content = zstandard.compress(content)
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_a_row_is_a_document_in_every_kind_and_packing(ending, packing, tmp_path):
    assert read(write(tmp_path / f"book{ending}{packing}", DOCUMENTS)) == DOCUMENTS


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("ending", [".txt", ".md", ".py"])
def test_a_text_file_is_a_document_with_its_line_ends_as_they_are(ending, packing, tmp_path):
    assert read(write(tmp_path / f"book{ending}{packing}", DOCUMENTS)) == ["".join(DOCUMENTS)]


def test_a_folder_gives_its_files_in_order_and_leaves_hidden_and_unknown_ones_out(tmp_path):
    for name in ("b.txt", "a.md", ".hidden.txt", "picture.png", "sub/c.txt", ".git/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read(tmp_path) == ["a.md", "b.txt", "sub/c.txt"]


def test_a_glob_gives_what_it_matches_in_order(tmp_path):
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text(name)
    assert read(tmp_path / "*.txt") == ["a.txt", "b.txt"]


def test_a_file_with_an_unknown_ending_is_read_when_it_is_named(tmp_path):
    (tmp_path / "book.novel").write_text("Once")
    assert read(tmp_path / "book.novel") == ["Once"]


def test_a_dataset_of_the_hub_is_read_by_the_datasets_library(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "rows").mkdir()
    write(tmp_path / "rows/train.parquet", DOCUMENTS)
    assert read(f"hf:{tmp_path / 'rows'}") == DOCUMENTS


@pytest.mark.parametrize("field", ["text", "content", "story"])
def test_the_text_field_is_the_usual_one_or_the_only_text(field, tmp_path):
    assert read(write(tmp_path / "book.jsonl", DOCUMENTS, field)) == DOCUMENTS


def test_the_text_field_can_be_named(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"title": "T", "story": "S"}\n')
    assert read(tmp_path / "b.jsonl", "story") == ["S"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("b.jsonl", b'{"title": "T", "story": "S"}', "There are title, story. Say so with --set data.text_field=NAME"),
        ("b.jsonl", b'{"text": 3}', "the field text is not text: '3'"),
        ("b.jsonl", b"[1]", "neither text nor an object"),
        ("b.jsonl", b'{"text": "fine"}\n{"text"', "b.jsonl, line 2 is not JSON"),
        ("b.jsonl", b'{"text": "\\ud800"}', "U+D800, a surrogate"),
        ("b.csv", b"text,n\na,1\nb,2,3\n", "b.csv, line 3 has more fields than the header"),
        ("b.txt.gz", gzip.compress(b"long enough " * 99, mtime=0)[:-20], "b.txt.gz is damaged: it cannot be unpacked"),
        ("b.txt.gz", b"no gzip", "b.txt.gz is damaged"),
        ("b.txt.zst", b"no zstandard", "b.txt.zst is damaged"),
        ("b.parquet", b"no parquet", "b.parquet cannot be read as parquet"),
        ("b.txt", b"abc\xff\xfe", "b.txt is not UTF-8: the byte at offset 3 is 0xff"),
        ("b.txt", codecs.BOM_UTF8 + b"abc\xff", "the byte at offset 6 is 0xff"),
        ("b.txt", b"cut in a character \xf0\x9f", "the byte at offset 19 is 0xf0"),
        ("b.txt", "text".encode("utf-16"), "b.txt is UTF-16, not UTF-8. Convert it: iconv -f UTF-16 -t UTF-8"),
        ("b.txt", "plain text".encode("utf-16-le"), "b.txt is UTF-16LE"),
        ("b.txt", "plain text".encode("utf-16-be"), "b.txt is UTF-16BE"),
        ("b.txt", "text".encode("utf-32"), "b.txt is UTF-32"),
        ("b.txt", b"", "holds no text"),
        ("b.txt", codecs.BOM_UTF8, "holds no text"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError) as error:
        scan(find_sources([str(tmp_path / name)])[0])
    assert message in str(error.value)


def test_the_offset_of_a_bad_byte_is_counted_from_the_start_of_a_long_file(tmp_path):
    content = "é".encode() * text.PIECE_BYTES + b"x\xff"
    (tmp_path / "b.txt").write_bytes(content)
    with pytest.raises(CorpusError, match=f"offset {len(content) - 1} is 0xff"):
        scan(find_sources([str(tmp_path / "b.txt")])[0])


def test_a_missing_path_names_a_near_one(tmp_path):
    (tmp_path / "book.txt").touch()
    with pytest.raises(CorpusError, match=r"There is no file or folder .*boook.txt. Did you mean .*book.txt\?"):
        find_sources([str(tmp_path / "boook.txt")])


def test_a_glob_without_a_match_and_a_folder_without_text_are_refused(tmp_path):
    with pytest.raises(CorpusError, match="No file matches"):
        find_sources([str(tmp_path / "*.txt")])
    with pytest.raises(CorpusError, match="holds no file that can be read as text"):
        find_sources([str(tmp_path)])


def test_a_byte_order_mark_goes(tmp_path):
    (tmp_path / "b.txt").write_bytes(codecs.BOM_UTF8 + b"Once")
    assert read(tmp_path / "b.txt") == ["Once"]


@given(st.text(alphabet=st.sampled_from("ab é🙂\n\r\t"), max_size=300), st.sampled_from([3, 10, 64]))
def test_the_pieces_of_a_long_text_put_together_are_the_text(tmp_path_factory, content, size):
    file = tmp_path_factory.mktemp("pieces") / "b.txt"
    file.write_bytes(content.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "PIECE_BYTES", size)
        found = list(pieces(find_sources([str(file)])[0]))
    assert "".join(piece.text for piece in found) == content
    assert [piece.ends for piece in found] == [False] * (len(found) - 1) + [True] * bool(found)


def test_pieces_end_where_words_part_so_that_bpe_ids_are_those_of_the_whole(tmp_path, prose, monkeypatch):
    (tmp_path / "b.txt").write_text(prose)
    monkeypatch.setattr(text, "PIECE_BYTES", 1000)
    tokenizer = train_bpe(iter([prose]), 600)
    found = [piece.text for piece in pieces(find_sources([str(tmp_path / "b.txt")])[0])]
    assert len(found) > 50
    assert max(map(len, found)) < 3000
    assert [i for piece in found for i in tokenizer.encode(piece).ids] == tokenizer.encode(prose).ids


def test_text_without_white_space_comes_in_bounded_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("vitrine.data.text.PIECE_BYTES", 1024)
    file = tmp_path / "genome.txt"
    file.write_text("ACGT" * 10_000)
    found = list(pieces(find_sources([str(file)])[0]))
    assert "".join(piece.text for piece in found) == "ACGT" * 10_000
    assert max(len(piece.text) for piece in found) <= 3 * 1024
    assert [piece.ends for piece in found] == [False] * (len(found) - 1) + [True]


def test_a_scan_counts_what_there_is(tmp_path):
    facts = scan(find_sources([str(write(tmp_path / "b.jsonl", DOCUMENTS))])[0])
    whole = "".join(DOCUMENTS)
    assert (facts.documents, facts.characters, facts.size_bytes) == (3, len(whole), len(whole.encode()))
    assert facts.alphabet == "".join(sorted(set(whole)))


def test_the_digest_depends_on_the_content_and_not_on_the_place(tmp_path):
    for name, content in (("a.txt", "one"), ("b.txt", "one"), ("c.txt", "two"), ("a.md", "one")):
        (tmp_path / name).write_text(content)
    digests = [scan(find_sources([str(tmp_path / name)])[0]).digest for name in ("a.txt", "b.txt", "c.txt", "a.md")]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet", ".txt"])
def test_a_piece_says_where_its_document_starts(ending, packing, tmp_path, monkeypatch):
    monkeypatch.setattr(text, "PIECE_BYTES", 8)
    documents = [*DOCUMENTS, "", "a fifth"]
    write(tmp_path / f"a{ending}", ["other"])
    write(tmp_path / f"b{ending}{packing}", documents)
    found = [piece for piece in pieces(find_sources([str(tmp_path)])[0]) if piece.file == 1]
    if ending == ".parquet":
        assert sorted({piece.offset for piece in found}) == [0, 1, 2, 4]
    elif ending == ".txt":
        assert {piece.offset for piece in found} == {0}
    else:
        unpacked = write(tmp_path / f"c{ending}", documents).read_bytes()
        starts = [unpacked.index(mark.encode()) for mark in ("First", "Second", "Dritte", "a fifth")]
        lines = [unpacked.rindex(b"\n", 0, start) + 1 if b"\n" in unpacked[:start] else 0 for start in starts]
        assert sorted({piece.offset for piece in found}) == lines


def test_what_a_folder_holds_is_counted_by_ending_read_or_left_out(tmp_path):
    for name, size in (("a.txt", 3), ("sub/b.txt.gz", 5), ("c.png", 7), ("LICENSE", 2), (".git/x/y", 4), (".env", 1)):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"x" * size)
    source = find_sources([str(tmp_path)])[0]
    assert source.sizes == (3, 5)
    assert source.size_bytes == 8
    assert source.read == {".txt": (2, 8)}
    assert source.left_out == {".png": (1, 7), "without an ending": (1, 2), "hidden": (2, 5)}


def test_the_digest_of_a_scan_is_that_of_the_files_in_every_kind(tmp_path):
    for number, name in enumerate(("a.txt", "b.jsonl.gz", "c.csv.zst", "d.parquet", "e.parquet.gz", "f.md.gz")):
        write(tmp_path / name, [*DOCUMENTS, str(number)])
    source = find_sources([str(tmp_path)])[0]
    expected = hashlib.sha256()
    for file, ending in zip(source.files, (".txt", ".jsonl", ".csv", ".parquet", ".parquet", ".md"), strict=True):
        expected.update(f"{ending} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    assert scan(source).digest == text.digest_of(source) == expected.hexdigest()
