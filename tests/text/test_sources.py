"""Files to documents."""

import codecs
import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import obey_permissions
from vitrine.errors import CorpusError
from vitrine.text import sources
from vitrine.text.sources import Reading, find_sources, pieces, scan, scan_all
from vitrine.text.tokenizer import train_bpe

DOCUMENTS = ["First document, naïve.\n", 'Second:\ttwo "lines",\r\nand a comma.', "Dritte 🙂"]


def read(spec: Path | str, field: str = "", invalid: str = "refuse") -> list[str]:
    """The documents of a source."""
    documents, held = [], ""
    for piece in pieces(find_sources([str(spec)])[0], Reading(field, invalid=invalid)):
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
        ("b.txt.zst", zstandard.compress(b"long enough " * 9999)[:-1], "b.txt.zst is damaged: it cannot be unpacked"),
        ("b.txt.zst", zstandard.compress(b"long enough " * 9999)[:3], "b.txt.zst is damaged: it cannot be unpacked"),
        ("b.txt.zst", zstandard.compress(b"one frame") + zstandard.compress(b"another")[:-2], "b.txt.zst is damaged"),
        (
            "b.jsonl",
            b'{"text": "fine"}\n\n{"content": "S"}',
            "line 3 has no field text, as all before it in the file have; ",
        ),
        (
            "b.jsonl",
            b'{"text": "fine"}\n"text"',
            "b.jsonl, line 2 is text; what comes before it in the file is an object",
        ),
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
    content = "é".encode() * sources.PIECE_BYTES + b"x\xff"
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
        patch.setattr(sources, "PIECE_BYTES", size)
        found = list(pieces(find_sources([str(file)])[0]))
    assert "".join(piece.text for piece in found) == content
    assert [piece.ends for piece in found] == [False] * (len(found) - 1) + [True] * bool(found)


def test_pieces_end_where_words_part_so_that_bpe_ids_are_those_of_the_whole(tmp_path, prose, monkeypatch):
    (tmp_path / "b.txt").write_text(prose)
    monkeypatch.setattr(sources, "PIECE_BYTES", 1000)
    tokenizer = train_bpe(iter([prose]), 600)
    found = [piece.text for piece in pieces(find_sources([str(tmp_path / "b.txt")])[0])]
    assert len(found) > 50
    assert max(map(len, found)) < 3000
    assert [i for piece in found for i in tokenizer.encode(piece).ids] == tokenizer.encode(prose).ids


def test_text_without_white_space_comes_in_bounded_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("vitrine.text.sources.PIECE_BYTES", 1024)
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
    monkeypatch.setattr(sources, "PIECE_BYTES", 8)
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
    assert scan(source).digest == sources.digest_of(source) == expected.hexdigest()


def test_files_are_counted_once_and_not_for_every_piece(tmp_path, monkeypatch):
    for number in range(50):
        (tmp_path / f"{number}.txt").write_text("some text")
    counted, stat = [], Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **how: counted.append(path) or stat(path, **how))
    source = find_sources([str(tmp_path)])[0]
    scan(source, progress=lambda *_: None)
    assert len([*pieces(source)]) == 50
    assert len(counted) < 10  # of the folder


def test_progress_counts_the_bytes_on_disk(tmp_path):
    told = []
    for name in ("a.txt", "b.txt.gz", "c.jsonl.zst"):
        write(tmp_path / name, DOCUMENTS)
    source = find_sources([str(tmp_path)])[0]
    scan(source, progress=lambda *facts: told.append(facts))
    assert told[-1] == ("reading", source.size_bytes, source.size_bytes)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".txt"])
def test_the_cost_of_a_long_line_is_not_its_square(ending, tmp_path, monkeypatch):
    """130,000 chunks of one line. Put together anew for each, that is over 100 GB to copy."""
    monkeypatch.setattr(sources, "PIECE_BYTES", 16)
    write(tmp_path / f"b{ending}", ["long " * 400_000])
    start = time.process_time()
    assert sum(len(piece.text) for piece in pieces(find_sources([str(tmp_path / f"b{ending}")])[0])) == 2_000_000
    assert time.process_time() - start < 10


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    ("ending", "where"),
    [(".jsonl", "line 3"), (".csv", "the row from line 5 on"), (".parquet", "row 3")],
)
def test_a_record_that_is_too_long_is_refused_by_name(ending, packing, where, tmp_path):
    file = write(
        tmp_path / f"b{ending}{packing}", ["short", "over\ntwo" if ending == ".csv" else "fine", "long " * 1000]
    )
    with pytest.raises(CorpusError) as error:
        scan(find_sources([str(file)])[0], Reading(max_record_bytes=4000))
    assert f"b{ending}{packing}, {where} is one record of 5,0" in str(error.value)
    assert "data.max_record_bytes allows 4,000." in str(error.value)
    assert scan(find_sources([str(file)])[0], Reading(max_record_bytes=6000)).documents == 3


def test_a_quote_that_is_never_closed_is_named(tmp_path):
    (tmp_path / "b.csv").write_text('text\nfine\n"no end\n' + "more\n" * 2000)
    with pytest.raises(CorpusError, match=r"the row from line 3 on is one record of .* Is a quote not closed\?"):
        scan(find_sources([str(tmp_path / "b.csv")])[0], Reading(max_record_bytes=4000))


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_packed_line_without_end_is_refused_in_bounded_memory(packing, tmp_path):
    """640 MB that lie in less than 1 MB."""
    file, pack = tmp_path / f"b.jsonl{packing}", gzip.compress if packing == ".gz" else zstandard.compress
    file.write_bytes(pack(b'{"text": "') + 64 * pack(b"a" * 10_000_000))
    assert file.stat().st_size < 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(CorpusError, match="line 1 is one record of 64,"):
            scan(find_sources([str(file)])[0])
        assert tracemalloc.get_traced_memory()[1] < 150_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_packed_text_that_is_larger_than_the_free_disk_is_refused(packing, tmp_path, monkeypatch):
    file = write(tmp_path / f"b.txt{packing}", ["some words " * 100_000])
    monkeypatch.setattr(sources, "free_bytes", lambda _: 1_000_000)
    with pytest.raises(CorpusError, match=f"b.txt{packing} holds more text than the disk of .* has room for"):
        scan(find_sources([str(file)])[0])
    monkeypatch.setattr(sources, "free_bytes", lambda _: 2_000_000)
    scan(find_sources([str(file)])[0])


def test_every_frame_of_a_zst_is_read(tmp_path):
    (tmp_path / "b.txt.zst").write_bytes(zstandard.compress(b"one, ") + zstandard.compress(b"and another"))
    assert read(tmp_path / "b.txt.zst") == ["one, and another"]


def test_the_field_of_the_first_row_holds_for_all_and_null_is_an_empty_document(tmp_path):
    (tmp_path / "b.jsonl").write_text(
        '{"story": "S", "n": 1}\n{"story": null, "title": "T"}\n{"story": "U", "text": "V"}\n'
    )
    assert read(tmp_path / "b.jsonl") == ["S", "U"]


BAD = {"a.txt": b"caf\xe9", "b.md": "sixteen".encode("utf-16"), "c.jsonl": b'{"text": "one"}\n{"text": "\\ud800!"}\n'}


@pytest.fixture
def bad(tmp_path):
    """A folder in which three files are not valid text, and one is."""
    for name, content in BAD.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "good.txt").write_text("good")
    return tmp_path


def test_all_that_is_not_valid_text_is_refused_at_once(bad):
    for number in range(20):
        (bad / f"e{number:02}.txt").write_bytes(b"\xff")
    with pytest.raises(CorpusError) as error:
        scan(find_sources([str(bad)])[0])
    said = str(error.value)
    assert said.startswith("23 files or rows are not valid text: ")
    for part in (
        "a.txt is not UTF-8: the byte at offset 3 is 0xe9; ",
        "b.md is UTF-16, not UTF-8; ",
        "; and 13 more. ",
    ):
        assert part in said
    assert "c.jsonl, line 2 holds half of a character (U+D800, a surrogate)" in said
    assert "--set data.invalid=skip" in said
    assert len(sources.SURROGATES.findall("\ud800x\udfff")) == 2


def test_sources_that_are_not_valid_text_are_refused_together(bad):
    with pytest.raises(CorpusError, match=r"^2 files or rows are not valid text: .*a.txt is not.*; .*b.md is"):
        scan_all(find_sources([str(bad / name) for name in ("a.txt", "b.md", "good.txt")]), scan)


def test_what_is_not_valid_text_can_be_left_out(bad):
    found = scan(find_sources([str(bad)])[0], Reading(invalid="skip"))
    assert read(bad, invalid="skip") == ["one", "good"]
    assert (found.documents, found.n_invalid) == (2, 3)
    assert [Path(what.split(" is ")[0].split(",")[0]).name for what in found.invalid] == ["a.txt", "b.md", "c.jsonl"]
    assert found.digest == sources.digest_of(find_sources([str(bad)])[0])


def test_what_is_not_valid_text_can_be_replaced_but_not_another_encoding(bad):
    with pytest.raises(CorpusError, match=r"b.md is UTF-16, not UTF-8: data.invalid=replace would leave nothing"):
        scan(find_sources([str(bad)])[0], Reading(invalid="replace"))
    (bad / "b.md").write_bytes(b"ends in half \xf0\x9f")
    assert read(bad, invalid="replace") == [
        "caf\N{REPLACEMENT CHARACTER}",
        "ends in half \N{REPLACEMENT CHARACTER}",
        "one",
        "\N{REPLACEMENT CHARACTER}!",
        "good",
    ]
    assert scan(find_sources([str(bad)])[0], Reading(invalid="replace")).n_invalid == 3


def test_a_folder_that_cannot_be_searched_is_named_wherever_it_lies(tmp_path):
    (tmp_path / "closed" / "sub").mkdir(parents=True)
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "closed" / "b.txt").write_text("text")
    (tmp_path / "closed").chmod(0)
    specs = [tmp_path, tmp_path / "closed", tmp_path / "closed" / "sub", tmp_path / "closed" / "b.txt"]
    code = (
        "import sys\nfrom vitrine.text.sources import *\n"
        "for spec in sys.argv[1:]:\n"
        "    try: print(find_sources([spec]))\n"
        "    except CorpusError as error: print(error)"
    )
    try:
        said = subprocess.run(
            [sys.executable, "-c", code, *map(str, specs)],
            capture_output=True,
            text=True,
            check=True,
            preexec_fn=obey_permissions if os.geteuid() == 0 else None,
        )
    finally:
        (tmp_path / "closed").chmod(0o755)
    lines = said.stdout.splitlines()
    assert lines[0] == lines[1]
    assert (
        f"The folder {tmp_path / 'closed'} cannot be searched: Permission denied. Its text would be missing" in lines[0]
    )
    assert lines[2] == f"{specs[2]} cannot be searched: Permission denied."
    assert lines[3] == f"{specs[3]} cannot be searched: Permission denied."


def test_links_to_folders_and_what_is_no_file_are_counted_as_left_out(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("text")
    (tmp_path / "linked").symlink_to(tmp_path / "folder")
    (tmp_path / "b.txt").symlink_to(tmp_path / "folder" / "a.txt")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    source = find_sources([str(tmp_path)])[0]
    assert [file.name for file in source.files] == ["b.txt", "a.txt"]
    assert source.left_out == {"linked folder": (1, 0), "special file": (2, 0)}


def test_a_data_set_that_was_saved_to_disk_is_read_by_its_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"n": [1, 2, 3], "text": DOCUMENTS})
    rows.save_to_disk(tmp_path / "rows")
    datasets.DatasetDict(train=rows, test=rows.select([0])).save_to_disk(tmp_path / "splits")
    assert read(tmp_path / "rows") == read(tmp_path / "splits") == DOCUMENTS
    assert read(tmp_path / "splits" / "test") == DOCUMENTS[:1]
    source = find_sources([str(tmp_path / "splits")])[0]
    assert list(source.left_out) == ["split test"]
    facts = scan(source)
    assert (facts.documents, len(facts.file_digests)) == (3, 1)
    assert len(set(facts.document_keys)) == 3
    assert facts.digest == sources.digest_of(source)
    with pytest.raises(CorpusError, match="saved by the datasets library, and lies within another folder"):
        find_sources([str(tmp_path)])
    (tmp_path / "rows" / "state.json").write_text("{}")
    with pytest.raises(CorpusError, match="saved by the datasets library, but is not whole"):
        find_sources([str(tmp_path / "rows")])


def test_an_empty_argument_names_no_text():
    for spec in ("", " "):
        with pytest.raises(CorpusError, match="An argument is empty"):
            find_sources([spec])


@given(st.text(alphabet="ab \n\u2003é", max_size=40))
def test_a_piece_is_cut_at_the_last_place_before_white_space(content):
    places = [
        n for n in range(len(content) // 2 + 1, len(content)) if content[n].isspace() and not content[n - 1].isspace()
    ]
    assert sources._last_cut(content) == max(places, default=0)
    assert sources._last_cut(" " * 700 + "a" + content[:1] + "b" * 600) == (701 if content[:1].isspace() else 0)
